"""The prepared store: signal steps, counting, atomic writing, reuse, and equal bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from beatssl.data import records, store
from beatssl.data.beats import training_rows
from beatssl.data.records import LAYOUTS, RecordError
from beatssl.data.store import StoreError, open_store, prepare
from beatssl.data.synthetic import write_folders
from beatssl.settings import ConfigError, DataConfig, Rotation, Source, from_dict

CONFIG = DataConfig(ptbxl="ptbxl", ludb="ludb", challenge=("challenge",))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("data") / "root", 12, 3, 6, seed=5)


@pytest.fixture(scope="module")
def prepared(root, tmp_path_factory):
    return prepare(CONFIG, tmp_path_factory.mktemp("store") / "store", root)


@pytest.fixture
def copy(root, tmp_path):
    return shutil.copytree(root, tmp_path / "root")


def data_bytes(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# ------------------------------------------------------------ signal steps


def tone(hertz, rate, seconds=10.0):
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def inner(x):
    return x[len(x) // 4 : -len(x) // 4]


def test_clean_keeps_the_band_without_delay_and_removes_the_rest():
    keep, slow, fast = tone(10, 500), tone(0.05, 500) + 3, tone(120, 500)
    cleaned = store.clean(keep + slow + fast, 500, 0.5, 40)
    np.testing.assert_allclose(inner(cleaned), inner(keep), atol=0.06)


def test_clean_sides_can_be_switched_off():
    x = tone(10, 100) + 2
    np.testing.assert_array_equal(store.clean(x, 100, 0, 0), x)
    np.testing.assert_array_equal(store.clean(x, 100, 0, 50), x)  # Nyquist: no upper side
    assert abs(inner(store.clean(x, 100, 0, 40)).mean() - 2) < 0.01
    assert abs(inner(store.clean(x, 100, 0.5, 60)).mean()) < 0.01
    with pytest.raises(ConfigError, match="no band"):
        store.clean(x, 100, 40, 30)


def test_resample_is_anti_aliased_and_keeps_the_scale():
    x = tone(5, 500) + 1.5
    np.testing.assert_allclose(
        inner(store.resample(x, 500, 100, 1000)), inner(tone(5, 100) + 1.5), atol=0.01
    )
    assert np.abs(inner(store.resample(tone(90, 500), 500, 100, 1000))).max() < 0.05
    assert store.resample(tone(5, 257), 257, 100, 1000).shape == (1000,)
    np.testing.assert_array_equal(store.resample(x, 500, 500, 4000), x[:4000])


def test_labels_between_waves_are_the_nearest_and_no_class_is_invented():
    labels = np.repeat([0, 3, -1, 1, 0], 50)[None]
    expected = np.repeat([0, 3, -1, 1, 0], 10)[None]
    expected[0, [20, 40]] = 3, 1  # offsets 99 and 199 lie nearest to samples 20 and 40
    np.testing.assert_array_equal(store.resample_labels(labels, 500, 100, 50), expected)
    odd = store.resample_labels(labels, 500, 333, 133)
    assert set(odd[0]) <= {0, 3, -1, 1} and odd.shape == (1, 133)
    np.testing.assert_array_equal(store.resample_labels(labels, 500, 500, 250), labels)


@pytest.mark.parametrize("rate", [100, 128, 250, 1000])
def test_waves_do_not_shrink_when_resampled(rate):
    """Each border lies at most half a sample away, and on average not away at all."""
    rng = np.random.default_rng(0)
    labels = np.zeros((400, 5000), np.int8)
    for row in labels:
        for start in range(100, 4900, 400):
            onset = start + rng.integers(0, 50)
            row[onset : onset + rng.integers(20, 250)] = rng.integers(1, 4)
    labels[:, :50] = labels[:, 4950:] = -1
    resampled = store.resample_labels(labels, 500, rate, 10 * rate)
    shift = records.wave_marks(resampled, rate) - records.wave_marks(labels, 500)
    assert len(shift) == 400 * 12 and not shift[:, :2].any()
    assert (np.abs(shift[:, 2:]) <= 500 / rate + 1e-6).all()
    assert (np.abs(shift[:, 2:].mean(axis=0)) < 0.5).all()
    assert (resampled[:, : rate // 11] == -1).all() and (resampled[:, -rate // 11 :] == -1).all()


def test_windows_do_not_overlap(root):
    row = LAYOUTS["ludb"].list(root / "ludb").iloc[0]
    record = records.read_ludb(root / "ludb", row)
    pieces = list(store.windows(record, 4.0))
    assert [piece.record_id for _, piece in pieces] == ["ludb-1#0", "ludb-1#1"]
    assert [start for start, _ in pieces] == [0.0, 4.0]
    np.testing.assert_array_equal(
        np.concatenate([piece.waves for _, piece in pieces], axis=1), record.waves[:, :4000]
    )
    assert next(store.windows(record, 10.0))[1].record_id == "ludb-1"


# ------------------------------------------------------------ the store


def test_rows_table_and_set_aside_account_for_every_record(root, prepared):
    challenge = LAYOUTS["challenge"].list(root / "challenge")
    base = prepared.table["record_id"].str.split("#").str[0]
    assert set(base[prepared.table["dataset"] == "challenge"]) | set(
        prepared.set_aside["record_id"]
    ) == set(challenge["record_id"])
    assert (prepared.table["dataset"] == "ptbxl").sum() == 12
    counts = prepared.set_aside_counts().set_index("reason")["records"].to_dict()
    assert counts == {"too short": 1, "flat lead": 1, "overlaps PTB-XL": 1}
    long = prepared.table[base == "cpsc_2018-S0004"]  # 25 s
    assert long["record_id"].tolist() == ["cpsc_2018-S0004#0", "cpsc_2018-S0004#1"]
    assert long["start_s"].tolist() == [0.0, 10.0]
    assert prepared.manifest["seconds_left_over"] == pytest.approx(5 + 2)  # 25 s and 12 s
    assert prepared.signals.shape == (len(prepared), 12, 1000)
    assert prepared.signals.dtype == np.int16 and prepared.sampling_rate == 100


def test_rows_are_the_cleaned_resampled_records(root, prepared):
    row = LAYOUTS["ludb"].list(root / "ludb").iloc[1]
    record = records.read_ludb(root / "ludb", row)
    where = prepared.rows("ludb")[1]
    cleaned = store.clean(record.signal, 500, 0.5, 40)
    expected = store.resample(cleaned, 500, 100, 1000)
    np.testing.assert_allclose(prepared.millivolts([where])[0], expected, atol=0.00051)
    for lead in ("II", "V3"):
        own = record.waves[[records.LEADS.index(lead)]]
        waves = store.resample_labels(own, 500, 100, 1000)
        np.testing.assert_array_equal(prepared.wave_targets([where], lead), waves)
        np.testing.assert_array_equal(
            prepared.wave_marks([where], lead), records.wave_marks(own, 500)
        )


def test_load_scales_each_row_by_one_factor(prepared):
    rows = np.arange(len(prepared))
    scaled, raw = prepared.load(rows), prepared.millivolts(rows)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.std(axis=(1, 2)), 1, rtol=1e-4)
    np.testing.assert_allclose(scaled * raw.std(axis=(1, 2), keepdims=True), raw, atol=1e-5)
    assert np.abs(raw[:, 0] + raw[:, 2] - raw[:, 1]).max() < 0.002  # Einthoven survives


def test_rows_by_dataset_and_fold(prepared):
    table = prepared.table
    fold = prepared.rows("ptbxl", [1, 2])
    assert set(table["fold"].iloc[fold]) <= {1, 2}
    assert len(prepared.rows("ptbxl", [99])) == 0
    assert len(prepared.rows("ludb", [0])) == 3
    with pytest.raises(StoreError, match="known: ptbxl, ludb, challenge"):
        prepared.rows("mitbih")
    with pytest.raises(StoreError, match="no wave annotation"):
        prepared.wave_targets(prepared.rows("ptbxl"))
    with pytest.raises(StoreError, match="lead 'X'"):
        prepared.wave_marks(prepared.rows("ludb"), "X")


def test_marks_belong_to_the_rows_asked_for(prepared):
    rows = prepared.rows("ludb")
    each = [prepared.wave_marks([row]) for row in rows]
    together = prepared.wave_marks(rows[::-1])
    assert prepared.wave_marks([]).shape == (0, 4) and all(len(marks) for marks in each)
    for item, marks in enumerate(each[::-1]):
        mine = together[together[:, 0] == item]
        np.testing.assert_array_equal(mine[:, 1:], marks[:, 1:])


def test_two_processes_write_the_same_bytes(root, prepared, tmp_path):
    two = prepare(CONFIG, tmp_path / "store", root, jobs=2)
    assert two.fingerprint == prepared.fingerprint
    np.testing.assert_array_equal(two.signals, prepared.signals)
    np.testing.assert_array_equal(two.waves, prepared.waves)
    np.testing.assert_array_equal(two.marks, prepared.marks)
    pd.testing.assert_frame_equal(two.table, prepared.table)
    pd.testing.assert_frame_equal(two.set_aside, prepared.set_aside)
    assert two.manifest["files"] == prepared.manifest["files"]  # sizes and hashes


def test_fingerprint_follows_content_not_place_or_time(copy, prepared, tmp_path):
    copy = copy.rename(tmp_path / "elsewhere")
    for path in copy.rglob("*"):
        path.touch()
    again = prepare(CONFIG, tmp_path / "store", copy)
    assert again.fingerprint == prepared.fingerprint
    other = prepare(replace(CONFIG, high_cut=30.0), tmp_path / "store", copy)
    assert other.fingerprint != prepared.fingerprint


def test_reused_when_nothing_changed_and_rebuilt_when_a_file_did(copy, tmp_path, monkeypatch):
    folder, config = tmp_path / "store", replace(CONFIG, ludb="", challenge=())
    first = prepare(config, folder, copy)
    monkeypatch.setattr(store, "_build", lambda *_: 1 / 0)
    assert prepare(config, folder, copy).fingerprint == first.fingerprint
    monkeypatch.undo()
    assert (first.table["wave_row"] == -1).all() and first.waves.shape == (0, 12, 1000)
    assert len(first.set_aside) == 0 and len(first.set_aside_counts()) == 0
    header = copy / "ptbxl" / "records100" / "00000" / "00003_lr.hea"
    header.write_text(header.read_text().replace("AVR", "X9"))
    second = prepare(config, folder, copy)
    assert second.fingerprint != first.fingerprint and len(second) == 11
    assert second.set_aside_counts()["reason"].tolist() == ["wrong leads"]
    assert not list(tmp_path.glob(".*.part"))


def test_bad_records_are_set_aside_with_their_names(copy, tmp_path):
    base = copy / "ptbxl" / "records100" / "00000"
    (base / "00001_lr.dat").unlink()
    dat = base / "00002_lr.dat"
    dat.write_bytes(dat.read_bytes()[:999])
    made = prepare(CONFIG, tmp_path / "store", copy)
    reasons = made.set_aside.set_index("record_id")["reason"]
    assert reasons["ptbxl-1"].startswith("file absent (00001_lr.dat)")
    assert reasons["ptbxl-2"].startswith("truncated, or header disagrees with the data")
    assert made.manifest["set_aside"]["ptbxl"] == 2 and made.manifest["rows"]["ptbxl"] == 10


def test_signal_files_without_a_reader_are_counted_and_named(copy, tmp_path):
    (copy / "challenge" / "training" / "georgia" / "g1" / "S0099.mat").write_bytes(b"x")
    (copy / "ludb" / "data" / "more.h5").write_bytes(b"x")
    made = prepare(CONFIG, tmp_path / "store", copy)
    counts = made.set_aside_counts()
    counts = counts[counts["reason"] == "signal file without a reader"].set_index("dataset")
    assert counts["records"].to_dict() == {"challenge": 1, "ludb": 1}
    assert counts.loc["ludb", "first"] == "data/more.h5"
    assert made.manifest["rows"]["ludb"] == 3
    (copy / "ludb" / "data" / "more.h5").unlink()
    assert len(prepare(CONFIG, tmp_path / "store", copy).set_aside) == len(made.set_aside) - 1


def test_interrupted_write_leaves_the_previous_store(copy, tmp_path, monkeypatch):
    folder, config = tmp_path / "store", replace(CONFIG, ludb="", challenge=())
    prepare(config, folder, copy)
    before = data_bytes(folder)
    calls, read = [], records.read_wfdb

    def stop(*arguments):
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return read(*arguments)

    monkeypatch.setattr(records, "read_wfdb", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(replace(config, high_cut=20.0), folder, copy)
    monkeypatch.undo()
    assert data_bytes(folder) == before
    assert open_store(folder).manifest["config"]["high_cut"] == 40.0
    assert not list(tmp_path.glob(".*.part"))
    resumed = prepare(replace(config, high_cut=20.0), folder, copy)
    assert resumed.manifest["config"]["high_cut"] == 20.0


def test_a_process_beside_us_may_finish_first(copy, tmp_path, monkeypatch):
    """Both build the same store; the second takes over what the first has put in place."""
    config, folder = DataConfig(ptbxl="ptbxl"), tmp_path / "store"
    build, made = store._build, []

    def slower(*arguments):
        manifest = build(*arguments)
        if not made:
            made.append(None)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(store.os, "getpid", lambda: 1)
                made.append(prepare(config, folder, copy).content)
        return manifest

    monkeypatch.setattr(store, "_build", slower)
    assert prepare(config, folder, copy).content == made[1]
    assert not list(tmp_path.glob(".*.part"))


def test_damage_is_detected_and_repaired(copy, tmp_path):
    folder, config = tmp_path / "store", replace(CONFIG, ptbxl="", challenge=())
    with pytest.raises(StoreError, match="run prepare first"):
        open_store(folder)
    prepare(config, folder, copy)
    whole = data_bytes(folder)
    for name, damage, text in (
        ("signals.i2", lambda b: b[:-2], "absent or incomplete"),
        ("waves.i1", lambda b: b"\x07" + b[1:], "was changed"),
        ("table.csv", lambda b: b[:50], "absent or incomplete"),
    ):
        (folder / name).write_bytes(damage(whole[name]))
        with pytest.raises(StoreError, match=text):
            open_store(folder)
        prepare(config, folder, copy)
        assert data_bytes(folder) == whole
    (folder / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="manifest.json is damaged"):
        open_store(folder)


def test_every_record_set_aside_is_an_error_with_reasons(copy, tmp_path):
    with pytest.raises(RecordError, match=r"ludb: all 3 records were set aside: too short \(3\)"):
        prepare(replace(CONFIG, seconds=30.0, ptbxl=""), tmp_path / "store", copy)
    assert not (tmp_path / "store" / "manifest.json").exists()


def test_a_further_data_set_in_a_known_layout_is_one_line_of_settings(copy, prepared, tmp_path):
    """Its rows have its own name; PTB-XL's recordings are set aside in it, too."""
    more = {"name": "georgia_2", "layout": "challenge", "folder": "mine"}
    again = {"name": "copy", "layout": "ptbxl", "folder": "copy"}
    own = {"ptbxl": "ptbxl", "ludb": "ludb", "challenge": ["challenge"]}
    made_of = write_folders(tmp_path / "made", 0, 0, 6, seed=9)
    alone = prepare(DataConfig(challenge=("challenge",)), tmp_path / "alone", made_of)
    shutil.copytree(made_of / "challenge", copy / "mine")
    for name in ("copy", "third"):
        shutil.copytree(copy / "ptbxl", copy / name)
    third = again | {"name": "third", "folder": "third"}
    config = from_dict(DataConfig, {**own, "sources": [more, again, third]})
    made = prepare(config, tmp_path / "store", copy)
    further = made.rows("georgia_2")
    assert made.table["dataset"].drop_duplicates().tolist() == [*own, "georgia_2"]
    assert made.layouts == {
        **{name: name for name in own},
        "georgia_2": "challenge",
        "copy": "ptbxl",
        "third": "ptbxl",
    }
    np.testing.assert_array_equal(made.signals[further], alone.signals)
    names = made.table["record_id"]
    assert names[further].tolist() == ("georgia_2-" + alone.table["record_id"]).tolist()
    assert names.is_unique and made.table["patient_id"][further].str.startswith("georgia_2-").all()
    pd.testing.assert_frame_equal(made.table.iloc[: len(prepared)], prepared.table)
    np.testing.assert_array_equal(
        training_rows(made, Rotation()),
        np.concatenate([training_rows(prepared, Rotation()), further]),
    )
    aside = made.set_aside_counts().set_index(["dataset", "reason"])["records"]
    assert aside["georgia_2"].to_dict() == aside["challenge"].to_dict()
    assert aside["copy"].to_dict() == aside["third"].to_dict() == {records.OVERLAP: 12}


