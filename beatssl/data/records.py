"""Readers for the published record folders: PTB-XL, LUDB and the PhysioNet Challenge 2021.

Each of the `LAYOUTS` has two functions: `*_rows` lists a folder (one row a record, nothing read but
the index) and `read_*` reads (one row in, one `Record` out). Every record comes out alike: 12 leads
in the order of `LEADS`, millivolts, at the sampling rate of its file. Cleaning, resampling and
cutting are the store's business (`beatssl.data.store`).

A missing folder, index file or column raises `RecordError` while listing; a record that cannot be
read raises `RecordError` while reading, and the store sets that record aside with the reason.

Sources: PTB-XL, Wagner et al., Sci Data 7:154 (2020); LUDB, Kalyakulina et al., IEEE Access 8
(2020); Challenge 2021, Reyna et al., doi 10.13026/34va-7q14. Files are read with `wfdb`.
"""

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import wfdb

from beatssl.settings import DataConfig

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
OF_RECORD = ("record_id", "patient_id", "fold", "provenance", "statements")
WAVES = ("P", "QRS", "T")  # class 1, 2, 3 of the wave targets; 0 background, -1 not annotated
NOT_ANNOTATED = -1

WAVE_OF_SYMBOL = {"p": 1, "N": 2, "t": 3}
MARK_ON_BORDER = 0.010  # s: a peak mark this near a pair of borders belongs to that pair
UNKNOWN_BORDER = 0.100  # s left out on a side whose border is missing
FLAT_MILLIVOLT = 0.02  # a lead with a smaller peak-to-peak is called flat
LOWEST_RATE = 50.0  # Hz; below it a QRS is a few samples
MOST_LEADS = 100  # a header that says more is no ECG's
MILLIVOLT = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "v": 1e3}
RELEASE = "take the file of the release"
AGAIN = "download the record again"
OVERLAP = "overlaps PTB-XL"  # why a Challenge record is left out
DUPLICATE = "duplicate"  # the same of one that LUDB has or that was read before
UNKNOWN = dict.fromkeys(SUPERCLASSES, -1) | {  # of a line that cannot be read
    "patient_id": "", "fold": 0, "provenance": "", "statements": "",
}  # fmt: skip
PTBXL_RECORD = re.compile(r"HR\d{5}|\d{5}_[hl]r", re.IGNORECASE)  # in the Challenge, in PTB-XL
# of ECG collections; only those that a WFDB header lists are read
SUFFIXES = ".mat .dat .h5 .hdf5 .edf .bdf .gdf .npy .npz .dcm .scp .ecg".split()
PTBXL_FILE = re.compile(r"^records(?:100|500)/(.*)_[hl]r$")  # both rates are one record


class RecordError(ValueError):
    """A record or its folder cannot be used; the text names it and the remedy."""


@dataclass(frozen=True)
class Record:
    """One recording as published, leads in the order of `LEADS`.

    Attributes:
        record_id: unique over all data sets, for example `ptbxl-1`, `ludb-1`, `cpsc_2018-A0001`.
        signal: (12, time) float32, mV.
        sampling_rate: Hz.
        patient_id: `<dataset>-<patient>`; the record's own id where the patient is not given.
        fold: official PTB-XL fold 1..10; 0 = none.
        labels: (5,) 0 or 1 in the order of `SUPERCLASSES`; all -1 where no superclass is stated.
        waves: (12, time) int8 (see `wave_labels`), or None where nobody annotated waves.
        provenance: where the bytes come from, as far as the data set says.
        statements: diagnostic, form and rhythm statements (PTB-XL's scp codes), joined by ";".
    """

    record_id: str
    signal: np.ndarray
    sampling_rate: float
    patient_id: str
    fold: int = 0
    labels: Sequence[int] = (-1,) * len(SUPERCLASSES)
    waves: np.ndarray | None = None
    provenance: str = ""
    statements: str = ""


# ---------------------------------------------------------------- listing


