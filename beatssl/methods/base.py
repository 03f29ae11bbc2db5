"""What all pretraining methods share: their settings, the batch they see and their two verbs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from beatssl.methods.encoder import Architecture, EncoderConfig
from beatssl.methods.targets import FeatureScale
from beatssl.settings import ConfigError, in_range, to_dict


@dataclass(frozen=True)
class RunSettings:
    """What every run has. A method adds its own settings in a subclass; all of them can be set in
    runs.yml."""

    method: str
    variant: str = ""  # names what differs from the row's settings; empty for the row itself
    seed: int = 0

    row: ClassVar[tuple[str, ...]] = ()  # settings that name a row of the paper's Table 1
    has_encoder: ClassVar[bool] = True
    untrained: ClassVar[bool] = False  # random weights: there is an encoder, nothing is trained
    limits: ClassVar[tuple[tuple, ...]] = ()  # (low, high, settings that lie there): `in_range`

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_.]*", self.variant):
            raise ConfigError(f"variant={self.variant!r}: only a-z, 0-9, _ and . may be used")
        for low, high, *names in self.limits:
            in_range(self, low, high, *names)

    @property
    def name(self) -> str:
        """The run without its seed: method, the row of the table, the variant."""
        row = [f"{v:g}" if isinstance(v, float) else str(v) for v in self.named().values()]
        return "-".join([self.method, *row, *filter(None, [self.variant])])

    @property
    def run_id(self) -> str:
        """Name of the run with its seed."""
        return f"{self.name}-s{self.seed}"

    def named(self) -> dict[str, object]:
        """The settings of `row`."""
        return {name: getattr(self, name) for name in self.row}

    def own_settings(self) -> dict:
        """What decides the weights, by name; a variant's name does not."""
        return {name: value for name, value in to_dict(self).items() if name != "variant"}

    def architecture(self, resnet: EncoderConfig) -> Architecture:
        """The sizes of its encoder. Args: resnet: the profile's, for a method without its own."""
        return resnet

    def code(self) -> tuple[Callable, ...]:
        """Functions that the settings pick from a registry: a part of the run's key."""
        return ()


@dataclass(frozen=True)
class NoEncoder(RunSettings):
    """A reference that draws waves or is probed without an encoder."""

    has_encoder = False


@dataclass(frozen=True)
class ResNetSettings(RunSettings):
    """A run with the profile's ResNet, but for what is set here."""

    encoder_step_ms: float = 0.0  # from one encoder step to the next; 0: as the profile's encoder
    encoder_norm: str = ""  # batch | group | none; empty: as the profile's encoder

    def architecture(self, resnet: EncoderConfig) -> Architecture:
        if self.encoder_step_ms:
            resnet = resnet.with_step(self.encoder_step_ms)
        return replace(resnet, norm=self.encoder_norm or resnet.norm)


@dataclass(frozen=True)
class Untrained(ResNetSettings):
    """The ResNet as initialised: its batch-norm statistics are 0 and 1, so it normalises
    nothing."""

    untrained = True


@dataclass(frozen=True)
class UntrainedWithStatistics(Untrained):
    """The same weights with the batch-norm statistics of the records that are pretrained on: the
    network that training starts from."""

    batch_size: int = 128


class OwnNetwork:
    """The run brings a network of its own, its setting `network`."""

    network: Architecture

    def architecture(self, resnet: EncoderConfig) -> Architecture:
        return self.network


@dataclass(frozen=True)
class TrainSettings(RunSettings):
    """What concerns every method that is trained."""

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1.0e-3
    weight_decay: float = 1.0e-4
    warmup_fraction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 2:
            raise ConfigError("batch_size must be at least 2: a contrast needs another record")


@dataclass(frozen=True)
class BeatWindows:
    """Which beats a batch holds, and how. Settings of Beat-SSL; the same for all other methods."""

    beat_before: float = 0.25  # s before the R peak
    beat_after: float = 0.50  # s after the R peak
    beats_per_record: int = 8
    beat_classifier: str = "rules"  # rules | clusters
    amplitude_unit: str = "mV"  # mV | uV: of raw features; only the measure `cosine` depends on it

    @classmethod
    def of(cls, run: RunSettings) -> BeatWindows:
        """Those of a run; the defaults where its method has none."""
        names = [field.name for field in fields(cls) if hasattr(run, field.name)]
        return cls(**{name: getattr(run, name) for name in names})


@dataclass(frozen=True)
class Setup:
    """What a method is made from.

    Attributes:
        config: settings of the run.
        encoder: with random weights.
        sampling_rate: Hz of the signals.
        record_features: (records, 54) of all records that are pretrained on, raw.
        record_scale, beat_scale: fitted on them.
        steps: optimiser steps of the whole training.
    """

    config: RunSettings
    encoder: nn.Module
    sampling_rate: int = 100
    record_features: Tensor | None = None
    record_scale: FeatureScale | None = None
    beat_scale: FeatureScale | None = None
    steps: int = 1


@dataclass(frozen=True)
class Batch:
    """What one step sees: N records with K beats in all, at most B of one record.

    Attributes:
        items: (N,) numbers of the records among all that are pretrained on.
        signals: (N, 12, time) float32, scaled per record.
        record_features: (N, 54), raw, may hold NaN.
        r_peak: (N, B) samples; places without a beat hold any number.
        beats: (K,) places of the beats among all N * B, in ascending order.
        beat_class: (K,) integer.
        beat_features: (K, 28), raw, may hold NaN.
    """

    items: Tensor
    signals: Tensor
    record_features: Tensor
    r_peak: Tensor
    beats: Tensor
    beat_class: Tensor
    beat_features: Tensor


class Method(nn.Module):
    """A pretraining method around an encoder: `training_step` and `encode`.

    Args:
        setup: its random weights are drawn from torch's global RNG.
    """

    def __init__(self, setup: Setup):
        super().__init__()
        self.encoder, self.config = setup.encoder, setup.config
        self.sampling_rate = setup.sampling_rate

    @property
    def kept(self) -> nn.Module:
        """The encoder that is evaluated and saved: (batch, 12, time) -> (batch, channels, steps),
        with attributes `config`, `channels` and `stride` (input samples a step)."""
        return self.encoder

    def encode(self, signals: Tensor) -> Tensor:
        """(batch, 12, time) -> (batch, channels, steps), by the encoder that is kept."""
        return self.kept(signals)

    def training_step(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """`total`, to differentiate, and what is worth watching, detached; all draws hang on the
        generator (CPU)."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after every optimiser step."""


@dataclass(frozen=True)
class Entry:
    """A method in the registry.

    Attributes:
        label: its name in tables.
        settings: class of its runs' settings.
        build: what is trained; None where nothing is.
        losses: which numbers of `training_step` are its losses, for the curves.
        network_of: of random weights: the methods whose network it is.
        load: makes an encoder whose weights are not ours, from Hz of the signals.
    """

    label: str
    settings: type[RunSettings]
    build: type[Method] | None = None
    losses: tuple[str, ...] = ("total",)
    network_of: tuple[str, ...] = ()
    load: Callable[[int], nn.Module] | None = None


def step_losses(total: Tensor, **watched: Tensor) -> dict[str, Tensor]:
    """What `Method.training_step` returns."""
    return {"total": total, **{name: value.detach() for name, value in watched.items()}}


@contextlib.contextmanager
def dropout_from(generator: Generator, device: torch.device) -> Iterator[None]:
    """Dropout inside the block is decided by `generator` (CPU), and the global one left alone."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield
