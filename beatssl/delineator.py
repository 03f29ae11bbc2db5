"""Borders of P, QRS and T in one's own ECG: any rate, any leads, any length.

The network is ours, not the paper's: a small U-Net that reads each lead by itself and, in its
middle, what the other leads at hand show at the same time.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from scipy import ndimage
from scipy import signal as dsp
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from beatssl import compute, weights
from beatssl.data.records import WAVES
from beatssl.cache import replacing
from beatssl.ecg import ECG, bridged
from beatssl.settings import from_dict, to_dict

RATE = 250.0  # Hz of what the network reads
SLOWEST = 100.0  # Hz of a record as the network saw them in training
STRIDE = 2  # samples a step of its output: 8 ms
GRID = 4000  # samples: whole steps of its coarsest layer and whole seconds
CORE, MARGIN = 9 * GRID, GRID  # samples: 144 s of a window are kept, 16 s on either side are not
BASELINE_S = 1.0  # moving average, taken twice, that is subtracted
BLOCKS = 11  # seconds whose median range scales a lead
FLAT = 0.02  # mV: a lead whose range stays below has no waves
LARGEST = 4.0  # times the usual range of a second: what is larger is cut
SHORTEST_MS = (24.0, 24.0, 48.0)  # P, QRS, T: a shorter wave is none
GAP_MS = (40.0, 40.0, 60.0)  # two parts of a wave that are nearer are one
COLUMNS = ("lead", "wave", "onset", "peak", "offset", "probability")


@dataclass(frozen=True)
class DelineatorConfig:
    """Sizes of the network: channels at 125, 62, 31, 16 and 8 Hz, and their kernel in steps."""

    widths: tuple[int, ...] = (24, 32, 48, 64, 96)
    kernel: int = 5
    dilations: tuple[int, ...] = (1, 2, 4)  # of the blocks at the coarsest rate


class Block(nn.Module):
    """Two convolutions, batch normalisation and a shortcut."""

    def __init__(self, width: int, kernel: int, dilation: int = 1):
        super().__init__()
        pad = dilation * (kernel // 2)
        layers: list[nn.Module] = []
        for _ in range(2):
            convolution = nn.Conv1d(width, width, kernel, 1, pad, dilation, bias=False)
            layers += [convolution, nn.BatchNorm1d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.layers(x))


class Delineator(nn.Module):
    """(batch, leads, time) as `prepared` -> logits (batch, leads, 4, time / 2) of background, P,
    QRS and T; step j lies on sample 2 j. `time` is a multiple of `reach`.

    Leads are alike to the network: their order means nothing, and any number will do.
    """

    def __init__(self, config: DelineatorConfig = DelineatorConfig()):
        super().__init__()
        self.config, widths, kernel = config, config.widths, config.kernel
        self.reach = STRIDE * 2 ** (len(widths) - 1)
        self.down, self.into = nn.ModuleList(), nn.ModuleList()
        for before, width in zip((1, *widths), widths):
            size = kernel if before > 1 else 2 * kernel + 1
            halve = nn.Conv1d(before, width, size, 2, size // 2, bias=False)
            rest = Block(width, kernel)
            self.down.append(nn.Sequential(halve, nn.BatchNorm1d(width), nn.ReLU(), rest))
        self.middle = nn.ModuleList(Block(widths[-1], kernel, d) for d in config.dilations)
        self.others = nn.ModuleList(nn.Conv1d(widths[-1], widths[-1], 1) for _ in config.dilations)
        for fine, coarse in zip(widths[-2::-1], widths[:0:-1]):
            self.into.append(
                nn.ModuleDict({"narrow": nn.Conv1d(coarse, fine, 1), "rest": Block(fine, kernel)})
            )
        self.head = nn.Conv1d(widths[0], 1 + len(WAVES), 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, leads, time = x.shape
        x, kept = x.reshape(batch * leads, 1, time).to(self.head.weight.dtype), []
        for layers in self.down:
            x = layers(x)
            kept.append(x)
        for block, others in zip(self.middle, self.others):
            shared = x.reshape(batch, leads, *x.shape[1:]).mean(dim=1)
            x = block(x + others(shared).repeat_interleave(leads, dim=0))
        for layers, skip in zip(self.into, kept[-2::-1]):
            coarse = layers["narrow"](x)
            following = torch.cat([coarse[..., 1:], coarse[..., -1:]], dim=-1)
            between = (coarse + following) / 2
            x = layers["rest"](skip + torch.stack([coarse, between], dim=-1).flatten(-2))
        return self.head(x).reshape(batch, leads, 1 + len(WAVES), -1)


def build_delineator(config: DelineatorConfig, seed: int) -> Delineator:
    """An untrained network; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Delineator(config)


