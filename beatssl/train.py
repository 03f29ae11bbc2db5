"""The pretraining loop: AdamW, warm-up and cosine decay, mixed precision, exact resume."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from beatssl import compute
from beatssl.cache import replacing, write_text
from beatssl.data.beats import Beats, pretraining_rows
from beatssl.data.features import in_unit
from beatssl.data.store import Store
from beatssl.fingerprint import ROOT, code_of
from beatssl.methods import METHODS
from beatssl.methods.base import Batch, BeatWindows, RunSettings, Setup, UntrainedWithStatistics
from beatssl.methods.encoder import (
    Architecture, ArchitectureError, build_encoder, load_encoder, pick_device, save_encoder,
    weights_hash, with_data_statistics,
)  # fmt: skip
from beatssl.methods.targets import FeatureScale
from beatssl.progress import progress
from beatssl.settings import Rotation, config_hash, to_dict


class DivergedError(RuntimeError):
    """The loss is no longer a number; the last good checkpoint is kept.

    Attributes: curves: one row for each good epoch.
    """

    def __init__(self, message: str, curves: list[dict] | None = None):
        super().__init__(message)
        self.curves = pd.DataFrame(curves)


@dataclass(frozen=True)
class Run:
    """A finished pretraining run.

    Attributes:
        config: its settings.
        encoder: trained (or untrained), in evaluation mode; None where the run failed. See
            `methods.base.Method.kept`.
        curves: one row an epoch: losses, diagnostics, learning rate, seconds.
        key: changes with any setting, the architecture, the data or the code.
        failure: why there is no encoder; empty for a good run.
    """

    config: RunSettings
    encoder: torch.nn.Module | None
    curves: pd.DataFrame
    key: str = ""
    failure: str = ""


class BatchSource:
    """Cuts seeded, shuffled batches out of a store.

    The store's signals lie on the device as they are (16-bit, 24 kB a record of 10 s at 100 Hz) and
    are cut and scaled there; on the processor they stay in the file. Beats whose window leaves the
    record are dropped; where a record has more than `beats_per_record`, that many are drawn anew
    each time.

    Args: rotation: on whose training rows the clustered beat classes were fitted.
    """

    def __init__(
        self, store: Store, beats: Beats, rows: np.ndarray, config: RunSettings,
        rotation: Rotation, device: torch.device | str = "cpu",
    ):  # fmt: skip
        self.rows, self.batch_size, self.device = rows, config.batch_size, device
        self.signals = torch.from_numpy(store.signals).to(device)
        self.sd = torch.from_numpy(store.sd(rows))
        self.windows = windows = BeatWindows.of(config)
        rate, time = store.sampling_rate, store.signals.shape[2]
        unit = windows.amplitude_unit
        self.record_features = torch.from_numpy(in_unit(beats.record_features[rows], unit))
        self.features = torch.from_numpy(in_unit(beats.features[rows], unit))
        self.r_peak = torch.from_numpy(beats.r_peak[rows])
        classes = beats.classes(windows.beat_classifier, rotation)[rows]
        self.classes = torch.from_numpy(classes).long()
        fits = self.r_peak + windows.beat_after * rate <= time - 1
        self.valid = (self.r_peak >= windows.beat_before * rate) & fits & (self.classes >= 0)
        self.record_scale = FeatureScale.fit(self.record_features)
        self.beat_scale = FeatureScale.fit(self.features[self.valid])

    @property
    def batches_per_epoch(self) -> int:
        """The last, incomplete batch is left out, unless it is the only one."""
        return max(1, len(self.rows) // self.batch_size)

    def epoch(self, generator: Generator) -> Iterator[Batch]:
        """Yield the batches of one epoch, on the device."""
        order = torch.randperm(len(self.rows), generator=generator)
        for items in order.split(self.batch_size)[: self.batches_per_epoch]:
            yield self.batch(items, generator)

    def batch(self, items: Tensor, generator: Generator) -> Batch:
        """The batch of these items (indices into `rows`). All but the signals is drawn and cut on
        the processor, so that it is the same on every device."""
        valid = self.valid[items]
        chance = torch.rand(valid.shape, generator=generator).where(valid, -1.0)
        count = min(self.windows.beats_per_record, valid.shape[1])
        keep = chance.topk(count, dim=1).indices.sort(dim=1).values  # (N, B), in the order of time
        record, place = valid.gather(1, keep).nonzero(as_tuple=True)  # (K,) each
        of_beats = items[record], keep[record, place]
        small = {
            "items": items,
            "record_features": self.record_features[items],
            "r_peak": self.r_peak[items].gather(1, keep),
            "beats": record * count + place,
            "beat_class": self.classes[of_beats],
            "beat_features": self.features[of_beats],
        }
        rows, sd = (x.to(self.device) for x in (torch.from_numpy(self.rows)[items], self.sd[items]))
        signals = self.signals[rows].float() / sd[:, None, None]
        return Batch(signals=signals, **{k: v.to(self.device) for k, v in small.items()})


def run_key(
    config: RunSettings, encoder: Architecture, store: Store, beats: Beats, rotation: Rotation,
    root: Path = ROOT,
) -> dict[str, str]:  # fmt: skip
    """Identity of a run.

    Args: root: folder of the package.

    Returns:
        settings (those of its method, the architecture, and threads and precision of a training),
        data (records, beats and which of them train), code (what decides the weights); `key` of
        all three.
    """
    entry = METHODS[config.method]
    code: list[Callable] = [build_encoder, type(encoder), *config.code()]
    if isinstance(config, UntrainedWithStatistics):
        code += [with_data_statistics, pretraining_rows, Store]
    if entry.build:
        code += [pretrain, entry.build]
    how = [] if config.untrained else [compute.name()]
    parts = {
        "settings": config_hash(config.own_settings(), encoder, *how),
        "data": config_hash(store.content, beats.content, *rotation.in_key),
        "code": code_of(*code, root=root),
    }
    return {**parts, "key": config_hash(parts)}


class Scale(Protocol):
    """What training needs of a `Profile`."""

    work: Path

    def encoder_of(self, run: RunSettings) -> Architecture: ...
    def rotation_of(self, run: RunSettings) -> Rotation: ...


def pretrain(
    config: RunSettings,
    profile: Scale,
    store: Store,
    beats: Beats,
    *,
    device: str = "auto",
    monitor: Callable[[torch.nn.Module], dict[str, float]] | None = None,
    stop_after: int | None = None,
) -> Run | None:
    """Train one run, or read it if it is done, or go on where it was.

    Files in `work/<profile>/runs/<run_id>-<key>/`: `checkpoint.pt` after every epoch,
    `encoder.safetensors`, `curves.csv` and `run.json` at the end; `failed.json` where it diverged
    (the same settings would diverge again: it is not tried twice). A resumed run gives the same
    weights as an uninterrupted one on the same machine; a run with other settings, data or code
    has another folder, so that nothing is overwritten.

    Args:
        monitor: called with the encoder, in evaluation mode, after the first, every fifth and the
            last epoch; the numbers it returns go into that epoch's row of the curves.
        device: auto | cpu | cuda.
        stop_after: stop (and return None) when so many epochs are done; for an interruption on
            purpose.

    Raises:
        DivergedError: the loss is NaN or infinite, now or when the run was tried before; the
            checkpoint of the epoch before is kept.
        ArchitectureError: a checkpoint of another architecture lies in the folder.
        ValueError: too few records, or a method without an encoder.
        FileNotFoundError, CheckpointError: method `ecg_fm`, see `ecg_fm_weights.released`.
    """
    if not config.has_encoder:
        raise ValueError(f"{config.run_id} has no encoder: there is nothing to pretrain")
    entry, architecture = METHODS[config.method], profile.encoder_of(config)
    rotation = profile.rotation_of(config)
    identity = run_key(config, architecture, store, beats, rotation)
    key = identity["key"]
    if entry.load:  # released weights: nothing to train, no copy kept
        return Run(config, entry.load(store.sampling_rate), pd.DataFrame(), key)
    folder = profile.work / "runs" / f"{config.run_id}-{key}"
    checkpoint = folder / "checkpoint.pt"
    if (done := _read_done(folder, config, architecture, key, store.sampling_rate)) is not None:
        if checkpoint.is_file():  # killed right after its last file
            checkpoint.unlink(missing_ok=True)
        return done
    rows = pretraining_rows(store, beats, rotation)
    if not entry.build:
        encoder = build_encoder(architecture, config.seed, store.sampling_rate).eval()
        if isinstance(config, UntrainedWithStatistics):
            batches = np.array_split(rows, max(1, len(rows) // config.batch_size))
            batches = progress(batches, "batches of statistics", delay=5)
            signals = (torch.from_numpy(store.load(batch)) for batch in batches)
            encoder = with_data_statistics(encoder, signals)
        return _finish(folder, config, encoder, pd.DataFrame(), identity)
    training = Training(config, profile, store, beats, pick_device(device))
    model, curves = training.model, []
    if checkpoint.is_file():
        curves = training.restore(checkpoint, key)
    model.train()
    with progress(range(len(curves), config.epochs), f"{config.run_id}, epochs") as bar:
        for epoch in bar:
            if stop_after is not None and epoch >= stop_after:
                return None
            try:
                means = training.epoch(f"{config.run_id}, epoch {epoch + 1}")
            except DivergedError as error:
                note = {"key": key, "message": str(error), "curves": curves}
                write_text(folder / "failed.json", json.dumps(note, indent=1))
                raise DivergedError(str(error), curves) from None
            if monitor is not None and (epoch + 1 in (1, config.epochs) or (epoch + 1) % 5 == 0):
                means |= monitor(model.kept.eval())
                model.train()
            curves.append({"epoch": epoch + 1, **means})
            bar.set_postfix(loss=f"{curves[-1]['total']:.3f}")
            training.save(checkpoint, key, curves)
    first = first_step(config, profile, store, beats)
    note = {**identity, "records": len(rows), "first_step": first}
    run = _finish(folder, config, model.kept.cpu().eval(), pd.DataFrame(curves), note)
    checkpoint.unlink(missing_ok=True)  # where two processes trained it
    return run


def first_step(config: RunSettings, profile: Scale, store: Store, beats: Beats) -> str:
    """Digits of all weights after the first optimiser step on the processor, made anew: the same
    digits say that the code of today trains as that of then (`beatssl.restamp`)."""
    training = Training(config, profile, store, beats, torch.device("cpu"))
    training.model.train()
    training.step(next(iter(training.source.epoch(training.generator))))
    return weights_hash(training.model)


class Training:
    """A method under way: all that a checkpoint holds, and one step and one epoch of it.

    Raises: ValueError: too few records."""

    def __init__(
        self, config: RunSettings, profile: Scale, store: Store, beats: Beats, device: torch.device
    ):
        rotation = profile.rotation_of(config)
        rows = pretraining_rows(store, beats, rotation)
        if len(rows) < 2:
            raise ValueError(f"{len(rows)} records with more than 3 R peaks: nothing to contrast")
        self.generator = Generator().manual_seed(config.seed)
        self.source = source = BatchSource(store, beats, rows, config, rotation, device)
        steps = config.epochs * source.batches_per_epoch
        encoder = build_encoder(profile.encoder_of(config), config.seed, store.sampling_rate)
        scales = source.record_features, source.record_scale, source.beat_scale
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            setup = Setup(config, encoder, store.sampling_rate, *scales, steps)
            self.model = METHODS[config.method].build(setup).to(device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warmup_cosine(step, steps, config.warmup_fraction)
        )

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One optimiser step; losses and diagnostics, which stay on the device."""
        losses = self.model.training_step(batch, self.generator)
        self.optimizer.zero_grad()
        losses["total"].backward()
        self.optimizer.step()
        self.schedule.step()
        self.model.after_step()
        return losses

    def epoch(self, where: str) -> dict:
        """Train for one epoch; means of the losses and diagnostics. A GPU is waited for once.

        Raises:
            DivergedError: the loss was NaN or infinite; names `where`.
        """
        start, sums, count = perf_counter(), Counter(), self.source.batches_per_epoch
        for batch in self.source.epoch(self.generator):
            losses = self.step(batch)
            sums.update({name: value.detach().double() for name, value in losses.items()})
        values = (torch.stack([*sums.values()]) / count).tolist()
        means = dict(zip(sums, values))
        if not math.isfinite(means["total"]):
            told = f"{where}: the loss is {means['total']}"
            told += "; the checkpoint of the epoch before is kept."
            raise DivergedError(f"{told} Lower learning_rate or raise temperature.")
        rate = self.optimizer.param_groups[0]["lr"]
        return {**means, "learning_rate": rate, "steps": count, "seconds": perf_counter() - start}

    def save(self, path: Path, key: str, curves: list[dict]) -> None:
        """Write a checkpoint, atomically."""
        parts = {name: getattr(self, name).state_dict() for name in STATEFUL}
        state = {"key": key, **parts, "generator": self.generator.get_state(), "curves": curves}
        with replacing(path) as part:
            torch.save(state, part)

    def restore(self, path: Path, key: str) -> list[dict]:
        """Put the state of a checkpoint back; returns its curves.

        Raises:
            ArchitectureError: it is of another run.
        """
        state = torch.load(path, weights_only=True, map_location="cpu")
        try:
            if state["key"] != key:
                raise RuntimeError(f"its settings have the key {state['key']}")
            for name in STATEFUL:
                getattr(self, name).load_state_dict(state[name])
        except RuntimeError as error:  # of torch: names each tensor of another shape
            told = f"the checkpoint in {path.parent.name} is of another run; remove the folder"
            raise ArchitectureError(f"{told} to start it again: {error}") from error
        self.generator.set_state(state["generator"])
        return state["curves"]


