"""The delineator: what it reads does not depend on the device, borders are finer than its step,
windows leave no seam."""

from __future__ import annotations

import resource
from dataclasses import replace

import copy

import numpy as np
import pandas as pd
import pytest
import torch

import beatssl
from beatssl import delineator
from beatssl.data.records import LEADS, wave_runs
from beatssl.delineator import (
    GRID,
    RATE,
    STRIDE,
    DelineatorConfig,
    build_delineator,
    delineate,
    prepared,
    read_delineator,
    save_delineator,
    waves_of,
)
from beatssl.ecg import ECG, read_ecg
from beatssl.tasks import learn_waves
from beatssl.tasks.learn_waves import Annotated, LearnConfig, batch, item, learn, simulated, targets
from beatssl.settings import ROOT
from beatssl.tasks.scores import border_scores
from beatssl.weights import SHA256, WeightsError

SMALL = DelineatorConfig((4, 6, 8), kernel=3, dilations=(1,))


@pytest.fixture(scope="module")
def record() -> Annotated:
    return simulated(1, seed=3)[0]


def as_ecg(record: Annotated, *leads: str) -> ECG:
    return read_ecg(record.signal, record.sampling_rate, LEADS) if not leads else read_ecg(
        record.signal[[LEADS.index(lead) for lead in leads]], record.sampling_rate, leads
    )  # fmt: skip


def long_ecg(seconds: float, leads: tuple[str, ...] = ("II", "V2")) -> ECG:
    made = simulated(1, seed=5, seconds=seconds)[0]
    return as_ecg(made, *leads)


