"""TS2Vec: hierarchical contrast over time and over records (Yue et al., AAAI 2022).

Source: arXiv 2106.10466. Two overlapping crops of a record go through a dilated CNN that gives one
vector per time step, with random steps masked. On their overlap the same step of the other crop is
the positive: against the other steps of the record (temporal) and against the same step of the
other records (instance), at every level of a max-pooling pyramid over time.

    instance:  -log exp(r_it . r'_it) / sum over the other 2B - 1 vectors at step t
    temporal:  -log exp(r_it . r'_it) / sum over the other 2T - 1 vectors of record i

Dot products are raw: no temperature, no normalisation.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from beatssl.methods.base import (
    Batch, Entry, Method, OwnNetwork, RunSettings, Setup, TrainSettings, dropout_from,
    step_losses,
)  # fmt: skip
from beatssl.methods.encoder import autocast

KERNEL = 3
CHUNK_ELEMENTS = 2**24  # of one matrix of dot products; 64 MiB in float32


@dataclass(frozen=True)
class TS2VecConfig:
    """Sizes of TS2Vec's network; the defaults are its paper's.

    Attributes:
        hidden: width of the blocks.
        depth: blocks of that width; one more, of width `channels`, follows.
        channels: length of a time step's vector.
        dropout: probability, after the last block.
    """

    hidden: int = 64
    depth: int = 10
    channels: int = 320
    dropout: float = 0.1

    def build(self, sampling_rate: int) -> TS2VecEncoder:
        """It works at any sampling rate."""
        return TS2VecEncoder(self)


@dataclass(frozen=True)
class UntrainedTS2Vec(OwnNetwork, RunSettings):
    """Its network with random weights; there is no batch normalisation in it."""

    untrained = True
    network: TS2VecConfig = TS2VecConfig()


@dataclass(frozen=True)
class TS2VecSettings(OwnNetwork, TrainSettings):
    """The defaults are its paper's."""

    method: str = "ts2vec"
    network: TS2VecConfig = TS2VecConfig()
    alpha: float = 0.5  # weight of the instance part
    mask_probability: float = 0.5  # that a time step is masked in a training view
    temporal_unit: int = 0  # first pooling level with a temporal part; level k has 2^k samples

    limits = ((0, 1, "alpha", "mask_probability"),)


class DilatedBlock(nn.Module):
    """GELU, convolution, GELU, convolution, plus a shortcut; the length stays.

    `last` puts a 1x1 convolution on the shortcut: the last block may change the width."""

    def __init__(self, inputs: int, outputs: int, dilation: int, last: bool):
        super().__init__()
        same = {"padding": "same", "dilation": dilation}
        self.main = nn.Sequential(
            nn.GELU(), nn.Conv1d(inputs, outputs, KERNEL, **same),
            nn.GELU(), nn.Conv1d(outputs, outputs, KERNEL, **same),
        )  # fmt: skip
        self.shortcut = nn.Conv1d(inputs, outputs, 1) if last else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.shortcut(x)


class TS2VecEncoder(nn.Module):
    """(batch, 12, time) -> (batch, channels, time): linear layer per step, mask, dilated blocks.

    Block i has dilation 2^i. Output step j is centred on input sample j (`stride` is 1), so
    `roi_align` works on it.
    """

    stride = 1

    def __init__(self, config: TS2VecConfig):
        super().__init__()
        self.config = config
        self.channels = config.channels
        self.input = nn.Linear(12, config.hidden)
        widths = [config.hidden] * (config.depth + 1) + [config.channels]
        sizes = enumerate(pairwise(widths))
        self.blocks = nn.Sequential(
            *(DilatedBlock(*io, 2**i, i == config.depth) for i, io in sizes)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, signals: Tensor, mask: Tensor | None = None) -> Tensor:
        """One vector per time step.

        Args:
            signals: (batch, 12, time), any unit; NaN counts as 0.
            mask: (batch, time) bool, True where a time step is kept; None keeps all.

        Returns:
            (batch, channels, time). Dropout, in training mode, draws from torch's global RNG.
        """
        x = signals.masked_fill(signals.isnan(), 0.0)
        x = self.input(x.transpose(1, 2)).transpose(1, 2)  # (batch, hidden, time)
        if mask is not None:
            x = x.masked_fill(~mask[:, None], 0.0)
        return self.dropout(self.blocks(x))


