"""The precomputed band of the paper's figure: R peaks, record and beat features, beat classes.

Peaks and waves are NeuroKit2's on lead II, see `beatssl.data.features` for what is made of them.
The paper's own features, classifier and detector are unknown; these are our choices.

NaN rules: a wave that was not found gives NaN; a record's value is the mean over the beats that
have one; what stays NaN is replaced by the training median only inside the targets
(`targets.FeatureScale`). Nothing is dropped: a record without beats keeps its row, with NaN.
"""

import functools
import hashlib
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch.nn.utils.rnn import pad_sequence

from beatssl.cache import read_json, replacing_folder, write_json
from beatssl.compute import lazily
from beatssl.data.features import HRV_FEATURES, RECORD_FEATURES, beat_features
from beatssl.data.store import Store, open_store
from beatssl.fingerprint import ROOT, code_of
from beatssl.progress import in_processes
from beatssl.settings import Rotation, config_hash, to_dict

nk = lazily("neurokit2")

LEAD_II = 1
BEAT_CLASSES = ("N", "S", "V", "other")
N_CLUSTERS = 8
AT_ONCE = 20_000  # beats whose shapes are in memory: 30 MB
MIN_BEATS = 4  # records with 3 R peaks or fewer take no part in pretraining (paper.md 1.4)
QUALITY = {"Excellent": 1.0, "Barely acceptable": 0.5, "Unacceptable": 0.0}
ARRAYS = ("r_peak", "features", "rules", "clusters", "record_features")


@dataclass(frozen=True)
class Beats:
    """Beats and features of every row of a store; arrays are padded to the largest beat count.

    Attributes:
        r_peak: (rows, max_beats) int32, sample of each R peak, -1 where there is no beat.
        features: (rows, max_beats, 28) float32, `BEAT_FEATURES`, NaN where unknown.
        rules: (rows, max_beats) int8, index into `BEAT_CLASSES`, -1 padding.
        clusters: (rotations, rows, max_beats) int8, 0..7 by decreasing size, -1 padding or no full
            window; fitted on the training rows of each rotation.
        record_features: (rows, 54) float32, `RECORD_FEATURES`.
        trouble: table of rows where a step failed: record_id, reason.
        rotations: those that `clusters` knows.
    """

    r_peak: np.ndarray
    features: np.ndarray
    rules: np.ndarray
    clusters: np.ndarray
    record_features: np.ndarray
    trouble: pd.DataFrame
    rotations: tuple[Rotation, ...] = (Rotation(),)

    @functools.cached_property
    def content(self) -> str:
        """Twelve hexadecimal digits of all arrays: the same beats have the same, ever."""
        arrays = b"".join(getattr(self, name).tobytes() for name in ARRAYS)
        return hashlib.sha256(arrays).hexdigest()[:12]

    @property
    def count(self) -> np.ndarray:
        """Number of beats of each row."""
        return (self.r_peak >= 0).sum(axis=1)

    def classes(self, classifier: str, rotation: Rotation) -> np.ndarray:
        """(rows, max_beats) of the named classifier: `rules`, or `clusters` as fitted on the
        training rows of this rotation."""
        if classifier == "rules":
            return self.rules
        return self.clusters[self.rotations.index(rotation)]


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
    k = len(r_peaks)
    if k < 2:
        return np.zeros(k, np.int8)

    def near(before: float, after: float) -> np.ndarray:
        """(k, window) samples from `before` to `after` s around each R peak."""
        offsets = np.arange(-round(before * sampling_rate), round(after * sampling_rate) + 1)
        return (np.asarray(r_peaks)[:, None] + offsets).clip(0, signal.shape[1] - 1)

    qrs = signal[:, near(0.08, 0.12)].transpose(1, 0, 2).reshape(k, -1)  # (k, 12 * window)
    median = np.median(qrs, axis=0)
    a, b = qrs - qrs.mean(axis=1, keepdims=True), median - median.mean()
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b)
    correlation = np.divide(a @ b, scale, out=np.zeros(k), where=scale > 0)
    velocity = np.linalg.norm(np.diff(signal, axis=1, prepend=signal[:, :1]), axis=0)
    around = velocity[near(0.15, 0.15)]
    width = (around > 0.2 * around.max(axis=1, keepdims=True)).sum(axis=1)
    rr = np.diff(r_peaks)
    premature = np.concatenate([[False], rr < 0.85 * np.median(rr)])
    changed, wide = correlation < 0.8, width > 1.2 * np.median(width)
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
    lead, rate, trouble = signal[LEAD_II], {"sampling_rate": sampling_rate}, []
    peaks, waves, hrv, quality = np.zeros(0, int), {}, [np.nan] * len(HRV_FEATURES), np.nan
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        with _noted(trouble, "R peaks"):
            clean = nk.ecg_clean(lead, **rate)
            samples = np.unique(np.asarray(nk.ecg_peaks(clean, **rate)[1]["ECG_R_Peaks"], float))
            peaks = samples[np.isfinite(samples)].astype(int)
        if len(peaks) < 2:
            trouble.append(f"{len(peaks)} R peaks found in lead II")
        else:
            with _noted(trouble, "waves"):
                _, waves = nk.ecg_delineate(clean, peaks, **rate, method="prominence")
            with _noted(trouble, "heart-rate variability"):
                hrv = nk.hrv_time(peaks, **rate).reindex(columns=HRV_FEATURES).to_numpy(float)[0]
            with _noted(trouble, "quality"):
                word = nk.ecg_quality(clean, peaks, **rate, method="zhao2018", approach="fuzzy")
                quality = QUALITY[str(word)]
        per_beat = beat_features(lead, peaks, waves, sampling_rate)
        record = np.concatenate([np.nanmean(per_beat, axis=0), hrv, [quality]]).astype(np.float32)
    record[~np.isfinite(record)] = np.nan
    found = {"r_peak": peaks.astype(np.int32), "features": per_beat, "record_features": record}
    rules = classify_beats(signal, peaks, sampling_rate)
    return found | {"rules": rules, "trouble": "; ".join(trouble)}