def ptbxl_rows(folder: Path, sampling_rate: float) -> Iterator[dict]:
    """List the records of a folder in the PTB-XL layout.

    A record's superclasses are those of all diagnostic statements in its `scp_codes`, whatever
    their likelihood (Wagner et al. 2020, and the usual superdiagnostic benchmark).

    Above 100 Hz the 500 Hz file is taken where the record has one; records without
    (`filename_hr` empty, or no folder `records500` at all) give their 100 Hz file.

    Args:
        folder: holds `ptbxl_database.csv`, `scp_statements.csv`, `records100|500`.
        sampling_rate: Hz the caller wants to work at.

    Yields:
        One row a record: record_id, patient_id, fold, filename, NORM..HYP, provenance, statements,
        files; `skip`, the reason, where its line of the table is unreadable.

    Raises:
        RecordError: a file or column is missing.
    """
    columns = "ecg_id patient_id scp_codes strat_fold filename_lr"
    table = _csv(folder / "ptbxl_database.csv", columns.split())
    statements = _csv(folder / "scp_statements.csv", ["diagnostic", "diagnostic_class"])
    statements = statements[statements["diagnostic"].astype(str).isin(("1", "1.0"))]
    superclass = dict(zip(statements.iloc[:, 0], statements["diagnostic_class"]))
    unknown = sorted(set(superclass.values()) - set(SUPERCLASSES))
    if unknown:
        raise RecordError(f"scp_statements.csv: unknown diagnostic_class {unknown[0]!r}: {RELEASE}")
    has_hr = "filename_hr" in table and (folder / "records500").is_dir()
    for row in table.to_dict("records"):
        name = f"ptbxl-{row['ecg_id']}"
        try:
            facts = _facts(row, superclass)
        except Exception as error:  # literal_eval raises many kinds
            fields = "ecg_id, patient_id, strat_fold or scp_codes"
            reason = f"unreadable {fields} ({type(error).__name__}: {error})"[:200]
            yield _row(name, "", (), **UNKNOWN, skip=f"{reason}: repair that row")
            continue
        high = row["filename_hr"] if has_hr and sampling_rate > 100 else ""
        yield _row(name, high or row["filename_lr"], ("hea", "dat"), **facts)


def _facts(row: Mapping, superclass: Mapping[str, str]) -> dict:
    """Patient, fold, superclasses and more of a line of `ptbxl_database.csv`."""
    codes, fold = ast.literal_eval(row["scp_codes"]), float(row["strat_fold"])
    if not isinstance(codes, dict) or not all(isinstance(code, str) for code in codes):
        raise ValueError("scp_codes is no dict from statements to likelihoods")
    if fold not in range(1, 11):
        raise ValueError(f"fold {fold:g}")
    if not row["ecg_id"].isdigit():
        raise ValueError("ecg_id is no number")
    stated = {superclass[code] for code in codes if code in superclass}
    patient = f"ptbxl-{int(float(row['patient_id']))}"
    labels = {c: int(c in stated) if stated else -1 for c in SUPERCLASSES}
    texts = {"provenance": row.get("provenance", ""), "statements": ";".join(codes)}
    return {"patient_id": patient, "fold": int(fold), **labels, **texts}


def ludb_rows(folder: Path, sampling_rate: float) -> Iterator[dict]:
    """List the records of a folder in the LUDB layout (`RECORDS`, `data/`), which has one rate.

    Yields:
        One row a record: record_id, filename, files.

    Raises:
        RecordError: there is no `RECORDS` file.
    """
    if not (folder / "RECORDS").is_file():
        raise RecordError(f"{folder.name}: file RECORDS not found: is this an LUDB folder?")
    suffixes = ("hea", "dat", *map(str.lower, LEADS))
    for name in (folder / "RECORDS").read_text(errors="replace").split():
        yield _row(f"ludb-{name.rsplit('/', 1)[-1]}", name, suffixes)


def challenge_rows(folder: Path, sampling_rate: float) -> Iterator[dict]:
    """List the records of a folder in the Challenge 2021 layout (`training/<source>/g1/*.hea`).

    Folder `training` may be missing; headers that lie flat in a folder have its name as source.
    Each record has one rate.

    Yields:
        One row a record: record_id, source, filename, files, skip. `skip` holds the reason why
        a record is left out, empty for the records to read: PTB-XL's are known here by the name of
        a folder on their path, however it is spelt, or their own (`HR00001`, `00001_hr`).
    """
    for header in sorted(folder.rglob("*.hea")):
        inside = header.relative_to(folder).parts
        inside = inside[1:] if inside[0] == "training" else inside
        source = inside[0] if len(inside) > 1 else header.parent.name
        filename = header.relative_to(folder).with_suffix("").as_posix()
        folders = [f for f in (source, *inside[:-1]) if "ptbxl" in re.sub(r"[^a-z]", "", f.lower())]
        known_by = ["record name"] if PTBXL_RECORD.fullmatch(header.stem) else []
        known_by = [f"folder {name}" for name in folders] + known_by
        skip = f"{OVERLAP} ({known_by[0]})" if known_by else ""
        yield _row(f"{source}-{header.stem}", filename, ("hea", "mat"), source=source, skip=skip)