def save_delineator(network: Delineator, path: Path) -> None:
    """Weights in 16 bits as safetensors with the sizes beside them, written atomically."""
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in network.state_dict().items()
    }
    with replacing(path) as part:
        save_file(state, part, {"delineator": json.dumps(to_dict(network.config))})


def read_delineator(source: str | Path | None = None) -> Delineator:
    """A delineator in evaluation mode. Args: source: default the one that comes along.

    Where the processor has bf16 it computes in it: more than twice as fast, borders move by a
    fraction of a ms.

    Raises:
        WeightsError: there is no delineator in the file.
    """
    return _delineator(weights.path_of("delineator") if source is None else Path(source))


@functools.lru_cache(2)
def _delineator(path: Path) -> Delineator:
    sizes = weights.sizes_of(path, "delineator")
    network = Delineator(from_dict(DelineatorConfig, sizes, path.name))
    network.load_state_dict(load_file(path))
    fused = _fused(network.eval())
    return fused.bfloat16() if compute.bf16(torch.device("cpu")) else fused


def _fused(network: Delineator) -> Delineator:
    """The same function with batch normalisation inside the convolutions: fewer passes."""
    for layers in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
        for k in range(len(layers) - 1):
            if isinstance(layers[k + 1], nn.BatchNorm1d):
                layers[k] = fuse_conv_bn_eval(layers[k], layers[k + 1])
                layers[k + 1] = nn.Identity()
    return network


# ---------------------------------------------------------------- signal


def ratio_to(sampling_rate: float) -> Fraction:
    """`RATE` over the sampling rate, as the resampling takes it."""
    return Fraction(RATE / sampling_rate).limit_denominator(1000)


def prepared(signal: np.ndarray, sampling_rate: float) -> tuple[np.ndarray, np.ndarray]:
    """What the network reads of a stretch of an ECG, and where there was something to read.

    Missing samples are bridged; resampled to `RATE`; minus a moving average; divided by the median
    range of the seconds around. Each step reaches no more than 8 s, so that a stretch gives the
    same as the whole further inside.

    Args:
        signal: (leads, samples), mV, NaN where missing.
        sampling_rate: Hz.

    Returns:
        (leads, time) float32; (leads, time) bool, False where a sample was missing or the lead is
        flat.
    """
    missing = ~np.isfinite(signal)
    if missing.any():
        signal = np.stack([bridged(lead) for lead in signal])
    ratio = ratio_to(sampling_rate)
    time = int(signal.shape[1] * ratio)
    x = signal.astype(np.float32)
    if ratio != 1:
        x = dsp.resample_poly(x, *ratio.as_integer_ratio(), axis=1, padtype="line")
    x = x[:, :time]
    size = round(BASELINE_S * RATE)
    slow = x
    for _ in range(2):
        slow = ndimage.uniform_filter1d(slow, size, axis=1, mode="nearest")
    x = x - slow
    scale = _range(x)
    there = scale > FLAT
    if missing.any():
        nearest = np.minimum((np.arange(time) / float(ratio)).astype(int), signal.shape[1] - 1)
        there &= ~missing[:, nearest]
    return (x / np.maximum(scale, FLAT)).clip(-LARGEST, LARGEST).astype(np.float32), there


