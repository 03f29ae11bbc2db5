"""Masked reconstruction with a head for the ECG features, and Beat-SSL's contrast beside it.

Not the paper's: ours, for the encoder that comes along. Some leads and some stretches of time are
set to zero; a small decoder has to draw what stood there, and a linear head has to tell the
features of `beatssl.data.features` from the mean over time. So the encoder learns morphology where
a contrast of views asks it to forget some, and it has seen records with few leads.
"""

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from beatssl.methods.base import Batch, Entry, Setup, step_losses
from beatssl.methods.beatssl import BeatSSL, BeatSSLSettings
from beatssl.methods.encoder import autocast


@dataclass(frozen=True)
class MaskedSettings(BeatSSLSettings):
    """`contrast_weight` 0 leaves the contrast out; its targets are those of Beat-SSL's settings."""

    method: str = "masked"
    rhythm: str = "soft_1"
    beat: str = "hard"
    exponent: float = 50.0
    loss: str = "bce"
    temperature: float = 0.5
    patch_ms: float = 250.0  # length of a stretch
    time_fraction: float = 0.4  # of the stretches that are hidden in all leads
    lead_fraction: float = 0.4  # of the leads that are hidden
    feature_weight: float = 0.3
    contrast_weight: float = 0.0
    decoder_width: int = 128

    row: ClassVar[tuple[str, ...]] = ()
    limits = (
        (0.0, inf, "feature_weight", "contrast_weight"),
        (0.0, 0.9, "time_fraction", "lead_fraction"),
        (1.0, inf, "patch_ms", "decoder_width"),
    )


def hide(
    n: int, leads: int, time: int, patch: int, of_time: float, of_leads: float, generator: Generator
) -> Tensor:
    """What is hidden: in each record `of_leads` of the leads for its whole length, and `of_time` of
    its stretches of `patch` samples in all leads, both rounded. (n, leads, time) bool, CPU."""
    patches = -(-time // patch)
    lead = torch.rand(n, leads, generator=generator).argsort(dim=1) < round(of_leads * leads)
    stretch = torch.rand(n, patches, generator=generator).argsort(dim=1) < round(of_time * patches)
    return lead[:, :, None] | stretch.repeat_interleave(patch, dim=1)[:, None, :time]


class Masked(BeatSSL):
    """The encoder with a decoder (two convolutions, a step to its 12 x stride samples) and a
    linear head for the record's 54 standardised features; only the encoder is kept."""

    def __init__(self, setup: Setup):
        super().__init__(setup)
        channels, width = self.encoder.channels, self.config.decoder_width
        self.decoder = nn.Sequential(
            nn.Conv1d(channels, width, 3, padding=1),
            nn.GELU(),
            nn.Conv1d(width, 12 * self.encoder.stride, 3, padding=1),
        )
        self.features = nn.Linear(channels, len(self.record_scale.median))

    def training_step(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """Losses of one batch: `total` (to differentiate), and detached: reconstruction, mean
        squared error where something was hidden; features, smooth L1; contrast where it has a
        weight."""
        c, (n, leads, time) = self.config, batch.signals.shape
        patch = round(c.patch_ms * self.sampling_rate / 1000)
        hidden = hide(n, leads, time, patch, c.time_fraction, c.lead_fraction, generator)
        hidden = hidden.to(batch.signals.device)
        with autocast(batch.signals.device):
            e = self.encode(batch.signals.masked_fill(hidden, 0.0))
            drawn = self.decoder(e).float()  # (n, 12 * stride, steps)
            told = self.features(e.mean(dim=2)).float()
        drawn = drawn.unflatten(1, (leads, -1)).transpose(2, 3).flatten(2)[..., :time]
        missed = (drawn - batch.signals).square() * hidden
        reconstruction = missed.sum() / hidden.sum().clamp_min(1)
        known = self.record_scale.standardise(batch.record_features)
        features = F.smooth_l1_loss(told, known)
        total = reconstruction + c.feature_weight * features
        losses = {"reconstruction": reconstruction, "features": features}
        if c.contrast_weight:
            contrast = super().training_step(batch, generator)["total"]
            total = total + c.contrast_weight * contrast
            losses["contrast"] = contrast
        return step_losses(total, **losses)


ENTRY = Entry(
    "Masked reconstruction (ours)", MaskedSettings, Masked, ("total", "reconstruction", "features")
)