def unlisted(folder: Path, listed: Iterable[str]) -> dict[str, str]:
    """Signal files of a folder that no record of its listing names: name -> why.

    Args:
        folder: of a data set.
        listed: `filename` of its records; PTB-XL's other rate counts as listed.
    """
    known = {PTBXL_FILE.sub(r"\1", name) for name in listed}
    files = (p for p in folder.rglob("[!.]*") if p.suffix.lower() in SUFFIXES and not p.is_dir())
    reasons = {}
    for path in sorted(files, key=lambda p: (str(p.parent), p.name)):
        file, kind = path.relative_to(folder), path.suffix.lower()
        if PTBXL_FILE.sub(r"\1", file.with_suffix("").as_posix()) not in known:
            why = "no header lists it" if kind in (".mat", ".dat") else "format not read"
            reasons[file.as_posix()] = f"signal file without a reader ({kind}, {why})"
    return reasons


def _csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read all cells as text ("" where empty) and insist on `columns`."""
    if not path.is_file():
        raise RecordError(f"{path.parent.name}: file {path.name} not found: complete the download")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise RecordError(f"{path.name}: no readable csv ({error}): download it again") from error
    missing = [c for c in columns if c not in table]
    if missing:
        raise RecordError(f"{path.name}: column {', '.join(missing)} missing: {RELEASE}")
    return table


def inside(filename: str) -> bool:
    """Whether a name from a listing or an archive stays in its folder, however it is spelt."""
    path = PurePosixPath(filename.replace("\\", "/"))
    return not path.is_absolute() and ".." not in path.parts


def _row(name: str, filename: str, suffixes: Sequence[str], **more: object) -> dict:
    files = tuple(f"{filename}.{suffix}" for suffix in suffixes)
    return {"record_id": name, "filename": filename, "files": files, **more}


# ---------------------------------------------------------------- reading


def read_ptbxl(folder: Path, row: Mapping) -> Record:
    """Read one row of `ptbxl_rows`.

    Raises:
        RecordError: see `read_wfdb` and `order_leads`.
    """
    facts = {column: row[column] for column in OF_RECORD}
    return _physical(folder, row, **facts, labels=[row[name] for name in SUPERCLASSES])


def read_ludb(folder: Path, row: Mapping) -> Record:
    """Read one row of `ludb_rows` with the wave annotations of all 12 leads.

    The header scales every lead by its own peak-to-peak, so its "mV" are not physical. The raw
    integers are: II = I + III holds exactly, and a unit is about 1 microvolt (inferred from
    plausible amplitudes, the data set does not say). They are taken as microvolts. Every record is
    of another person.

    Raises:
        RecordError: see `read_wfdb`, `order_leads` and `wave_labels`; a lead's annotation file is
            missing or unreadable.
    """
    name, path = row["record_id"], Path(folder) / row["filename"]
    stored = read_wfdb(path, name)
    raw = np.where(stored.d_signal == -32768, np.nan, stored.d_signal * 1e-3)  # 16 bit: missing
    signal, rate = order_leads(raw, stored.sig_name, name), float(stored.fs)
    waves = np.empty(signal.shape, np.int8)
    for i, lead in enumerate(LEADS):
        with _readable(name, "annotation unreadable", f"lead {lead}, "):
            marks = wfdb.rdann(str(path), lead.lower())
            if not len(marks.sample):
                raise RecordError("no mark in it")
            waves[i] = wave_labels(marks.symbol, marks.sample, signal.shape[1], rate)
    return Record(name, signal, rate, patient_id=name, waves=waves, provenance="ludb")


def read_challenge(folder: Path, row: Mapping) -> Record:
    """Read one row of `challenge_rows`; `provenance` is the source's folder name, and says so where
    aVL and aVF were `exchanged`.

    Raises:
        RecordError: see `read_wfdb` and `order_leads`.
    """
    name = row["record_id"]
    record = _physical(folder, row, record_id=name, patient_id=name, provenance=row["source"])
    if not exchanged(record.signal):
        return record
    signal = record.signal[[0, 1, 2, 3, 5, 4, *range(6, 12)]]
    told = f"{row['source']}; aVL and aVF exchanged"
    return replace(record, signal=signal, provenance=told)


def exchanged(signal: np.ndarray) -> bool:
    """Whether aVL and aVF stand under each other's name: not as they are, but exchanged they are
    what I and II say they are (Goldberger), to a tenth of their spread.

    Args: signal: (12, time), mV."""
    one, two, first, second = signal[0], signal[1], signal[4], signal[5]
    avl, avf = one - two / 2, two - one / 2
    limit = 0.1 * (np.nanstd(avl) + np.nanstd(avf))
    wrong = np.nanstd(first - avl) + np.nanstd(second - avf)
    right = np.nanstd(first - avf) + np.nanstd(second - avl)
    return bool(right < limit < wrong)


@dataclass(frozen=True)
class Layout:
    """How a data set's folder is read.

    Attributes:
        rows: (folder, sampling rate) -> rows, each with `record_id`, `filename` (without suffix),
            `files` and what `read` needs.
        read: (folder, row) -> the record.
    """

    rows: Callable[[Path, float], Iterable[dict]]
    read: Callable[[Path, Mapping], Record]

    def list(self, folder: Path, sampling_rate: float = 100.0) -> pd.DataFrame:
        """The records of a folder, one row each; `skip`, where there is one, says why a record is
        not to be read: its line is unreadable, it is listed twice, its files lie elsewhere.

        Args:
            folder: of a data set.
            sampling_rate: Hz the caller wants to work at, where records have several.

        Raises:
            RecordError: the folder is missing or lists no record; see `rows`, too.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise RecordError(
                f"folder '{folder}' not found: point DATA (BEATSSL_DATA) at its parent"
            )
        names: set[str] = set()
        rows = []
        for row in self.rows(folder, sampling_rate):
            reason = ""
            if row["record_id"] in names:
                reason = f"listed twice in {folder.name}: remove one"
            elif not inside(row["filename"]):
                reason = "its files lie outside the folder: not read"
            rows.append(row | {"files": (), "skip": reason} if reason else row)
            names.add(row["record_id"])
        table = pd.DataFrame(rows)
        if "skip" in table:
            table["skip"] = table["skip"].fillna("")
        if table.empty:
            files = list(unlisted(folder, ()))
            first = f"; {len(files)} signal files without a reader: {files[0]}, .." if files else ""
            words = "complete the download; records are read through their WFDB headers"
            raise RecordError(f"{folder.name}: no record listed{first}: {words}")
        return table


