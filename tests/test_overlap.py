"""Recordings that stand twice are found by name and by signal and kept once; PTB-XL's test folds
and LUDB are never pretrained on."""

from __future__ import annotations

import ast
import shutil
from collections import Counter

import nbformat
import numpy as np
import pandas as pd
import pytest
from notebook_functions import NOTEBOOKS
from scipy.signal import resample_poly

from beatssl.data import overlap, records, store
from beatssl.data.beats import training_rows
from beatssl.data.overlap import ALIKE, Known, alike
from beatssl.data.records import LAYOUTS
from beatssl.data.store import prepare
from beatssl.data.synthetic import _write_record, write_folders
from beatssl.settings import DataConfig, Rotation

CONFIG = DataConfig(ptbxl="ptbxl", challenge=("challenge",))


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


def test_find_and_alike_agree_with_all_correlations():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 12, 200)).cumsum(axis=2)
    known = Known((12, 200), rows.__getitem__)
    assert known.find(rows[0]) is None
    for row in rows:
        known.add(row)
    for k in range(0, 300, 7):
        copy = rows[k] * rng.uniform(0.2, 5, (12, 1)) + rng.normal(size=(12, 1))
        copy += 0.05 * copy.std(axis=1, keepdims=True) * rng.normal(size=copy.shape)
        assert known.find(copy) == k and alike(copy, rows[k])
        assert not alike(copy, rows[(k + 1) % 300])
    assert known.find(rng.normal(size=(12, 200)).cumsum(axis=1)) is None
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


def test_the_first_of_several_is_found_among_thousands():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(2500, 2, 40))
    rows[2400] = rows[1200]
    known = Known((2, 40), rows.__getitem__)
    for row in rows:
        known.add(row)
    for k, first in ((0, 0), (1023, 1023), (1024, 1024), (2400, 1200), (2499, 2499)):
        assert known.find(rows[k]) == first


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """PTB-XL, LUDB, and Challenge folders `one` and `two` that hold recordings of all and of each
    other; some that are new."""
    root = write_folders(tmp_path_factory.mktemp("twice") / "root", 3, 3, 4, seed=3)
    new = write_folders(tmp_path_factory.mktemp("twice") / "new", 0, 0, 4, seed=4)
    (root / "challenge").rename(root / "one")
    shutil.copytree(new / "challenge" / "training" / "georgia", root / "two" / "georgia")
    lead_gains = np.ones((12, 1))
    lead_gains[6:, 0] = (0.3, 2, 1, 0.5, 1.5, 3)
    ludb = LAYOUTS["ludb"].list(root / "ludb").iloc[1]
    signals = [
        1000 * records.read_ludb(root / "ludb", ludb).signal * lead_gains,
        list(copies(root))[2],
        2000 * signal_of(root / "one", "georgia-S0001"),
        500 * signal_of(root / "two", "georgia-S0001"),  # of two's own: another than one's
    ]
    signals = [np.rint(signal).astype(int) for signal in signals]
    write(root / "two" / "mine", ["of-ludb", "of-ptbxl", "of-one", "of-two"], signals)
    return root


def signal_of(folder, name):
    rows = LAYOUTS["challenge"].list(folder).set_index("record_id", drop=False)
    return records.read_challenge(folder, rows.loc[name]).signal


def aside_of(made):
    reasons = made.set_aside.set_index("record_id")["reason"]
    return reasons[reasons.str.contains("same signal")].to_dict()


def test_a_recording_that_stands_twice_is_kept_once(twice, tmp_path):
    config = DataConfig(ptbxl="ptbxl", ludb="ludb", challenge=("one", "two"))
    made = prepare(config, tmp_path / "store", twice)
    assert aside_of(made) == {
        "mine-of-ludb": "duplicate (same signal as ludb-2)",
        "mine-of-ptbxl": "overlaps PTB-XL (same signal as ptbxl-3)",
        "mine-of-one": "duplicate (same signal as georgia-S0001)",
        "mine-of-two": "duplicate (same signal as two-georgia-S0001)",
    }
    names = made.table["record_id"].iloc[made.rows("challenge")]
    assert {"georgia-S0001", "two-georgia-S0001"} < set(names) and names.is_unique
    assert made.table["dataset"].drop_duplicates().tolist() == ["ptbxl", "ludb", "challenge"]
    assert len(made.rows("ptbxl")) == len(made.rows("ludb")) == 3
    assert np.triu(np.corrcoef([overlap._scaled(row) for row in made.signals]), 1).max() < ALIKE

    two = prepare(config, tmp_path / "by-two", twice, jobs=2)
    assert two.manifest["files"] == made.manifest["files"]  # sizes and hashes
    assert two.fingerprint == made.fingerprint


