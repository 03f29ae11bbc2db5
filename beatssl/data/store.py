"""The prepared store: one array of cleaned rows, one table, one manifest.

`prepare` reads the record folders, sets bad records aside with a reason, cuts long recordings into
rows, cleans and resamples them, and writes a folder of

    manifest.json    what the store was made from, sizes and hashes of the files
    signals.i2       (rows, 12, time) int16 microvolts, cleaned and resampled
    waves.i1         (annotated rows, 12, time) int8 labels, and their borders in marks.f8
    table.csv        one line a row, and set_aside.csv: what is not among them, and why

The folder is replaced as a whole, so an interrupted write leaves the previous store as it was. A
store whose inputs (settings, code, index rows, sizes and times of the files) did not change is
opened at once.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
import wfdb
from scipy import signal as dsp

from beatssl.cache import read_json, replacing_folder, write_json
from beatssl.data import overlap, records
from beatssl.data.records import LAYOUTS, LEADS, OF_RECORD, SUPERCLASSES, Record, RecordError
from beatssl.data.synthetic import write_folders
from beatssl.fingerprint import ROOT, code_hash, name_of
from beatssl.progress import in_processes
from beatssl.settings import DATASETS, ConfigError, DataConfig, config_hash, one_of

STORE_VERSION = 3  # raise it when the meaning of a row changes: older stores are built again
FILTER_ORDER = 2  # of the Butterworth filter, applied forwards and backwards
TABLE_TYPES = {
    **dict.fromkeys(("record_id", "dataset", "patient_id"), str),
    "fold": int,
    **dict.fromkeys(SUPERCLASSES, "int8"),
    **dict.fromkeys(("provenance", "statements"), str),
    "source_hz": float,  # sampling rate of the file the row comes from
    "start_s": float,  # where the row begins in its recording
    "wave_row": int,  # row of `waves`, -1 = none
}


class StoreError(ValueError):
    """The store is absent, damaged, or asked for something it does not hold."""


# ---------------------------------------------------------------- signal steps


def clean(signal: np.ndarray, sampling_rate: float, low_cut: float, high_cut: float) -> np.ndarray:
    """Zero-phase Butterworth band-pass (order 2, forwards and backwards).

    Args:
        signal: (..., time), any unit.
        sampling_rate: Hz.
        low_cut: Hz; 0 leaves the low side open.
        high_cut: Hz; 0, or at least half the sampling rate, leaves the high side open.

    Returns:
        Array of the same shape, float64.

    Raises:
        ConfigError: the band is empty.
    """
    signal = np.asarray(signal, float)
    low, high = max(low_cut, 0), high_cut if 0 < high_cut < sampling_rate / 2 else 0
    if low and low >= (high or sampling_rate / 2):
        raise ConfigError(f"low_cut {low_cut} Hz leaves no band below {high or sampling_rate / 2}")
    if not low and not high:
        return signal
    kind = "bandpass" if low and high else "highpass" if low else "lowpass"
    band = (low, high) if kind == "bandpass" else low or high
    sos = dsp.butter(FILTER_ORDER, band, kind, fs=sampling_rate, output="sos")
    pad = min(signal.shape[-1] - 1, round(sampling_rate / (low or 1.0)))  # one slowest period
    return dsp.sosfiltfilt(sos, signal, axis=-1, padlen=pad)


def resample(signal: np.ndarray, old_hz: float, new_hz: float, length: int) -> np.ndarray:
    """Polyphase resampling with an anti-aliasing filter (`scipy.signal.resample_poly`).

    Args:
        signal: (..., time).
        old_hz: sampling rate of `signal`, Hz.
        new_hz: wanted sampling rate, Hz.
        length: samples to keep of the result.

    Returns:
        (..., length) float64.
    """
    ratio = Fraction(new_hz / old_hz).limit_denominator(10_000)
    if ratio != 1:
        signal = dsp.resample_poly(signal, *ratio.as_integer_ratio(), axis=-1, padtype="line")
    return np.asarray(signal, float)[..., :length]


def resample_labels(labels: np.ndarray, old_hz: float, new_hz: float, length: int) -> np.ndarray:
    """Wave labels at another rate; the borders are rounded, so that no wave shrinks on average.

    The first and the last sample of each wave go to the nearest new samples. Picking the nearest
    old label for each new sample would move onsets late and offsets early, by 4 ms from 500 to
    100 Hz. Between the waves every new label is the nearest old one.

    Args:
        labels: (n, time), see `records.wave_labels`.
        old_hz: sampling rate of `labels`, Hz.
        new_hz: wanted sampling rate, Hz.
        length: samples of the result.

    Returns:
        (n, length), the type of `labels`. Where two waves round to one sample, it is the later's.
    """
    nearest = np.rint(np.arange(length) * old_hz / new_hz).astype(int)
    resampled = labels[:, np.minimum(nearest, labels.shape[1] - 1)]
    resampled[resampled > 0] = 0
    for row, wave, first, last in records.wave_runs(labels):
        start, end = np.rint(np.array([first, last]) * new_hz / old_hz).astype(int)
        resampled[row, start : end + 1] = wave
    return resampled


def windows(record: Record, seconds: float) -> Iterator[tuple[float, Record]]:
    """Cut a recording into non-overlapping rows of `seconds`; the rest at its end is left out.

    Yields:
        (start in s, piece) of each row. A piece's id has a suffix `#0`, `#1`, .. where there are
        several; a recording that is too short comes back whole, for `records.check` to refuse.
    """
    size = math.ceil(seconds * record.sampling_rate - 1e-6)
    count = max(1, record.signal.shape[1] // size)
    for k in range(count):
        part = slice(k * size, (k + 1) * size)
        waves = None if record.waves is None else record.waves[:, part]
        name = record.record_id if count == 1 else f"{record.record_id}#{k}"
        piece = replace(record, record_id=name, signal=record.signal[:, part], waves=waves)
        yield k * size / record.sampling_rate, piece


# ---------------------------------------------------------------- the store


class Store:
    """Read access to a prepared store.

    Attributes:
        signals: (rows, 12, time) int16 memory map, microvolts, cleaned and resampled.
        table: one line a row of `signals`, columns as in `TABLE_TYPES`.
        set_aside: record_id, dataset, reason of the records that are not in the store.
        waves: (annotated rows, 12, time) int8 wave labels.
        marks: (waves, 5) float64, their borders as annotated: row of `waves`, lead, class, onset
            and offset in ms from the start of the row, not rounded to `sampling_rate`.
        sampling_rate: Hz.
        folder: where it lies.
        fingerprint: hash of the inputs' contents and the settings, the same on every machine.
        content: hash of the arrays and the table themselves; for what is kept on this machine.
        layouts: data set -> its layout, of all that `rows` knows; PTB-XL first.
        manifest: the manifest as a mapping.
    """

    def __init__(self, folder: Path, manifest: dict) -> None:
        self.folder, self.manifest = Path(folder), manifest
        self.sampling_rate: int = manifest["sampling_rate"]
        self.fingerprint: str = manifest["fingerprint"]
        self.content: str = config_hash(manifest["files"])
        further = manifest["config"].get("sources", ())
        self.layouts: dict[str, str] = dict(zip(DATASETS, DATASETS))
        self.layouts |= {source["name"]: source["layout"] for source in further}
        self.signals = _map(self.folder / "signals.i2", "<i2", manifest["signals_shape"])
        self.waves = _map(self.folder / "waves.i1", "i1", manifest["waves_shape"])
        self.marks = _map(self.folder / "marks.f8", "<f8", manifest["marks_shape"])
        read = partial(pd.read_csv, keep_default_na=False)
        self.table = read(self.folder / "table.csv", dtype=TABLE_TYPES)
        self.set_aside = read(self.folder / "set_aside.csv", dtype=str)

    def __len__(self) -> int:
        return len(self.table)

    def rows(self, dataset: str, folds: Sequence[int] | None = None) -> np.ndarray:
        """Row numbers of a data set, optionally of some PTB-XL folds only (may be empty).

        Raises:
            StoreError: unknown data set.
        """
        if dataset not in self.layouts:
            names = ", ".join(self.layouts)
            raise StoreError(f"data set {dataset!r} is not known; known: {names}")
        chosen = (self.table["dataset"] == dataset).to_numpy()
        if folds is not None:
            chosen &= self.table["fold"].isin(list(folds)).to_numpy()
        return np.flatnonzero(chosen)

    def millivolts(self, rows: Sequence[int]) -> np.ndarray:
        """(len(rows), 12, time) float32, mV."""
        return self.signals[np.asarray(rows, int)].astype(np.float32) / np.float32(1000)

    def sd(self, rows: Sequence[int]) -> np.ndarray:
        """(len(rows),) float32, microvolts: SD of each row over all leads and time, at least
        0.001."""
        count, variance = math.prod(self.signals.shape[1:]), np.empty(len(rows))
        for i, row in enumerate(rows):  # one at a time: they may be all of a large store
            flat = self.signals[row].reshape(-1).astype(np.float64)  # whole numbers: exact sums
            variance[i] = flat @ flat / count - (flat.sum() / count) ** 2
        return np.maximum(np.sqrt(variance.clip(0)), 1e-3).astype(np.float32)

    def load(self, rows: Sequence[int]) -> np.ndarray:
        """(len(rows), 12, time) float32, each row divided by its own SD over all leads and time.

        One factor a row keeps the ratios between leads, so the Dower matrices stay valid.
        """
        rows = np.asarray(rows, int)
        return self.signals[rows].astype(np.float32) / self.sd(rows)[:, None, None]

    def wave_targets(self, rows: Sequence[int], lead: str = "II") -> np.ndarray:
        """(len(rows), time) int8: 0 background, 1 P, 2 QRS, 3 T, -1 not annotated.

        Raises:
            StoreError: unknown lead, or a row without wave annotation.
        """
        return np.array(self.waves[self._wave_rows(rows, lead), LEADS.index(lead)])

    def wave_marks(self, rows: Sequence[int], lead: str = "II") -> np.ndarray:
        """Borders of the waves as annotated, at the rate of the file.

        Returns:
            (waves, 4) float64: item of `rows`, class (1 P, 2 QRS, 3 T), onset and offset in ms from
            the start of the row; ordered by item, then onset.

        Raises:
            StoreError: unknown lead, or a row without wave annotation.
        """
        wave_rows = self._wave_rows(rows, lead)
        of_lead = self.marks[self.marks[:, 1] == LEADS.index(lead)]
        items, marks = np.nonzero(wave_rows[:, None] == of_lead[:, 0])
        return np.column_stack([items, of_lead[marks, 2:]])

    def _wave_rows(self, rows: Sequence[int], lead: str) -> np.ndarray:
        if lead not in LEADS:
            raise StoreError(f"lead {lead!r} is not known; known: {', '.join(LEADS)}")
        rows = np.asarray(rows, int)
        wave_rows = self.table["wave_row"].to_numpy()[rows]
        if (wave_rows < 0).any():
            name = self.table["record_id"].iloc[rows[wave_rows < 0][0]]
            raise StoreError(f"{name}: has no wave annotation: ask for LUDB rows only")
        return wave_rows

    def set_aside_counts(self) -> pd.DataFrame:
        """How many records of each data set were set aside for which kind of reason, and the names
        of the first three: columns dataset, reason, records, first."""
        kind = self.set_aside["reason"].map(reason_kind)
        groups = self.set_aside.groupby(["dataset", kind])["record_id"]
        counts = groups.agg(records="size", first=lambda names: ", ".join(names[:3]))
        return counts.rename_axis(["dataset", "reason"]).reset_index()


def reason_kind(reason: str) -> str:
    """The kind of fault in a reason, without lead names or numbers."""
    return reason.split(":")[0].split(" (")[0]


def open_store(folder: Path) -> Store:
    """Open a store written by `prepare`.

    Raises:
        StoreError: there is none, or a file is missing or not as the manifest says.
    """
    folder = Path(folder)
    remedy = f"delete the folder {folder.name!r} and run prepare again"
    manifest = read_json(folder / "manifest.json")
    if "files" not in manifest:
        name = folder.name
        raise StoreError(f"no store in {name!r}, or manifest.json is damaged: run prepare first")
    if manifest.get("version") != STORE_VERSION:
        raise StoreError(f"store of another version ({manifest.get('version')}): {remedy}")
    for name, entry in manifest["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise StoreError(f"{name} is absent or incomplete: {remedy}")
        if name != "signals.i2" and sha256_of(file) != entry["sha256"]:
            raise StoreError(f"{name} was changed after it was written: {remedy}")
    return Store(folder, manifest)


def prepare(config: DataConfig, folder: Path, root: Path, jobs: int = 1) -> Store:
    """Read, check, clean and resample all records of `config` into a store.

    Args:
        config: settings. With `synthetic` true, simulated folders (seed 0) are written to
            `synthetic` beside `folder` first and `root` is not used; a data set then takes part
            where its count is above 0, whatever folder name is set.
        folder: the store's folder.
        root: data root that the data sets' folders are relative to.
        jobs: processes; the bytes written do not depend on it.

    Returns:
        The store, opened; the existing one if nothing changed.

    Raises:
        ConfigError: no data set, or settings that cannot work.
        RecordError: a folder, file or column is missing, or every record of a data set was set
            aside (the reasons are listed).
    """
    folder, root = Path(folder), Path(root)
    if jobs < 1:
        raise ConfigError(f"jobs must be at least 1, got {jobs}")
    if not config.all_sources:
        raise ConfigError("no data set chosen: set ptbxl, ludb or challenge, or synthetic counts")
    if config.synthetic:
        counts = [getattr(config, f"synthetic_{name}") for name in DATASETS]
        root = write_folders(folder.parent / "synthetic", *counts, seed=0, jobs=jobs)
    tasks = _list_all(root, config)
    signature = _signature(tasks, config)
    if (current := _same(folder, signature)) is not None:
        return current
    with replacing_folder(folder) as part:
        manifest = _build(config, part, tasks, jobs) | {"signature": signature}
        if (current := _same(folder, signature)) is not None:  # a process beside us was faster
            shutil.rmtree(part)
            return current
        write_json(part / "manifest.json", manifest)
    return open_store(folder)


def _same(folder: Path, signature: str) -> Store | None:
    """The store in `folder` if it is whole and was made from the same things."""
    try:
        current = open_store(folder)
    except StoreError:  # none yet, or a damaged one
        return None
    return current if current.manifest["signature"] == signature else None


# ---------------------------------------------------------------- building


def _settings(config: DataConfig) -> str:
    """The settings that decide about the content of a row."""
    names = ("sampling_rate", "seconds", "low_cut", "high_cut", "einthoven_tolerance")
    return _plain({"version": STORE_VERSION, **{name: getattr(config, name) for name in names}})


def _list_all(root: Path, config: DataConfig) -> list[dict]:
    """One task a record: `dataset`, `layout`, `folder` and the row of its listing; signal files
    that the listing does not name follow, to be set aside. PTB-XL comes first, then LUDB."""
    tasks, names = [], set()
    for source in config.all_sources:
        one_of(f"{source.name}: layout", source.layout, tuple(LAYOUTS))
        folder = root / source.folder
        table = LAYOUTS[source.layout].list(folder, config.sampling_rate)
        if source.name != source.layout:  # names that no other data set in this layout has
            for column in table.columns.intersection(["record_id", "patient_id"]):
                table[column] = f"{source.name}-" + table[column]
        elif (taken := table["record_id"].isin(names)).any():  # by another folder of the data set
            table.loc[taken, "record_id"] = f"{folder.name}-" + table["record_id"]
        names |= set(table["record_id"])
        others = records.unlisted(folder, table["filename"]).items()
        rows = [{"record_id": name, "files": (), "skip": reason} for name, reason in others]
        task = {"dataset": source.name, "layout": source.layout, "folder": str(folder)}
        tasks += [{**task, "row": row} for row in [*table.to_dict("records"), *rows]]
    return tasks


def _plain(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=int)  # default: NumPy integers of a row


def store_code(root: Path = ROOT) -> str:
    """Hash of the code that makes a store. Args: root: folder of the package."""
    readers = [f for layout in LAYOUTS.values() for f in (layout.rows, layout.read)]
    return code_hash(f"{__name__}._build", *map(name_of, readers), root=root)


def _signature(tasks: list[dict], config: DataConfig) -> str:
    """Hash of settings, code, listing rows, and size and time of every file; reads no signal."""
    states = [[task["layout"], _digest(task, _size_and_time)] for task in tasks]
    return config_hash(_settings(config), store_code(), states)


def _digest(task: dict, state: Callable[[str], str]) -> str:
    """Hash of a record's listing row and of the state of its files."""
    digest = hashlib.sha256(_plain([task["dataset"], task["row"]]).encode())
    for name in task["row"]["files"]:
        try:
            digest.update(state(os.path.join(task["folder"], name)).encode())
        except OSError:
            digest.update(b"absent")
    return digest.hexdigest()


