"""PTB-XL's recordings are found among others by name and by signal, and never pretrained on."""

from __future__ import annotations

import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from scipy.signal import resample_poly

from beatssl.data import records, store
from beatssl.data.beats import training_rows
from beatssl.data.overlap import ALIKE, Known, alike
from beatssl.data.records import LAYOUTS
from beatssl.data.store import prepare
from beatssl.data.synthetic import _write_record, write_folders
from beatssl.settings import DataConfig, Rotation

CONFIG = DataConfig(ptbxl="ptbxl", challenge="challenge")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("data") / "root", 12, 0, 4, seed=7)


def copies(root, gain: float = 1.0):
    """The PTB-XL records of a folder at 500 Hz, in microvolts."""
    for row in LAYOUTS["ptbxl"].list(root / "ptbxl", 500).to_dict("records"):
        record = records.read_ptbxl(root / "ptbxl", row)
        up = round(500 / record.sampling_rate)
        signal = resample_poly(record.signal, up, 1, axis=1, padtype="line")
        yield np.rint(1000 * gain * signal).astype(int)


def write(folder, names, signals):
    folder.mkdir(parents=True, exist_ok=True)
    for name, signal in zip(names, signals, strict=True):
        _write_record(folder / name, signal, "challenge")


def reasons_of(made):
    """What PTB-XL was known by -> records: folder | record | same."""
    reasons = [r for r in made.set_aside["reason"] if r.startswith(records.OVERLAP)]
    return dict(Counter(reason.partition("(")[2].split()[0] for reason in reasons))


@pytest.mark.parametrize(
    ("where", "name", "how"),
    [
        ("training/ptb-xl/g1", "S{:04d}", "folder"),
        ("training/PTB_PTBXL/g1", "S{:04d}", "folder"),
        ("WFDB_PTBXL", "S{:04d}", "folder"),
        ("ptbxl", "S{:04d}", "folder"),
        (".", "HR{:05d}", "record"),
        ("training/ours/g1", "HR{:05d}", "record"),
        ("training/ours/g1", "X{:04d}", "same"),
        (".", "A{:04d}", "same"),
    ],
)
def test_no_record_of_ptbxl_is_a_challenge_row(root, tmp_path, where, name, how):
    """Whatever the folder is called, and at another rate and gain."""
    shutil.copytree(root / "ptbxl", tmp_path / "ptbxl")
    shutil.copytree(root / "challenge", tmp_path / "challenge")
    before = prepare(CONFIG, tmp_path / "before", tmp_path)
    names = [name.format(k + 100) for k in range(12)]
    write(tmp_path / "challenge" / where, names, copies(root, gain=0.4))
    made = prepare(CONFIG, tmp_path / "store", tmp_path)
    own = reasons_of(before)
    assert reasons_of(made) == own | {how: own.get(how, 0) + 12}
    pd.testing.assert_frame_equal(made.table, before.table)
    np.testing.assert_array_equal(made.signals, before.signals)


def test_a_challenge_of_nothing_else_leaves_no_row(root, tmp_path):
    shutil.copytree(root / "ptbxl", tmp_path / "ptbxl")
    write(tmp_path / "challenge", [f"A{k:02d}" for k in range(12)], copies(root))
    made = prepare(CONFIG, tmp_path / "store", tmp_path, jobs=2)
    assert len(made.rows("challenge")) == 0 and reasons_of(made) == {"same": 12}
    named = made.set_aside["reason"].str.extract(r"same signal as (.*)\)")[0]
    assert named.tolist() == LAYOUTS["ptbxl"].list(root / "ptbxl", 100)["record_id"].tolist()


def test_a_long_recording_is_set_aside_whole(root, tmp_path):
    """Its other rows are of the same patient, who may be one of those tested."""
    shutil.copytree(root / "ptbxl", tmp_path / "ptbxl")
    first, *_, last = copies(root)
    other = np.roll(last, 700, axis=1)[:, ::-1]
    write(tmp_path / "challenge", ["A1", "A2"], [np.hstack([other, first]), other])
    made = prepare(CONFIG, tmp_path / "store", tmp_path)
    assert made.table["record_id"][made.rows("challenge")].tolist() == ["challenge-A2"]
    assert made.set_aside["record_id"].tolist() == ["challenge-A1"]


