"""R peaks, features and beat classes: known signals, bad signals, leakage."""

import numpy as np
import pytest

from beatssl.data import beats as b
from beatssl.data import features as f
from beatssl.methods.targets import FeatureScale
from beatssl.settings import Rotation

RATE = 100


def train_of_beats(r_peaks, shapes, time=1000):
    """(12, time) signal with one Gaussian pulse per R peak; `shapes` (sign, width in s)."""
    t = np.arange(time) / RATE
    out = np.zeros((12, time))
    for r, (sign, width) in zip(r_peaks, shapes):
        pulse = np.exp(-((t - r / RATE) ** 2) / (2 * width**2))
        out += np.linspace(0.5, 1.5, 12)[:, None] * sign * pulse
    return out


def test_there_are_the_54_features_of_the_domain_set():
    assert len(f.R_FEATURES) == 8 and len(f.WAVE_FEATURES) == 20 and len(f.HRV_FEATURES) == 25
    assert len(f.RECORD_FEATURES) == len(set(f.RECORD_FEATURES)) == 54


def test_every_feature_has_one_group_and_only_amplitudes_have_the_unit():
    members = [name for group in f.FEATURE_GROUPS.values() for name in group]
    assert sorted(members) == sorted(f.RECORD_FEATURES)
    for names in (f.RECORD_FEATURES, f.BEAT_FEATURES):
        x = np.random.default_rng(0).normal(size=(3, len(names))).astype(np.float32)
        ratio = f.in_unit(x, "uV") / x
        changed = {n for n, r in zip(names, ratio[0]) if not np.isclose(r, 1)}
        assert changed == {n for n in names if "amplitude" in n} and len(changed) == 9
        np.testing.assert_allclose(ratio[ratio > 2], 1000, rtol=1e-6)
        np.testing.assert_array_equal(f.in_unit(x, "mV"), x)
        assert f.in_unit(x, "uV").dtype == np.float32


def test_beat_features_of_hand_made_waves():
    signal = np.zeros(400)
    r, q, s, t, p = (np.array([100, 180, 300]) + d for d in (0, -4, 5, 30, -16))
    for at, value in ((r, 1.0), (q, -0.1), (s, -0.3), (t, 0.4), (p, 0.2)):
        signal[at] = value
    waves = {f"ECG_{n}_Peaks": list(at) for n, at in zip("PQST", (p, q, s, t))}
    got = dict(zip(f.BEAT_FEATURES, f.beat_features(signal, r, waves, RATE).T))
    np.testing.assert_allclose(got["r_amplitude"], 1)
    np.testing.assert_allclose(got["rr1"], [np.nan, 800, 1200])
    np.testing.assert_allclose(got["rr2"], [800, 1200, np.nan])
    np.testing.assert_allclose(got["rr0"], [np.nan, np.nan, 800])
    np.testing.assert_allclose(got["rr_mean"], 1000)
    np.testing.assert_allclose(got["rr2_rr1"], [np.nan, 1.5, np.nan])
    for name, expected in {
        "time_PR": 160,
        "time_QR": 40,
        "time_RS": 50,
        "time_RT": 300,
        "time_QT": 340,
        "time_PT": 460,
        "time_ST": 250,
    }.items():
        np.testing.assert_allclose(got[name], expected, err_msg=name)
    np.testing.assert_allclose(got["amplitude_QR"], 1.1, rtol=1e-6)
    np.testing.assert_allclose(got["amplitude_PT"], 0.2, rtol=1e-5)
    np.testing.assert_allclose(got["time_ST_over_QS"], 250 / 90, rtol=1e-6)
    np.testing.assert_allclose(got["time_RS_over_QR"], 50 / 40, rtol=1e-6)


def test_a_missing_wave_is_nan_in_its_features_only():
    waves = {"ECG_P_Peaks": [np.nan, 84], "ECG_T_Peaks": [130, 230]}
    table = f.beat_features(np.ones(400), np.array([100, 200]), waves, RATE)
    got = dict(zip(f.BEAT_FEATURES, table.T))
    assert np.isnan(got["time_PR"][0]) and np.isfinite(got["time_PR"][1])
    assert np.isfinite(got["time_RT"]).all() and np.isnan(got["time_QT"]).all()