def _build(config: DataConfig, part: Path, tasks: list[dict], jobs: int) -> dict:
    """Write the data files into `part`; returns the manifest without signature."""
    length = round(config.seconds * config.sampling_rate)
    digest = hashlib.sha256(_settings(config).encode())
    shape, lines, set_aside, marks = (len(LEADS), length), [], [], [np.zeros((0, 5))]
    wave_rows, unused, path = 0, 0.0, part / "signals.i2"
    with open(path, "wb") as signals, open(part / "waves.i1", "wb") as waves:

        def written(row: int) -> np.ndarray:
            signals.flush()
            size = math.prod(shape)
            return np.fromfile(path, "<i2", size, offset=2 * size * row).reshape(shape)

        known = overlap.Known(shape, written)
        for done in in_processes(partial(_process, config), tasks, jobs, "records"):
            digest.update(done["digest"].encode())
            if done["dataset"] not in ("ptbxl", "ludb"):  # whose rows have labels and are all kept
                done = _without_copies(done, known, lines)
            for line, microvolts, annotated in done["rows"]:
                known.add(microvolts)
                signals.write(microvolts.tobytes())
                line["wave_row"] = wave_rows if annotated else -1
                if annotated:
                    waves.write(annotated[0].tobytes())
                    marks.append(np.insert(annotated[1], 0, wave_rows, axis=1))
                    wave_rows += 1
                lines.append(line)
            set_aside += done["set_aside"]
            unused += done["unused_s"]
    marks = np.concatenate(marks)
    (part / "marks.f8").write_bytes(marks.astype("<f8").tobytes())
    table = pd.DataFrame(lines, columns=list(TABLE_TYPES))
    set_aside = pd.DataFrame(set_aside, columns=["record_id", "dataset", "reason"])
    _refuse_empty(config, table, set_aside)
    table.to_csv(part / "table.csv", index=False, lineterminator="\n")
    set_aside.to_csv(part / "set_aside.csv", index=False, lineterminator="\n")
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in part.iterdir()}
    return {
        "version": STORE_VERSION,
        "fingerprint": digest.hexdigest(),
        "config": asdict(config),
        "sampling_rate": config.sampling_rate,
        "signals_shape": [len(table), len(LEADS), length],
        "waves_shape": [wave_rows, len(LEADS), length],
        "marks_shape": list(marks.shape),
        "rows": table["dataset"].value_counts().to_dict(),
        "set_aside": set_aside["dataset"].value_counts().to_dict(),
        "seconds_left_over": round(unused, 3),  # ends of recordings too short for another row
        "files": files,
        "libraries": {m.__name__: m.__version__ for m in (np, pd, scipy, wfdb)},
    }