@contextmanager
def _noted(trouble: list[str], step: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # NeuroKit2 raises many kinds; the reason is kept
        trouble.append(f"{step}: {type(error).__name__}: {error}")


def shape_offsets(sampling_rate: int) -> np.ndarray:
    """Samples of a beat's shape, from its R peak: -0.2..+0.4 s, at 50 Hz."""
    window = -round(0.2 * sampling_rate), round(0.4 * sampling_rate)
    return np.arange(*window, max(1, sampling_rate // 50))


def whole_beats(r_peak: np.ndarray, offsets: np.ndarray, time: int) -> np.ndarray:
    """(beats, 2): (row, beat) of the beats whose shape lies inside a record of `time` samples."""
    inside = (r_peak + offsets[0] >= 0) & (r_peak + offsets[-1] < time)
    return np.argwhere((r_peak >= 0) & inside)


def beat_shapes(
    store: Store, r_peak: np.ndarray, index: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """(beats, 12 * points) float32: shapes for clustering, each beat scaled to unit norm."""
    out = np.empty((len(index), 12 * len(offsets)), np.float32)
    for row, mine in pd.RangeIndex(len(index)).groupby(index[:, 0]).items():
        signal = store.millivolts([row])[0]
        shapes = signal[:, r_peak[row, index[mine, 1]][:, None] + offsets]
        out[mine] = shapes.transpose(1, 0, 2).reshape(len(mine), -1)
    return out / np.linalg.norm(out, axis=1, keepdims=True).clip(1e-6)


def cluster_beats(store: Store, r_peak: np.ndarray, training_rows: np.ndarray) -> np.ndarray:
    """The second beat classifier: k-means of beat shapes, fitted on training records only.

    Returns:
        (rows, max_beats) int8; clusters numbered by decreasing size among training beats.
    """
    offsets = shape_offsets(store.sampling_rate)
    index = whole_beats(r_peak, offsets, store.signals.shape[2])
    classes = np.full(r_peak.shape, -1, np.int8)
    train = np.isin(index[:, 0], training_rows)
    if not train.any():
        return classes
    few = np.random.default_rng(0).permutation(np.flatnonzero(train))[:AT_ONCE]
    shapes = beat_shapes(store, r_peak, index[few], offsets)
    pca = PCA(min(16, len(few)), random_state=0).fit(shapes)
    means = KMeans(min(N_CLUSTERS, len(few)), n_init=4, random_state=0).fit(pca.transform(shapes))
    parts = np.array_split(index, math.ceil(len(index) / AT_ONCE))
    labels = np.concatenate(
        [means.predict(pca.transform(beat_shapes(store, r_peak, p, offsets))) for p in parts]
    )
    by_size = np.argsort(-np.bincount(labels[train], minlength=means.n_clusters), kind="stable")
    classes[index[:, 0], index[:, 1]] = np.argsort(by_size)[labels]
    return classes


def training_rows(store: Store, rotation: Rotation) -> np.ndarray:
    """Rows that may be pretrained on: the training folds of PTB-XL and of further data sets in its
    layout, and all rows of the Challenge's. Folds that are tested or select, and LUDB, are never
    among them."""
    folds = {"ptbxl": rotation.train, "challenge": None}  # None: all
    layouts = {name: of for name, of in store.layouts.items() if of in folds}
    return np.concatenate([store.rows(name, folds[of]) for name, of in layouts.items()])


def pretraining_rows(store: Store, beats: Beats, rotation: Rotation) -> np.ndarray:
    """`training_rows` with more than 3 R peaks."""
    rows = training_rows(store, rotation)
    return rows[beats.count[rows] >= MIN_BEATS]


def beats_code(root: Path = ROOT) -> tuple[str, str]:
    """Hash of the code that analyses beats, and NeuroKit2's version."""
    return code_of(_analyse_rows, cluster_beats, training_rows, root=root), version("neurokit2")


def beats_fingerprint(store: Store, root: Path = ROOT) -> str:
    """Changes with the data, the code that analyses it or NeuroKit2's version."""
    return config_hash(store.content, *beats_code(root))


def prepare_beats(
    store: Store, folder: Path, jobs: int = 1, rotations: tuple[Rotation, ...] = (Rotation(),)
) -> Beats:
    """Analyse every row of the store in parallel; reused when store and rotations are the same.

    Args:
        folder: where the arrays go; replaced as a whole, atomically.
        jobs: processes.
        rotations: on whose training rows the beat shapes are clustered, each for itself.
    """
    manifest = {"fingerprint": beats_fingerprint(store), "features": list(RECORD_FEATURES)}
    manifest["rotations"] = [to_dict(rotation) for rotation in rotations]
    if read_json(folder / "manifest.json") == manifest:
        return _load(folder, rotations)
    chunks = np.array_split(np.arange(len(store)), max(1, len(store) // 32))
    parts = in_processes(functools.partial(_analyse_rows, store.folder), chunks, jobs, "beats")
    results = [result for part in parts for result in part]
    arrays = {}
    for name, padding in (("r_peak", -1), ("features", np.nan), ("rules", -1)):
        each = [torch.from_numpy(result[name]) for result in results]
        arrays[name] = pad_sequence(each, batch_first=True, padding_value=padding).numpy()
    training = [training_rows(store, rotation) for rotation in rotations]
    each = [cluster_beats(store, arrays["r_peak"], rows) for rows in training]
    arrays["clusters"] = np.stack(each)
    arrays["record_features"] = np.stack([result["record_features"] for result in results])
    trouble = store.table[["record_id", "dataset"]]
    trouble = trouble.assign(reason=[result["trouble"] for result in results])
    with replacing_folder(folder) as part:
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array)
        trouble[trouble["reason"] != ""].to_csv(part / "trouble.csv", index=False)
        write_json(part / "manifest.json", manifest)
    return _load(folder, rotations)


def _analyse_rows(store_folder: Path, rows: np.ndarray) -> list[dict]:
    store = open_store(store_folder)
    return [analyse(signal, store.sampling_rate) for signal in store.millivolts(rows)]


def _load(folder: Path, rotations: tuple[Rotation, ...]) -> Beats:
    arrays = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in ARRAYS}
    trouble = pd.read_csv(folder / "trouble.csv", dtype=str)
    return Beats(**arrays, trouble=trouble, rotations=rotations)
