"""One's own ECG as a vector: what the book's probes see."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from torch import nn

from beatssl import weights
from beatssl.data.records import LEADS, RecordError
from beatssl.data.store import clean, resample
from beatssl.delineator import delineate
from beatssl.ecg import ECG, bridged
from beatssl.methods.encoder import EncoderConfig, StandardisedConfig, load_encoder, roi_align
from beatssl.settings import DataConfig, from_dict, one_of

RECORD = DataConfig()  # how the records of the book were treated: rate, length, band
MARGIN_S = 8.0  # on either side of a piece, so that the filter's ends lie outside
SHORTEST_S = 2.0  # a shorter rest is read with the piece before
BEFORE, AFTER = 0.25, 0.50  # s around the R peak: a beat, as in pretraining
PARTS = ("record", "step", "beat")

Source = nn.Module | str | Path | None


def embed(ecg: ECG, of: str = "record", encoder: Source = None) -> np.ndarray:
    """Vectors of an ECG from a pretrained encoder.

    The signal is treated as the records of the book: band-pass, 100 Hz, divided by its SD over all
    leads and time; a longer recording in pieces of 10 s. Leads that are missing count as zero, and
    a warning says so.

    Args:
        of: record, one vector, the mean over time; step, one for each step of the encoder; beat,
            one for each R peak of `delineate` in lead II, or the first lead.
        encoder: default the one that comes along; or a run's folder, a file, a module.

    Returns:
        (channels,), (steps, channels) or (beats, channels) float32.

    Raises:
        ConfigError: another `of`.
        RecordError: none of the twelve leads is there.
        WeightsError: there is no encoder in the file.
    """
    one_of("of", of, PARTS)
    network = encoder if isinstance(encoder, nn.Module) else read_encoder(encoder)
    if not set(LEADS) & set(ecg.leads):
        raise RecordError(f"{ecg.name}: none of the twelve leads: {', '.join(ecg.leads)}")
    if missing := [lead for lead in LEADS if lead not in ecg.leads]:
        warnings.warn(f"{ecg.name}: no {', '.join(missing)}; they count as zero", stacklevel=2)
    if ecg.sampling_rate < RECORD.sampling_rate:
        told = f"{ecg.sampling_rate:g} Hz is slower than the {RECORD.sampling_rate} Hz of training"
        warnings.warn(f"{ecg.name}: {told}", stacklevel=2)
    with torch.inference_mode():
        made = [network(torch.from_numpy(x)[None])[0] for x in _pieces(ecg, network.stride)]
    e = torch.cat(made, dim=1).float()  # (channels, steps)
    if of == "record":
        return e.mean(dim=1).numpy()
    if of == "step":
        return e.T.numpy()
    at = torch.from_numpy(_r_peaks(ecg))[None] * RECORD.sampling_rate
    before, after = (s * RECORD.sampling_rate for s in (BEFORE, AFTER))
    return roi_align(e[None], at - before, at + after, network.stride)[0].numpy()


def _r_peaks(ecg: ECG) -> np.ndarray:
    """Times of the R peaks, in s."""
    lead = "II" if "II" in ecg.leads else ecg.leads[0]
    waves = delineate(ecg)
    return waves.loc[(waves["lead"] == lead) & (waves["wave"] == "QRS"), "peak"].to_numpy(
        np.float32
    )


def _pieces(ecg: ECG, stride: int) -> Iterator[np.ndarray]:
    """(12, time) float32 of each piece, as `Store.load` gives a record; all but the last are whole
    steps of the encoder long."""
    rate, new = ecg.sampling_rate, RECORD.sampling_rate
    leads = [lead for lead in ecg.leads if lead in LEADS]
    signal = ecg.signal[[ecg.leads.index(lead) for lead in leads]]
    total, size = int(ecg.seconds * new), round(RECORD.seconds * new)
    if total > size:
        size -= size % stride
    starts = list(range(0, total, size))
    if len(starts) > 1 and total - starts[-1] < SHORTEST_S * new:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], total]):
        early = max(0, start - round(MARGIN_S * new))
        first, last = round(early * rate / new), round((end / new + MARGIN_S) * rate)
        x = np.stack([bridged(lead) for lead in signal[:, first:last]])
        cleaned = clean(x, rate, RECORD.low_cut, RECORD.high_cut)
        made = np.rint(resample(cleaned, rate, new, end - early)[:, start - early :] * 1000)
        twelve = np.zeros((len(LEADS), made.shape[1]), np.float32)
        twelve[[LEADS.index(lead) for lead in leads]] = made
        yield twelve / max(float(twelve.astype(np.float64).std()), 1e-3)


def read_encoder(source: str | Path | None = None) -> nn.Module:
    """An encoder in evaluation mode.

    Args: source: folder of a pretraining run, or a file; default the one that comes along.

    Raises:
        WeightsError: there is no encoder there.
    """
    return _encoder(weights.path_of("encoder") if source is None else Path(source))


@functools.lru_cache(4)
def _encoder(path: Path) -> nn.Module:
    path = path / "encoder.safetensors" if path.is_dir() else path
    sizes = weights.sizes_of(path, "encoder")
    kind = StandardisedConfig if sizes.pop("standardise_leads", False) else EncoderConfig
    config = from_dict(kind, sizes, path.name)
    return load_encoder(path, config, RECORD.sampling_rate)


class BeatSSLEmbedder(TransformerMixin, BaseEstimator):
    """`embed` as a scikit-learn transformer: ECGs in, (ECGs, channels) out; nothing is fitted.

    Args: encoder: as of `embed`.
    """

    def __init__(self, encoder: Source = None):
        self.encoder = encoder

    def fit(self, ecgs: Sequence[ECG], y: object = None) -> BeatSSLEmbedder:
        """Returns: itself."""
        return self

    def transform(self, ecgs: Sequence[ECG]) -> np.ndarray:
        """(len(ecgs), channels) float32."""
        return np.stack([embed(ecg, encoder=self.encoder) for ecg in ecgs])

    def __sklearn_is_fitted__(self) -> bool:
        return True