def test_sources_that_cannot_work_are_refused(root, tmp_path):
    other = Source("other", "challange", "more")
    with pytest.raises(ConfigError, match="other.*'challange'.*known: ptbxl, ludb, challenge"):
        prepare(replace(CONFIG, sources=(other,)), tmp_path / "store", root)
    with pytest.raises(ConfigError, match="a name of its own"):
        replace(CONFIG, sources=(Source("ludb", "challenge", "more"),))
    for twice in ({"challenge": ("a", "b", "./a/")}, {"ptbxl": "a", "challenge": ("a",)}):
        with pytest.raises(ConfigError, match="folder 'a' is named twice"):
            DataConfig(**twice)
    with pytest.raises(ConfigError, match="folder 'ludb' is named twice"):
        replace(CONFIG, sources=(Source("mine", "ludb", "ludb"),))
    with pytest.raises(ConfigError, match="challenge: expected a list, got 'challenge'"):
        from_dict(DataConfig, {"challenge": "challenge"})
    with pytest.raises(RecordError, match="absent.*not found"):
        prepare(
            DataConfig(sources=(replace(other, layout="ludb", folder="absent"),)), tmp_path, root
        )
    for folders in (("absent",), ("challenge", "absent")):
        with pytest.raises(RecordError, match="absent.*not found"):
            prepare(DataConfig(challenge=folders), tmp_path, root)


