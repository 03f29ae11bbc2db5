"""What all pretraining methods share: the batch they see and their two verbs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from beatssl.methods.settings import PretrainConfig
from beatssl.methods.targets import FeatureScale


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

    config: PretrainConfig
    encoder: nn.Module
    sampling_rate: int
    record_features: torch.Tensor
    record_scale: FeatureScale
    beat_scale: FeatureScale
    steps: int


@dataclass(frozen=True)
class Batch:
    """What one step sees. N records, up to B beats each (`beat_valid` marks the real ones).

    Attributes:
        items: (N,) numbers of the records among all that are pretrained on.
        signals: (N, 12, time) float32, scaled per record.
        record_features: (N, 54), raw, may hold NaN.
        r_peak: (N, B) samples.
        beat_valid: (N, B) bool.
        beat_class: (N, B) integer.
        beat_features: (N, B, 28), raw, may hold NaN.
    """

    items: torch.Tensor
    signals: torch.Tensor
    record_features: torch.Tensor
    r_peak: torch.Tensor
    beat_valid: torch.Tensor
    beat_class: torch.Tensor
    beat_features: torch.Tensor


class Method(nn.Module):
    """A pretraining method around an `encoder`: `training_step` and `encode`."""

    encoder: nn.Module

    @property
    def kept(self) -> nn.Module:
        """The encoder that is evaluated and saved: (batch, 12, time) -> (batch, channels, steps),
        with attributes `config`, `channels` and `stride` (input samples a step)."""
        return self.encoder

    def encode(self, signals: torch.Tensor) -> torch.Tensor:
        """(batch, 12, time) -> (batch, channels, steps)."""
        return self.encoder(signals)

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """`total`, to differentiate, and what is worth watching, detached; all draws hang on the
        generator (CPU)."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after every optimiser step."""


@contextlib.contextmanager
def dropout_from(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Dropout inside the block is decided by `generator` (CPU), and the global one left alone."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield
