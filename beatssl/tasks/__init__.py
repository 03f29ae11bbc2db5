"""The two downstream tasks, and the few lines of training that both share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from beatssl.methods import UNTRAINED
from beatssl.train import warmup_cosine

T = TypeVar("T")
WARMUP = 0.05  # share of the steps over which the learning rate rises


def device_of(module: nn.Module) -> torch.device:
    """The device that holds the module's weights."""
    return next(module.parameters()).device


def cosine_schedule(
    optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over the first 5 % of the steps, then a half cosine down to 0."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, steps, WARMUP)
    )


def count_batches(n: int, size: int) -> int:
    """Number of batches of at most `size` in one pass over n items."""
    return math.ceil(n / size)


def batches(n: int, size: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Shuffled item numbers in batches of nearly equal length, none longer than `size`.

    Equal lengths spare batch normalisation a last batch of one or two items.
    """
    order = torch.randperm(n, generator=generator)
    return torch.tensor_split(order, count_batches(n, size))


def require(protocol: str, method: str) -> None:
    """Refuse a protocol that would report an encoder under the wrong name.

    Raises:
        ValueError: unknown protocol; `scratch` with a pretrained encoder; `finetune` with an
            untrained one.
    """
    if protocol not in ("frozen", "finetune", "scratch"):
        raise ValueError(f"protocol {protocol!r} is not known; known: frozen, finetune, scratch")
    if protocol == "scratch" and method != "random":
        raise ValueError(f"scratch training starts from an untrained encoder, not from {method}")
    if protocol == "finetune" and method in UNTRAINED:
        raise ValueError("fine-tuning an untrained encoder is protocol 'scratch'")


def check_loss(loss: torch.Tensor, what: str) -> None:
    """Stop a training that has left the finite numbers.

    Raises:
        FloatingPointError: the loss is NaN or infinite.
    """
    if not torch.isfinite(loss):
        raise FloatingPointError(f"{what}: the loss is {loss.item()}; lower the learning rate")


def best_rate(
    rates: Sequence[float], quality: Callable[[float], tuple[float, T]]
) -> tuple[float, np.ndarray, T]:
    """The learning rate of the best validation, of equals the first; what it made, too.

    Args:
        quality: trains with a rate; its validation score, and what it made.

    Returns:
        the rate, the score of every rate (NaN where its loss left the finite numbers), and what the
        best one made.

    Raises:
        FloatingPointError: no rate is left.
    """
    scores, best = np.full(len(rates), np.nan), None
    for i, rate in enumerate(rates):
        try:
            scores[i], made = quality(rate)
        except FloatingPointError:
            continue
        if np.isfinite(scores[i]) and (best is None or scores[i] > best[0]):
            best = (scores[i], rate, made)
    if best is None:
        tried = ", ".join(f"{rate:g}" for rate in rates)
        raise FloatingPointError(f"no finite loss with {tried}: lower the learning rates")
    return best[1], scores, best[2]
