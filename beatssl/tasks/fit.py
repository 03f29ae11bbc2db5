"""Training on labels and applying a network, as the tasks share it."""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from beatssl.methods.encoder import autocast
from beatssl.progress import progress
from beatssl.train import warmup_cosine

T = TypeVar("T")
WARMUP = 0.05  # share of the steps over which the learning rate rises


def device_of(module: nn.Module) -> torch.device:
    """The device that holds the module's weights."""
    return next(module.parameters()).device


def batches(n: int, size: int, generator: Generator) -> tuple[Tensor, ...]:
    """Shuffled item numbers in batches of nearly equal length, none longer than `size`.

    Equal lengths spare batch normalisation a last batch of one or two items.
    """
    return torch.tensor_split(torch.randperm(n, generator=generator), math.ceil(n / size))


class Plan(NamedTuple):
    """Items, most items of a batch, epochs, learning rate after the warm-up, weight decay."""

    n: int
    size: int
    epochs: int
    rate: float
    weight_decay: float


class Fit:
    """A model under training: AdamW, linear warm-up over the first 5 % of the steps, then a half
    cosine down to 0; call `epoch` as often as the plan says.

    Args:
        load: item numbers -> inputs and targets.
        loss: (logits float32, targets) -> number.
        seed: of the shuffling.
    """

    def __init__(self, model: nn.Module, load: Callable, loss: Callable, plan: Plan, seed: int):
        self.model, self.load, self.loss, self.plan = model, load, loss, plan
        self.generator = torch.Generator().manual_seed(seed)
        steps = plan.epochs * math.ceil(plan.n / plan.size)
        self.optimizer = AdamW(model.parameters(), lr=plan.rate, weight_decay=plan.weight_decay)
        self.schedule = LambdaLR(self.optimizer, lambda step: warmup_cosine(step, steps, WARMUP))

    def epoch(self) -> None:
        """One pass over all items.

        Raises:
            FloatingPointError: the loss is NaN or infinite.
        """
        device = device_of(self.model)
        self.model.train()
        for items in batches(self.plan.n, self.plan.size, self.generator):
            inputs, target = self.load(items)
            with autocast(device):
                logits = self.model(inputs.to(device))
            loss = self.loss(logits.float(), target.to(device))
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss.item()}: lower the learning rate")
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.schedule.step()


def best_rate(
    rates: Sequence[float], train: Callable[[float], T], quality: Callable[[T], float]
) -> tuple[float, np.ndarray, T]:
    """The learning rate of the best validation, of equals the first.

    Args:
        train: what a rate makes.
        quality: validation score of it.

    Returns:
        the rate, the score of every rate (NaN where its loss left the finite numbers), and what the
        best one made.

    Raises:
        FloatingPointError: no rate is left.
    """
    scores, made = np.full(len(rates), np.nan), {}
    for i, rate in enumerate(rates):
        with contextlib.suppress(FloatingPointError):
            made[i] = train(rate)
            scores[i] = quality(made[i])
    if np.isnan(scores).all():
        tried = ", ".join(f"{rate:g}" for rate in rates)
        raise FloatingPointError(f"no finite loss with {tried}: lower the learning rates")
    best = int(np.nanargmax(scores))
    return rates[best], scores, made[best]


def outputs(
    model: nn.Module,
    pieces: Sequence[T],
    load: Callable[[T], Tensor],
    finish: Callable[[Tensor], Tensor] = Tensor.float,
) -> Tensor:
    """`finish(model(load(piece)))` of all pieces in evaluation mode, float32 arithmetic, on the
    CPU."""
    model.eval()
    device = device_of(model)
    with torch.no_grad():
        bar = progress(pieces, "batches of records", delay=5)
        return torch.cat([finish(model(load(piece).to(device))).cpu() for piece in bar])