STATEFUL = ("model", "optimizer", "schedule")  # parts of a training that a checkpoint holds


def warmup_cosine(step: int, steps: int, warmup_fraction: float) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine to 0."""
    warmup = max(1, round(steps * warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _finish(
    folder: Path, config: RunSettings, encoder: torch.nn.Module, curves: pd.DataFrame, note: dict
) -> Run:
    """Save a run; `run.json` comes last, so that its presence says that the run is complete."""
    save_encoder(encoder, folder / "encoder.safetensors")
    write_text(folder / "curves.csv", curves.to_csv(index=False))
    note = {**note, "config": to_dict(config), "torch": torch.__version__}
    write_text(folder / "run.json", json.dumps(note, indent=1))
    return Run(config, encoder, curves, note["key"])


def _read_done(
    folder: Path, config: RunSettings, architecture: Architecture, key: str, sampling_rate: int
) -> Run | None:
    failed, note = folder / "failed.json", folder / "run.json"
    if failed.is_file():
        told = json.loads(failed.read_text())
        raise DivergedError(told["message"], told["curves"])
    if not note.is_file() or json.loads(note.read_text())["key"] != key:
        return None
    encoder = load_encoder(folder / "encoder.safetensors", architecture, sampling_rate)
    has_curves = (folder / "curves.csv").stat().st_size > 1
    curves = pd.read_csv(folder / "curves.csv") if has_curves else pd.DataFrame()
    return Run(config, encoder, curves, key)