def _without_copies(done: dict, known: overlap.Known, lines: list[dict]) -> dict:
    """What `_process` found of a record, its rows set aside if one of them was read before; they
    are not compared with each other."""
    found = (known.find(microvolts) for _, microvolts, _ in done["rows"])
    if (row := next((row for row in found if row is not None), None)) is None:
        return done
    kind = records.OVERLAP if lines[row]["dataset"] == "ptbxl" else records.DUPLICATE
    reason = f"{kind} (same signal as {lines[row]['record_id']})"
    set_aside = [*done["set_aside"], (done["record_id"], done["dataset"], reason)]
    return done | {"rows": [], "set_aside": set_aside, "unused_s": 0.0}


def _process(config: DataConfig, task: dict) -> dict:
    """Read one record and turn it into rows (line of the table, microvolts, and labels and borders
    of the waves, if there are any), or into a reason."""
    dataset, row = task["dataset"], task["row"]
    name, rows, set_aside = row["record_id"], [], []
    done = {"dataset": dataset, "record_id": name, "rows": rows, "set_aside": set_aside}
    done |= {"digest": _digest(task, sha256_of), "unused_s": 0.0}
    try:
        if row.get("skip"):
            raise RecordError(row["skip"])
        record = LAYOUTS[task["layout"]].read(Path(task["folder"]), row)
    except RecordError as error:
        set_aside.append((name, dataset, str(error).removeprefix(f"{name}: ")))
        return done
    rates = record.sampling_rate, config.sampling_rate
    length = round(config.seconds * config.sampling_rate)
    unused = record.signal.shape[1]
    for start_s, piece in windows(record, config.seconds):
        unused -= piece.signal.shape[1]
        reason = records.check(piece, config)
        if reason is None:
            cleaned = clean(piece.signal, rates[0], config.low_cut, config.high_cut)
            microvolts = np.rint(resample(cleaned, *rates, length) * 1000)
            if np.abs(microvolts).max() > np.iinfo(np.int16).max:
                reason = "out of range: more than 32.767 mV"
        if reason:
            set_aside.append((piece.record_id, dataset, reason))
            continue
        waves = None
        if piece.waves is not None:
            labels = resample_labels(piece.waves, *rates, length)
            waves = labels, records.wave_marks(piece.waves, rates[0])
        line = {column: getattr(piece, column) for column in OF_RECORD}
        line |= dict(zip(SUPERCLASSES, piece.labels), dataset=dataset, source_hz=rates[0])
        rows.append((line | {"start_s": round(start_s, 6)}, microvolts.astype("<i2"), waves))
    return done | {"unused_s": unused / rates[0]}


