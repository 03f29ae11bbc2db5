"""Waves of LUDB drawn by NeuroKit2's delineators: no training, a reference for task 2."""

from __future__ import annotations

import warnings

import neurokit2 as nk
import numpy as np

from beatssl.config import DELINEATORS, Profile
from beatssl.records import LEADS
from beatssl.store import Store

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
            _, found = nk.ecg_delineate(
                clean, info["ECG_R_Peaks"], sampling_rate=sampling_rate, method=method
            )
    except Exception as error:  # ZeroDivisionError, IndexError, ValueError: it has no type for it
        raise ValueError(f"NeuroKit2 {method}: {error}") from error
    at = {name.removeprefix("ECG_"): np.asarray(v, float) for name, v in found.items()}
    if method == "peak":
        borders = (
            (at["P_Onsets"], at["P_Peaks"], 2),
            (at["Q_Peaks"], at["S_Peaks"], 1),
            (at["T_Offsets"], at["T_Peaks"], 2),
        )
        spans = [(a, a + times * (b - a)) for a, b, times in borders if _paired(a, b, method)]
    else:
        pairs = [(at[f"{w}_Onsets"], at[f"{w}_Offsets"]) for w in ("P", "R", "T")]
        spans = [(a, b) for a, b in pairs if _paired(a, b, method)]
    labels = np.zeros(len(lead), np.int8)
    for wave, span in enumerate(spans, start=1):
        first, last = np.sort(np.stack(span), axis=0)  # from T offset back to its onset
        for start, end in zip(first, last, strict=True):
            if np.isfinite(start) and np.isfinite(end):
                labels[max(0, round(start)) : round(end) + 1] = wave
    return labels


def _paired(first: np.ndarray, last: np.ndarray, method: str) -> bool:
    if len(first) != len(last):
        raise ValueError(f"NeuroKit2 {method}: {len(first)} and {len(last)} borders of a wave")
    return True


def delineated(profile: Profile, store: Store, method: str) -> tuple[np.ndarray, list[str]]:
    """Waves of all LUDB records in the lead of task 2.

    Args: method: one of `config.DELINEATORS`.

    Returns:
        (rows, time) int8, all background where the delineator failed, and the records where it did.
    """
    if method not in DELINEATORS:
        raise ValueError(f"{method!r} is no delineator; known: {', '.join(DELINEATORS)}")
    rows = np.asarray(store.rows("ludb"))
    leads = store.load(rows)[:, LEADS.index(profile.segment.lead)]
    out, failed = np.zeros(leads.shape, np.int8), []
    for i, lead in enumerate(leads):
        try:
            out[i] = delineate(lead, store.sampling_rate, method.removeprefix("neurokit_"))
        except ValueError as error:
            failed.append(f"{store.table['record_id'].iloc[rows[i]]}: {error}")
    return out, failed
