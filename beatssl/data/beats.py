"""The precomputed band of the paper's figure: R peaks, record and beat features, beat classes.

Peaks and waves are NeuroKit2's on lead II. The 54 record features follow Gu et al. 2025
(doi 10.1038/s44172-025-00467-6): 8 of the R peaks, 20 of the waves, 25 of heart-rate variability,
1 of quality. Times are in ms, amplitudes in mV. The paper's own features, classifier and detector
are unknown; these are our choices.

NaN rules: a wave that was not found gives NaN; a record's value is the mean over the beats that
have one; what stays NaN is replaced by the training median only inside the targets
(`targets.FeatureScale`). Nothing is dropped: a record without beats keeps its row, with NaN.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import neurokit2 as nk
import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from tqdm import tqdm

from beatssl.cache import part_of
from beatssl.data.store import Store, in_processes, open_store
from beatssl.fingerprint import ROOT, code_hash, name_of
from beatssl.settings import config_hash

LEAD_II = 1
BEAT_CLASSES = ("N", "S", "V", "other")
N_CLUSTERS = 8
TRAINING_FOLDS = {"ptbxl": range(1, 9), "challenge": None}  # of a layout; None: all
MIN_BEATS = 4  # records with 3 R peaks or fewer take no part in pretraining (paper.md 1.4)

R_FEATURES = ("r_amplitude", "rr0", "rr1", "rr2", "rr_mean", "rr0_rr1", "rr2_rr1", "rr_mean_rr1")
_TIMES = ("PR", "QR", "RS", "RT", "PQ", "PS", "PT", "QS", "QT", "ST")
_AMPLITUDES = ("PQ", "QR", "RS", "ST", "PS", "PT", "QS", "QT")
WAVE_FEATURES = (
    *(f"time_{a}{b}" for a, b in _TIMES),
    *(f"amplitude_{a}{b}" for a, b in _AMPLITUDES),
    "time_ST_over_QS",
    "time_RS_over_QR",
)
BEAT_FEATURES = R_FEATURES + WAVE_FEATURES  # 28
HRV_FEATURES = tuple(
    "HRV_" + name
    for name in [
        "MeanNN",
        "SDNN",
        "SDANN1",
        "SDNNI1",
        "SDANN2",
        "SDNNI2",
        "SDANN5",
        "SDNNI5",
        "RMSSD",
        "SDSD",
        "CVNN",
        "CVSD",
        "MedianNN",
        "MadNN",
        "MCVNN",
        "IQRNN",
        "SDRMSSD",
        "Prc20NN",
        "Prc80NN",
        "pNN50",
        "pNN20",
        "MinNN",
        "MaxNN",
        "HTI",
        "TINN",
    ]
)
RECORD_FEATURES = BEAT_FEATURES + HRV_FEATURES + ("quality",)  # 54
_RR = ["rr0", "rr1", "rr2", "rr_mean"] + [
    "HRV_" + name for name in ["MeanNN", "MedianNN", "Prc20NN", "Prc80NN", "MinNN", "MaxNN"]
]
FEATURE_GROUPS = {  # what a feature is, whatever its source: each has one group
    "RR intervals (ms)": tuple(_RR),
    "RR variability": tuple(name for name in HRV_FEATURES if name not in _RR),
    "times between waves (ms)": tuple(f"time_{pair}" for pair in _TIMES),
    "amplitudes": ("r_amplitude", *(f"amplitude_{pair}" for pair in _AMPLITUDES)),
    "ratios": ("rr0_rr1", "rr2_rr1", "rr_mean_rr1", "time_ST_over_QS", "time_RS_over_QR"),
    "quality": ("quality",),
}
_QUALITY = {"Excellent": 1.0, "Barely acceptable": 0.5, "Unacceptable": 0.0}


@dataclass(frozen=True)
class Beats:
    """Beats and features of every row of a store; arrays are padded to the largest beat count.

    Attributes:
        r_peak: (rows, max_beats) int32, sample of each R peak, -1 where there is no beat.
        features: (rows, max_beats, 28) float32, `BEAT_FEATURES`, NaN where unknown.
        rules: (rows, max_beats) int8, index into `BEAT_CLASSES`, -1 padding.
        clusters: (rows, max_beats) int8, 0..7 by decreasing size, -1 padding or no full window.
        record_features: (rows, 54) float32, `RECORD_FEATURES`.
        trouble: table of rows where a step failed: record_id, reason.
    """

    r_peak: np.ndarray
    features: np.ndarray
    rules: np.ndarray
    clusters: np.ndarray
    record_features: np.ndarray
    trouble: pd.DataFrame

    @functools.cached_property
    def content(self) -> str:
        """Twelve hexadecimal digits of all arrays: the same beats have the same, ever."""
        digest = hashlib.sha256()
        for array in (self.r_peak, self.features, self.rules, self.clusters, self.record_features):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:12]

    @property
    def count(self) -> np.ndarray:
        """Number of beats of each row."""
        return (self.r_peak >= 0).sum(axis=1)

    def classes(self, classifier: str) -> np.ndarray:
        """(rows, max_beats) of the named classifier: `rules` or `clusters`."""
        return {"rules": self.rules, "clusters": self.clusters}[classifier]


def beat_features(
    signal: np.ndarray, r_peaks: np.ndarray, waves: dict, sampling_rate: int
) -> np.ndarray:
    """Features of each beat of one lead.

    rr0, rr1, rr2 are the interval before the last one, the one that ends at the beat, and the one
    that starts there (ms); the first and last beats have NaN there.

    Args:
        signal: (time,) mV.
        r_peaks: (k,) samples.
        waves: `ECG_P_Peaks` etc. of NeuroKit2, k entries each, NaN where not found.
        sampling_rate: Hz.

    Returns:
        (k, 28) float32 in the order of `BEAT_FEATURES`.
    """
    k = len(r_peaks)
    to_ms = 1000.0 / sampling_rate
    rr = np.diff(r_peaks) * to_ms
    mean = rr.mean() if len(rr) else np.nan
    padded = np.concatenate([[np.nan, np.nan], rr, [np.nan]])
    rr0, rr1, rr2 = padded[:k], padded[1 : k + 1], padded[2 : k + 2]
    where = {"R": np.asarray(r_peaks, float)}
    for wave in "PQST":
        found = waves.get(f"ECG_{wave}_Peaks", [])
        where[wave] = np.asarray(found, float) if len(found) == k else np.full(k, np.nan)
    level = {}
    for wave, at in where.items():
        inside = np.nan_to_num(at, nan=0).astype(int).clip(0, len(signal) - 1)
        level[wave] = np.where(np.isnan(at), np.nan, signal[inside])
    time = {a + b: (where[b] - where[a]) * to_ms for a, b in _TIMES}
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = [
            level["R"],
            rr0,
            rr1,
            rr2,
            np.full(k, mean),
            rr0 / rr1,
            rr2 / rr1,
            mean / rr1,
            *(time[a + b] for a, b in _TIMES),
            *(level[b] - level[a] for a, b in _AMPLITUDES),
            time["ST"] / time["QS"],
            time["RS"] / time["QR"],
        ]
    table = np.stack(columns, axis=1).astype(np.float32)
    table[~np.isfinite(table)] = np.nan
    return table


def in_unit(features: np.ndarray, amplitude_unit: str) -> np.ndarray:
    """Features whose amplitudes are in mV with their amplitudes in `amplitude_unit`, mV or uV.

    Args: features (.., 28 or 54), float32. Returns: the same shape and type."""
    names = RECORD_FEATURES[: features.shape[-1]]  # the beat features come first
    amplitude = np.isin(names, FEATURE_GROUPS["amplitudes"])
    return features * np.where(amplitude & (amplitude_unit == "uV"), 1000, 1).astype(np.float32)


def classify_beats(signal: np.ndarray, r_peaks: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Class of each beat by three rules relative to its own record; needs no labelled beats.

    Morphology: correlation of the QRS (-80..+120 ms, 12 leads) with the record's median QRS; below
    0.8 it counts as changed. Width: time in which the spatial velocity exceeds a fifth of its
    maximum. Prematurity: RR before the beat under 85 % of the record's median RR.
    V = changed and over 1.2 times the median width; other = changed, not wide; S = premature with
    unchanged morphology; N = the rest. Ours, and no clinical diagnosis.

    Args:
        signal: (12, time) mV.
        r_peaks: (k,) samples.

    Returns:
        (k,) int8, index into `BEAT_CLASSES`.
    """
    k, time = len(r_peaks), signal.shape[1]
    if k < 2:
        return np.zeros(k, np.int8)
    near = np.arange(-round(0.08 * sampling_rate), round(0.12 * sampling_rate) + 1)
    index = (np.asarray(r_peaks)[:, None] + near).clip(0, time - 1)
    qrs = signal[:, index].transpose(1, 0, 2).reshape(k, -1)  # (k, 12 * window)
    median = np.median(qrs, axis=0)
    a, b = qrs - qrs.mean(axis=1, keepdims=True), median - median.mean()
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b)
    correlation = np.divide(a @ b, scale, out=np.zeros(k), where=scale > 0)
    velocity = np.linalg.norm(np.diff(signal, axis=1, prepend=signal[:, :1]), axis=0)
    wide_near = np.arange(-round(0.15 * sampling_rate), round(0.15 * sampling_rate) + 1)
    around = velocity[(np.asarray(r_peaks)[:, None] + wide_near).clip(0, time - 1)]
    width = (around > 0.2 * around.max(axis=1, keepdims=True)).sum(axis=1)
    rr = np.diff(r_peaks)
    premature = np.concatenate([[False], rr < 0.85 * np.median(rr)])
    changed = correlation < 0.8
    wide = width > 1.2 * np.median(width)
    return np.select([changed & wide, changed, premature], [2, 3, 1], 0).astype(np.int8)