def _refuse_empty(config: DataConfig, table: pd.DataFrame, set_aside: pd.DataFrame) -> None:
    """Raise when a data set has no row left."""
    for dataset in {source.name: None for source in config.all_sources}:
        refused = set_aside[set_aside["dataset"] == dataset]
        kinds = refused["reason"].map(reason_kind)
        copies = kinds.isin([records.OVERLAP, records.DUPLICATE])
        if (table["dataset"] == dataset).any() or copies.all():
            continue  # nothing is wrong with copies: the recordings are there
        listed = "; ".join(f"{kind} ({n})" for kind, n in kinds.value_counts().items())
        raise RecordError(
            f"{dataset}: all {len(refused)} records were set aside: {listed}. First: "
            f"{refused['record_id'].iloc[0]}: {refused['reason'].iloc[0]}. "
            "Check the folder and the data settings (seconds, einthoven_tolerance)"
        )


# ---------------------------------------------------------------- files


def _size_and_time(path: str) -> str:
    stat = os.stat(path)
    return f"{stat.st_size} {stat.st_mtime_ns}"


def sha256_of(path: Path | str) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _map(path: Path, dtype: str, shape: Sequence[int]) -> np.ndarray:
    if not math.prod(shape):
        return np.zeros(shape, dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype, "c", shape=tuple(shape))  # "c": torch wants what can be written
