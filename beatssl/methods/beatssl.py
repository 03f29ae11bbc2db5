"""Beat-SSL: contrast of whole records (rhythm) and of single heartbeats (paper, figure).

`total = rhythm_weight * L_rhythm + beat_weight * L_beat`; both parts are the same loss with other
targets. With `beat="none"` and hard targets it is plain 3KG with NT-Xent, the paper's baseline.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from beatssl.methods.base import (
    Batch, BeatWindows, Entry, Method, Setup, ResNetSettings, TrainSettings, step_losses,
)  # fmt: skip
from beatssl.methods.encoder import autocast, projector, roi_align
from beatssl.methods.losses import LOSSES, contrastive_loss, view_health
from beatssl.methods.targets import (
    MEASURES, beat_targets, off_diagonal, record_targets, row_entropy, same_record,
)  # fmt: skip
from beatssl.methods.views import augment
from beatssl.settings import ConfigError, one_of

RHYTHM_TARGETS = ("hard", "soft_1", "soft_2")
BEAT_TARGETS = ("none", *RHYTHM_TARGETS)


@dataclass(frozen=True)
class BeatSSLSettings(BeatWindows, ResNetSettings, TrainSettings):
    """An ablation row of the paper is (rhythm, beat, exponent)."""

    method: str = "beatssl"
    rhythm: str = "hard"  # hard | soft_1 | soft_2
    beat: str = "none"  # none | hard | soft_1 | soft_2
    exponent: float = 1.0
    loss: str = "normalised"  # one of losses.LOSSES
    temperature: float = 0.1
    soft_1: str = "cosine"  # what soft_1 measures, one of targets.MEASURES
    soft_2: str = "inverse_distance"  # what soft_2 measures
    rhythm_weight: float = 1.0
    beat_weight: float = 1.0
    beat_scope: str = "batch"  # batch | record: which beats are contrasted with each other
    projector_hidden: int = 256
    projector_out: int = 128
    rotation_degrees: float = 45.0
    scale_max: float = 1.5
    mask_fraction: float = 0.5

    row: ClassVar[tuple[str, ...]] = ("rhythm", "beat", "exponent")

    def __post_init__(self) -> None:
        super().__post_init__()
        known = {
            "rhythm": RHYTHM_TARGETS, "beat": BEAT_TARGETS, "loss": LOSSES, "soft_1": MEASURES,
            "soft_2": MEASURES, "amplitude_unit": ("mV", "uV"), "beat_scope": ("batch", "record"),
            "beat_classifier": ("rules", "clusters"),
        }  # fmt: skip
        for name, allowed in known.items():
            one_of(name, getattr(self, name), allowed)
        if self.exponent <= 0:
            raise ConfigError(f"exponent must be positive, got {self.exponent}")

    def target(self, kind: str) -> str:
        """`hard`, or what the soft target `soft_1` or `soft_2` measures."""
        return {"soft_1": self.soft_1, "soft_2": self.soft_2}.get(kind, kind)

    def code(self) -> tuple[Callable, ...]:
        measures = (self.target(kind) for kind in (self.rhythm, self.beat))
        return LOSSES[self.loss], *(MEASURES[name] for name in measures if name in MEASURES)


class BeatSSL(Method):
    """The encoder f with its two projectors g_r and g_b; only the encoder is kept."""

    def __init__(self, setup: Setup):
        super().__init__(setup)
        c = self.config
        self.record_scale, self.beat_scale = setup.record_scale, setup.beat_scale
        sizes = setup.encoder.channels, c.projector_hidden, c.projector_out
        self.rhythm_projector = projector(*sizes)
        self.beat_projector = projector(*sizes) if c.beat != "none" else None

    def view(self, signals: Tensor, generator: Generator) -> Tensor:
        """One 3KG view of each record."""
        c = self.config
        return augment(signals, generator, c.rotation_degrees, c.scale_max, c.mask_fraction)

    def beat_vectors(self, e: Tensor, r_peak: Tensor) -> Tensor:
        """RoI projection: mean of e over [R - before, R + after]: (batch, beats, channels)."""
        before = self.config.beat_before * self.sampling_rate
        after = self.config.beat_after * self.sampling_rate
        return roi_align(e, r_peak - before, r_peak + after, self.encoder.stride)

    def training_step(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """Losses of one batch and what is worth watching.

        Returns:
            `total` (to differentiate), and detached: rhythm, beat, alignment, uniformity,
            target_low/target_mid/target_high (5th, 50th, 95th percentile of the rhythm targets
            between different records), row_entropy and beat_row_entropy (nats) of the targets; for
            the normalised loss rhythm_kl and beat_kl, the loss minus that entropy: 0 where the
            embeddings are as alike as their targets ask.
        """
        c, n = self.config, len(batch.signals)
        views = [self.view(batch.signals, generator) for _ in range(2)]
        with autocast(batch.signals.device):
            e = self.encode(torch.cat(views))  # (2N, C, steps)
            z = self.rhythm_projector(e.mean(dim=2)).float()  # (2N, dim)
        targets = self.rhythm_targets(batch)
        rhythm = contrastive_loss(c.loss, z, targets, c.temperature)
        different = off_diagonal(targets[:n, :n])
        quantiles = different.quantile(targets.new_tensor([0.05, 0.5, 0.95]))
        losses = {"rhythm": rhythm, **view_health(z[:n], z[n:])}
        losses |= zip(("target_low", "target_mid", "target_high"), quantiles)
        losses["row_entropy"] = row_entropy(targets)
        if c.loss == "normalised":  # a cross-entropy: of the same rows as the entropy
            losses["rhythm_kl"] = losses["rhythm"] - losses["row_entropy"]
        total = c.rhythm_weight * rhythm
        if self.beat_projector is not None:
            beats = torch.cat([batch.beats, batch.beats + batch.r_peak.numel()])
            with autocast(e.device):
                vectors = self.beat_vectors(e, batch.r_peak.repeat(2, 1))  # (2N, B, C)
                z = self.beat_projector(vectors.flatten(0, 1)[beats]).float()  # (2K, dim)
            targets, allowed = self.beat_targets(batch)
            beat = contrastive_loss(c.loss, z, targets, c.temperature, allowed)
            total = total + c.beat_weight * beat
            losses |= {"beat": beat, "beat_row_entropy": row_entropy(targets)}
            if c.loss == "normalised":
                losses["beat_kl"] = losses["beat"] - losses["beat_row_entropy"]
        return step_losses(total, **losses)

    def rhythm_targets(self, batch: Batch) -> Tensor:
        """What should be alike among whole records: (2N, 2N)."""
        c, features = self.config, batch.record_features
        return record_targets(c.target(c.rhythm), features, self.record_scale, c.exponent)

    def beat_targets(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """What should be alike among the K beats: (2K, 2K), and which pairs take part (all where
        None)."""
        c, of_beats = self.config, (batch.beat_class, batch.beat_features)
        targets = beat_targets(c.target(c.beat), *of_beats, self.beat_scale, c.exponent)
        if c.beat_scope == "batch":
            return targets, None
        allowed = same_record(batch.beats // batch.r_peak.shape[1])
        return targets * allowed, allowed


ENTRY = Entry("Beat-SSL", BeatSSLSettings, BeatSSL, ("total", "rhythm", "beat"))