def analyse(signal: np.ndarray, sampling_rate: int) -> dict:
    """R peaks, beat features, record features and rule classes of one record.

    Args:
        signal: (12, time) mV.
        sampling_rate: Hz.

    Returns:
        r_peak (k,), features (k, 28), rules (k,), record_features (54,), trouble (text or "").
        A step of NeuroKit2 that fails (a flat lead, one beat) leaves NaN and is named in `trouble`.
    """
    lead = signal[LEAD_II]
    trouble = []
    peaks = np.zeros(0, int)
    waves: dict = {}
    hrv = np.full(len(HRV_FEATURES), np.nan)
    quality = np.nan
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            clean = nk.ecg_clean(lead, sampling_rate=sampling_rate)
            _, info = nk.ecg_peaks(clean, sampling_rate=sampling_rate)
            peaks = np.unique(np.asarray(info["ECG_R_Peaks"], float))
            peaks = peaks[np.isfinite(peaks)].astype(int)
        except Exception as error:  # NeuroKit2 raises many kinds; the reason is kept
            trouble.append(f"R peaks: {type(error).__name__}: {error}")
        if len(peaks) < 2:
            trouble.append(f"{len(peaks)} R peaks found in lead II")
        else:
            try:
                _, waves = nk.ecg_delineate(
                    clean, peaks, sampling_rate=sampling_rate, method="prominence"
                )
            except Exception as error:
                trouble.append(f"waves: {type(error).__name__}: {error}")
            try:
                table = nk.hrv_time(peaks, sampling_rate=sampling_rate)
                hrv = table.reindex(columns=list(HRV_FEATURES)).to_numpy(float)[0]
            except Exception as error:
                trouble.append(f"heart-rate variability: {type(error).__name__}: {error}")
            try:
                word = nk.ecg_quality(
                    clean, peaks, sampling_rate=sampling_rate, method="zhao2018", approach="fuzzy"
                )
                quality = _QUALITY[str(word)]
            except Exception as error:
                trouble.append(f"quality: {type(error).__name__}: {error}")
        per_beat = beat_features(lead, peaks, waves, sampling_rate)
        record = np.full(len(BEAT_FEATURES), np.nan)
        if len(peaks):
            record = np.nanmean(per_beat, axis=0)
        record = np.concatenate([record, hrv, [quality]]).astype(np.float32)
    record[~np.isfinite(record)] = np.nan
    return {
        "r_peak": peaks,
        "features": per_beat,
        "rules": classify_beats(signal, peaks, sampling_rate),
        "record_features": record,
        "trouble": "; ".join(trouble),
    }


