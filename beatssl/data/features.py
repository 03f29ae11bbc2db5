"""The 54 features of a record, the first 28 of them of each beat, too (Gu et al. 2025,
doi 10.1038/s44172-025-00467-6): 8 of the R peaks, 20 of the waves, 25 of heart-rate variability,
1 of quality. Times are in ms, amplitudes in mV."""

import numpy as np

R_FEATURES = ("r_amplitude", "rr0", "rr1", "rr2", "rr_mean", "rr0_rr1", "rr2_rr1", "rr_mean_rr1")
TIMES = ("PR", "QR", "RS", "RT", "PQ", "PS", "PT", "QS", "QT", "ST")
AMPLITUDES = ("PQ", "QR", "RS", "ST", "PS", "PT", "QS", "QT")
_TIMES = tuple(f"time_{pair}" for pair in TIMES)
_AMPLITUDES = tuple(f"amplitude_{pair}" for pair in AMPLITUDES)
WAVE_FEATURES = (*_TIMES, *_AMPLITUDES, "time_ST_over_QS", "time_RS_over_QR")
BEAT_FEATURES = R_FEATURES + WAVE_FEATURES  # 28
_HRV = (
    "MeanNN SDNN SDANN1 SDNNI1 SDANN2 SDNNI2 SDANN5 SDNNI5 RMSSD SDSD CVNN CVSD MedianNN MadNN "
    "MCVNN IQRNN SDRMSSD Prc20NN Prc80NN pNN50 pNN20 MinNN MaxNN HTI TINN"
)
HRV_FEATURES = tuple(f"HRV_{name}" for name in _HRV.split())
RECORD_FEATURES = BEAT_FEATURES + HRV_FEATURES + ("quality",)  # 54
_INTERVALS = "HRV_MeanNN HRV_MedianNN HRV_Prc20NN HRV_Prc80NN HRV_MinNN HRV_MaxNN"
_RR = ("rr0", "rr1", "rr2", "rr_mean", *_INTERVALS.split())
FEATURE_GROUPS = {  # what a feature is, whatever its source: each has one group
    "RR intervals (ms)": _RR,
    "RR variability": tuple(name for name in HRV_FEATURES if name not in _RR),
    "times between waves (ms)": _TIMES,
    "amplitudes": ("r_amplitude", *_AMPLITUDES),
    "ratios": ("rr0_rr1", "rr2_rr1", "rr_mean_rr1", "time_ST_over_QS", "time_RS_over_QR"),
    "quality": ("quality",),
}


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
    k, to_ms = len(r_peaks), 1000.0 / sampling_rate
    rr = np.diff(r_peaks) * to_ms
    mean, padded = rr.mean() if len(rr) else np.nan, np.pad(rr, (2, 1), constant_values=np.nan)
    rr0, rr1, rr2 = padded[:k], padded[1 : k + 1], padded[2 : k + 2]
    at, level = {"R": np.asarray(r_peaks, float)}, {}
    for wave in "PQST":
        peaks = np.asarray(waves.get(f"ECG_{wave}_Peaks", []), float)
        at[wave] = peaks if len(peaks) == k else np.full(k, np.nan)
    for wave, samples in at.items():
        inside = np.nan_to_num(samples, nan=0).astype(int).clip(0, len(signal) - 1)
        level[wave] = np.where(np.isnan(samples), np.nan, signal[inside])
    time = {a + b: (at[b] - at[a]) * to_ms for a, b in TIMES}
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = [
            *(level["R"], rr0, rr1, rr2, np.full(k, mean), rr0 / rr1, rr2 / rr1, mean / rr1),
            *time.values(),
            *(level[b] - level[a] for a, b in AMPLITUDES),
            *(time["ST"] / time["QS"], time["RS"] / time["QR"]),
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