def test_missing_folder_and_no_data_set(tmp_path, root):
    with pytest.raises(RecordError, match="not found"):
        prepare(replace(CONFIG, ptbxl="absent"), tmp_path / "store", root)
    with pytest.raises(ConfigError, match="no data set chosen"):
        prepare(DataConfig(), tmp_path / "store", root)
    with pytest.raises(ConfigError, match="jobs"):
        prepare(CONFIG, tmp_path / "store", root, jobs=0)


def test_synthetic_profile_needs_no_data_root(tmp_path):
    config = DataConfig(synthetic=True, synthetic_ptbxl=4, synthetic_ludb=1)
    made = prepare(config, tmp_path / "work" / "store", tmp_path / "absent")
    assert len(made.rows("ptbxl")) == 4 and len(made.rows("ludb")) == 1
    assert (tmp_path / "work" / "synthetic" / "ptbxl" / "ptbxl_database.csv").is_file()


def test_real_ludb_record_goes_through(real_data, tmp_path):
    folder = tmp_path / "ludb"
    (folder / "data").mkdir(parents=True)
    (folder / "RECORDS").write_text("data/1\ndata/116\n")
    for name in ("1", "116"):
        for path in (real_data / "ludb" / "data").glob(f"{name}.*"):
            shutil.copyfile(path, folder / "data" / path.name)
    made = prepare(DataConfig(ludb="ludb"), tmp_path / "store", tmp_path)
    assert len(made) == 2 and len(made.set_aside) == 0
    assert set(np.unique(made.wave_targets([0, 1]))) == {-1, 0, 1, 2, 3}


def test_real_waves_keep_their_borders_on_average(real_data):
    """Over all 12 leads of 40 records; picking the nearest label moved them by 4 ms."""
    shifts = []
    for row in LAYOUTS["ludb"].list(real_data / "ludb").to_dict("records")[::5]:
        fine = records.read_ludb(real_data / "ludb", row).waves
        coarse = store.resample_labels(fine, 500, 100, 1000)
        marks = records.wave_marks(fine, 500)
        shifts.append(records.wave_marks(coarse, 100)[:, 2:] - marks[:, 2:])
    shifts = np.concatenate(shifts)
    assert len(shifts) > 8000 and (np.abs(shifts.mean(axis=0)) < 0.5).all()


def test_a_plain_script_may_use_several_processes(root, tmp_path):
    """Spawned workers of the standard library import the script again, and die without a guard."""
    script = tmp_path / "plain.py"
    script.write_text(
        "from pathlib import Path\n"
        "from beatssl.settings import DataConfig\n"
        "from beatssl.data.store import prepare\n"
        "config = DataConfig(ptbxl='ptbxl')\n"
        f"made = prepare(config, Path({str(tmp_path / 'store')!r}), Path({str(root)!r}), jobs=2)\n"
        "print(len(made))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(store.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["12"]
