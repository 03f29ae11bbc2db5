"""The pretraining loop: determinism, exact resume, failure, leakage."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from beatssl import train as p
from beatssl.methods import make_run
from beatssl.methods.beatssl import BeatSSL
from beatssl.methods.encoder import ArchitectureError
from beatssl.methods.losses import LOSSES
from beatssl.methods.targets import MEASURES, similarity
from beatssl.settings import Rotation

CONFIG = make_run(rhythm="soft_1", beat="hard", exponent=50, epochs=3, batch_size=32)


@pytest.fixture
def work(small, tmp_path, monkeypatch):
    """The small workspace with an empty folder for runs."""
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    return small


def go(work, config=CONFIG, **options):
    return p.pretrain(config, work.profile, work.store, work.beats, device="cpu", **options)


def same(a, b):
    a, b = a.encoder.state_dict(), b.encoder.state_dict()
    return all(torch.equal(a[k], b[k]) for k in a)


def test_interrupted_and_resumed_equals_uninterrupted(work, tmp_path, monkeypatch):
    whole = go(work)
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path / "other"))
    assert go(work, stop_after=1) is None
    assert go(work, stop_after=2) is None
    resumed = go(work)
    assert same(whole, resumed)
    left = whole.curves.drop(columns="seconds")
    pd.testing.assert_frame_equal(left, resumed.curves.drop(columns="seconds"))


def test_a_finished_run_is_read_back_and_other_settings_get_another_folder(work):
    first = go(work)
    stamp = first_files(work)
    assert same(first, go(work)) and first_files(work) == stamp
    other = go(work, replace(CONFIG, temperature=0.2))
    assert not same(first, other) and set(stamp) < set(first_files(work))


def first_files(work):
    return {f: f.stat().st_mtime_ns for f in (work.profile.work / "runs").rglob("*.safetensors")}


@pytest.mark.parametrize(
    "change",
    [
        {"rhythm": "hard", "beat": "none", "exponent": 1.0},
        {"rhythm": "soft_2", "beat": "soft_2", "exponent": 1.0},
        {"rhythm": "hard", "beat": "soft_1", "beat_scope": "record"},
        {"beat_classifier": "clusters"},
        {"loss": "unnormalised"},
        {"loss": "bce"},
        {"loss": "mse"},
        {"soft_1": "cosine_minmax", "encoder_step_ms": 20.0},
    ],
)
def test_kinds_of_row_train_and_the_loss_falls(work, change):
    curves = go(work, replace(CONFIG, **change, epochs=4, learning_rate=3e-3)).curves
    assert curves["total"].iloc[-1] < curves["total"].iloc[0]
    assert np.isfinite(curves.to_numpy()).all()
    assert ("beat" in curves) == (change.get("beat") != "none")


def test_total_is_the_weighted_sum(work):
    curves = go(work, replace(CONFIG, epochs=1, rhythm_weight=0.5, beat_weight=2.0)).curves
    expected = 0.5 * curves["rhythm"] + 2.0 * curves["beat"]
    np.testing.assert_allclose(curves["total"], expected, rtol=1e-5)


def test_random_method_is_the_untrained_encoder(work):
    from beatssl.methods.encoder import build_encoder

    run = go(work, make_run(method="random", seed=3))
    fresh = build_encoder(work.profile.encoder, 3).state_dict()
    assert all(torch.equal(fresh[k], v) for k, v in run.encoder.state_dict().items())
    assert run.curves.empty


def test_divergence_stops_with_the_last_good_checkpoint(work, monkeypatch):
    go(work, stop_after=1)
    step = BeatSSL.training_step
    monkeypatch.setattr(
        BeatSSL, "training_step", lambda *a: {k: v * float("nan") for k, v in step(*a).items()}
    )
    with pytest.raises(p.DivergedError, match="epoch 2.*learning_rate") as told:
        go(work)
    assert len(told.value.curves) == 1
    good = next((work.profile.work / "runs").rglob("checkpoint.pt"))
    state = torch.load(good, weights_only=True)
    assert all(torch.isfinite(v).all() for v in state["model"].values() if v.is_floating_point())


def test_a_diverged_run_is_not_tried_again_and_says_so(work, monkeypatch):
    go(work, stop_after=1)
    step = BeatSSL.training_step
    with monkeypatch.context() as patch:
        patch.setattr(
            BeatSSL, "training_step", lambda *a: {k: v * float("nan") for k, v in step(*a).items()}
        )
        with pytest.raises(p.DivergedError) as first:
            go(work)
    monkeypatch.setattr(BeatSSL, "training_step", lambda *a: pytest.fail("trained again"))
    with pytest.raises(p.DivergedError) as again:
        go(work)
    assert str(again.value) == str(first.value) and len(again.value.curves) == 1


def test_a_run_may_have_its_own_stride(work):
    run = go(work, make_run(method="random", encoder_step_ms=20.0))
    assert run.encoder.stride == 2 and work.profile.encoder.step_ms == 40
    assert go(work, make_run(method="random", encoder_step_ms=20.0)).encoder.stride == 2


def test_features_cannot_be_pretrained(work):
    with pytest.raises(ValueError, match="no encoder"):
        go(work, make_run(method="features"))


def test_a_checkpoint_of_another_architecture_is_refused(work):
    go(work, stop_after=1)
    path = next((work.profile.work / "runs").rglob("checkpoint.pt"))
    state = torch.load(path, weights_only=True)
    state["model"] = {k: v[:1] if v.ndim else v for k, v in state["model"].items()}
    torch.save(state, path)
    with pytest.raises(ArchitectureError, match="remove the folder.*(?s:.*)size mismatch"):
        go(work)


def test_an_interrupted_write_leaves_the_old_checkpoint(work, monkeypatch):
    go(work, stop_after=1)

    def broken(state, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(p.torch, "save", broken)
        with pytest.raises(OSError):
            go(work, stop_after=2)
    assert len(go(work).curves) == CONFIG.epochs


def test_a_checkpoint_that_a_kill_left_beside_the_finished_run_is_removed(work):
    whole = go(work)
    (folder,) = (work.profile.work / "runs").iterdir()
    (folder / "checkpoint.pt").write_bytes(b"left")
    assert same(whole, go(work)) and not (folder / "checkpoint.pt").exists()


def test_too_few_records_is_an_error(work, monkeypatch):
    monkeypatch.setattr(p, "pretraining_rows", lambda *a: np.array([0]))
    with pytest.raises(ValueError, match="nothing to contrast"):
        go(work)


def test_monitor_sees_an_encoder_in_evaluation_mode_and_does_not_change_the_run(
    work, tmp_path, monkeypatch
):
    plain = go(work)
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path / "other"))
    seen = []
    watched = go(work, monitor=lambda e: seen.append(e.training) or {"probe": 1.0})
    assert seen == [False, False] and same(plain, watched)
    assert watched.curves["probe"].tolist()[0] == 1 and len(watched.curves["probe"].dropna()) == 2


def test_batches_hold_only_beats_whose_window_is_inside(work):
    rows = p.pretraining_rows(work.store, work.beats, Rotation())
    source = p.BatchSource(work.store, work.beats, rows, CONFIG, Rotation())
    generator = torch.Generator().manual_seed(0)
    rate, time = work.store.sampling_rate, work.store.signals.shape[2]
    for batch in source.epoch(generator):
        r = batch.r_peak.flatten()[batch.beats]
        assert (r >= CONFIG.beat_before * rate).all()
        assert (r <= time - 1 - CONFIG.beat_after * rate).all()
        assert batch.r_peak.shape == (len(batch.items), CONFIG.beats_per_record)
        assert batch.beats.unique().equal(batch.beats) and len(batch.beats) == len(batch.beat_class)
        for place, features in zip(batch.beats.tolist(), batch.beat_features):
            record, peak = divmod(place, CONFIG.beats_per_record)  # each beat has its own features
            row, peak = rows[batch.items[record]], batch.r_peak[record, peak]
            (own,) = np.flatnonzero(work.beats.r_peak[row] == peak.item())
            expected = work.beats.features[row, own]
            np.testing.assert_array_equal(features, expected)
        expected = torch.from_numpy(work.store.load(rows[batch.items]))
        assert torch.equal(batch.signals, expected)


class Waits(TorchDispatchMode):
    """Lists the operations in which the processor would have to wait for a GPU: those that hand a
    value over, and those whose result has a size that only the values tell."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, flat = str(func), torch.utils._pytree.tree_leaves(args)
        masks = name.startswith("aten.index") and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in flat[1:]
        )
        if masks or name.startswith(("aten._local_scalar", "aten.nonzero", "aten.masked_select")):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings", [{}, *({"loss": loss} for loss in LOSSES), {"beat_scope": "record"}]
)
def test_a_step_never_waits_for_the_device(work, settings):
    config = make_run(rhythm="soft_1", beat="soft_2", exponent=50, epochs=1, **settings)
    training = p.Training(config, work.profile, work.store, work.beats, torch.device("cpu"))
    batch = next(training.source.epoch(training.generator))
    with Waits() as waits:
        waits.seen = []
        losses = training.model.training_step(batch, training.generator)
        losses["total"].backward()
        assert waits.seen == []
        losses["total"].item(), batch.signals[batch.signals > 0]
        assert len(waits.seen) == 2