LAYOUTS = {
    "ptbxl": Layout(ptbxl_rows, read_ptbxl),
    "ludb": Layout(ludb_rows, read_ludb),
    "challenge": Layout(challenge_rows, read_challenge),
}


def read_wfdb(path: Path, name: str) -> wfdb.Record:
    """Read the raw integers of a WFDB record and hold its header against them.

    Args:
        path: record without suffix.
        name: how errors call the record.

    Returns:
        The wfdb record with `d_signal` (time, leads) and the header's fields.

    Raises:
        RecordError: a file is missing or truncated, the header is unreadable, or it disagrees
            with the data (length, first sample or checksum of a lead).
    """
    path = Path(path)
    _insist(path, name, [f"{path.name}.hea"])
    with _readable(name, "header unreadable"):
        _check_first_line(path.with_name(f"{path.name}.hea"))
        header = wfdb.rdheader(str(path))
        files = sorted({file for file in header.file_name or [] if file})
    _insist(path, name, files)
    with _readable(name, "truncated, or header disagrees with the data"):
        stored = wfdb.rdrecord(str(path), physical=False)
        checksums = stored.calc_checksum()
    if not stored.fs or stored.fs <= 0:
        raise RecordError(f"{name}: header states no sampling rate: {AGAIN}")
    for i, lead in enumerate(stored.sig_name):
        stated, first = stored.checksum[i], stored.init_value[i]
        if stated is not None and (stated - checksums[i]) % 65536:
            wrong = "checksum"
        elif first is not None and len(stored.d_signal) and first != stored.d_signal[0, i]:
            wrong = "first sample"
        else:
            continue
        raise RecordError(
            f"{name}: header disagrees with the data ({wrong} of lead {lead}): {AGAIN}"
        )
    return stored


def _check_first_line(header: Path) -> None:
    """wfdb reserves room for any number of leads, and takes 250 Hz for a rate that is no number."""
    with header.open(errors="replace") as file:
        lines = (line.split() for line in file if not line.startswith("#"))
        words = next(line for line in lines if line)
    if int(words[1]) > MOST_LEADS:
        raise RecordError(f"{words[1]} leads")
    if not LOWEST_RATE <= float(words[2].split("/")[0]) < float("inf"):
        raise RecordError(f"sampling rate {words[2]} Hz")


