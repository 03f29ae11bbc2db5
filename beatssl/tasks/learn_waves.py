"""Training the delineator that comes along, and testing it on records that it has not seen.

It is trained for other devices than LUDB's: at other rates, gains and polarities, with baseline
wander, mains, muscle noise and missing leads, and on the rhythms of the simulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy import signal as dsp
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from beatssl.cache import replacing
from beatssl.data import synthetic
from beatssl.data.records import LAYOUTS, LEADS, NOT_ANNOTATED, wave_marks
from beatssl.delineator import (
    RATE, STRIDE, Delineator, DelineatorConfig, build_delineator, prepared, probabilities, waves_of,
)  # fmt: skip
from beatssl.fingerprint import code_of
from beatssl.methods.encoder import autocast, pick_device
from beatssl.progress import progress
from beatssl.settings import config_hash
from beatssl.tasks.base import Predictions
from beatssl.tasks.delineate import delineate
from beatssl.tasks.fit import WARMUP
from beatssl.tasks.segment import CLASSES, folds
from beatssl.train import warmup_cosine

DEVICE_RATES = (100, 125, 128, 200, 250, 257, 360, 400, 500, 1000)  # Hz
SIMULATED_RATE = 500  # Hz
LEADS_AT_ONCE = (1, 1, 2, 3, 4, 12)  # of a record, drawn for each batch
TOLERANCE_MS = 150.0  # ANSI/AAMI EC57


@dataclass(frozen=True)
class LearnConfig:
    """How the delineator is trained."""

    network: DelineatorConfig = field(default_factory=DelineatorConfig)
    steps: int = 2000
    leads: int = 36  # of a batch, all records together
    samples: int = 2016  # of an item at `RATE`: 8 s, whole steps of the coarsest layer
    learning_rate: float = 3.0e-3
    weight_decay: float = 1.0e-2
    simulated: int = 300  # records of the simulator
    simulated_share: float = 0.15  # of the items


@dataclass(frozen=True)
class Annotated:
    """A record whose waves are known.

    Attributes: record_id; signal (leads, samples), mV; labels (leads, samples) int8 of
        `wave_labels`; sampling_rate, Hz."""

    record_id: str
    signal: np.ndarray
    labels: np.ndarray
    sampling_rate: float


def read_ludb(folder: Path) -> list[Annotated]:
    """All records of LUDB, as annotated: 500 Hz, 12 leads."""
    layout = LAYOUTS["ludb"]
    rows = layout.list(folder).to_dict("records")
    records = [layout.read(folder, row) for row in progress(rows, "records of LUDB")]
    return [Annotated(r.record_id, r.signal, r.waves, r.sampling_rate) for r in records]


def simulated(count: int, seed: int, seconds: float = 10.0) -> list[Annotated]:
    """Records of the simulator, every wave annotated but those of the first and the last beat."""
    records = []
    rhythms = list(synthetic.RHYTHMS)
    for number in progress(range(count), "simulated records"):
        patient, recording = (np.random.default_rng([seed, number, k]) for k in range(2))
        rhythm = rhythms[number % len(rhythms)]
        codes = synthetic.draw_codes(patient)
        made = synthetic.simulate(codes, rhythm, seconds, SIMULATED_RATE, patient, recording)
        labels = np.full(made.microvolts.shape, NOT_ANNOTATED, np.int8)
        for lead, marks in enumerate(made.marks):
            if marks:
                labels[lead, marks[0][1] : marks[-1][3] + 1] = 0
            for symbol, onset, _, offset in marks:
                labels[lead, onset : offset + 1] = 1 + "pNt".index(symbol)
        records.append(
            Annotated(f"simulated {number}", made.microvolts / 1000, labels, SIMULATED_RATE)
        )
    return records


# ---------------------------------------------------------------- items


def targets(labels: np.ndarray, first: float, step: float, count: int) -> np.ndarray:
    """Share of each class in each step: borders between two steps are kept as shares.

    Args:
        labels: (leads, samples), -1 not annotated.
        first: middle of the first step, in samples. step: its length, in samples.

    Returns:
        (leads, 4, count) float32, rows of a step sum to 1; all 0 where a part of it is not
        annotated.
    """
    of_class = labels[:, None] == np.arange(CLASSES)[:, None]
    total = np.pad(np.cumsum(of_class, axis=2, dtype=np.float64), ((0, 0), (0, 0), (1, 0)))
    edges = first + step * (np.arange(count + 1) - 0.5) + 0.5  # sample i reaches from i to i + 1
    edges = edges.clip(0, labels.shape[1])
    whole = edges.astype(int).clip(0, labels.shape[1] - 1)
    at = total[..., whole] + (edges - whole) * (total[..., whole + 1] - total[..., whole])
    share = np.diff(at, axis=2) / step
    share[np.broadcast_to((share.sum(axis=1) < 0.999)[:, None], share.shape)] = 0
    return share.astype(np.float32)


def item(
    record: Annotated, leads: int, samples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A stretch of some leads of a record, as another device might have recorded it.

    Returns:
        (leads, samples) as `prepared`; (leads, 4, samples / 2) targets.
    """
    chosen = rng.permutation(len(record.signal))[:leads]
    x, labels = record.signal[chosen].astype(np.float64), record.labels[chosen]
    x = np.nan_to_num(x)
    x = _mixed(x, record.signal, rng)
    device, faster = int(rng.choice(DEVICE_RATES)), float(np.exp(rng.uniform(-0.2, 0.2)))
    down = round(record.sampling_rate * faster)
    x = dsp.resample_poly(x, device, down, axis=1, padtype="line")
    scale = np.ptp(x, axis=1, keepdims=True).clip(0.1)
    x = _recorded(x / scale, device, rng) * scale * rng.choice([-1, 1], (leads, 1), p=[0.2, 0.8])
    y, there = prepared(x, device)
    y[:] = np.where(there, y, 0)
    ratio = down / RATE  # samples of the record in one of y
    spare = y.shape[1] - samples
    first = int(rng.integers(0, spare // STRIDE + 1)) * STRIDE if spare > 0 else 0
    y = y[:, first : first + samples]
    target = targets(labels, first * ratio, STRIDE * ratio, samples // STRIDE)
    y = np.pad(y, ((0, 0), (0, samples - y.shape[1])))
    y *= np.exp(rng.normal(0, 0.1, (leads, 1))).astype(np.float32)
    return y.astype(np.float32), target


def _mixed(x: np.ndarray, whole: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each lead with a little of another one: no electrode is where the twelve are."""
    if rng.random() < 0.7:
        return x
    others = np.nan_to_num(whole[rng.integers(0, len(whole), len(x))])
    size = np.ptp(x, axis=1, keepdims=True) / np.ptp(others, axis=1, keepdims=True).clip(1e-3)
    return x + rng.uniform(-0.35, 0.35, (len(x), 1)) * np.minimum(size, 1.5) * others


def _recorded(x: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Leads of range 1 with what electrodes and amplifiers add: wander, mains, muscles, movement,
    a low-pass, steps of the converter."""
    leads, n = x.shape
    time = np.arange(n) / rate
    if rng.random() < 0.3:
        cut = min(rng.uniform(25, 100), 0.45 * rate)
        sos = dsp.butter(2, cut, fs=rate, output="sos")
        x = dsp.sosfiltfilt(sos, x, axis=1)
    hertz, phase = rng.uniform(0.05, 0.6, (3, 1)), rng.uniform(0, 2 * np.pi, (leads, 3, 1))
    size = np.exp(rng.uniform(np.log(0.005), np.log(0.6), (leads, 1)))
    x = x + size * np.sin(2 * np.pi * hertz * time + phase).mean(axis=1)
    muscle = np.exp(rng.uniform(np.log(0.0005), np.log(0.05), (leads, 1)))
    if rng.random() < 0.8:
        x = x + muscle * rng.standard_normal((leads, n))
    if rng.random() < 0.3 and rate > 120:
        mains = rng.choice([50, 60]) * time + rng.random((leads, 1))
        x = x + rng.uniform(0, 0.06, (leads, 1)) * np.sin(2 * np.pi * mains)
    if rng.random() < 0.15:
        at, long = rng.uniform(0, time[-1]), rng.uniform(0.1, 1.0)
        inside = (time >= at) & (time < at + long)
        x = x + inside * rng.normal(0, 1.0, (leads, 1)) * rng.choice([0, 1], (leads, 1))
    if rng.random() < 0.3:
        converter = rng.uniform(0.001, 0.02)
        x = np.round(x / converter) * converter
    return x


# ---------------------------------------------------------------- training


def batch(
    records: Sequence[Annotated],
    more: Sequence[Annotated],
    config: LearnConfig,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """(records, leads, samples) and (records, leads, 4, steps); `more` takes its own share."""
    leads = int(rng.choice(LEADS_AT_ONCE))
    made = []
    for _ in range(config.leads // leads):
        source = more if len(more) and rng.random() < config.simulated_share else records
        made.append(item(source[rng.integers(len(source))], leads, config.samples, rng))
    x, target = (torch.from_numpy(np.stack(part)) for part in zip(*made))
    return x, target


def learn(
    records: Sequence[Annotated], more: Sequence[Annotated], config: LearnConfig, seed: int
) -> Delineator:
    """A delineator trained by cross-entropy against the shares of the classes in each step.

    Raises:
        FloatingPointError: the loss is NaN or infinite.
    """
    rng, device = np.random.default_rng(seed), pick_device()
    network = build_delineator(config.network, seed).to(device).train()
    optimizer = AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, config.steps, WARMUP))
    for _ in progress(range(config.steps), "steps of the delineator", delay=5):
        x, target = (part.to(device) for part in batch(records, more, config, rng))
        with autocast(device):
            logits = network(x)
        known = target.sum(dim=2)
        loss = -(logits.float().log_softmax(dim=2) * target).sum() / known.sum().clamp_min(1)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()}: lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.cpu().eval()


# ---------------------------------------------------------------- test


def cross_validate(
    records: Sequence[Annotated],
    more: Sequence[Annotated],
    config: LearnConfig,
    folder: Path,
    count: int = 10,
    seed: int = 0,
) -> Predictions:
    """The waves of every record, found by a network that was not trained on it.

    Args:
        folder: where finished folds are kept.
        count: of folds, by record.

    Returns:
        What `border_scores` needs, a row for each lead of each record: truth, marks, found,
        record_id (with the lead), patient_id, fold, sampling_rate, tolerance_ms.
    """
    names = np.array([record.record_id for record in records])
    code = code_of(learn, found_in)
    found, of_record = [np.zeros((0, 4))] * len(records), np.zeros(len(records), np.int8)
    for k, (seen, unseen) in enumerate(folds(names, count)):
        of_record[unseen] = k + 1
        key = config_hash(config, code, seed, count, names[seen].tolist(), len(more))
        path = folder / f"fold-{k + 1}-{key}.npz"
        if not path.is_file():
            network = learn([records[i] for i in seen], more, config, seed * 1000 + k)
            made = {f"waves {i}": found_in(network, records[i]) for i in unseen}
            with replacing(path) as part, part.open("wb") as file:
                np.savez_compressed(file, **made)
        with np.load(path, allow_pickle=False) as kept:
            for i in unseen:
                found[i] = kept[f"waves {i}"]
    leads = len(LEADS)
    truth = np.concatenate([record.labels for record in records])
    rate = records[0].sampling_rate
    shifted = [waves + [i * leads, 0, 0, 0] for i, waves in enumerate(found)]
    return {
        "truth": truth,
        "marks": wave_marks(truth, rate),
        "found": np.concatenate(shifted),
        "record_id": np.array([f"{name} {lead}" for name in names for lead in LEADS]),
        "patient_id": np.repeat(names, leads),
        "fold": np.repeat(of_record, leads),
        "sampling_rate": np.array(rate),
        "tolerance_ms": np.array(TOLERANCE_MS),
    }


def found_in(network: Delineator, record: Annotated) -> np.ndarray:
    """(waves, 4) float64: number of the lead, class, onset and offset in ms, of a record."""
    p, x, there = probabilities(network, record.signal, record.sampling_rate)
    waves = waves_of(p, x, there)[:, [0, 1, 2, 4]]
    waves[:, 1] += 1
    waves[:, 2:] *= 1000 / RATE
    return waves[np.lexsort((waves[:, 2], waves[:, 0]))]


def neurokit(records: Sequence[Annotated], method: str) -> np.ndarray:
    """`found` of NeuroKit2's delineator, laid out as that of `cross_validate`; a lead in which it
    fails has no waves. Args: method: dwt | prominence."""
    waves = []
    for record in progress(records, f"NeuroKit2 {method}"):
        for signal in np.nan_to_num(record.signal):
            try:
                waves.append(delineate(signal, int(record.sampling_rate), method))
            except ValueError:
                waves.append(np.zeros(len(signal), np.int8))
    return wave_marks(np.stack(waves), records[0].sampling_rate)