def test_the_folder_that_is_named_first_keeps_it(twice, tmp_path):
    made = prepare(DataConfig(challenge=("two", "one")), tmp_path / "store", twice)
    assert aside_of(made) == {
        "mine-of-two": "duplicate (same signal as georgia-S0001)",
        "one-georgia-S0001": "duplicate (same signal as mine-of-one)",
    }
    assert {"mine-of-ludb", "mine-of-ptbxl"} < set(made.table["record_id"])  # nothing to equal


def test_labelled_records_are_kept_whatever_they_equal(twice, tmp_path):
    root = shutil.copytree(twice, tmp_path / "root")
    ptbxl, ludb = root / "ptbxl" / "records100" / "00000", root / "ludb" / "data"
    base = LAYOUTS["ptbxl"].list(root / "ptbxl").iloc[0]
    lead = 1000 * records.read_ptbxl(root / "ptbxl", base).signal
    _write_record(ptbxl / "00002_lr", np.rint(lead).astype(int), "ptbxl")
    first = LAYOUTS["ludb"].list(root / "ludb").iloc[0]
    marked = 1000 * records.read_ludb(root / "ludb", first).signal
    _write_record(ludb / "2", np.rint(marked).astype(int), "ludb")
    down = resample_poly(marked, 1, 5, axis=1, padtype="line")
    _write_record(ptbxl / "00003_lr", np.rint(down).astype(int), "ptbxl")
    made = prepare(DataConfig(ptbxl="ptbxl", ludb="ludb"), tmp_path / "store", root)
    assert alike(made.signals[0], made.signals[1]) and alike(made.signals[2], made.signals[3])
    assert alike(made.signals[3], made.signals[4])
    assert len(made) == 6 and len(made.set_aside) == 0


def test_rows_of_one_recording_are_not_compared_with_each_other(twice, tmp_path):
    """Not even where every beat is the same; the recording is found as a whole elsewhere."""
    beats = np.tile(np.rint(1000 * signal_of(twice / "one", "georgia-S0001")[:, :500]), 30)
    write(tmp_path / "a", ["paced"], [beats.astype(int)])
    write(tmp_path / "b", ["again"], [np.rint(2 * beats[:, 5000:]).astype(int)])
    made = prepare(DataConfig(challenge=("a", "b")), tmp_path / "store", tmp_path)
    assert made.table["record_id"].tolist() == ["a-paced#0", "a-paced#1", "a-paced#2"]
    assert alike(made.signals[0], made.signals[1])
    assert aside_of(made) == {"b-again": "duplicate (same signal as a-paced#0)"}


def test_a_small_row_is_found_right_after_it_was_read(twice, tmp_path):
    """While it would still wait in the buffer of the file being written."""
    signal = np.rint(1000 * signal_of(twice / "one", "georgia-S0001")).astype(int)
    write(tmp_path / "a", ["1", "2"], [signal, 2 * signal])
    config = DataConfig(challenge=("a",), sampling_rate=10, high_cut=4.0)
    made = prepare(config, tmp_path / "store", tmp_path)
    assert aside_of(made) == {"a-2": "duplicate (same signal as a-1)"}


def test_the_data_page_counts_what_stands_twice(twice, tmp_path):
    config = DataConfig(ptbxl="ptbxl", ludb="ludb", challenge=("one", "two"))
    made = prepare(config, tmp_path / "store", twice)
    notebook = nbformat.read(NOTEBOOKS / "01_data.ipynb", as_version=4)
    cells = {cell.id: cell.source for cell in notebook.cells}
    shown = []
    for cell in ("cell-05", "cell-06"):
        run_cell(cells[cell], {"store": made, "display": shown.append}, shown.append)
    counts, sources, reasons = shown
    assert counts["set aside"].to_dict() == {"challenge": 5, "ludb": 0, "ptbxl": 0}
    assert sources.loc[("challenge", "georgia"), "rows"] == 4  # two of each folder
    assert sources["rows"].sum() == counts["rows"].sum() == len(made)
    duplicates = reasons.set_index("reason").loc[records.DUPLICATE]
    assert duplicates["records"] == 3
    assert duplicates["first"] == "mine-of-ludb, mine-of-one, mine-of-two"
    assert reasons.set_index("reason").loc[records.OVERLAP, "first"] == "mine-of-ptbxl"


def run_cell(source, namespace, show):
    """A notebook's cell; what it ends with goes to `show`."""
    *body, last = ast.parse(source).body
    exec(compile(ast.Module(body, []), "cell", "exec"), namespace)
    show(eval(compile(ast.Expression(last.value), "cell", "eval"), namespace))


def test_two_real_records_with_one_signal(real_data, tmp_path):
    """Georgia's E07509 and E07510, told apart by nobody."""
    source = real_data / "challenge2021-sample" / "training" / "georgia"
    shutil.copytree(source, tmp_path / "challenge" / "training" / "georgia")
    made = prepare(DataConfig(challenge=("challenge",)), tmp_path / "store", tmp_path)
    assert aside_of(made) == {"georgia-E07510": "duplicate (same signal as georgia-E07509)"}
    assert len(made) == 19


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