def _insist(path: Path, name: str, files: Sequence[str]) -> None:
    absent = [file for file in files if not path.with_name(file).is_file()]
    if absent or not files:
        which = ", ".join(absent) or "header names none"
        raise RecordError(f"{name}: file absent ({which}): complete the download")


@contextmanager
def _readable(name: str, fault: str, where: str = "") -> Iterator[None]:
    """Turn what wfdb raises on a damaged file (many kinds) into a RecordError."""
    try:
        yield
    except Exception as error:
        reason = str(error)
        if not isinstance(error, RecordError):  # without line breaks or the folder's name
            text = re.sub(r"\S*[/\\]", "", " ".join(reason.split()))
            reason = f"{type(error).__name__}: {text}"[:120]
        raise RecordError(f"{name}: {fault} ({where}{reason}): {AGAIN}") from error


def _physical(folder: Path, row: Mapping, **facts: object) -> Record:
    """The record with its signal in mV, NaN where samples are missing, and these facts."""
    name = row["record_id"]
    stored = read_wfdb(Path(folder) / row["filename"], name)
    for lead, unit in zip(stored.sig_name, stored.units):
        if str(unit).lower() not in MILLIVOLT:
            raise RecordError(f"{name}: unknown unit (lead {lead} in {unit!r}): V, mV, uV needed")
    signal = stored.dac() * [MILLIVOLT[unit.lower()] for unit in stored.units]
    ordered = order_leads(signal, stored.sig_name, name)
    return Record(signal=ordered, sampling_rate=float(stored.fs), **facts)


def order_leads(signal: np.ndarray, names: Sequence[str], record: str) -> np.ndarray:
    """Bring the leads into the order of `LEADS`; spelling is compared without case.

    Args:
        signal: (time, leads).
        names: one name a column.
        record: how errors call the record.

    Returns:
        (12, time) float32.

    Raises:
        RecordError: a lead is missing, unknown or there twice.
    """
    lower, wanted = [str(n).strip().lower() for n in names], [lead.lower() for lead in LEADS]
    problems = [f"unknown lead {n}" for n, low in zip(names, lower) if low not in wanted]
    problems += [f"duplicate lead {lead}" for lead in LEADS if lower.count(lead.lower()) > 1]
    problems += [f"missing lead {lead}" for lead in LEADS if lead.lower() not in lower]
    if problems:
        raise RecordError(f"{record}: wrong leads ({', '.join(problems)}): 12 standard ones needed")
    return np.ascontiguousarray(signal[:, [*map(lower.index, wanted)]].T, dtype=np.float32)


# ---------------------------------------------------------------- waves

_MARKS = re.compile(
    r"(?P<whole>\(+(?:p+|N+|t+)\)+)"
    r"|(?P<border>[pNt]\(\)|\(\)[pNt](?!\)))"  # the mark stands on the onset or the offset
    r"|(?P<part>[pNt]\)|\([pNt]|\(\))"
    r"|(?P<stray>.)"
)


def wave_labels(
    symbols: Sequence[str], samples: Sequence[int], length: int, sampling_rate: float
) -> np.ndarray:
    """Turn the marks of one lead into one label a sample.

    0 background, 1 P, 2 QRS, 3 T, -1 not annotated. A wave is drawn from its onset to its offset,
    both included, and only where both are known:

    - `(N)`: the usual triple, drawn.
    - `((tt))`, the same wave marked k times (LUDB record 116): drawn once, from the median onset
      to the median offset.
    - `N()` or `()N` with the mark within 10 ms of the pair (records 7, 34, 111, 198; 8): the mark
      stands on the border of a wave that starts or ends at its extremum; drawn, mark included.
    - `N)` or `(t`, one border missing: not drawn; -1 from the known border to 100 ms beyond the
      mark on the side of the missing one.
    - `()` without a mark: the kind is unknown, so the stretch between is -1.
    - a mark or border alone: -1 within 100 ms.

    -1 never covers a drawn wave. Outside the first and last mark of the lead everything is -1,
    because the waves there were left unannotated.

    Args:
        symbols: `(`, `p`, `N`, `t`, `)`.
        samples: position of each symbol, not decreasing.
        length: samples in the record.
        sampling_rate: Hz.

    Returns:
        (length,) int8.

    Raises:
        RecordError: an unknown symbol, unordered marks, or a mark outside the record.
    """
    text = "".join(symbols)
    samples = np.asarray(samples, int)
    if set(text) - set("(pNt)") or len(text) != len(samples):
        raise RecordError(f"unknown annotation symbol {sorted(set(text) - set('(pNt)'))}")
    labels = np.full(length, NOT_ANNOTATED, np.int8)
    if not len(samples):
        return labels
    if (np.diff(samples) < 0).any() or samples[0] < 0 or samples[-1] >= length:
        raise RecordError("annotation marks are unordered or lie outside the record")
    first, last = samples[0], samples[-1]
    labels[first : last + 1] = 0
    stretches = _stretches(text, samples, sampling_rate)
    for label, start, stop in sorted(stretches, key=lambda stretch: stretch[0] > 0):  # waves last
        labels[max(start, first) : min(stop, last) + 1] = label
    return labels


