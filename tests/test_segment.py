"""Task 2: decoder, folds, leakage, unannotated samples, determinism, bad input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from beatssl.data.records import wave_marks
from beatssl.evaluate import evaluate_run, train
from beatssl.methods import make_run
from beatssl.methods.encoder import build_encoder
from beatssl.profile import Profile
from beatssl.settings import ConfigError
from beatssl.tasks import segment
from beatssl.tasks.base import Case
from beatssl.tasks.scores import MetricError, segmentation_scores
from beatssl.tasks.segment import SegmentConfig

CONFIG = SegmentConfig(
    folds=3, epochs=6, batch_size=4, decoder_width=8, bootstrap=20, finetune_learning_rates=(2e-3,)
)
RANDOM = make_run(method="random", seed=1)
TRAINED = make_run(seed=1)


def validated(encoder, store, config, seed, trainable) -> dict:
    """`segment.cross_validate`."""
    case = Case(TRAINED, config, store, encoder, "finetune" if trainable else "frozen")
    return segment.cross_validate(case, seed=seed)


class FakeStore:
    """LUDB-like rows: every wave is a level of its own; the ends are not annotated."""

    sampling_rate = 100
    fingerprint = "fake"
    content = "fake"

    def __init__(self, n: int = 12, time: int = 118, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.truth = np.zeros((n, time), np.int8)
        for i in range(n):
            start = rng.integers(5, 15)
            for wave, first, length in ((1, 0, 12), (2, 20, 10), (3, 40, 20)):
                self.truth[i, start + first : start + first + length] = wave
        level = np.array([0.0, 1.0, -2.0, 3.0])[self.truth]
        noise = rng.normal(scale=0.1, size=(n, 12, time))
        self.data = (level[:, None] + noise).astype(np.float32)
        self.truth[:, 100:] = -1
        ids = [f"l{i}" for i in range(n)]
        self.table = pd.DataFrame({"record_id": ids, "patient_id": ids})

    def rows(self, dataset, folds=None):
        return np.arange(len(self.table)) if dataset == "ludb" else np.empty(0, int)

    def load(self, rows):
        return self.data[rows]

    def wave_targets(self, rows, lead="II"):
        return self.truth[rows]

    def wave_marks(self, rows, lead="II"):
        return wave_marks(self.truth[rows], self.sampling_rate)


class TinyEncoder(nn.Module):
    """Strided convolution: (batch, 12, time) -> (batch, 16, ceil(time / 4))."""

    channels, stride = 16, 4

    def __init__(self, dropout=0.0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv1d(12, 16, 5, stride=4, padding=2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.dropout(self.conv(x))


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("time", [96, 97])
def test_decoder_gives_one_logit_vector_for_every_input_sample(stride, time):
    steps = -(-time // stride)
    decoder = segment.build_decoder(6, stride, 8, seed=0)
    assert decoder(torch.zeros(2, 6, steps), time).shape == (2, 4, time)
    with pytest.raises(ValueError, match="do not cover"):
        decoder(torch.zeros(2, 6, steps - 1), time)


def test_decoder_fits_the_projects_encoder():
    profile = Profile("fake")
    encoder = build_encoder(profile.encoder, seed=0)
    decoder = segment.build_decoder(encoder.channels, encoder.stride, 16, seed=0)
    model = segment.Segmenter(encoder, decoder, 250).eval()
    assert model(torch.zeros(1, 12, 250)).shape == (1, 4, 250)


def test_decoder_is_the_same_for_every_stride_and_beyond_the_first_convolution_for_every_encoder():
    first, *others = (
        segment.build_decoder(channels, stride, 8, seed=0).state_dict()
        for channels, stride in ((6, 1), (6, 3), (6, 4), (320, 8))
    )
    for other in others:
        assert list(other) == list(first)
        same = [name for name in first if other[name].shape == first[name].shape]
        assert all(torch.equal(first[name], other[name]) for name in same if "narrow" not in name)
        assert {name for name in first if name not in same} <= {
            "narrow.0.running_mean",
            "narrow.0.running_var",
            "narrow.1.weight",
        }


def test_decoder_reaches_twelve_samples_either_way_at_every_stride():
    for stride in (1, 4, 5):
        decoder = segment.build_decoder(3, stride, 8, seed=0).eval()
        e = torch.zeros(1, 3, 40, requires_grad=True)
        middle = 20 * stride
        gradient = torch.autograd.grad(decoder(e, 40 * stride)[0, :, middle].sum(), e)[0]
        touched = gradient.abs().sum(dim=(0, 1)).nonzero().ravel()
        reach = -(-(12 + stride) // stride) - 1  # steps whose hat lies within 12 samples
        assert touched.tolist() == list(range(20 - reach, 20 + reach + 1))


@pytest.mark.parametrize("rate, samples", [(100, 9), (250, 23), (500, 45), (1000, 89)])
def test_the_decoder_reaches_as_far_in_time_at_any_sampling_rate(rate, samples):
    """Three kernels of 90 ms, to the sample; they have an odd number of samples."""
    decoder = segment.build_decoder(3, 1, 8, seed=0, sampling_rate=rate).eval()
    assert {c.kernel_size[0] for c in decoder.layers if hasattr(c, "kernel_size")} == {samples, 1}
    e = torch.zeros(1, 3, 401, requires_grad=True)
    (gradient,) = torch.autograd.grad(decoder(e, 401)[0, :, 200].sum(), e)
    touched = gradient.abs().sum(dim=(0, 1)).nonzero().ravel() - 200
    assert touched.min() == -touched.max() == -3 * (samples // 2)
    assert abs(1000 * samples / rate - 90) <= 1000 / rate


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 7])
def test_interpolation_is_numpys_at_the_samples_of_the_steps(stride):
    x = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    time = 9 * stride - stride // 2
    where = np.arange(9) * stride
    expected = [[np.interp(np.arange(time), where, lead) for lead in one] for one in x.numpy()]
    np.testing.assert_allclose(segment.upsample(x, stride, time), expected, atol=1e-12)
    assert segment.upsample(torch.full((1, 1, 9), 0.3), stride, time).unique().numel() == 1
    for step in (0, 4, 8):
        spike = torch.zeros(1, 1, 9).index_fill_(2, torch.tensor(step), 1.0)
        found = segment.upsample(spike, stride, 9 * stride)[0, 0]
        assert found[step * stride] == 1 == found.max()
        if step < 8:  # the last one is held
            assert found.argmax() == step * stride and (found == 1).sum() == 1
    x = torch.tensor([[[0.0, 2.0, 6.0]]])
    assert segment.upsample(x, 2, 6).tolist() == [[[0, 1, 2, 4, 6, 6]]]


def test_decoder_ignores_the_scale_of_an_encoder():
    e = torch.randn(4, 6, 20, generator=torch.Generator().manual_seed(0))
    scale = torch.linspace(0.5, 40, 6)[:, None]
    a = segment.build_decoder(6, 4, 8, seed=0).train()(e, 80)
    b = segment.build_decoder(6, 4, 8, seed=0).train()(e * scale + 3, 80)
    assert torch.allclose(a, b, atol=1e-3)


def test_number_of_weights_is_that_of_the_decoder():
    channels, width = 6, 8
    first = channels * width + width
    inner = 3 * (width * width * 9 + 2 * width)
    last = width * 4 + 4
    for stride in (1, 4):
        decoder = segment.build_decoder(channels, stride, width, seed=0)
        assert sum(p.numel() for p in decoder.parameters()) == first + inner + last


def test_halves_of_ludb_are_disjoint_and_cross_validated_by_themselves(small):
    whole, first, second = (
        segment.shared(small.store, SegmentConfig(folds=2, records=part))
        for part in ("all", "first", "second")
    )
    ids = [*first["record_id"], *second["record_id"]]
    assert ids == list(whole["record_id"]) and len(first["record_id"]) == len(ids) // 2
    assert set(first["fold"]) == set(second["fold"]) == {1, 2}
    for part, where in ((first, slice(4)), (second, slice(4, None))):
        np.testing.assert_array_equal(part["truth"], whole["truth"][where])
    with pytest.raises(
        ConfigError, match="records='third' is not known; known: all, first, second"
    ):
        SegmentConfig(records="third")


def test_decoder_is_reproducible_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b, c = (segment.build_decoder(6, 4, 8, seed=s).state_dict() for s in (0, 0, 1))
    assert torch.rand(1) == expected
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_folds_test_every_record_once_and_never_depend_on_a_seed():
    ids = np.array([f"l{i}" for i in range(23)])
    parts = list(segment.folds(ids, 5))
    assert sorted(np.concatenate([test for _, test in parts])) == list(range(23))
    for seen, unseen in parts:
        assert not set(seen) & set(unseen) and len(seen) + len(unseen) == 23
    again = list(segment.folds(ids, 5))
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(parts, again, strict=True))
    other = [test for _, test in segment.folds(ids, 5, split=1)]  # another shuffling
    assert sorted(np.concatenate(other)) == list(range(23))
    assert not any(np.array_equal(test, a[1]) for test, a in zip(other, parts, strict=True))
    # the fold of a record does not depend on the order of the rows
    shuffled = np.random.default_rng(0).permutation(23)
    moved = list(segment.folds(ids[shuffled], 5))
    for (_, a), (_, b) in zip(parts, moved, strict=True):
        assert set(ids[a]) == set(ids[shuffled][b])


def test_rows_of_one_record_stay_in_one_fold():
    ids = np.array([f"l{i // 2}#{i % 2}" for i in range(20)])
    for seen, unseen in segment.folds(ids, 4):
        halves = [{name.split("#")[0] for name in ids[part]} for part in (seen, unseen)]
        assert not halves[0] & halves[1]


def test_too_few_records_and_a_missing_wave_are_named():
    with pytest.raises(MetricError, match="3 LUDB records cannot fill 5 folds"):
        list(segment.folds(np.array(["a", "b", "c"]), 5))
    with pytest.raises(MetricError, match="0 LUDB records"):
        validated(TinyEncoder(), FakeStore(0), CONFIG, 0, False)
    store = FakeStore()
    store.truth[store.truth == 1] = 0
    with pytest.raises(MetricError, match="lead II.*no sample is annotated as P"):
        validated(TinyEncoder(), store, CONFIG, 0, False)


@pytest.mark.parametrize("protocol, run", [("frozen", TRAINED), ("scratch", RANDOM)])
def test_waves_that_are_in_the_signal_are_found(protocol, run):
    config = dataclasses.replace(CONFIG, epochs=30, decoder_width=16)
    case = Case(run, config, FakeStore(24), TinyEncoder(), protocol)
    found = segment.Segmentation().predictor(case)(1.0)
    scores = segmentation_scores(found)
    assert scores["f1_macro"] > 0.8 and scores["event_sensitivity_QRS_onset"] > 0.9
    assert found["prediction"].shape == found["truth"].shape == (24, 118)
    assert found["prediction"].dtype == np.int8
    assert set(found["fold"]) == {1, 2, 3}


@pytest.mark.parametrize("trainable, dropout", [(False, 0.0), (True, 0.0), (True, 0.5)])
def test_same_seed_same_predictions_and_the_encoder_is_left_alone(trainable, dropout):
    store, encoder = FakeStore(), TinyEncoder(dropout)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    a, b = (validated(encoder, store, CONFIG, 0, trainable) for _ in range(2))
    assert np.array_equal(a["prediction"], b["prediction"])
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


@pytest.mark.parametrize("trainable", [False, True])
def test_annotation_of_a_test_record_does_not_reach_its_prediction(trainable):
    store, encoder = FakeStore(), TinyEncoder()
    before = validated(encoder, store, CONFIG, 0, trainable)
    hidden = before["fold"] == 1
    store.truth[hidden, :100] = (store.truth[hidden, :100] + 1) % 4
    after = validated(encoder, store, CONFIG, 0, trainable)
    assert np.array_equal(after["prediction"][hidden], before["prediction"][hidden])


class Levels(nn.Module):
    """Reads the waves of `FakeStore` from the level of the leads; `shift` makes it read wrongly."""

    def __init__(self, shift):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))

    def forward(self, x):
        level = torch.tensor([0.0, 1.0, -2.0, 3.0])[:, None] + self.shift
        return -((x.mean(dim=1, keepdim=True) - level) ** 2)


def test_the_rate_that_is_best_on_a_held_out_fifth_is_used_in_all_folds(monkeypatch):
    store, calls, diverging = FakeStore(30), [], set()
    shift = {1e-4: 0.7, 1e-3: 0.0, 1e-2: 0.9}

    def fitted(case, inputs, target, rate, seed, standardise=True):
        calls.append((rate, {x.numpy().tobytes() for x in inputs}, seed))
        if rate in diverging:
            raise FloatingPointError
        return Levels(shift[rate])

    monkeypatch.setattr(segment, "fitted", fitted)
    config = dataclasses.replace(CONFIG, finetune_learning_rates=tuple(shift), learning_rate=1e-4)
    found = validated(TinyEncoder(), store, config, 0, True)
    assert found["learning_rate"] == 1e-3
    assert [rate for rate, *_ in calls] == [1e-4, 1e-3, 1e-2, 1e-3, 1e-3, 1e-3]
    inner, whole = calls[0][1], calls[3][1]
    assert inner == calls[1][1] == calls[2][1] and inner < whole  # within the training part
    assert (len(inner), len(whole)) == (16, 20)
    tested = {store.data[i].tobytes() for i in np.flatnonzero(found["fold"] == 1)}
    assert not tested & whole
    again = list(calls)
    calls.clear()
    validated(TinyEncoder(), store, config, 5, True)
    assert [c[1] for c in calls] == [c[1] for c in again]  # the same fifth for every seed
    diverging.add(1e-3)
    found = validated(TinyEncoder(), store, config, 0, True)
    assert found["learning_rate"] == 1e-4
    diverging.update(shift)
    with pytest.raises(FloatingPointError, match="lower the learning rates"):
        validated(TinyEncoder(), store, config, 0, True)


def test_a_frozen_decoder_and_a_single_rate_need_no_choice(monkeypatch):
    monkeypatch.setattr(
        segment,
        "folds",
        lambda ids, count, *split, real=segment.folds: (
            real(ids, count, *split) if len(ids) == 12 else pytest.fail("records were held out")
        ),
    )
    for trainable, rate in ((False, 3e-3), (True, 2e-3)):
        config = dataclasses.replace(CONFIG, learning_rate=3e-3, epochs=1)
        found = validated(TinyEncoder(), FakeStore(), config, 0, trainable)
        assert found["learning_rate"] == rate


def test_records_tested_in_the_first_fold_do_not_reach_the_choice_of_the_rate():
    store, encoder = FakeStore(24), TinyEncoder()
    rates = (1e-5, 1e-2)
    config = dataclasses.replace(CONFIG, finetune_learning_rates=rates, epochs=3)
    before = validated(encoder, store, config, 0, True)
    hidden = before["fold"] == 1
    one = [
        validated(
            encoder, store, dataclasses.replace(config, finetune_learning_rates=(rate,)), 0, True
        )["prediction"]
        for rate in rates
    ]
    assert np.array_equal(before["prediction"], one[rates.index(before["learning_rate"])])
    assert not np.array_equal(*one)
    store.truth[hidden, :100] = (store.truth[hidden, :100] + 1) % 4
    after = validated(encoder, store, config, 0, True)
    assert after["learning_rate"] == before["learning_rate"]
    assert np.array_equal(after["prediction"][hidden], before["prediction"][hidden])


def test_labels_under_unannotated_samples_do_not_train():
    """Training on -1 equals training on a loss summed by hand over the annotated samples."""
    store = FakeStore(4)
    inputs, truth = torch.from_numpy(store.data), torch.from_numpy(store.truth).long()
    model = segment.Segmenter(None, segment.build_decoder(12, 1, 4, seed=0), 118)
    logits = model(inputs)
    loss = nn.functional.cross_entropy(logits, truth, ignore_index=-1)
    log_p = logits.log_softmax(dim=1).permute(0, 2, 1)[truth >= 0]
    by_hand = -log_p.gather(1, truth[truth >= 0][:, None]).mean()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    gradient = torch.autograd.grad(loss, logits)[0].permute(0, 2, 1)
    assert (gradient[truth < 0] == 0).all() and (gradient[truth >= 0] != 0).any()


def test_saved_results_are_reused(small, tmp_path, monkeypatch):
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    run = train(small, make_run(method="random", variant="x"))
    rows = evaluate_run(small, run, "segmentation")
    monkeypatch.setattr(segment, "cross_validate", None)
    assert evaluate_run(small, run, "segmentation").equals(rows)
    with torch.no_grad():
        run.encoder.layers[0].weight += 1
    with pytest.raises(TypeError):  # other weights: not served from the old files
        evaluate_run(small, run, "segmentation")