def instance_loss(z_1: Tensor, z_2: Tensor) -> Tensor:
    """Contrast with the same time step of the other series; 0 for a batch of one.

    Args: z_1, z_2: (batch, time, channels), one per view. Returns: scalar, in nats."""
    return _contrast(z_1.transpose(0, 1), z_2.transpose(0, 1))


def temporal_loss(z_1: Tensor, z_2: Tensor) -> Tensor:
    """Contrast with the other time steps of the same series; 0 for a single step.

    Args: z_1, z_2: (batch, time, channels), one per view. Returns: scalar, in nats."""
    return _contrast(z_1, z_2)


def _contrast(z_1: Tensor, z_2: Tensor) -> Tensor:
    """Mean of `_summed_cross_entropy` over all vectors, a few groups at a time.

    A group needs a matrix of (2n)^2 dot products. Groups are taken together while that stays
    within `CHUNK_ELEMENTS` (at least one group), and the matrices are computed again in the
    backward pass instead of being kept. Three of them live at once. With float32, 1000 steps and
    any number of records that is 3 * 64 MiB = 192 MiB, and 16 MB for the mask of the diagonal;
    above 2048 steps it grows with the square of the steps: 5000 steps need 3 * 400 MB + 400 MB.

    Args: z_1, z_2: (groups, n, channels).
    """
    groups, n, _ = z_1.shape
    size = max(1, CHUNK_ELEMENTS // (2 * n) ** 2)
    parts = [
        checkpoint(_summed_cross_entropy, a, b, use_reentrant=False, preserve_rng_state=False)
        for a, b in zip(z_1.split(size), z_2.split(size), strict=True)
    ]
    return torch.stack(parts).sum() / (groups * 2 * n)


def _summed_cross_entropy(z_1: Tensor, z_2: Tensor) -> Tensor:
    """-sum log softmax of the positive among the other 2n - 1 vectors of the group.

    Args: z_1, z_2: (groups, n, channels)."""
    groups, n, _ = z_1.shape
    z = torch.cat([z_1, z_2], dim=1)  # (groups, 2n, channels)
    not_itself = z.new_zeros(2 * n, 2 * n).fill_diagonal_(-torch.inf)  # (2n, 2n)
    logits = torch.baddbmm(not_itself, z, z.transpose(1, 2))  # (groups, 2n, 2n)
    positive = torch.arange(2 * n, device=z.device).roll(n)  # (2n,): i + n and i - n
    return F.cross_entropy(logits.flatten(0, 1), positive.repeat(groups), reduction="sum")


def hierarchical_parts(z_1: Tensor, z_2: Tensor, temporal_unit: int = 0) -> tuple[Tensor, Tensor]:
    """Instance and temporal loss, each summed over the levels and divided by their number.

    Level 0 is z itself; max-pooling with kernel 2 (an odd last step is dropped) gives the next,
    down to one step. That last level has an instance part only.

    Args:
        z_1, z_2: (batch, time, channels), the same time steps of two views.
        temporal_unit: first level with a temporal part.

    Returns:
        Two scalars, in nats, both unweighted.
    """
    instance, temporal, levels = z_1.new_zeros(()), z_1.new_zeros(()), z_1.shape[1].bit_length()
    for level in range(levels):
        instance = instance + instance_loss(z_1, z_2)
        if temporal_unit <= level < levels - 1:
            temporal = temporal + temporal_loss(z_1, z_2)
        if level < levels - 1:
            z_1, z_2 = (F.max_pool1d(z.mT, 2).mT for z in (z_1, z_2))  # (batch, half, channels)
    return instance / levels, temporal / levels


def overlapping_crops(
    signals: Tensor, generator: Generator, temporal_unit: int = 0
) -> tuple[Tensor, Tensor, int]:
    """Two crops of each series that overlap in their last and first `overlap` samples.

    Lengths are drawn once a batch: with T samples, overlap ~ U{2^(temporal_unit + 1) .. T},
    left ~ U{0 .. T - overlap}, right = left + overlap, outer left ~ U{0 .. left}, outer right ~
    U{right .. T}. The crops are [outer left, right) and [left, outer right), moved for each series
    by an offset ~ U{-outer left .. T - outer right}.

    Args:
        signals: (batch, leads, time).
        generator: the only source of randomness, on the CPU.
        temporal_unit: the overlap can be pooled this many times and keep two steps.

    Returns:
        crop_1 (batch, leads, time_1), crop_2 (batch, leads, time_2) and the overlap in samples:
        `crop_1[..., -overlap:]` and `crop_2[..., :overlap]` are the same samples.

    Raises:
        ValueError: series shorter than the smallest overlap.
    """
    time, shortest = signals.shape[2], 2 ** (temporal_unit + 1)
    if time < shortest:
        raise ValueError(f"series of {time} samples are shorter than the least overlap, {shortest}")

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    overlap = draw(shortest, time)
    left = draw(0, time - overlap)
    right = left + overlap
    outer_left, outer_right = draw(0, left), draw(right, time)
    shape = len(signals), 1, 1
    offset = torch.randint(-outer_left, time - outer_right + 1, shape, generator=generator)

    def crop(start: int, end: int) -> Tensor:
        where = (offset + torch.arange(start, end)).to(signals.device)  # (batch, 1, end - start)
        return signals.gather(2, where.expand(-1, signals.shape[1], -1))

    return crop(outer_left, right), crop(left, outer_right), overlap


def random_masks(n: int, time: int, probability: float, generator: Generator) -> Tensor:
    """Time steps to keep: each is False with `probability`. (n, time) bool on the CPU."""
    return torch.rand(n, time, generator=generator) >= probability


class TS2Vec(Method):
    """The encoder and the running mean of its weights, which is what is kept after pretraining.

    Attributes:
        averaged: encoder whose weights are the mean of the initial ones and of those at each call
            of `after_step`, as in the authors' code. It needs no gradient, so optimisers pass over
            it.
        averages: number of weights in the mean.
    """

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self.averaged = copy.deepcopy(setup.encoder).requires_grad_(False)
        self.register_buffer("averages", torch.ones((), dtype=torch.long))

    @property
    def kept(self) -> nn.Module:
        """The averaged encoder."""
        return self.averaged

    @torch.no_grad()
    def after_step(self) -> None:
        """Take the present weights into the running mean."""
        self.averages += 1
        share = 1 / self.averages
        for mean, weight in zip(self.averaged.parameters(), self.encoder.parameters(), strict=True):
            mean.lerp_(weight, share.to(mean))

    def training_step(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """Losses of one batch; of `batch` only the signals are used.

        Args: generator: source of the crops, masks and dropout, on the CPU.

        Returns:
            `total` (to differentiate) `= alpha instance + (1 - alpha) temporal`, and detached,
            unweighted: instance, temporal. All in nats.

        Raises:
            ValueError: not 12 leads, or series too short to crop.
        """
        c, signals = self.config, batch.signals
        crop_1, crop_2, overlap = overlapping_crops(signals, generator, c.temporal_unit)
        mask_1, mask_2 = (
            random_masks(len(crop), crop.shape[2], c.mask_probability, generator).to(crop.device)
            for crop in (crop_1, crop_2)
        )
        with dropout_from(generator, signals.device), autocast(signals.device):
            e_1, e_2 = self.encoder(crop_1, mask_1), self.encoder(crop_2, mask_2)
        z_1 = e_1[..., -overlap:].transpose(1, 2).float()  # (batch, overlap, channels)
        z_2 = e_2[..., :overlap].transpose(1, 2).float()  # (batch, overlap, channels)
        instance, temporal = hierarchical_parts(z_1, z_2, c.temporal_unit)
        total = c.alpha * instance + (1 - c.alpha) * temporal
        return step_losses(total, instance=instance, temporal=temporal)


ENTRY = Entry("TS2Vec", TS2VecSettings, TS2Vec, ("total", "instance", "temporal"))
