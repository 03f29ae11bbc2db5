"""Beat-SSL: contrast of whole records (rhythm) and of single heartbeats (paper, figure).

`total = rhythm_weight * L_rhythm + beat_weight * L_beat`; both parts are the same loss with other
targets. With `beat="none"` and hard targets it is plain 3KG with NT-Xent, the paper's baseline.
"""

from __future__ import annotations

import torch

from beatssl.methods.base import Batch, Method, Setup
from beatssl.methods.encoder import Encoder, autocast, projector, roi_align
from beatssl.methods.losses import alignment, contrastive_loss, uniformity
from beatssl.methods.settings import PretrainConfig
from beatssl.methods.targets import (
    FeatureScale,
    beat_targets,
    record_targets,
    row_entropy,
    same_record,
)
from beatssl.methods.views import augment


class BeatSSL(Method):
    """The encoder f with its two projectors g_r and g_b.

    Args:
        encoder: kept after pretraining; the projectors are not.
        config: names the ablation row and every option.
        sampling_rate: Hz of the signals.
        record_scale, beat_scale: medians and spreads of the features on the training records.
    """

    def __init__(
        self,
        encoder: Encoder,
        config: PretrainConfig,
        sampling_rate: int,
        record_scale: FeatureScale,
        beat_scale: FeatureScale,
    ):
        super().__init__()
        self.encoder, self.config, self.sampling_rate = encoder, config, sampling_rate
        self.record_scale, self.beat_scale = record_scale, beat_scale
        sizes = encoder.channels, config.projector_hidden, config.projector_out
        self.rhythm_projector = projector(*sizes)
        self.beat_projector = projector(*sizes) if config.beat != "none" else None

    def view(self, signals: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """One 3KG view of each record."""
        c = self.config
        return augment(
            signals,
            generator,
            rotation_degrees=c.rotation_degrees,
            scale_max=c.scale_max,
            mask_fraction=c.mask_fraction,
        )

    def beat_vectors(self, e: torch.Tensor, r_peak: torch.Tensor) -> torch.Tensor:
        """RoI projection: mean of e over [R - before, R + after]: (batch, beats, channels)."""
        before = self.config.beat_before * self.sampling_rate
        after = self.config.beat_after * self.sampling_rate
        return roi_align(e, r_peak - before, r_peak + after, self.encoder.stride)

    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Losses of one batch and what is worth watching.

        Returns:
            `total` (to differentiate), and detached: rhythm, beat, alignment, uniformity,
            target_low/target_mid/target_high (5th, 50th, 95th percentile of the rhythm targets
            between different records), row_entropy and beat_row_entropy (nats) of the targets; for
            the normalised loss rhythm_kl and beat_kl, the loss minus that entropy: 0 where the
            embeddings are as alike as their targets ask.
        """
        c = self.config
        views = [self.view(batch.signals, generator) for _ in range(2)]
        with autocast(batch.signals.device):
            e = self.encode(torch.cat(views))  # (2N, C, steps)
            z_r = self.rhythm_projector(e.mean(dim=2)).float()  # (2N, dim)
        t_r = record_targets(
            c.target(c.rhythm), batch.record_features, self.record_scale, c.exponent
        )
        rhythm = contrastive_loss(c.loss, z_r, t_r, c.temperature)
        n = len(batch.signals)
        off_diagonal = t_r[:n, :n][~torch.eye(n, dtype=torch.bool, device=t_r.device)]
        low, mid, high = off_diagonal.quantile(torch.tensor([0.05, 0.5, 0.95]).to(t_r)).unbind()
        losses = {
            "rhythm": rhythm.detach(),
            "alignment": alignment(z_r[:n], z_r[n:]).detach(),
            "uniformity": uniformity(z_r).detach(),
            "target_low": low,
            "target_mid": mid,
            "target_high": high,
            "row_entropy": row_entropy(t_r),
        }
        if c.loss == "normalised":  # a cross-entropy: of the same rows as the entropy
            losses["rhythm_kl"] = losses["rhythm"] - losses["row_entropy"]
        total = c.rhythm_weight * rhythm
        if self.beat_projector is not None:
            beat, t_b = self._beat_loss(e, batch)
            total = total + c.beat_weight * beat
            losses |= {"beat": beat.detach(), "beat_row_entropy": row_entropy(t_b)}
            if c.loss == "normalised":
                losses["beat_kl"] = losses["beat"] - losses["beat_row_entropy"]
        return {"total": total, **losses}

    def _beat_loss(self, e: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss over all valid beats of both views (2K of them), and their targets."""
        c, valid = self.config, batch.beat_valid
        with autocast(e.device):
            vectors = self.beat_vectors(e, batch.r_peak.repeat(2, 1))  # (2N, B, C)
            z_b = self.beat_projector(vectors[valid.repeat(2, 1)]).float()  # (2K, dim)
        t_b = beat_targets(
            c.target(c.beat),
            batch.beat_class[valid],
            batch.beat_features[valid],
            self.beat_scale,
            c.exponent,
        )
        allowed = None
        if c.beat_scope == "record":
            record = torch.arange(len(valid), device=e.device)[:, None].expand_as(valid)[valid]
            allowed = same_record(record)
            t_b = t_b * allowed
        return contrastive_loss(c.loss, z_b, t_b, c.temperature, allowed), t_b


def build(s: Setup) -> BeatSSL:
    return BeatSSL(s.encoder, s.config, s.sampling_rate, s.record_scale, s.beat_scale)
