"""Readers: facts of the published layouts, LUDB's traps, and bad input."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import wfdb

from beatssl.data import records
from beatssl.data.records import LAYOUTS, LEADS, SUPERCLASSES, RecordError, wave_labels
from beatssl.data.synthetic import write_folders
from beatssl.settings import DataConfig

MARGIN = 50  # samples left out at 500 Hz where a border is missing


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("records") / "made", 12, 2, 6, seed=3)


@pytest.fixture
def ptbxl(made, tmp_path):
    return shutil.copytree(made / "ptbxl", tmp_path / "ptbxl")


def first(folder):
    return LAYOUTS["ptbxl"].list(folder, 100).iloc[0].to_dict()


# ------------------------------------------------------------ wave marks


def test_a_triple_is_drawn_with_both_borders_and_the_rest_is_not_annotated():
    labels = wave_labels("(N)(t)", [100, 110, 130, 180, 210, 240], 400, 500)
    expected = np.full(400, -1)
    expected[100:241] = 0
    expected[100:131] = 2
    expected[180:241] = 3
    np.testing.assert_array_equal(labels, expected)


def test_missing_onset_is_left_out_not_background():
    labels = wave_labels("(p)N)(t)", [20, 30, 40, 200, 230, 300, 320, 340], 400, 500)
    assert (labels[200 - MARGIN : 231] == -1).all()
    assert labels[200 - MARGIN - 1] == 0 and labels[231] == 0
    assert not (labels == 2).any()


def test_missing_offset_is_left_out_but_never_over_a_drawn_wave():
    labels = wave_labels("(N)(t(p)", [10, 20, 30, 100, 140, 170, 190, 200], 400, 500)
    assert (labels[100:170] == -1).all()
    assert (labels[170:201] == 1).all()


@pytest.mark.parametrize(
    ("marks", "at", "span"),
    [("N()", [100, 103, 140], (100, 140)), ("()N", [100, 137, 140], (100, 140))],
)
def test_mark_on_the_border_belongs_to_the_pair(marks, at, span):
    labels = wave_labels("(p)" + marks + "(t)", [1, 5, 9, *at, 300, 310, 320], 400, 500)
    assert (labels[span[0] : span[1] + 1] == 2).all()
    assert (labels == 2).sum() == span[1] - span[0] + 1


def test_mark_far_from_an_empty_pair_is_not_joined():
    labels = wave_labels("(p)N()(t)", [1, 5, 9, 100, 200, 240, 300, 310, 320], 400, 500)
    assert not (labels == 2).any()
    assert (labels[200:241] == -1).all() and (labels[50:151] == -1).all()


def test_empty_pair_is_left_out():
    labels = wave_labels("(N)()(t)", [1, 5, 9, 100, 140, 200, 210, 220], 400, 500)
    assert (labels[100:141] == -1).all() and labels[99] == 0 and labels[141] == 0


def test_stacked_waves_are_one_wave():
    at = [100, 104, 110, 120, 121, 122, 140, 144, 150]
    labels = wave_labels("(N)((" + "(ttt)))", [10, 15, 20, *at], 400, 500)
    assert (labels[104:145] == 3).all() and (labels == 3).sum() == 41


def test_unknown_symbol_and_marks_outside_the_record_are_errors():
    with pytest.raises(RecordError, match="unknown annotation symbol"):
        wave_labels("(V)", [1, 2, 3], 10, 500)
    with pytest.raises(RecordError, match="outside the record"):
        wave_labels("(N)", [1, 2, 30], 10, 500)
    assert (wave_labels("", [], 10, 500) == -1).all()


# ------------------------------------------------------------ layouts


def test_leads_are_put_in_order_whatever_their_case():
    signal = np.tile(np.arange(12.0), (5, 1))
    names = [lead.upper() for lead in LEADS]
    ordered = records.order_leads(signal[:, ::-1], names[::-1], "x")
    np.testing.assert_array_equal(ordered[:, 0], np.arange(12))
    assert ordered.shape == (12, 5) and ordered.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda n: n[:-1] + ["X"], "unknown lead X, missing lead V6"),
        (lambda n: n[:-1] + ["V1"], "duplicate lead V1"),
        (lambda n: n[:-1], "missing lead V6"),
    ],
)
def test_wrong_leads_are_named(change, text):
    names = change(list(LEADS))
    with pytest.raises(RecordError, match=text):
        records.order_leads(np.zeros((5, len(names))), names, "x")


def test_superclasses_come_from_all_diagnostic_codes(ptbxl):
    path = ptbxl / "ptbxl_database.csv"
    table = pd.read_csv(path)
    table.loc[0, "scp_codes"] = "{'IMI': 15.0, 'LAFB': 0.0, 'SR': 0.0, 'ISC_': 100.0}"
    table.loc[1, "scp_codes"] = "{'SR': 0.0}"
    table.to_csv(path, index=False)
    listed = LAYOUTS["ptbxl"].list(ptbxl, 100)
    assert listed.loc[0, list(SUPERCLASSES)].tolist() == [0, 1, 1, 1, 0]
    assert listed.loc[1, list(SUPERCLASSES)].tolist() == [-1] * 5
    assert (listed["provenance"] == "").all()  # the official file has no such column


def test_high_rate_file_is_taken_above_100_hz_where_there_is_one(ptbxl):
    path = ptbxl / "ptbxl_database.csv"
    table = pd.read_csv(path, keep_default_na=False)
    table.loc[0, "filename_hr"] = "records500/00000/00001_hr"
    table.to_csv(path, index=False)
    (ptbxl / "records500" / "00000").mkdir(parents=True)
    d = np.arange(5000 * 12).reshape(5000, 12) % 999
    wfdb.wrsamp(
        "00001_hr",
        500,
        ["mV"] * 12,
        list(LEADS),
        d_signal=d,
        fmt=["16"] * 12,
        adc_gain=[1000.0] * 12,
        baseline=[0] * 12,
        write_dir=str(ptbxl / "records500" / "00000"),
    )
    fast = LAYOUTS["ptbxl"].list(ptbxl, 500)
    assert fast["filename"].str.startswith("records500").tolist() == [True] + [False] * 11
    record = records.read_ptbxl(ptbxl, fast.iloc[0])
    assert record.sampling_rate == 500
    np.testing.assert_allclose(record.signal, d.T / 1000, atol=1e-6)
    assert records.read_ptbxl(ptbxl, fast.iloc[1]).sampling_rate == 100
    assert not LAYOUTS["ptbxl"].list(ptbxl, 100)["filename"].str.startswith("records500").any()


def test_challenge_sources_and_the_overlapping_one(made):
    listed = LAYOUTS["challenge"].list(made / "challenge")
    assert set(listed["source"]) == {"cpsc_2018", "georgia", "ptb-xl"}
    assert listed["skip"][listed["skip"] != ""].tolist() == ["overlaps PTB-XL (folder ptb-xl)"]
    lengths = set()
    for row in listed.to_dict("records"):
        record = records.read_challenge(made / "challenge", row)
        assert record.sampling_rate == 500 and record.provenance == row["source"]
        assert set(record.labels) == {-1} and record.waves is None
        lengths.add(record.signal.shape[1])
    assert len(lengths) > 2


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("training/ptb-xl/g1/S0001", True),
        ("training/PTB_PTBXL/g1/S0001", True),
        ("WFDB_PTBXL/S0001", True),
        ("ptbxl/S0001", True),
        ("training/PTB-XL_1.0.3/S0001", True),
        ("training/PTB XL/S0001", True),
        ("g1/HR00001", True),
        ("HR21837", True),
        ("training/mixed/g1/hr00001", True),
        ("a/00001_hr", True),
        ("00001_lr", True),
        ("training/ptb/g1/S0001", False),
        ("training/georgia/g1/E00001", False),
        ("A0001", False),
        ("training/ningbo/g1/JS10647", False),
        ("HR0001", False),
        ("HR00001x", False),
    ],
)
def test_ptbxl_in_the_challenge_is_known_by_name(tmp_path, place, named):
    path = tmp_path / "challenge2021" / f"{place}.hea"
    path.parent.mkdir(parents=True)
    path.write_text("")
    listed = LAYOUTS["challenge"].list(tmp_path / "challenge2021")
    assert listed["skip"].str.startswith("overlaps PTB-XL (").tolist() == [named]


def test_leads_under_each_others_name_are_put_right_and_told(made, tmp_path):
    """Only where I and II say so: aVL and aVF of a record are what they make of them."""
    folder = made / "challenge"
    row = next(r for r in LAYOUTS["challenge"].list(folder).to_dict("records") if not r["skip"])
    record = LAYOUTS["challenge"].read(folder, row)
    assert not records.exchanged(record.signal) and "exchanged" not in record.provenance
    shutil.copytree(folder, tmp_path / "challenge")
    header = (tmp_path / "challenge" / row["filename"]).with_suffix(".hea")
    text = header.read_text()
    names = {"aVL": "aVF", "aVF": "aVL"}
    swapped = [
        " ".join([*words[:-1], names.get(words[-1], words[-1])]) if words else line
        for line, words in ((line, line.split(" ")) for line in text.splitlines())
    ]
    header.write_text("\n".join(swapped) + "\n")
    assert header.read_text() != text
    found = LAYOUTS["challenge"].read(tmp_path / "challenge", row)
    np.testing.assert_array_equal(found.signal, record.signal)
    assert found.provenance == f"{record.provenance}; aVL and aVF exchanged"
    noise = np.random.default_rng(0).normal(size=record.signal.shape)
    assert not records.exchanged(record.signal + noise)  # neither fits: left alone


def test_signal_files_that_no_header_lists_are_named(made, ptbxl, tmp_path):
    folder = shutil.copytree(made / "challenge", tmp_path / "challenge")
    names = LAYOUTS["challenge"].list(folder)["filename"]
    assert records.unlisted(folder, names) == {}
    base = folder / "training" / "georgia" / "g1"
    header = sorted(base.glob("*.hea"))[0]
    header.unlink()
    (base / "more.H5").write_bytes(b"x")
    (base / "._more.h5").write_bytes(b"x")
    (base / "notes.csv").write_text("x")
    found = records.unlisted(folder, LAYOUTS["challenge"].list(folder)["filename"])
    assert {name.rsplit("/", 1)[1] for name in found} == {header.stem + ".mat", "more.H5"}
    assert sorted(found.values()) == [
        "signal file without a reader (.h5, format not read)",
        "signal file without a reader (.mat, no header lists it)",
    ]
    for path in folder.rglob("*.hea"):
        path.unlink()
    with pytest.raises(RecordError, match="no record listed; 7 signal files without a reader"):
        LAYOUTS["challenge"].list(folder)
    high = ptbxl / "records500" / "00000" / "00001_hr.dat"  # the other rate of a listed record
    high.parent.mkdir(parents=True)
    high.write_bytes(b"x")
    high.with_name("99999_hr.dat").write_bytes(b"x")
    listed = LAYOUTS["ptbxl"].list(ptbxl, 100)["filename"]
    assert list(records.unlisted(ptbxl, listed)) == ["records500/00000/99999_hr.dat"]


# ------------------------------------------------------------ quality


@pytest.fixture
def good(made):
    return records.read_ptbxl(made / "ptbxl", first(made / "ptbxl"))


def test_check(good):
    config = DataConfig()
    assert records.check(good, config) is None
    assert records.check(good, replace(config, seconds=11.0)) == "too short: 10 s of 11 s"
    signal = good.signal.copy()
    signal[7, 3] = np.nan
    assert records.check(replace(good, signal=signal), config) == "NaN: lead V2"
    signal = good.signal.copy()
    signal[[3, 6]] = 0.7
    assert records.check(replace(good, signal=signal), config) == "flat lead: aVR, V1"
    signal = good.signal.copy()
    signal[2] *= -1  # a swapped electrode pair
    assert records.check(replace(good, signal=signal), config).startswith("Einthoven violated")


# ------------------------------------------------------------ bad input


def test_missing_folder_and_files_are_named(ptbxl, tmp_path):
    for layout in LAYOUTS.values():
        with pytest.raises(RecordError, match="nowhere.*not found"):
            layout.list(tmp_path / "nowhere")
    (ptbxl / "scp_statements.csv").unlink()
    with pytest.raises(RecordError, match="scp_statements.csv not found"):
        LAYOUTS["ptbxl"].list(ptbxl, 100)
    with pytest.raises(RecordError, match="RECORDS not found"):
        LAYOUTS["ludb"].list(ptbxl)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="no record listed"):
        LAYOUTS["challenge"].list(tmp_path / "empty")


def test_csv_without_a_column_and_damaged_row(ptbxl):
    path = ptbxl / "ptbxl_database.csv"
    table = pd.read_csv(path)
    table.drop(columns="strat_fold").to_csv(path, index=False)
    with pytest.raises(RecordError, match="column strat_fold missing"):
        LAYOUTS["ptbxl"].list(ptbxl, 100)
    table.loc[2, "scp_codes"] = "{'NORM': "
    pd.concat([table, table[:1]]).to_csv(path, index=False)
    listed = LAYOUTS["ptbxl"].list(ptbxl, 100)
    skipped = listed[listed["skip"] != ""].set_index("record_id")["skip"]
    assert "scp_codes" in skipped["ptbxl-3"] and skipped["ptbxl-1"].startswith("listed twice")
    assert len(skipped) == 2 and len(listed) == len(table) + 1


def test_absent_and_truncated_files(ptbxl):
    row = first(ptbxl)
    path = ptbxl / f"{row['filename']}.dat"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 + 1])
    with pytest.raises(RecordError, match="ptbxl-1: truncated, or header disagrees"):
        records.read_ptbxl(ptbxl, row)
    path.unlink()
    with pytest.raises(RecordError, match=r"ptbxl-1: file absent \(00001_lr.dat\)"):
        records.read_ptbxl(ptbxl, row)
    path.with_suffix(".hea").unlink()
    with pytest.raises(RecordError, match=r"ptbxl-1: file absent \(00001_lr.hea\)"):
        records.read_ptbxl(ptbxl, row)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (" 12 100 1000", " 12 100 900"),  # length
        (" 12 100 1000", " 11 100 1000"),  # number of leads
        (" 12 100 1000", " 12 100"),  # no length: fine unless the rest disagrees
        ("/mV 16 0 ", "/mV 16 0 9"),  # first sample
        ("dat 16 ", "dat 80 "),  # sample format
        ("/mV", "/C"),  # unit
    ],
)
def test_header_that_disagrees_with_the_data(ptbxl, old, new):
    row = first(ptbxl)
    path = ptbxl / f"{row['filename']}.hea"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    if new == " 12 100":
        assert records.read_ptbxl(ptbxl, row).signal.shape == (12, 1000)
        return
    with pytest.raises(RecordError, match="ptbxl-1: "):
        records.read_ptbxl(ptbxl, row)


def test_ludb_without_an_annotation_file(made, tmp_path):
    folder = shutil.copytree(made / "ludb", tmp_path / "ludb")
    row = LAYOUTS["ludb"].list(folder).iloc[0]
    (folder / "data" / "1.v3").unlink()
    with pytest.raises(RecordError, match=r"ludb-1: annotation unreadable \(lead V3"):
        records.read_ludb(folder, row)


# ------------------------------------------------------------ real recordings


def test_real_ptbxl_superclass_counts(real_data):
    listed = LAYOUTS["ptbxl"].list(real_data / "ptbxl-subset", 100)
    ours = listed[list(SUPERCLASSES)].clip(lower=0)
    assert len(listed) == 2272 and (listed["NORM"] == -1).sum() == 11
    assert ours.sum().tolist() == [1240, 328, 609, 530, 226]
    assert ours[listed["fold"] == 10].sum().tolist() == [121, 41, 79, 65, 25]
    assert (listed.groupby("patient_id")["fold"].nunique() == 1).all()


def test_real_ptbxl_rate_choice(real_data):
    folder = real_data / "ptbxl-subset"
    listed = LAYOUTS["ptbxl"].list(folder, 500)
    high = listed["filename"].str.startswith("records500")
    assert high.sum() == 488 and (listed["provenance"][high] == "official").all()
    record = records.read_ptbxl(folder, listed[high].iloc[0])
    assert record.sampling_rate == 500 and record.signal.shape == (12, 5000)


def test_real_ludb_units_and_traps(real_data):
    folder = real_data / "ludb"
    rows = LAYOUTS["ludb"].list(folder).set_index("record_id", drop=False)
    assert len(rows) == 200
    one = records.read_ludb(folder, rows.loc["ludb-1"])
    np.testing.assert_allclose(one.signal[0] + one.signal[2], one.signal[1], atol=1e-5)
    assert 0.3 < np.ptp(one.signal[1]) < 10  # mV
    ii = one.waves[1]
    assert (ii[:644] == -1).all() and (ii[644:683] == 2).all() and ii[683] == 0
    stacked = records.read_ludb(folder, rows.loc["ludb-116"])
    v1 = stacked.waves[LEADS.index("V1")]
    assert (v1[393:458] == 3).all() and v1[392] == 0 and v1[458] == 0  # median borders
    v4 = stacked.waves[LEADS.index("V4")]
    assert (v4[3037:3133] == -1).all() and (v4[3133:3221] == 1).all()  # stray (t
    border = records.read_ludb(folder, rows.loc["ludb-198"]).waves[LEADS.index("V2")]
    assert (border[4088:4120] == 1).all()  # p()
    empty = records.read_ludb(folder, rows.loc["ludb-8"]).waves[LEADS.index("V5")]
    assert (empty[1066:1139] == -1).all()  # ()
    onset = records.read_ludb(folder, rows.loc["ludb-104"]).waves[LEADS.index("II")]
    assert (onset[1116:1241] == -1).all() and not (onset == 2).any()  # N) throughout


@pytest.mark.slow
def test_real_ludb_wave_counts(real_data):
    """The numbers that LUDB 1.0.1 states, over all leads, as its marks are parsed."""
    counts = Counter()
    for row in LAYOUTS["ludb"].list(real_data / "ludb").to_dict("records"):
        path = real_data / "ludb" / row["filename"]
        for lead in LEADS:
            counts.update(wfdb.rdann(str(path), lead.lower()).symbol)
    waves = {records.WAVES[k - 1]: counts[s] for s, k in records.WAVE_OF_SYMBOL.items()}
    assert waves == {"P": 16797, "QRS": 21965, "T": 19661}
