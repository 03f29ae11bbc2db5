"""The prepared store: one array of cleaned rows, one table, one manifest.

`prepare` reads the record folders, sets bad records aside with a reason, cuts long recordings into
rows, cleans and resamples them, and writes

    <folder>/manifest.json          what the store was made from, and which data folder is current
    <folder>/data-<signature>/      signals.i2 (rows, 12, time) int16 microvolts, waves.i1,
                                    marks.f8, two csv

The manifest is replaced last and in one step, so an interrupted write leaves the previous store as
it was. A store whose inputs (settings, code, index rows, sizes and times of the files) did not
change is opened at once. One process writes to a folder at a time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
import wfdb
from joblib import Parallel, delayed
from scipy import signal as dsp
from tqdm import tqdm

from beatssl.cache import part_of, write_text
from beatssl.data import overlap, records
from beatssl.data.records import LEADS, SUPERCLASSES, Record, RecordError
from beatssl.fingerprint import ROOT, code_hash
from beatssl.settings import ConfigError, DataConfig, config_hash

STORE_VERSION = 2  # raise it when the meaning of a row changes: older stores are built again
FILTER_ORDER = 2  # of the Butterworth filter, applied forwards and backwards
DATASETS = ("ptbxl", "ludb", "challenge")
READERS = {
    "ptbxl": records.read_ptbxl,
    "ludb": records.read_ludb,
    "challenge": records.read_challenge,
}
TABLE_TYPES = {
    "record_id": str,
    "dataset": str,
    "patient_id": str,
    "fold": int,
    **dict.fromkeys(SUPERCLASSES, "int8"),
    "provenance": str,
    "statements": str,
    "source_hz": float,  # sampling rate of the file the row comes from
    "start_s": float,  # where the row begins in its recording
    "wave_row": int,  # row of `waves`, -1 = none
}
SET_ASIDE_TYPES = {"record_id": str, "dataset": str, "reason": str}


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
    low = low_cut if low_cut > 0 else None
    high = high_cut if 0 < high_cut < sampling_rate / 2 else None
    if low is not None and low >= (high or sampling_rate / 2):
        raise ConfigError(f"low_cut {low_cut} Hz leaves no band below {high or sampling_rate / 2}")
    if low is None and high is None:
        return signal
    if low is None:
        band, kind = high, "lowpass"
    elif high is None:
        band, kind = low, "highpass"
    else:
        band, kind = (low, high), "bandpass"
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
        signal = dsp.resample_poly(
            signal, ratio.numerator, ratio.denominator, axis=-1, padtype="line"
        )
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


def windows(record: Record, seconds: float) -> list[tuple[str, float, Record]]:
    """Cut a recording into non-overlapping rows of `seconds`; the rest at its end is left out.

    Returns:
        (row id, start in s, piece) of each row. The id has a suffix `#0`, `#1`, .. where there are
        several; a recording that is too short comes back whole, for `records.check` to refuse.
    """
    size = math.ceil(seconds * record.sampling_rate - 1e-6)
    count = max(1, record.signal.shape[1] // size)
    pieces = []
    for k in range(count):
        part = slice(k * size, (k + 1) * size)
        waves = None if record.waves is None else record.waves[:, part]
        name = record.record_id if count == 1 else f"{record.record_id}#{k}"
        piece = replace(record, record_id=name, signal=record.signal[:, part], waves=waves)
        pieces.append((name, k * size / record.sampling_rate, piece))
    return pieces


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
        manifest: the manifest as a mapping.
    """

    def __init__(self, folder: Path, manifest: dict) -> None:
        self.folder = Path(folder)
        data = self.folder / manifest["data"]
        self.manifest = manifest
        self.sampling_rate: int = manifest["sampling_rate"]
        self.fingerprint: str = manifest["fingerprint"]
        self.content: str = config_hash(manifest["files"])
        self.signals = _map(data / "signals.i2", "<i2", manifest["signals_shape"])
        self.waves = _map(data / "waves.i1", "i1", manifest["waves_shape"])
        self.marks = _map(data / "marks.f8", "<f8", manifest["marks_shape"])
        self.table = _read_table(data / "table.csv", TABLE_TYPES)
        self.set_aside = _read_table(data / "set_aside.csv", SET_ASIDE_TYPES)

    def __len__(self) -> int:
        return len(self.table)

    def rows(self, dataset: str, folds: Sequence[int] | None = None) -> np.ndarray:
        """Row numbers of a data set, optionally of some PTB-XL folds only (may be empty).

        Raises:
            StoreError: unknown data set.
        """
        if dataset not in DATASETS:
            raise StoreError(f"data set {dataset!r} is not known; known: {', '.join(DATASETS)}")
        chosen = (self.table["dataset"] == dataset).to_numpy()
        if folds is not None:
            chosen &= self.table["fold"].isin(list(folds)).to_numpy()
        return np.flatnonzero(chosen)

    def millivolts(self, rows: Sequence[int]) -> np.ndarray:
        """(len(rows), 12, time) float32, mV."""
        return self.signals[np.asarray(rows, int)].astype(np.float32) / np.float32(1000)

    def load(self, rows: Sequence[int]) -> np.ndarray:
        """(len(rows), 12, time) float32, each row divided by its own SD over all leads and time.

        One factor a row keeps the ratios between leads, so the Dower matrices stay valid.
        """
        signal = self.millivolts(rows)
        scale = signal.std(axis=(1, 2), keepdims=True, dtype=np.float64)
        return signal / np.maximum(scale, 1e-6).astype(np.float32)

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
        of_lead = np.array(self.marks[self.marks[:, 1] == LEADS.index(lead)])
        each = [of_lead[of_lead[:, 0] == wave_row][:, 1:] for wave_row in wave_rows]
        for item, marks in enumerate(each):
            marks[:, 0] = item
        return np.concatenate([np.zeros((0, 4)), *each])

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
    path = folder / "manifest.json"
    if not path.is_file():
        raise StoreError(f"no prepared store in {folder.name!r}: run prepare first")
    try:
        manifest = json.loads(path.read_text())
        stated = manifest["files"]
        data = folder / manifest["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"manifest.json is damaged ({error}): {remedy}") from error
    if manifest.get("version") != STORE_VERSION:
        raise StoreError(f"store of another version ({manifest.get('version')}): {remedy}")
    for name, entry in stated.items():
        file = data / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise StoreError(f"{name} is absent or incomplete: {remedy}")
        if name != "signals.i2" and _sha256(file) != entry["sha256"]:
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
    if config.sampling_rate <= 0 or config.seconds <= 0:
        raise ConfigError("sampling_rate and seconds must be positive")
    if jobs < 1:
        raise ConfigError(f"jobs must be at least 1, got {jobs}")
    root, sources = _sources(config, folder, root)
    settings = _settings(config)
    tasks = _list_all(root, sources, config.sampling_rate)
    signature = _signature(tasks, settings)
    current = _same(folder, signature)
    if current is not None:
        return current
    folder.mkdir(parents=True, exist_ok=True)
    part = part_of(folder / "data")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        manifest = _build(config, part, tasks, jobs)
        manifest |= {"signature": signature, "data": f"data-{signature[:12]}"}
        current = _same(folder, signature)
        if current is not None:  # a process beside us was faster
            return current
        final = folder / manifest["data"]
        if final.exists():  # a damaged or never finished twin
            shutil.rmtree(final)
        os.replace(part, final)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    write_text(folder / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    for old in folder.glob("data-*"):
        if old != final:
            shutil.rmtree(old)
    return open_store(folder)


def _same(folder: Path, signature: str) -> Store | None:
    """The store in `folder` if it is whole and was made from the same things."""
    try:
        current = open_store(folder)
    except StoreError:  # none yet, or a damaged one
        return None
    return current if current.manifest["signature"] == signature else None


# ---------------------------------------------------------------- building


def _sources(config: DataConfig, folder: Path, root: Path) -> tuple[Path, dict[str, str]]:
    """The data root and the folder name of each data set that takes part."""
    if config.synthetic:
        from beatssl.data.synthetic import (
            write_folders,  # needs torch through vcg: not for the workers
        )

        counts = (config.synthetic_ptbxl, config.synthetic_ludb, config.synthetic_challenge)
        root = write_folders(folder.parent / "synthetic", *counts, seed=0)
        sources = {name: name for name, count in zip(DATASETS, counts) if count}
    else:
        named = {name: getattr(config, name) for name in DATASETS}
        sources = {name: where for name, where in named.items() if where}
    if not sources:
        raise ConfigError("no data set chosen: set ptbxl, ludb or challenge, or synthetic counts")
    return root, sources


def _settings(config: DataConfig) -> dict:
    """The settings that decide about the content of a row."""
    names = ("sampling_rate", "seconds", "low_cut", "high_cut", "einthoven_tolerance")
    return {"version": STORE_VERSION, **{name: getattr(config, name) for name in names}}


def _list_all(root: Path, sources: dict[str, str], sampling_rate: int) -> list[dict]:
    """One task a record: `dataset`, `folder` and the row of its listing; signal files that the
    listing does not name follow, to be set aside. PTB-XL comes first."""
    tasks = []
    for dataset, where in sources.items():
        folder = root / where
        if dataset == "ptbxl":
            table = records.list_ptbxl(folder, sampling_rate)
        else:
            table = getattr(records, f"list_{dataset}")(folder)
        others = [
            {"record_id": name, "files": (), "skip": reason}
            for name, reason in records.unlisted(folder, table["filename"]).items()
        ]
        tasks += [
            {"dataset": dataset, "folder": str(folder), "row": row}
            for row in [*table.to_dict("records"), *others]
        ]
    return tasks


def _plain(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=int)  # default: NumPy integers of a row


def store_code(root: Path = ROOT) -> str:
    """Hash of the code that makes a store. Args: root: folder of the package."""
    readers = [f"{records.__name__}.{verb}_{d}" for verb in ("list", "read") for d in DATASETS]
    return code_hash(f"{__name__}._build", *readers, root=root)


def _signature(tasks: list[dict], settings: dict) -> str:
    """Hash of settings, code, listing rows, and size and time of every file; reads no signal."""
    code = store_code()
    digest = hashlib.sha256((_plain(settings) + code).encode())
    for task in tasks:
        digest.update(_plain([task["dataset"], task["row"]]).encode())
        for name in task["row"]["files"]:
            try:
                stat = os.stat(os.path.join(task["folder"], name))
                digest.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
            except OSError:
                digest.update(b"absent\n")
    return digest.hexdigest()


def _build(config: DataConfig, part: Path, tasks: list[dict], jobs: int) -> dict:
    """Write the data files into `part`; returns the manifest without signature."""
    length = round(config.seconds * config.sampling_rate)
    digest = hashlib.sha256(_plain(_settings(config)).encode())
    table, set_aside, marks, wave_rows, unused = [], [], [np.zeros((0, 5))], 0, 0.0
    known = overlap.Known(length)
    with open(part / "signals.i2", "wb") as signals, open(part / "waves.i1", "wb") as waves:
        bar = tqdm(total=len(tasks), desc="records", unit="rec", mininterval=1.0)
        for done in in_processes(partial(_process, config), tasks, jobs):
            digest.update(done["digest"].encode())
            if done["dataset"] == "challenge":
                signals.flush()
                done = _without_overlap(done, known, part / "signals.i2")
            for row, microvolts, annotated in done["rows"]:
                signals.write(microvolts.tobytes())
                row["wave_row"] = -1 if annotated is None else wave_rows
                if annotated is not None:
                    labels, borders = annotated
                    waves.write(labels.tobytes())
                    marks.append(np.insert(borders, 0, wave_rows, axis=1))
                    wave_rows += 1
                table.append(row)
                if done["dataset"] == "ptbxl":
                    known.add(row["record_id"], microvolts)
            set_aside += done["set_aside"]
            unused += done["unused_s"]
            bar.update()
        bar.close()
    marks = np.concatenate(marks)
    (part / "marks.f8").write_bytes(marks.astype("<f8").tobytes())
    table = pd.DataFrame(table, columns=list(TABLE_TYPES))
    set_aside = pd.DataFrame(set_aside, columns=list(SET_ASIDE_TYPES))
    _refuse_empty(tasks, table, set_aside)
    table.to_csv(part / "table.csv", index=False, lineterminator="\n")
    set_aside.to_csv(part / "set_aside.csv", index=False, lineterminator="\n")
    files = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in part.iterdir()}
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


def _without_overlap(done: dict, known: overlap.Known, signals: Path) -> dict:
    """What `_process` found of a Challenge record, its rows set aside if one of them is a row of
    PTB-XL; those are the first of `signals`."""
    for _, microvolts, _ in done["rows"] if known.names else ():
        nearest = known.nearest(microvolts)
        shape = (len(known.names), *microvolts.shape)
        if known.alike(microvolts, np.memmap(signals, "<i2", "r", shape=shape)[nearest]):
            reason = f"{records.OVERLAP} (same signal as {known.names[nearest]})"
            refused = {"record_id": done["record_id"], "dataset": done["dataset"], "reason": reason}
            return done | {"rows": [], "set_aside": [*done["set_aside"], refused], "unused_s": 0.0}
    return done


def in_processes(work: Callable, items: Iterable, jobs: int) -> Iterator:
    """Results of `work` in the order of `items`, as they come; a script needs no `__main__` guard.

    Args:
        work: a function of a module (or a `partial` of one).
        jobs: processes; one works in this one.
    """
    return Parallel(jobs, return_as="generator")(delayed(work)(item) for item in items)


def _process(config: DataConfig, task: dict) -> dict:
    """Read one record and turn it into rows, or into a reason."""
    dataset, row = task["dataset"], task["row"]
    name = row["record_id"]
    done = {
        "dataset": dataset,
        "record_id": name,
        "digest": _content_hash(task),
        "rows": [],
        "set_aside": [],
        "unused_s": 0.0,
    }

    def refuse(which: str, reason: str) -> None:
        reason = reason.removeprefix(f"{name}: ")
        done["set_aside"].append({"record_id": which, "dataset": dataset, "reason": reason})

    if row.get("skip"):
        refuse(name, row["skip"])
        return done
    try:
        record = READERS[dataset](Path(task["folder"]), row)
    except RecordError as error:
        refuse(name, str(error))
        return done
    pieces = windows(record, config.seconds)
    for which, start_s, piece in pieces:
        reason = records.check(piece, config)
        microvolts = None if reason else _microvolts(piece, config)
        if reason is None and np.abs(microvolts).max() > np.iinfo(np.int16).max:
            reason = "out of range: more than 32.767 mV"
        if reason:
            refuse(which, reason)
            continue
        row = _table_row(piece, which, start_s)
        done["rows"].append((row, microvolts.astype("<i2"), _annotated(piece, config)))
    used = sum(piece.signal.shape[1] for _, _, piece in pieces)
    done["unused_s"] = (record.signal.shape[1] - used) / record.sampling_rate
    return done


def _microvolts(record: Record, config: DataConfig) -> np.ndarray:
    """Cleaned and resampled signal (12, time) in whole microvolts, float64."""
    cleaned = clean(record.signal, record.sampling_rate, config.low_cut, config.high_cut)
    length = round(config.seconds * config.sampling_rate)
    resampled = resample(cleaned, record.sampling_rate, config.sampling_rate, length)
    return np.rint(resampled * 1000)


def _annotated(record: Record, config: DataConfig) -> tuple[np.ndarray, np.ndarray] | None:
    """Labels (12, time) at the store's rate and `records.wave_marks`, if there are any."""
    if record.waves is None:
        return None
    length = round(config.seconds * config.sampling_rate)
    labels = resample_labels(record.waves, record.sampling_rate, config.sampling_rate, length)
    return labels, records.wave_marks(record.waves, record.sampling_rate)


def _table_row(record: Record, name: str, start_s: float) -> dict:
    return {
        "record_id": name,
        "dataset": record.dataset,
        "patient_id": record.patient_id,
        "fold": record.fold,
        **dict(zip(SUPERCLASSES, record.labels.tolist())),
        "provenance": record.provenance,
        "statements": record.statements,
        "source_hz": record.sampling_rate,
        "start_s": round(start_s, 6),
    }


def _content_hash(task: dict) -> str:
    """Hash of a record's listing row and of the bytes of its files."""
    digest = hashlib.sha256(_plain([task["dataset"], task["row"]]).encode())
    for name in task["row"]["files"]:
        path = Path(task["folder"]) / name
        digest.update(_sha256(path).encode() if path.is_file() else b"absent")
    return digest.hexdigest()


def _refuse_empty(tasks: Iterable[dict], table: pd.DataFrame, set_aside: pd.DataFrame) -> None:
    """Raise when a data set has no row left."""
    for dataset in dict.fromkeys(task["dataset"] for task in tasks):
        if (table["dataset"] == dataset).any():
            continue
        reasons = set_aside["reason"][set_aside["dataset"] == dataset]
        if (reasons.map(reason_kind) == records.OVERLAP).all():
            continue  # nothing is wrong with the records: they are there as PTB-XL's
        counts = reasons.map(reason_kind).value_counts()
        listed = "; ".join(f"{kind} ({n})" for kind, n in counts.items())
        example = f"{set_aside['record_id'][reasons.index[0]]}: {reasons.iloc[0]}"
        raise RecordError(
            f"{dataset}: all {len(reasons)} records were set aside: {listed}. First: {example}. "
            "Check the folder and the data settings (seconds, einthoven_tolerance)"
        )


# ---------------------------------------------------------------- files


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _map(path: Path, dtype: str, shape: Sequence[int]) -> np.ndarray:
    if not math.prod(shape):
        return np.zeros(shape, dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype, "r", shape=tuple(shape))


def _read_table(path: Path, types: dict) -> pd.DataFrame:
    return pd.read_csv(path, dtype=types, keep_default_na=False)