def _range(x: np.ndarray) -> np.ndarray:
    """Largest minus smallest value of a second, the median of `BLOCKS` seconds, at each sample.

    Args: x (leads, time), at least a second. Returns: the same shape."""
    size = int(RATE)
    starts = np.arange(x.shape[1] // size) * size  # what is left over belongs to the last
    ranges = np.maximum.reduceat(x, starts, axis=1) - np.minimum.reduceat(x, starts, axis=1)
    usual = ndimage.median_filter(ranges, (1, BLOCKS), mode="nearest")
    at = np.arange(x.shape[1])
    return np.stack([np.interp(at, starts + size / 2, lead) for lead in usual])


def probabilities(
    network: Delineator, signal: np.ndarray, sampling_rate: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a stretch: (leads, 4, steps) float32 probabilities, (leads, time) what was read and
    (leads, time) whether there was something."""
    x, there = prepared(signal, sampling_rate)
    short = -x.shape[1] % network.reach
    with torch.inference_mode():
        padded = nn.functional.pad(torch.from_numpy(x)[None], (0, short))
        made = network(padded)[0].float().softmax(dim=1).numpy()
    return made[..., : -(-x.shape[1] // STRIDE)], x, there


# ---------------------------------------------------------------- waves


def delineate(ecg: ECG, network: Delineator | str | Path | None = None) -> pd.DataFrame:
    """Find P, QRS and T in each lead of an ECG.

    Long recordings are read in overlapping windows; where two meet makes no difference.

    Args:
        ecg: from `read_ecg`.
        network: default the one that comes along; or a file, or a module.

    Returns:
        One row a wave: `lead`; `wave` (P | QRS | T); `onset`, `peak`, `offset` in s from the start
        of the record, finer than the network's step; `probability`, its mean from onset to offset.
        Sorted by lead, then time; empty where nothing is found. `attrs["notes"]` says in words what
        was left out and what is unlike the records that the network was trained on.
    """
    network = network if isinstance(network, nn.Module) else read_delineator(network)
    ratio, found = ratio_to(ecg.sampling_rate), []
    total = int(ecg.signal.shape[1] * ratio)
    read = np.zeros(len(ecg.leads), bool)
    for core in range(0, total, CORE):
        first, last = (
            min(max(0, round(at / ratio)), ecg.signal.shape[1])
            for at in (core - MARGIN, core + CORE + MARGIN)
        )
        p, x, there = probabilities(network, ecg.signal[:, first:last], ecg.sampling_rate)
        read |= there.any(axis=1)
        waves = waves_of(p, x, there)
        middle = waves[:, 2:5:2].mean(axis=1) / RATE + first / ecg.sampling_rate
        inside = (core / RATE <= middle) & (middle < (core + CORE) / RATE)
        waves[:, 2:5] = waves[:, 2:5] / RATE + first / ecg.sampling_rate
        found.append(waves[inside])
    waves = np.concatenate(found)
    waves = waves[np.lexsort((waves[:, 2], waves[:, 0]))]
    table = pd.DataFrame(waves, columns=list(COLUMNS))
    for column, names in (("lead", ecg.leads), ("wave", WAVES)):
        table[column] = np.array(names, object)[table[column].astype(int)]
    silent = [lead for lead, any_ in zip(ecg.leads, read) if not any_]
    notes = [f"no waves in {', '.join(silent)}: flat, or every sample is missing"] if silent else []
    if ecg.sampling_rate < SLOWEST:
        notes.append(
            f"{ecg.sampling_rate:g} Hz: the network was trained for {SLOWEST:g} Hz and more"
        )
    table.attrs["notes"] = (*ecg.notes, *notes)
    return table


def waves_of(p: np.ndarray, x: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Waves of a stretch from their probabilities.

    A wave lies where its probability is above one half; its borders are where the line between two
    steps crosses it. Parts of one wave that nearly touch are one; a wave that is too short is none;
    between two QRS stands one T, the most probable.

    Args: p (leads, 4, steps); x, there (leads, time) as `prepared`.

    Returns:
        (waves, 6) float64: lead, wave (0 P, 1 QRS, 2 T), onset, peak, offset in samples at `RATE`,
        mean probability.
    """
    rows = []
    p = p * there[:, None, ::STRIDE]
    for lead, of_lead in enumerate(p):
        runs = [_runs(of_lead[1 + wave], wave) for wave in range(len(WAVES))]
        runs[2] = _one_between(runs[2], runs[1])
        for wave, own in enumerate(runs):
            for onset, offset, mean in own:
                rows.append((lead, wave, onset, _peak(x[lead], onset, offset), offset, mean))
    return np.array(rows, float).reshape(-1, len(COLUMNS))


def _runs(p: np.ndarray, wave: int) -> np.ndarray:
    """(runs, 3): onset and offset in samples, mean probability, of one wave in one lead."""
    inside = np.pad(p > 0.5, 1).astype(np.int8)
    first, last = np.flatnonzero(np.diff(inside) > 0), np.flatnonzero(np.diff(inside) < 0) - 1
    if not len(first):
        return np.zeros((0, 3))
    before, after = np.maximum(first - 1, 0), np.minimum(last + 1, len(p) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        onset = first - np.nan_to_num((p[first] - 0.5) / (p[first] - p[before]), posinf=0)
        offset = last + np.nan_to_num((p[last] - 0.5) / (p[last] - p[after]), posinf=0)
    total = np.append(0, np.cumsum(p, dtype=float))
    step = STRIDE * 1000 / RATE
    apart = (onset[1:] - offset[:-1]) * step >= GAP_MS[wave]
    starts = np.flatnonzero(np.append(True, apart))
    ends = np.append(starts[1:], len(first)) - 1
    onset, offset, first, last = onset[starts], offset[ends], first[starts], last[ends]
    mean = (total[last + 1] - total[first]) / (last + 1 - first)
    kept = (offset - onset) * step >= SHORTEST_MS[wave]
    return np.stack([onset * STRIDE, offset * STRIDE, mean], axis=1)[kept]


def _one_between(waves: np.ndarray, beats: np.ndarray) -> np.ndarray:
    """Of the waves between two beats the most probable one, by its sum from onset to offset."""
    between = np.searchsorted(beats[:, 0], waves[:, 0])
    order = np.lexsort((-(waves[:, 1] - waves[:, 0]) * waves[:, 2], between))
    kept = order[np.append(True, np.diff(between[order]) > 0)[: len(order)]]
    return waves[np.sort(kept)]


def _peak(x: np.ndarray, onset: float, offset: float) -> float:
    """Where a lead is furthest from the line between the borders of a wave, in samples."""
    first, last = max(0, int(np.ceil(onset))), min(len(x) - 1, int(offset))
    if last - first < 2:
        return (onset + offset) / 2
    piece = x[first : last + 1]
    far = np.abs(piece - np.linspace(piece[0], piece[-1], len(piece)))
    k = int(far.argmax())
    if not 0 < k < len(far) - 1:
        return float(first + k)
    bend = far[k - 1] - 2 * far[k] + far[k + 1]
    return first + k + (0.5 * (far[k - 1] - far[k + 1]) / bend if bend < 0 else 0.0)


# ---------------------------------------------------------------- intervals


def intervals(waves: pd.DataFrame) -> pd.DataFrame:
    """The intervals of each beat, measured over all leads.

    A lead shows a wave only as far as it points its way. So a border is the outermost one that two
    leads reach: the second earliest onset, the second latest offset; with one lead its own. Beats
    are those of the lead with most QRS.

    Args: waves: from `delineate`.

    Returns:
        One row a beat: R, the time of its peak in s; RR (to the beat before), PR, QRS, QT,
        QTc_Bazett = QT / sqrt(RR / s), QTc_Fridericia = QT / cbrt(RR / s) in ms; NaN where a wave
        or the beat before is missing.
    """
    qrs = waves[waves["wave"] == "QRS"]
    counts = qrs["lead"].value_counts(sort=False)
    peaks = qrs.loc[qrs["lead"] == counts.idxmax(), "peak"].to_numpy() if len(qrs) else np.zeros(0)
    limits = np.concatenate([[-np.inf], (peaks[1:] + peaks[:-1]) / 2, [np.inf]])
    rows = []
    for k, peak in enumerate(peaks):
        first, last = {}, {}
        for wave, own in waves[waves["peak"].between(limits[k], limits[k + 1])].groupby("wave"):
            if wave == "P":
                own = own[own["peak"] < peak]
            elif wave == "T":
                own = own[own["peak"] > peak]
            if len(own):
                second = min(1, own["lead"].nunique() - 1)
                first[wave] = own.groupby("lead")["onset"].min().nsmallest(second + 1).iloc[-1]
                last[wave] = own.groupby("lead")["offset"].max().nlargest(second + 1).iloc[-1]
        onset, offset = first.get("QRS", np.nan), last.get("QRS", np.nan)
        rr = peak - peaks[k - 1] if k else np.nan
        pr, width, qt = (
            onset - first.get("P", np.nan),
            offset - onset,
            last.get("T", np.nan) - onset,
        )
        rows.append(
            [peak, *(1000 * np.array([rr, pr, width, qt, qt / rr**0.5, qt / rr ** (1 / 3)]))]
        )
    return pd.DataFrame(
        rows, columns=["R", "RR", "PR", "QRS", "QT", "QTc_Bazett", "QTc_Fridericia"]
    )