def test_classes_of_normal_premature_wide_and_odd_beats():
    r = [100, 200, 300, 370, 500, 570, 700, 800]
    normal, wide, odd = (1, 0.015), (-1, 0.06), (-1, 0.015)
    shapes = [normal, normal, normal, normal, normal, wide, odd, normal]
    classes = b.classify_beats(train_of_beats(r, shapes), np.array(r), RATE)
    names = [b.BEAT_CLASSES[c] for c in classes]
    assert names == ["N", "N", "N", "S", "N", "V", "other", "N"]


def test_classes_do_not_depend_on_the_amplitude_of_the_record():
    r = [100, 200, 300, 370, 500, 570, 700, 800]
    x = train_of_beats(r, [(1, 0.015)] * 5 + [(-1, 0.06)] * 3)
    np.testing.assert_array_equal(
        b.classify_beats(x, np.array(r), RATE), b.classify_beats(7 * x, np.array(r), RATE)
    )


@pytest.mark.parametrize(
    "signal, words",
    [(np.zeros((12, 1000)), "R peaks"), (train_of_beats([500], [(1, 0.015)]), "R peaks found")],
)
def test_flat_lead_and_one_beat_leave_nan_and_a_reason(signal, words):
    found = b.analyse(signal, RATE)
    assert words in found["trouble"] and len(found["r_peak"]) < 2
    assert np.isnan(found["record_features"][f.RECORD_FEATURES.index("time_QT")])


def test_features_of_a_record_without_beats_become_the_training_median():
    import torch

    nothing = b.analyse(np.zeros((12, 1000)), RATE)["record_features"]
    scale = FeatureScale.fit(torch.tensor([[1.0] * 54, [3.0] * 54, [5.0] * 54]))
    assert (scale.impute(torch.from_numpy(nothing)[None]) == 3).all()


def test_simulated_records_have_beats_of_all_rows(small):
    assert len(small.beats.r_peak) == len(small.store.table)
    rate = small.beats.count / small.profile.data.seconds * 60
    assert (rate > 30).mean() > 0.95 and (rate < 200).all()
    valid = small.beats.r_peak >= 0
    assert ((small.beats.rules >= 0) == valid).all()


def test_pretraining_never_sees_folds_9_and_10_or_ludb(small):
    table = small.store.table.iloc[b.pretraining_rows(small.store, small.beats, Rotation())]
    assert set(table["dataset"]) == {"ptbxl", "challenge"}
    assert table.loc[table["dataset"] == "ptbxl", "fold"].between(1, 8).all()
    test_patients = set(small.store.table.query("fold >= 9")["patient_id"])
    assert not test_patients & set(table.loc[table["dataset"] == "ptbxl", "patient_id"])


def test_prepared_beats_are_reused_and_the_number_of_processes_does_not_matter(small, tmp_path):
    again = b.prepare_beats(small.store, tmp_path / "beats", jobs=2)
    for name in ("r_peak", "features", "rules", "clusters", "record_features"):
        np.testing.assert_array_equal(getattr(again, name), getattr(small.beats, name))
    stamp = (tmp_path / "beats" / "r_peak.npy").stat().st_mtime_ns
    b.prepare_beats(small.store, tmp_path / "beats", jobs=1)
    assert (tmp_path / "beats" / "r_peak.npy").stat().st_mtime_ns == stamp


def test_real_records_have_plausible_intervals(real_data):
    """NeuroKit2 on official PTB-XL records: median heart rate and QT inside adult ranges."""
    import wfdb

    rr, qt = [], []
    for name in sorted((real_data / "ptbxl-subset/records100/00000").glob("*.hea"))[:12]:
        signal = wfdb.rdrecord(str(name.with_suffix(""))).p_signal.T
        found = dict(zip(f.RECORD_FEATURES, b.analyse(signal, RATE)["record_features"]))
        rr.append(found["rr_mean"])
        qt.append(found["time_QT"])
    assert 500 < np.nanmedian(rr) < 1200 and 200 < np.nanmedian(qt) < 450