def beat_windows(store: Store, r_peak: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Beat shapes for clustering: 12 leads, -0.2..+0.4 s, at 50 Hz, each beat scaled to unit norm.

    Returns:
        windows (beats, 12 * points) float32, and (beats, 2) their (row, beat) index; beats whose
        window leaves the record are left out.
    """
    rate = store.sampling_rate
    offsets = np.arange(-round(0.2 * rate), round(0.4 * rate), max(1, rate // 50))
    time = store.signals.shape[2]
    rows, beats = np.nonzero(
        (r_peak >= 0) & (r_peak + offsets[0] >= 0) & (r_peak + offsets[-1] < time)
    )
    out = np.empty((len(rows), 12 * len(offsets)), np.float32)
    first = np.flatnonzero(np.diff(rows, prepend=-1))  # rows ascend: the beats of one lie together
    for mine in np.split(np.arange(len(rows)), first[1:]) if len(rows) else []:
        at = r_peak[rows[mine[0]], beats[mine]][:, None] + offsets
        signal = store.millivolts([rows[mine[0]]])[0]
        out[mine] = signal[:, at].transpose(1, 0, 2).reshape(len(mine), -1)
    out /= np.linalg.norm(out, axis=1, keepdims=True).clip(1e-6)
    return out, np.stack([rows, beats], axis=1)


def cluster_beats(store: Store, r_peak: np.ndarray, training_rows: np.ndarray) -> np.ndarray:
    """The second beat classifier: k-means of beat shapes, fitted on training records only.

    Returns:
        (rows, max_beats) int8; clusters numbered by decreasing size among training beats.
    """
    windows, index = beat_windows(store, r_peak)
    classes = np.full(r_peak.shape, -1, np.int8)
    train = np.isin(index[:, 0], training_rows)
    if not train.any():
        return classes
    few = np.random.default_rng(0).permutation(np.flatnonzero(train))[:20_000]
    pca = PCA(min(16, len(few)), random_state=0).fit(windows[few])
    means = KMeans(min(N_CLUSTERS, len(few)), n_init=4, random_state=0)
    means.fit(pca.transform(windows[few]))
    labels = means.predict(pca.transform(windows))
    by_size = np.argsort(-np.bincount(labels[train], minlength=means.n_clusters), kind="stable")
    classes[index[:, 0], index[:, 1]] = np.argsort(by_size)[labels]
    return classes


def training_rows(store: Store) -> np.ndarray:
    """Rows that may be pretrained on: PTB-XL folds 1-8 and the Challenge records. Folds 9 and 10
    and LUDB are never among them."""
    return np.concatenate(
        [
            store.rows(name, TRAINING_FOLDS[layout])
            for name, layout in store.layouts.items()
            if layout in TRAINING_FOLDS
        ]
    )


def pretraining_rows(store: Store, beats: Beats) -> np.ndarray:
    """`training_rows` with more than 3 R peaks."""
    rows = training_rows(store)
    return rows[beats.count[rows] >= MIN_BEATS]


def beats_fingerprint(store: Store, root: Path = ROOT) -> str:
    """Changes with the data, the code that analyses it or NeuroKit2's version."""
    code = code_hash(*map(name_of, (_analyse_rows, cluster_beats, training_rows)), root=root)
    return config_hash(store.content, code, nk.__version__)


def prepare_beats(store: Store, folder: Path, jobs: int = 1) -> Beats:
    """Analyse every row of the store in parallel; reused when the store has not changed.

    Args:
        folder: where the arrays go; replaced as a whole, atomically.
        jobs: processes.
    """
    manifest = {"fingerprint": beats_fingerprint(store), "features": list(RECORD_FEATURES)}
    path = folder / "manifest.json"
    if path.is_file() and json.loads(path.read_text()) == manifest:
        return _load(folder)
    chunks = np.array_split(np.arange(len(store.table)), max(1, len(store.table) // 32))
    found: list[dict] = []
    for part in in_processes(partial(_analyse_rows, store.folder), chunks, jobs, "beats"):
        found += part
    rows, most = len(found), max((len(f["r_peak"]) for f in found), default=0)
    r_peak = np.full((rows, most), -1, np.int32)
    features = np.full((rows, most, len(BEAT_FEATURES)), np.nan, np.float32)
    rules = np.full((rows, most), -1, np.int8)
    for i, f in enumerate(found):
        k = len(f["r_peak"])
        r_peak[i, :k], features[i, :k], rules[i, :k] = f["r_peak"], f["features"], f["rules"]
    arrays = {
        "r_peak": r_peak,
        "features": features,
        "rules": rules,
        "clusters": cluster_beats(store, r_peak, training_rows(store)),
        "record_features": np.stack([f["record_features"] for f in found]),
    }
    trouble = store.table[["record_id", "dataset"]].assign(reason=[f["trouble"] for f in found])
    part = part_of(folder)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(part / f"{name}.npy", array)
    trouble[trouble.reason != ""].to_csv(part / "trouble.csv", index=False)
    (part / "manifest.json").write_text(json.dumps(manifest, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    return _load(folder)


def _analyse_rows(store_folder: Path, rows: np.ndarray) -> list[dict]:
    store = open_store(store_folder)
    return [analyse(signal, store.sampling_rate) for signal in store.millivolts(rows)]


def _load(folder: Path) -> Beats:
    names = ("r_peak", "features", "rules", "clusters", "record_features")
    arrays = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in names}
    return Beats(**arrays, trouble=pd.read_csv(folder / "trouble.csv", dtype=str))
