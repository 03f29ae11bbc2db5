"""Bad files by the dozen in one preparation: each ends with its reason, none stops the others."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wfdb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beatssl.data import records, store
from beatssl.data.records import LAYOUTS, RecordError, wave_labels
from beatssl.data.synthetic import write_folders
from beatssl.profile import load_profile
from beatssl.settings import ConfigError, DataConfig

READ = None  # the record is read all the same


class Bad:
    """A record to damage: its header, its samples, its line of the table."""

    def __init__(self, folder: Path, name: str):
        self.stem = folder / name
        self.hea, self.dat = self.stem.with_suffix(".hea"), self.stem.with_suffix(".dat")

    def lines(self, change: Callable[[list[list[str]]], None]) -> None:
        """Change the words of the header's lines; line 0 is the record's, the others its leads'."""
        words = [line.split() for line in self.hea.read_text().splitlines()]
        change(words)
        self.hea.write_text("\n".join(" ".join(line) for line in words) + "\n")

    def word(self, line: int, at: int, text: str) -> None:
        self.lines(lambda words: words[line].__setitem__(at, text))

    def every_lead(self, at: int, text: str) -> None:
        self.lines(lambda words: [line.__setitem__(at, text) for line in words[1:13]])

    def samples(self, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Change the integers (time, lead), with a header that agrees with them."""
        record = wfdb.rdrecord(str(self.stem), physical=False)
        data = change(record.d_signal.astype(np.int64)).astype("<i2")
        data.tofile(self.dat)

        def agree(words):
            words[0][3] = str(len(data))
            for lead, line in enumerate(words[1:13]):
                line[5] = str(data[0, lead])
                line[6] = str(int(np.int16(data[:, lead].astype(np.int64).sum() & 0xFFFF)))

        data = data if len(data) else np.zeros((1, 12), "<i2")
        self.lines(agree)


def put(column: int, rows: slice, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(data):
        data[rows, column] = value
        return data

    return change


def times(data: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(data * factor, -32767, 32767)


def folder_in_place_of(path: Path) -> None:
    path.unlink()
    path.mkdir()


def raise_first(words: list[list[str]]) -> None:
    words[3][5] = str(int(words[3][5]) + 65536)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


DISAGREES = "truncated, or header disagrees with the data|header disagrees with the data"
HEADER = "header unreadable"
OF_SIGNAL = {  # what is done to a record of PTB-XL -> the reason
    "no header": (lambda r: r.hea.unlink(), r"file absent \(.*hea\)"),
    "no samples": (lambda r: r.dat.unlink(), r"file absent \(.*dat\)"),
    "a folder for a header": (lambda r: folder_in_place_of(r.hea), "file absent"),
    "a folder for samples": (lambda r: folder_in_place_of(r.dat), "file absent"),
    "a link to itself": (lambda r: loop(r.dat), "file absent"),
    "empty header": (lambda r: r.hea.write_text(""), HEADER),
    "header of blanks": (lambda r: r.hea.write_text("\n  \n\n"), HEADER),
    "header of comments": (lambda r: r.hea.write_text("# a\n# b\n"), HEADER),
    "header of random bytes": (lambda r: r.hea.write_bytes(os.urandom(300)), HEADER),
    "header in UTF-16": (lambda r: r.hea.write_text(r.hea.read_text(), "utf-16"), HEADER),
    "header of zeros": (lambda r: r.hea.write_bytes(bytes(2000)), HEADER),
    "header of a million words": (lambda r: r.hea.write_text("1 " * 10**6), HEADER),
    "huge header": (lambda r: r.hea.open("a").write("# words\n" * 10**5), READ),
    "no line of a lead": (lambda r: r.lines(lambda w: w.__delitem__(slice(1, 13))), "file absent"),
    "header cut in a line": (lambda r: r.hea.write_text(r.hea.read_text()[:100]), DISAGREES),
    "no samples in the file": (lambda r: r.dat.write_bytes(b""), DISAGREES),
    "cut samples": (lambda r: r.dat.write_bytes(r.dat.read_bytes()[:9999]), DISAGREES),
    "one sample too few": (lambda r: r.dat.write_bytes(r.dat.read_bytes()[:-24]), DISAGREES),
    "an odd byte too many": (lambda r: r.dat.open("ab").write(b"x"), READ),
    "a flipped byte": (lambda r: put_byte(r.dat, 5000), "checksum"),
    "samples of another file": (lambda r: r.dat.write_bytes(os.urandom(24000)), DISAGREES),
    "text for samples": (lambda r: r.dat.write_text("no samples " * 3000), DISAGREES),
    "more samples said": (lambda r: r.word(0, 3, "10000"), DISAGREES),
    "fewer samples said": (lambda r: r.word(0, 3, "500"), "checksum"),
    "no samples said": (lambda r: r.word(0, 3, "0"), DISAGREES),
    "negative length": (lambda r: r.word(0, 3, "-1000"), READ),  # as if none were said: the file
    "length in words": (lambda r: r.word(0, 3, "many"), READ),  # tells it, and its sums fit
    "a length beyond all disks": (lambda r: r.word(0, 3, "9" * 15), "MemoryError"),
    "thirteen leads said": (lambda r: r.word(0, 1, "13"), DISAGREES),
    "eleven leads said": (lambda r: r.word(0, 1, "11"), DISAGREES),
    "no leads said": (lambda r: r.word(0, 1, "0"), DISAGREES),
    "a billion leads said": (lambda r: r.word(0, 1, "1000000000"), "1000000000 leads"),
    "rate zero": (lambda r: r.word(0, 2, "0"), "sampling rate 0"),
    "negative rate": (lambda r: r.word(0, 2, "-100"), "sampling rate -100"),
    "rate in words": (lambda r: r.word(0, 2, "fast"), HEADER),
    "rate not a number": (lambda r: r.word(0, 2, "nan"), "sampling rate nan"),
    "infinite rate": (lambda r: r.word(0, 2, "inf"), "sampling rate inf"),
    "rate of radio": (lambda r: r.word(0, 2, "1000000000"), "too short"),
    "rate of a clock": (lambda r: r.word(0, 2, "0.001"), "sampling rate 0.001"),
    "other format": (lambda r: r.every_lead(1, "212"), DISAGREES),
    "unknown format": (lambda r: r.every_lead(1, "999"), DISAGREES),
    "32 bits said": (lambda r: r.every_lead(1, "32"), DISAGREES),
    "gain in words": (lambda r: r.every_lead(2, "big/mV"), "unknown unit"),
    "gain not a number": (lambda r: r.every_lead(2, "nan/mV"), "unknown unit"),
    "infinite gain": (lambda r: r.every_lead(2, "inf/mV"), "unknown unit"),
    "tiny gain": (lambda r: r.every_lead(2, "1e-30(0)/mV"), "out of range"),
    "tiny gain of one lead": (lambda r: r.word(7, 2, "0.001(0)/mV"), "out of range"),
    "unknown unit": (lambda r: r.every_lead(2, "1000(0)/bananas"), "unknown unit"),
    "a path out of the folder": (lambda r: r.every_lead(0, "../../00001_lr.dat"), HEADER),
    "an absolute path": (lambda r: r.every_lead(0, "/etc/passwd"), HEADER),
    "a missing lead": (lambda r: r.word(12, 8, "V7"), "wrong leads .*missing lead V6"),
    "a doubled lead": (lambda r: r.word(12, 8, "V5"), "wrong leads .*duplicate lead V5"),
    "a lead without a name": (lambda r: r.lines(lambda w: w[12].pop()), "wrong leads|header"),
    "another first sample": (lambda r: r.word(3, 5, "31000"), "first sample"),
    "first sample 65536 too high": (lambda r: r.lines(raise_first), "first sample"),
    "another checksum": (lambda r: r.word(3, 6, "1"), "checksum"),
    "segments": (lambda r: r.word(0, 0, r.stem.name + "/2"), HEADER),
    "one sample": (lambda r: r.samples(lambda d: d[:1]), "too short"),
    "five seconds": (lambda r: r.samples(lambda d: d[:500]), "too short: 5 s of 10 s"),
    "a missing sample": (lambda r: r.samples(put(4, slice(7, 8), -32768)), "NaN: lead aVL"),
    "nothing but missing samples": (lambda r: r.samples(lambda d: d * 0 - 32768), "NaN: lead I"),
    "a flat lead": (lambda r: r.samples(put(9, slice(None), 0)), "flat lead: V4"),
    "a flat record": (lambda r: r.samples(lambda d: d * 0 + 5), "flat lead: I, II"),
    "clipped": (lambda r: r.samples(lambda d: np.clip(d * 50, -300, 300)), "Einthoven"),
    "extreme": (lambda r: r.samples(lambda d: times(d, 100.0)), "Einthoven"),
    "one lead extreme": (lambda r: r.samples(put(8, slice(100, 104), 32767)), READ),
    "swapped electrodes": (lambda r: r.samples(lambda d: d[:, [1, 0, *range(2, 12)]]), "Einthoven"),
    "leads of other moments": (lambda r: r.samples(rolled), "Einthoven"),
}  # fmt: skip
OF_TABLE = {  # a cell of ptbxl_database.csv -> the reason
    "statements cut": ("scp_codes", "{'NORM': ", "unreadable .*scp_codes"),
    "statements as a list": ("scp_codes", "['NORM']", "unreadable .*scp_codes"),
    "statements as a number": ("scp_codes", "7", "unreadable .*scp_codes"),
    "statements as a call": ("scp_codes", "__import__('os').getcwd()", "unreadable .*scp_codes"),
    "statements with numbers for names": ("scp_codes", "{1: 100.0}", "unreadable .*scp_codes"),
    "no statements": ("scp_codes", "", "unreadable .*scp_codes"),
    "deep statements": ("scp_codes", "(" * 5000, "unreadable .*scp_codes"),
    "fold in words": ("strat_fold", "ten", "strat_fold"),
    "no fold": ("strat_fold", "", "strat_fold"),
    "fold eleven": ("strat_fold", "11", "strat_fold"),
    "fold zero": ("strat_fold", "0", "strat_fold"),
    "infinite fold": ("strat_fold", "inf", "strat_fold"),
    "half a fold": ("strat_fold", "2.5", "strat_fold"),
    "patient in words": ("patient_id", "somebody", "patient_id"),
    "no patient": ("patient_id", "", "patient_id"),
    "no file": ("filename_lr", "", "file absent|outside"),
    "a file outside": ("filename_lr", "../../ludb/data/1", "outside"),
    "an absolute file": ("filename_lr", "/etc/passwd", "outside"),
}
OF_LUDB = {  # file ending, what is done -> the reason
    "no annotation": (".v3", lambda p: p.unlink(), "annotation unreadable .lead V3"),
    "empty annotation": (".ii", lambda p: p.write_bytes(b""), "annotation unreadable .lead II,"),
    "random annotation": (".i", lambda p: p.write_bytes(os.urandom(501)), "annotation unreadable"),
    "cut annotation": (
        ".v1",
        lambda p: p.write_bytes(p.read_bytes()[:31]),
        "annotation unreadable .lead V1,",
    ),
    "text annotation": (".v2", lambda p: p.write_text("(N) " * 99), "annotation unreadable"),
}


def put_byte(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 64
    path.write_bytes(data)


def rolled(data: np.ndarray) -> np.ndarray:
    return np.stack([np.roll(data[:, lead], 137 * lead) for lead in range(12)], axis=1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """One preparation of all of them at once, and of a copy of the folder without any fault."""
    root = tmp_path_factory.mktemp("bad")
    whole = write_folders(root / "whole", len(OF_SIGNAL) + len(OF_TABLE) + 7, 8, 4, seed=5)
    bad = shutil.copytree(whole, root / "bad")
    table = pd.read_csv(bad / "ptbxl" / "ptbxl_database.csv", dtype=str, keep_default_na=False)
    names = {}
    for at, (kind, (damage, _)) in enumerate(OF_SIGNAL.items()):
        damage(Bad(bad / "ptbxl", table.loc[at, "filename_lr"]))
        names[kind] = f"ptbxl-{table.loc[at, 'ecg_id']}"
    for at, (kind, (column, text, _)) in enumerate(OF_TABLE.items(), start=len(OF_SIGNAL)):
        table.loc[at, column] = text
        names[kind] = f"ptbxl-{table.loc[at, 'ecg_id']}"
    twice = table.iloc[[-1]]
    table.loc[len(table) - 2, "ecg_id"] = "../../x"
    table = pd.concat([table, twice, twice])
    table.to_csv(bad / "ptbxl" / "ptbxl_database.csv", index=False)
    listed = (bad / "ludb" / "RECORDS").read_text().split()
    for (kind, (ending, damage, _)), name in zip(OF_LUDB.items(), listed, strict=False):
        damage(bad / "ludb" / f"{name}{ending}")
        names[kind] = f"ludb-{name.rsplit('/', 1)[-1]}"
    (bad / "ludb" / "RECORDS").write_bytes(
        "\n".join([*listed, "../../x/77", "/data/78", listed[-1]]).encode() + b"\ndata/\xff\xfe\n"
    )
    config = DataConfig(ptbxl="ptbxl", ludb="ludb", challenge=("challenge",))
    made = {
        folder.name: store.prepare(config, root / f"store-{folder.name}", folder)
        for folder in (whole, bad)
    }
    return made, names


ALL = {**OF_SIGNAL, **OF_TABLE, **OF_LUDB}


def test_there_are_dozens_of_kinds():
    assert len(ALL) >= 80


@pytest.mark.parametrize("kind", ALL)
def test_a_bad_record_ends_with_its_reason(prepared, kind):
    made, names = prepared
    aside = made["bad"].set_aside.set_index("record_id")["reason"]
    why, name = ALL[kind][-1], names[kind]
    assert (name in set(made["bad"].table["record_id"])) == (why is READ)
    if why is not READ:
        assert re.search(why, aside[name]), aside[name]
        assert "/tmp" not in aside[name] and "\n" not in aside[name]


def test_all_others_are_read_as_if_no_bad_one_were_there(prepared):
    made, names = prepared
    whole, bad = made["whole"], made["bad"]
    good = [r for r in bad.table["record_id"] if r not in names.values()]
    assert len(good) >= 5 + 3 + 2
    for name in good:
        rows = [s.signals[s.table.index[s.table["record_id"] == name][0]] for s in (whole, bad)]
        np.testing.assert_array_equal(*rows)


def test_every_listed_record_is_either_a_row_or_set_aside(prepared):
    made, names = prepared
    bad = made["bad"]
    aside = bad.set_aside
    assert set(names.values()) <= set(bad.table["record_id"]) | set(aside["record_id"])
    assert (aside["reason"].str.startswith("listed twice")).sum() == 3
    assert (aside["reason"].str.contains("outside the folder")).sum() == 4
    assert "ptbxl-../../x" in set(aside["record_id"])  # an id that is no number
    counted = bad.set_aside_counts()["records"].sum()
    assert counted == len(aside)


# ------------------------------------------------------------ any bytes at all

PRINTED = st.characters(codec="utf-8", exclude_characters="\r\n")
ANY = settings(max_examples=60, deadline=None, derandomize=True,
               suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("one") / "made", 1, 1, 1, seed=1)


def files_of(folder: Path, layout: str) -> tuple[dict, dict[str, bytes]]:
    row = LAYOUTS[layout].list(folder).iloc[0].to_dict()
    return row, {name: (folder / name).read_bytes() for name in row["files"]}


def outcome(layout: str, row: dict, files: dict[str, bytes], folder: Path) -> None:
    """A record of twelve leads, or a RecordError; nothing else."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    config = DataConfig(ptbxl="", ludb="", challenge=())
    task = {"dataset": layout, "layout": layout, "folder": str(folder), "row": row}
    done = store._process(config, task)
    assert bool(done["rows"]) != bool(done["set_aside"])
    for _, microvolts, _ in done["rows"]:
        assert microvolts.shape == (12, 1000) and microvolts.dtype == np.int16


@pytest.mark.parametrize("layout", list(LAYOUTS))
@ANY
@given(data=st.data())
def test_any_damage_to_any_file_is_told(one, layout, data):
    row, files = files_of(one / layout, layout)
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    at = data.draw(st.integers(0, len(content)))
    new = data.draw(st.binary(max_size=30))
    cut = data.draw(st.integers(0, 60))
    content[at : at + cut] = new
    outcome(layout, row, {**files, name: bytes(content)}, one / "damaged")


@ANY
@given(words=st.lists(st.text(PRINTED, max_size=12),
                      max_size=9), line=st.integers(0, 12))  # fmt: skip
def test_any_line_of_a_header_is_told(one, words, line):
    row, files = files_of(one / "ptbxl", "ptbxl")
    header = next(name for name in files if name.endswith(".hea"))
    lines = files[header].decode().split("\n")
    lines[line] = " ".join(words)
    outcome("ptbxl", row, {**files, header: "\n".join(lines).encode()}, one / "header")


@ANY
@given(
    cells=st.dictionaries(
        st.sampled_from(["ecg_id", "patient_id", "scp_codes", "strat_fold", "filename_lr"]),
        st.one_of(
            st.text(max_size=20), st.floats().map(str), st.sampled_from(["{}", "None", "[]"])
        ),
        min_size=1,
    )
)
def test_any_cell_of_the_table_is_told(one, cells):
    folder = one / "cells"
    if not folder.exists():
        shutil.copytree(one / "ptbxl", folder)
    path = folder / "ptbxl_database.csv"
    table = pd.read_csv(one / "ptbxl" / path.name, dtype=str, keep_default_na=False)
    table = pd.concat([table, table.assign(**cells)])
    table.to_csv(path, index=False)
    rows = LAYOUTS["ptbxl"].list(folder).to_dict("records")
    assert len(rows) == 2 and not rows[0].get("skip")
    assert rows[1]["record_id"] != rows[0]["record_id"] or rows[1]["skip"]


@ANY
@given(
    marks=st.lists(
        st.tuples(st.sampled_from([*"(pNt)", "x", ""]), st.integers(-50, 1100)), max_size=30
    ),
    ordered=st.booleans(),
)
def test_any_marks_give_labels_or_a_record_error(marks, ordered):
    marks = sorted(marks, key=lambda mark: mark[1]) if ordered else marks
    samples = [at for _, at in marks]
    try:
        labels = wave_labels([symbol for symbol, _ in marks], samples, 1000, 500)
    except RecordError:
        return
    assert sorted(samples) == samples and labels.shape == (1000,)
    assert set(np.unique(labels)) <= {-1, 0, 1, 2, 3}
    outside = np.ones(1000, bool)
    if samples:
        outside[samples[0] : samples[-1] + 1] = False
    assert (labels[outside] == -1).all()


@pytest.mark.parametrize(
    "text",
    ["profiles: !!python/object/apply:os.system [exit]", "\tx: 1", "- a\n- b", "", "a: [", "\x00"],
)
def test_settings_that_are_no_plain_yaml_are_refused(tmp_path, text):
    path = tmp_path / "runs.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="runs.yml is no"):
        load_profile("tiny", path)


def test_a_run_whose_name_is_a_path_is_refused(tmp_path):
    path = tmp_path / "runs.yml"
    runs = "runs: [{method: random, seeds: [0], variant: ../x}]"
    path.write_text(f"profiles:\n  p:\n    data: {{ptbxl: ptbxl}}\n    {runs}\n")
    with pytest.raises(ConfigError, match="variant='../x'"):
        load_profile("p", path)


def test_nothing_is_unpickled():
    """The package opens arrays and tensors only in ways that run no code of the file's."""
    for path in (Path(records.__file__).parent.parent).rglob("*.py"):
        text = path.read_text()
        for call in re.findall(r"torch\.load\([^)]*\)", text):  # `trust` is the user's own word
            assert re.search("weights_only=(True|not trust)", call), (path.name, call)
        assert "allow_pickle=True" not in text and "yaml.load(" not in text