def _stretches(text: str, samples: np.ndarray, sampling_rate: float) -> Iterator[tuple]:
    """Waves to draw and stretches that are unsure: label, first and last sample."""
    near, margin = (round(s * sampling_rate) for s in (MARK_ON_BORDER, UNKNOWN_BORDER))
    for match in _MARKS.finditer(text):
        at, case, marks = samples[slice(*match.span())], match.lastgroup, match.group()
        wave, k = WAVE_OF_SYMBOL.get(marks.strip("()")[:1]), len(marks.strip("()"))
        if case == "whole" and marks.count("(") == marks.count(")") == k:
            yield wave, int(np.median(at[:k])), int(np.median(at[-k:]))
        elif case == "border":
            mark, pair = (at[2], at[:2]) if marks[0] == "(" else (at[0], at[1:])
            if np.abs(pair - mark).min() <= near:
                yield wave, at[0], at[2]
            else:
                yield NOT_ANNOTATED, mark - margin, mark + margin
                yield NOT_ANNOTATED, *pair
        else:
            start = at[0] if case == "part" and marks[0] == "(" else at[0] - margin
            end = at[-1] if case == "part" and marks[-1] == ")" else at[-1] + margin
            yield NOT_ANNOTATED, start, end


def wave_runs(labels: np.ndarray) -> np.ndarray:
    """Where each wave begins and ends.

    Args:
        labels: (n, time), see `wave_labels`.

    Returns:
        (waves, 4) int64: row of `labels`, class (1 P, 2 QRS, 3 T), first and last sample; ordered
        by row, then sample.
    """
    padded = np.pad(labels.astype(np.int8), ((0, 0), (1, 1)))
    row, before = np.nonzero(np.diff(padded, axis=1))  # the label changes after column `before`
    starts, ends = padded[row, before + 1] > 0, padded[row, before] > 0
    first = before[starts]
    return np.stack([row[starts], labels[row[starts], first], first, before[ends] - 1], axis=1)


def wave_marks(labels: np.ndarray, sampling_rate: float) -> np.ndarray:
    """`wave_runs` in time: (waves, 4) float64: row, class, onset and offset in ms."""
    return wave_runs(labels) * np.array([1.0, 1.0, 1000 / sampling_rate, 1000 / sampling_rate])


# ---------------------------------------------------------------- quality


def check(record: Record, config: DataConfig) -> str | None:
    """Why a record is set aside, or None when it is good.

    The text before the colon is the kind of fault, for counting. Leads that are missing, unknown
    or there twice are found earlier, by `order_leads`.

    Args:
        record: as read.
        config: `seconds` and `einthoven_tolerance` are used.

    Returns:
        - `too short`: less than `config.seconds`;
        - `NaN`: missing samples, with the leads;
        - `flat lead`: peak-to-peak below 0.02 mV, with the leads;
        - `Einthoven violated`: sd(I + III - II) / sd(II) above `config.einthoven_tolerance`.
    """
    seconds = record.signal.shape[1] / record.sampling_rate
    if seconds < config.seconds - 1e-9:
        return f"too short: {seconds:g} s of {config.seconds:g} s"
    missing = ~np.isfinite(record.signal).all(axis=1)
    flat = np.ptp(record.signal, axis=1) < FLAT_MILLIVOLT
    for fault, leads in (("NaN: lead", missing), ("flat lead:", flat)):
        if leads.any():
            return f"{fault} {', '.join(np.compress(leads, LEADS))}"
    one, two, three = record.signal[:3].astype(float)
    error = np.std(one + three - two) / np.std(two)
    if error > config.einthoven_tolerance:
        return f"Einthoven violated: sd(I + III - II) / sd(II) = {error:.2f}"
    return None