def test_targets_are_shares_by_counting():
    """Against a loop over the samples of each step: a sample reaches half way to its neighbours."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (2, 40)).astype(np.int8)
    got = targets(labels, first=4.0, step=4.0, count=8)
    for step in range(8):
        inside = dict.fromkeys(range(4 * step + 3, 4 * step + 6), 1.0)
        inside |= {4 * step + 2: 0.5, 4 * step + 6: 0.5}
        for lead in range(2):
            want = np.zeros(4)
            for sample, share in inside.items():
                want[labels[lead, sample]] += share / 4
            np.testing.assert_allclose(got[lead, :, step], want, atol=1e-6)


def test_a_step_that_is_partly_unannotated_has_no_target():
    labels = np.zeros((1, 40), np.int8)
    labels[0, :10] = -1
    known = targets(labels, first=2.0, step=4.0, count=9).sum(axis=1)[0]
    assert known.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]


def test_borders_come_back_finer_than_the_step(record):
    """Read off the targets themselves: within 2 ms of the marks, where a step is 8 ms."""
    x, there = prepared(record.signal, record.sampling_rate)
    share = targets(record.labels, 0.0, 4.0, x.shape[1] // STRIDE)
    found, marks = waves_of(share, x, there), wave_runs(record.labels)
    for lead in range(12):
        for wave in range(3):
            own = found[(found[:, 0] == lead) & (found[:, 1] == wave)]
            want = marks[(marks[:, 0] == lead) & (marks[:, 1] == wave + 1)]
            want = want[want[:, 3] - want[:, 2] > 26][1:-1]  # 52 ms; the ends may be cut
            if not len(want):
                continue
            error = np.abs(own[:, None, [2, 4]] * 1000 / RATE - want[None, :, 2:] * 2.0)
            nearest = error.max(axis=2).min(axis=0)
            assert nearest.max() < 5.0 and np.median(nearest) <= 2.0


@pytest.mark.parametrize("rate", [100, 128, 360, 1000])
def test_what_is_read_does_not_depend_on_rate_and_gain(record, rate):
    smooth = delineator.dsp.sosfiltfilt(
        delineator.dsp.butter(6, 12, fs=500, output="sos"), record.signal, axis=1
    )
    usual, _ = prepared(smooth, 500.0)
    ratio = delineator.Fraction(rate, 500)
    other = delineator.dsp.resample_poly(smooth, *ratio.as_integer_ratio(), axis=1, padtype="line")
    got, there = prepared(7.0 * other, float(rate))
    inside = slice(250, min(got.shape[1], usual.shape[1]) - 250)
    assert there.all() and np.abs(got[:, inside] - usual[:, inside]).max() < 0.03


def test_leads_have_no_order_and_a_constant_means_nothing(record):
    network = build_delineator(SMALL, 0).eval()
    x, _ = prepared(record.signal, record.sampling_rate)
    turned = np.random.default_rng(0).permutation(12)
    pad = -x.shape[1] % network.reach
    x = np.pad(x, ((0, 0), (0, pad)))
    with torch.inference_mode():
        usual = network(torch.from_numpy(x)[None])[0]
        other = network(torch.from_numpy(x[turned])[None])[0]
    torch.testing.assert_close(usual[turned], other, atol=1e-4, rtol=1e-4)
    shifted, _ = prepared(record.signal + 3.0, record.sampling_rate)
    np.testing.assert_allclose(shifted, x[:, : shifted.shape[1]], atol=1e-4)


def test_other_leads_are_seen():
    network = build_delineator(SMALL, 0).eval()
    x = torch.randn(1, 2, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        both, alone = network(x)[0, 0], network(x[:, :1])[0, 0]
    assert (both - alone).abs().max() > 1e-3


def test_margin_covers_what_a_step_sees():
    """A change more than a margin away changes nothing: so windows leave no seam."""
    network = build_delineator(DelineatorConfig(), 0).eval()
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((1, 3 * GRID * 2)) * 0.2  # 96 s at 500 Hz
    other = signal.copy()
    other[:, :250] += 3.0 * rng.standard_normal((1, 250))
    made = [delineator.probabilities(network, s, 500.0)[0] for s in (signal, other)]
    far = (GRID + 125) // STRIDE
    np.testing.assert_allclose(made[0][..., far:], made[1][..., far:], atol=1e-5)
    assert np.abs(made[0] - made[1]).max() > 1e-3


def test_windows_leave_no_seam(monkeypatch):
    ecg = long_ecg(100.0)
    whole = delineate(ecg)
    assert len(whole) > 100
    monkeypatch.setattr(delineator, "CORE", GRID)
    pieces = delineate(ecg)
    assert pieces[["lead", "wave"]].equals(whole[["lead", "wave"]])
    for column in ("onset", "peak", "offset", "probability"):
        np.testing.assert_allclose(pieces[column], whole[column], atol=2e-4)


def test_waves_are_where_the_simulator_put_them():
    """Of records that it was not trained on: their seed is another."""
    hits = total = extra = 0
    for record in simulated(8, seed=991):
        table = delineate(as_ecg(record))
        qrs = table[table["wave"] == "QRS"]
        for number, lead in enumerate(LEADS):
            own = qrs.loc[qrs["lead"] == lead, "onset"].to_numpy()
            marks = wave_runs(record.labels[[number]])
            marks = marks[marks[:, 1] == 2]
            near = np.abs(own[:, None] - marks[None, :, 2] / record.sampling_rate) < 0.15
            known = np.flatnonzero(record.labels[number] >= 0) / record.sampling_rate
            hits, total = hits + near.any(axis=0).sum(), total + len(marks)
            inside = (own > known[0]) & (own < known[-1])
            extra += (~near.any(axis=1) & inside).sum()
    assert hits > 0.97 * total and extra < 0.03 * total


def test_order_of_a_table_and_its_columns(record):
    table = delineate(as_ecg(record))
    assert list(table) == list(delineator.COLUMNS)
    assert (table["onset"] <= table["peak"]).all() and (table["peak"] <= table["offset"]).all()
    assert table["probability"].between(0.5, 1).all()
    for lead in LEADS:
        own = table[table["lead"] == lead]
        assert own["onset"].is_monotonic_increasing
        t = own[own["wave"] == "T"]["onset"].to_numpy()
        qrs = own[own["wave"] == "QRS"]["onset"].to_numpy()
        between = np.searchsorted(qrs, t)
        assert len(between) == len(set(between))  # one T between two QRS


def test_flat_and_missing_leads_have_no_waves(record):
    signal = record.signal.copy()
    signal[3] = 0.7
    signal[5] = np.nan
    signal[7, 1000:3000] = np.nan
    table = delineate(read_ecg(signal, record.sampling_rate, LEADS))
    assert not set(table["lead"]) & {"aVR", "aVF"}
    assert any("aVR, aVF" in note for note in table.attrs["notes"])
    inside = table[(table["lead"] == "V2") & (table["peak"] > 2.05) & (table["peak"] < 5.95)]
    assert inside.empty and (table["lead"] == "V2").any()


def test_noise_and_nothing_give_an_empty_table():
    rng = np.random.default_rng(0)
    quiet = read_ecg(1e-4 * rng.standard_normal(2500), 250, ["II"])
    assert delineate(quiet).empty and list(delineate(quiet)) == list(delineator.COLUMNS)


def test_shortest_ecg_of_each_rate(record):
    for rate in (50, 99.7, 257, 2000):
        n = int(np.ceil(2 * rate))
        table = delineate(read_ecg(record.signal[:1, :n], rate, ["II"]))
        assert any("trained for 100 Hz" in note for note in table.attrs["notes"]) == (rate < 100)


@pytest.mark.slow
def test_a_day_takes_little_memory_and_loses_no_beat():
    """24 h of one lead: a minute over and over, so every minute has the same beats but where two
    meet."""
    minute = simulated(1, seed=5, seconds=60.0)[0]
    one = minute.signal[1].astype(np.float32)
    day = read_ecg(np.tile(one, 24 * 60)[None], minute.sampling_rate, ["II"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peaks = delineate(day).query("wave == 'QRS'")["peak"].to_numpy()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 250_000  # kB
    of_minute = np.bincount((peaks // 60).astype(int), minlength=1440)
    assert of_minute[1:-1].min() >= of_minute[1:-1].max() - 1
    middle = peaks % 60
    middle = np.unique(np.round(middle[(middle > 20) & (middle < 40)], 2))
    assert len(middle) <= 1.2 * of_minute[720] / 3 + 2  # every minute at the same times


# ---------------------------------------------------------------- training


def test_items_keep_their_waves(record):
    """Where the signal is distorted the targets move with it: QRS is steep."""
    rng, steep, flat = np.random.default_rng(1), [], []
    for _ in range(40):
        x, target = item(record, 2, 2016, rng)
        assert x.shape == (2, 2016) and target.shape == (2, 4, 1008) and np.isfinite(x).all()
        speed = np.abs(np.diff(x, axis=1, append=0))[:, ::STRIDE]
        steep += speed[target[:, 2] > 0.9].tolist()
        flat += speed[target[:, 0] > 0.9].tolist()
    assert np.median(steep) > 3 * np.median(flat)


def test_training_is_deterministic_and_learns():
    records = simulated(4, seed=1)
    config = LearnConfig(SMALL, steps=60, leads=12, samples=504, simulated_share=0.0)
    first, second = (learn(records, [], config, seed=2) for _ in range(2))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    x, target = batch(records, [], replace(config, leads=48), np.random.default_rng(9))

    def loss(network):
        with torch.inference_mode():
            return float(-(network(x).log_softmax(dim=2) * target).sum() / target.sum())

    assert loss(first) < 0.75 * loss(build_delineator(SMALL, 2).eval())


def test_weights_go_round_and_wrong_ones_are_refused(tmp_path, record):
    network = build_delineator(SMALL, 1).eval()
    save_delineator(network, tmp_path / "own.safetensors")
    again = read_delineator(tmp_path / "own.safetensors")
    x = torch.randn(1, 2, 64)
    torch.testing.assert_close(network(x), again(x).float(), atol=5e-2, rtol=5e-2)  # 16 bits
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(WeightsError, match="no readable safetensors"):
        read_delineator(tmp_path / "text.safetensors")
    with pytest.raises(WeightsError, match="no readable safetensors"):
        read_delineator(tmp_path / "absent.safetensors")


def test_bf16_draws_the_same_waves(record):
    """Where the processor has bf16 the network computes in it."""
    whole = copy.deepcopy(read_delineator()).float()
    ecg = as_ecg(record)
    tables = [delineate(ecg, network) for network in (whole, copy.deepcopy(whole).bfloat16())]
    columns = ["onset", "peak", "offset"]
    a, b = (table[columns].to_numpy() for table in tables)
    assert len(a) > 50 and a.shape == b.shape
    assert np.quantile(abs(a - b), 0.95) < 1e-3 and abs(a - b).mean() < 1e-3  # s


# ---------------------------------------------------------------- test


def test_each_record_is_tested_by_a_network_that_has_not_seen_it(monkeypatch, tmp_path):
    records, seen = simulated(6, seed=2), []
    network = build_delineator(SMALL, 0).eval()

    def learned(own, more, config, seed):
        seen.append({record.record_id for record in own})
        return network

    of_fold = []

    def found(network, record):
        of_fold.append((len(seen) - 1, record.record_id))
        labels = wave_runs(record.labels).astype(float)
        return labels * [1, 1, 2, 2] + [0, 0, 4, 4]  # the truth, 4 ms late

    monkeypatch.setattr(learn_waves, "learn", learned)
    monkeypatch.setattr(learn_waves, "found_in", found)
    monkeypatch.setattr(learn_waves, "code_of", lambda *_: "code")
    config = LearnConfig(SMALL, steps=1)
    made = learn_waves.cross_validate(records, [], config, tmp_path, count=3)
    assert len(seen) == 3 and sorted(name for _, name in of_fold) == sorted(
        record.record_id for record in records
    )
    assert all(name not in seen[fold] for fold, name in of_fold)
    scores = {name: float(value[0]) for name, value in border_scores(made).items()}
    for wave in ("P", "QRS", "T"):
        assert scores[f"event_f1_{wave}_onset"] == 1
        assert scores[f"event_error_mean_ms_{wave}_offset"] == pytest.approx(4)
    again = learn_waves.cross_validate(records, [], config, tmp_path, count=3)
    assert len(seen) == 3  # finished folds are read
    np.testing.assert_array_equal(made["found"], again["found"])


def test_found_waves_are_laid_out_as_the_marks(record):
    found = learn_waves.found_in(read_delineator(), record)
    marks = wave_runs(record.labels)
    qrs = found[(found[:, 0] == 1) & (found[:, 1] == 2), 2]
    true = marks[(marks[:, 0] == 1) & (marks[:, 1] == 2), 2] * 1000 / record.sampling_rate
    assert np.abs(qrs[:, None] - true[None]).min(axis=0).max() < 60


def test_borders_between_samples_are_scored_as_given():
    """`found` in place of `prediction`: half a sample late is half a sample late."""
    truth = np.zeros((1, 300), np.int8)
    truth[0, 100:120] = 2
    marks = np.array([[0, 2, 200.0, 238.0]])
    own = {"truth": truth, "marks": marks, "sampling_rate": 500.0, "tolerance_ms": 150.0}
    own["found"] = marks + [0, 0, 1.0, -1.0]
    scores = border_scores(own)
    assert scores["event_error_mean_ms_QRS_onset"][0] == pytest.approx(1.0)
    assert scores["event_error_mean_ms_QRS_offset"][0] == pytest.approx(-1.0)


# ---------------------------------------------------------------- intervals


def a_table(*rows: tuple) -> pd.DataFrame:
    names = ["lead", "wave", "onset", "peak", "offset"]
    return pd.DataFrame(rows, columns=names).assign(probability=0.9)


def test_intervals_by_hand():
    """Two beats in three leads; the widest lead is alone with its borders and does not count."""
    rows = []
    for beat in (1.0, 1.9):
        for lead, wider in (("I", 0.0), ("II", 0.01), ("V1", 0.03)):
            rows.append((lead, "P", beat - 0.18 - wider, beat - 0.14, beat - 0.10))
            rows.append((lead, "QRS", beat - 0.04 - wider, beat, beat + 0.05 + wider))
            rows.append((lead, "T", beat + 0.2, beat + 0.28, beat + 0.34 + wider))
    found = beatssl.intervals(a_table(*rows))
    assert found["R"].tolist() == [1.0, 1.9] and np.isnan(found["RR"][0])
    second = found.iloc[1]
    assert second["RR"] == pytest.approx(900)
    assert second["PR"] == pytest.approx(190 - 50)
    assert second["QRS"] == pytest.approx(110)
    assert second["QT"] == pytest.approx(400)
    assert second["QTc_Bazett"] == pytest.approx(400 / 0.9**0.5)
    assert second["QTc_Fridericia"] == pytest.approx(400 / 0.9 ** (1 / 3))


def test_intervals_of_one_lead_and_of_nothing():
    one = beatssl.intervals(a_table(("II", "QRS", 0.96, 1.0, 1.05)))
    assert one["QRS"][0] == pytest.approx(90) and np.isnan(one.loc[0, ["PR", "QT"]]).all()
    assert beatssl.intervals(a_table()).empty


def test_intervals_of_the_simulator(record):
    """Its PR and QRS are those of a normal heart, and R peaks come at its rate."""
    found = beatssl.intervals(delineate(as_ecg(record)))
    assert found["RR"].median() == pytest.approx(1000 * np.median(np.diff(found["R"])), abs=1)
    assert found["QRS"].median() < 200 and 200 < found["QT"].median() < 600


def test_the_kept_neighbours_are_of_the_encoder_that_comes_along():
    with np.load(ROOT / "results" / "neighbours.npz", allow_pickle=False) as kept:
        assert str(kept["encoder"]) == SHA256["encoder"]
        assert kept["vector"].shape == (len(kept["record_id"]), 128)
        assert np.isfinite(kept["vector"]).all() and kept["label"].any(axis=1).all()
