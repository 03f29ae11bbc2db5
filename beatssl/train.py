"""The pretraining loop: AdamW, warm-up and cosine decay, mixed precision, exact resume."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from beatssl import compute, methods
from beatssl.cache import replacing, write_text
from beatssl.data.beats import Beats, pretraining_rows
from beatssl.data.features import in_unit
from beatssl.data.store import Store
from beatssl.fingerprint import ROOT, code_hash, name_of
from beatssl.methods.base import Batch, Method, Setup
from beatssl.methods.encoder import (
    ArchitectureError,
    build_encoder,
    load_encoder,
    pick_device,
    save_encoder,
    weights_hash,
    with_data_statistics,
)
from beatssl.methods.settings import PretrainConfig
from beatssl.methods.targets import FeatureScale
from beatssl.progress import progress
from beatssl.settings import config_hash, to_dict

if TYPE_CHECKING:
    from beatssl.profile import Architecture, Profile


class DivergedError(RuntimeError):
    """The loss is no longer a number; the last good checkpoint is kept.

    Attributes: curves: one row for each good epoch.
    """

    def __init__(self, message: str, curves: pd.DataFrame | None = None):
        super().__init__(message)
        self.curves = pd.DataFrame() if curves is None else curves


@dataclass(frozen=True)
class Run:
    """A finished pretraining run.

    Attributes:
        config: its settings.
        encoder: trained (or untrained, `config.UNTRAINED`), in evaluation mode; None where the
            run failed. See `methods.base.Method.kept`.
        curves: one row an epoch: losses, diagnostics, learning rate, seconds.
        key: changes with any setting, the architecture or the data.
        failure: why there is no encoder; empty for a good run.
    """

    config: PretrainConfig
    encoder: torch.nn.Module | None
    curves: pd.DataFrame
    key: str
    failure: str = ""


class BatchSource:
    """Cuts seeded, shuffled batches out of a store.

    Beats whose window leaves the record are dropped; where a record has more than
    `beats_per_record`, that many are drawn anew each time.
    """

    def __init__(self, store: Store, beats: Beats, rows: np.ndarray, config: PretrainConfig):
        self.store, self.rows, self.config = store, rows, config
        rate, time = store.sampling_rate, store.signals.shape[2]
        self.record_features, self.features = (
            torch.from_numpy(in_unit(features[rows], config.amplitude_unit))
            for features in (beats.record_features, beats.features)
        )
        self.r_peak = torch.from_numpy(beats.r_peak[rows])
        self.classes = torch.from_numpy(beats.classes(config.beat_classifier)[rows]).long()
        self.valid = (
            (self.r_peak >= config.beat_before * rate)
            & (self.r_peak + config.beat_after * rate <= time - 1)
            & (self.classes >= 0)
        )
        self.record_scale = FeatureScale.fit(self.record_features)
        self.beat_scale = FeatureScale.fit(self.features[self.valid])

    @property
    def batches_per_epoch(self) -> int:
        """The last, incomplete batch is left out, unless it is the only one."""
        return max(1, len(self.rows) // self.config.batch_size)

    def epoch(self, generator: torch.Generator):
        """Yield the batches of one epoch, on the CPU."""
        order = torch.randperm(len(self.rows), generator=generator)
        size = self.config.batch_size
        for i in range(self.batches_per_epoch):
            yield self.batch(order[i * size : (i + 1) * size], generator)

    def batch(self, items: torch.Tensor, generator: torch.Generator) -> Batch:
        """The batch of these items (indices into `rows`)."""
        chance = torch.rand(len(items), self.valid.shape[1], generator=generator)
        chance = torch.where(self.valid[items], chance, -1.0)
        keep = chance.topk(min(self.config.beats_per_record, chance.shape[1]), dim=1).indices
        keep = keep.sort(dim=1).values  # (N, B), in the order of time
        wide = keep[..., None].expand(-1, -1, self.features.shape[2])
        return Batch(
            items=items,
            signals=torch.from_numpy(self.store.load(self.rows[items.numpy()])),
            record_features=self.record_features[items],
            r_peak=self.r_peak[items].gather(1, keep),
            beat_valid=self.valid[items].gather(1, keep),
            beat_class=self.classes[items].gather(1, keep),
            beat_features=self.features[items].gather(1, wide),
        )


def run_key(
    config: PretrainConfig, encoder: Architecture, store: Store, beats: Beats, root: Path = ROOT
) -> dict[str, str]:
    """Identity of a run.

    Args: root: folder of the package.

    Returns:
        settings (those that concern its method, the architecture, and threads and precision of a
        training), data (records and beats), code (what decides the weights); `key` of all three.
    """
    made_by = (build_encoder,) if config.untrained else (pretrain,)
    if config.method == "random_data":
        made_by += (with_data_statistics, pretraining_rows, Store)
    code = map(name_of, made_by)
    parts = {
        "settings": config_hash(
            config.own_settings(), encoder, *([] if config.untrained else [compute.name()])
        ),
        "data": config_hash(store.content, beats.content),
        "code": code_hash(*code, *methods.code_of(config, encoder), root=root),
    }
    return {**parts, "key": config_hash(parts)}


def pretrain(
    config: PretrainConfig,
    profile: Profile,
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
        FileNotFoundError, CheckpointError: method `ecg_fm`, see `methods.released`.
    """
    if not config.has_encoder:
        raise ValueError(f"{config.run_id} has no encoder: there is nothing to pretrain")
    architecture = profile.encoder_of(config)
    parts = run_key(config, architecture, store, beats)
    key = parts["key"]
    if config.method == "ecg_fm":  # released weights: nothing to train, no copy kept
        return Run(config, methods.released(store.sampling_rate), pd.DataFrame(), key)
    folder = profile.work / "runs" / f"{config.run_id}-{key}"
    make = partial(methods.make_encoder, sampling_rate=store.sampling_rate)
    done = _read_done(folder, config, architecture, key, make)
    if done is not None:
        return done
    encoder = build_encoder(architecture, config.seed, make)
    rows = pretraining_rows(store, beats)
    if config.method == "random_data":
        some = np.array_split(rows, max(1, len(rows) // config.batch_size))
        some = progress(some, "batches of statistics", delay=5)
        encoder = with_data_statistics(encoder, (torch.from_numpy(store.load(r)) for r in some))
    if config.untrained:
        return _finish(folder, config, encoder.eval(), pd.DataFrame(), parts, 0, "")
    training = Training.begin(config, encoder, store, beats, rows, pick_device(device))
    model = training.model
    curves: list[dict] = []
    checkpoint = folder / "checkpoint.pt"
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
                raise DivergedError(str(error), pd.DataFrame(curves)) from None
            if monitor is not None and (epoch + 1 in (1, config.epochs) or (epoch + 1) % 5 == 0):
                means |= monitor(model.kept.eval())
                model.train()
            curves.append({"epoch": epoch + 1, **means})
            bar.set_postfix(loss=f"{curves[-1]['total']:.3f}")
            training.save(checkpoint, key, curves)
    table = pd.DataFrame(curves)
    first = first_step(config, profile, store, beats)
    run = _finish(folder, config, model.kept.cpu().eval(), table, parts, len(rows), first)
    checkpoint.unlink()
    return run


def first_step(config: PretrainConfig, profile: Profile, store: Store, beats: Beats) -> str:
    """Digits of all weights after the first optimiser step on the processor, made anew: the same
    digits say that the code of today trains as that of then (`beatssl.restamp`)."""
    make = partial(methods.make_encoder, sampling_rate=store.sampling_rate)
    encoder = build_encoder(profile.encoder_of(config), config.seed, make)
    rows = pretraining_rows(store, beats)
    training = Training.begin(config, encoder, store, beats, rows, torch.device("cpu"))
    training.model.train()
    training.step(next(iter(training.source.epoch(training.generator))), config.run_id)
    return weights_hash(training.model)


@dataclass
class Training:
    """A method under way: all that a checkpoint holds, and one step and one epoch of it."""

    model: Method
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    source: BatchSource
    generator: torch.Generator
    device: torch.device

    @classmethod
    def begin(
        cls,
        config: PretrainConfig,
        encoder: torch.nn.Module,
        store: Store,
        beats: Beats,
        rows: np.ndarray,
        device: torch.device,
    ) -> Training:
        """Raises: ValueError: too few records."""
        if len(rows) < 2:
            raise ValueError(f"{len(rows)} records with more than 3 R peaks: nothing to contrast")
        source = BatchSource(store, beats, rows, config)
        steps = config.epochs * source.batches_per_epoch
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = methods.build(
                Setup(
                    config,
                    encoder,
                    store.sampling_rate,
                    source.record_features,
                    source.record_scale,
                    source.beat_scale,
                    steps,
                )
            ).to(device)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, steps, config.warmup_fraction)
        )
        generator = torch.Generator().manual_seed(config.seed)
        return cls(model, optimizer, schedule, source, generator, device)

    def step(self, batch: Batch, where: str) -> dict[str, torch.Tensor]:
        """One optimiser step; losses and diagnostics, detached.

        Raises:
            DivergedError: the loss is NaN or infinite; names `where`.
        """
        batch = replace(batch, **{k: v.to(self.device) for k, v in vars(batch).items()})
        parts = self.model.training_step(batch, self.generator)
        if not torch.isfinite(parts["total"]):
            raise DivergedError(
                f"{where}: the loss is {parts['total'].item()}; the checkpoint of the epoch before "
                "is kept. Lower learning_rate or raise temperature."
            )
        self.optimizer.zero_grad()
        parts["total"].backward()
        self.optimizer.step()
        self.schedule.step()
        self.model.after_step()
        return parts

    def epoch(self, where: str) -> dict:
        """Train for one epoch; means of the losses and diagnostics. Raises as `step`."""
        start, sums, count = perf_counter(), {}, 0
        for batch in self.source.epoch(self.generator):
            for name, value in self.step(batch, where).items():
                sums[name] = sums.get(name, 0.0) + value.item()
            count += 1
        means = {name: value / count for name, value in sums.items()}
        rate = self.optimizer.param_groups[0]["lr"]
        return {**means, "learning_rate": rate, "steps": count, "seconds": perf_counter() - start}

    def save(self, path: Path, key: str, curves: list[dict]) -> None:
        """Write a checkpoint, atomically."""
        state = {
            "key": key,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "curves": curves,
        }
        with replacing(path) as part:
            torch.save(state, part)

    def restore(self, path: Path, key: str) -> list[dict]:
        """Put the state of a checkpoint back; returns its curves.

        Raises:
            ArchitectureError: it is of another run.
        """
        state = torch.load(path, weights_only=True, map_location="cpu")
        shapes = {k: v.shape for k, v in self.model.state_dict().items()}
        if {k: v.shape for k, v in state["model"].items()} != shapes:
            raise ArchitectureError(
                f"the checkpoint of {path.parent.name} is of another architecture; remove the "
                "folder to start it again"
            )
        if state["key"] != key:
            raise ArchitectureError(
                f"the checkpoint in {path.parent.name} belongs to other settings (key "
                f"{state['key']}); remove the folder to start it again"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        return state["curves"]


def warmup_cosine(step: int, steps: int, warmup_fraction: float) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine to 0."""
    warmup = max(1, round(steps * warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _finish(
    folder: Path,
    config: PretrainConfig,
    encoder: torch.nn.Module,
    curves: pd.DataFrame,
    parts: dict[str, str],
    records: int,
    first: str,
) -> Run:
    """Save a run; `run.json` comes last, so that its presence says that the run is complete."""
    save_encoder(encoder, folder / "encoder.safetensors")
    curves.to_csv(folder / "curves.csv", index=False)
    note = {
        **parts,
        "config": to_dict(config),
        "records": records,
        "torch": torch.__version__,
        "steps": int(curves["steps"].sum()) if len(curves) else 0,
        "first_step": first,
    }
    write_text(folder / "run.json", json.dumps(note, indent=1))
    return Run(config, encoder, curves, parts["key"])


def _read_done(
    folder: Path, config: PretrainConfig, architecture: Architecture, key: str, make: Callable
) -> Run | None:
    failed = folder / "failed.json"
    if failed.is_file():
        told = json.loads(failed.read_text())
        raise DivergedError(told["message"], pd.DataFrame(told["curves"]))
    note = folder / "run.json"
    if not note.is_file() or json.loads(note.read_text())["key"] != key:
        return None
    encoder = load_encoder(folder / "encoder.safetensors", architecture, make)
    text = (folder / "curves.csv").read_text().strip()
    curves = pd.read_csv(folder / "curves.csv") if text else pd.DataFrame()
    return Run(config, encoder, curves, key)