def test_the_unit_of_amplitudes_matters_to_the_raw_cosine_only(work):
    rows = p.pretraining_rows(work.store, work.beats, Rotation())
    mv, uv = (
        p.BatchSource(
            work.store, work.beats, rows, replace(CONFIG, amplitude_unit=unit), Rotation()
        )
        for unit in ("mV", "uV")
    )
    for measure in MEASURES:
        for of in (
            lambda s: (s.record_features, s.record_scale),
            lambda s: (s.features[s.valid][:200], s.beat_scale),
        ):
            there, here = (similarity(measure, *of(s)).triu(1) for s in (mv, uv))
            if measure == "cosine":
                assert (there - here).abs().max() > 0.01
            else:
                torch.testing.assert_close(there, here, atol=1e-3, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_curves_hold_kl_for_the_normalised_loss_only(work, loss):
    curves = go(work, replace(CONFIG, epochs=1, loss=loss)).curves
    if loss != "normalised":
        assert not {"rhythm_kl", "beat_kl"} & set(curves)
        return
    for kl, of, entropy in (
        ("rhythm_kl", "rhythm", "row_entropy"),
        ("beat_kl", "beat", "beat_row_entropy"),
    ):
        np.testing.assert_allclose(curves[kl], curves[of] - curves[entropy], atol=1e-5)
        assert (curves[kl] > 0).all()


def test_warmup_then_cosine_to_zero():
    factors = [p.warmup_cosine(s, 100, 0.1) for s in range(100)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    assert factors[10] == 1 and factors[-1] < 0.01
    assert all(a >= b for a, b in zip(factors[10:], factors[11:]))