def test_nearest_and_alike_agree_with_all_correlations():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 12, 200)).cumsum(axis=2)
    known = Known(rows, list(range(300)))
    for k in range(0, 300, 7):
        copy = rows[k] * rng.uniform(0.2, 5, (12, 1)) + rng.normal(size=(12, 1))
        copy += 0.05 * copy.std(axis=1, keepdims=True) * rng.normal(size=copy.shape)
        assert known.nearest(copy) == k and known.same(copy) == k and alike(copy, rows[k])
        assert not alike(copy, rows[(k + 1) % 300])
    assert known.same(rng.normal(size=(12, 200)).cumsum(axis=1)) == ""
    assert Known(rows[:0], []).same(rows[0]) == ""
    middle = slice(20, 160)
    mean = np.mean([np.corrcoef(a[middle], b[middle])[0, 1] for a, b in zip(rows[0], rows[1])])
    mixed = next(
        w
        for w in np.linspace(0, 1, 101)
        if np.mean(
            [
                np.corrcoef(a[middle], (w * a + (1 - w) * b)[middle])[0, 1]
                for a, b in zip(rows[0], rows[1])
            ]
        )
        > ALIKE
    )
    assert mean < ALIKE
    assert alike(rows[0], mixed * rows[0] + (1 - mixed) * rows[1])
    assert not alike(rows[0], (mixed - 0.02) * rows[0] + (1.02 - mixed) * rows[1])


@pytest.mark.parametrize("place", ["training/PTB_PTBXL/g1", "WFDB_PTBXL", "training/mine/g1", "."])
def test_real_records_of_all_folds_stay_out(real_data, tmp_path, place):
    """PTB-XL's published 500 Hz files as Challenge records against its 100 Hz files."""
    source, own = real_data / "ptbxl-subset", tmp_path / "ptbxl"
    table = pd.read_csv(source / "ptbxl_database.csv", dtype=str, keep_default_na=False)
    table = table[table["filename_hr"] != ""].groupby("strat_fold").head(2)
    own.mkdir()
    table.to_csv(own / "ptbxl_database.csv", index=False)
    shutil.copyfile(source / "scp_statements.csv", own / "scp_statements.csv")
    for name in table["filename_lr"]:
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".hea", ".dat"):
            shutil.copyfile(source / f"{name}{suffix}", own / f"{name}{suffix}")
    fast = LAYOUTS["ptbxl"].list(source, 500).set_index("record_id", drop=False)
    signals = [
        np.rint(2000 * records.read_ptbxl(source, fast.loc[f"ptbxl-{number}"]).signal).astype(int)
        for number in table["ecg_id"]
    ]
    write(tmp_path / "challenge" / place, [f"Q{number}" for number in table["ecg_id"]], signals)
    mine = tmp_path / "challenge" / "training" / "georgia" / "g1"
    mine.mkdir(parents=True)
    others = sorted((real_data / "challenge2021-sample" / "training" / "georgia").rglob("E*.hea"))
    for path in others[:5]:
        for file in (path, path.with_suffix(".mat")):
            shutil.copyfile(file, mine / file.name)
    made = prepare(CONFIG, tmp_path / "store", tmp_path)
    assert len(made.rows("ptbxl")) >= 18  # of all folds, 9 and 10 among them
    kept = made.table["record_id"].iloc[made.rows("challenge")]
    assert kept.str.startswith("georgia-E").all() and len(kept)
    assert kept.index.isin(training_rows(made, Rotation())).all()
    aside = made.set_aside[made.set_aside["dataset"] == "challenge"]
    overlapping = aside["reason"].map(store.reason_kind) == records.OVERLAP
    copies_aside = aside["record_id"].str.contains("-Q")
    assert overlapping[copies_aside].sum() >= 18 and not overlapping[~copies_aside].any()
