"""Waves of LUDB drawn by NeuroKit2's delineators: no training, a reference for task 2."""

import warnings
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from beatssl.compute import lazily
from beatssl.data.records import LEADS
from beatssl.data.store import Store
from beatssl.methods import DELINEATORS
from beatssl.progress import progress

nk = lazily("neurokit2")

PEAK = (  # of method `peak`: first and last mark of P, QRS, T; the column that is a peak
    ("P_Onsets", "P_Peaks", 1),
    ("Q_Peaks", "S_Peaks", None),
    ("T_Peaks", "T_Offsets", 0),
)
WIDEST = (0.40, 0.40, 0.80)  # s: P, QRS, T; two marks further apart are not of one wave


@dataclass(frozen=True)
class Delineator:
    """One of `DELINEATORS`, in the place of an encoder.

    Raises:
        ValueError: an unknown method.
    """

    method: str
    version: str = version("neurokit2")

    def __post_init__(self) -> None:
        if self.method not in DELINEATORS:
            raise ValueError(f"{self.method!r} is no delineator; known: {', '.join(DELINEATORS)}")


def delineate(lead: np.ndarray, sampling_rate: int, method: str) -> np.ndarray:
    """Waves of one lead, with NeuroKit2's own R peaks.

    At 100, 250, 500 and 1000 Hz the scores on LUDB are the same to .01, so the lead is not
    resampled. `peak` gives P onset and T offset only: P and T are then taken as symmetric about
    their peaks, QRS as Q peak to S peak (ours).

    Args:
        lead: (time,).
        sampling_rate: Hz.
        method: dwt | peak | prominence.

    Returns:
        (time,) int8: 0 background, 1 P, 2 QRS, 3 T.

    Raises:
        ValueError: NeuroKit2 finds nothing it can work with; says what it said.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clean = nk.ecg_clean(lead.astype(float), sampling_rate=sampling_rate)
            _, info = nk.ecg_peaks(clean, sampling_rate=sampling_rate)
            _, found = nk.ecg_delineate(clean, info["ECG_R_Peaks"], sampling_rate, method)
    except Exception as error:  # ZeroDivisionError, IndexError, ValueError: it has no type for it
        raise ValueError(f"NeuroKit2 {method}: {error}") from error
    at = {name.removeprefix("ECG_"): np.asarray(v, float) for name, v in found.items()}
    labels = np.zeros(len(lead), np.int8)
    marks = PEAK if method == "peak" else [(f"{k}_Onsets", f"{k}_Offsets", None) for k in "PRT"]
    for wave, (widest, (first, last, mirrored)) in enumerate(zip(WIDEST, marks), start=1):
        limit = widest * sampling_rate / (1 if mirrored is None else 2)
        borders = match_marks(at[first], at[last], limit)
        if mirrored is not None:  # half a wave: as far again beyond its peak
            borders[:, mirrored] = 2 * borders[:, mirrored] - borders[:, 1 - mirrored]
        for start, end in borders:
            labels[max(0, round(start)) : round(end) + 1] = wave
    return labels


def match_marks(first: np.ndarray, last: np.ndarray, limit: float) -> np.ndarray:
    """Pair the marks of one wave by where they lie: NeuroKit2's lists may differ in length.

    A pair is a first mark and the nearest last mark at or after it, before the next first mark and
    at most `limit` away. Marks without a partner, and NaN, are left out.

    Args:
        first, last: (k,), (m,) samples.
        limit: samples.

    Returns:
        (pairs, 2) float64, ascending.
    """
    first, last = np.unique(first[np.isfinite(first)]), np.unique(last[np.isfinite(last)])
    last = np.append(last, np.inf)
    partner = last[np.searchsorted(last, first)]
    kept = (partner < np.append(first[1:], np.inf)) & (partner - first <= limit)
    return np.stack([first, partner], axis=1)[kept]


def delineated(
    delineator: Delineator, store: Store, rows: np.ndarray, lead: str
) -> tuple[np.ndarray, list[str]]:
    """Waves of these rows of the store in one lead.

    Returns:
        (rows, time) int8, all background where the delineator failed, and the records where it did,
        each with the reason.
    """
    signals = store.load(rows)[:, LEADS.index(lead)]
    waves, failed = np.zeros(signals.shape, np.int8), []
    method = delineator.method.removeprefix("neurokit_")
    for i, signal in enumerate(progress(signals, f"records, {delineator.method}")):
        try:
            waves[i] = delineate(signal, store.sampling_rate, method)
        except ValueError as error:
            failed.append(f"{store.table['record_id'].iloc[rows[i]]}: {error}")
    return waves, failed
