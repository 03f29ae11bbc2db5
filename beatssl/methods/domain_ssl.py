"""Domain-SSL, a compared method: contrast with the record nearest in rhythm and wave features.

Source: Gu et al. 2025, "Transforming label-efficient decoding of healthcare wearables with
self-supervised learning and 'embedded' medical domain expertise", Communications Engineering 4:135,
doi 10.1038/s44172-025-00467-6. Written from its equations; the features are
`features.RECORD_FEATURES`.

`total = L_inst + w(e) * L_proto`. L_inst pulls a record towards its other view and towards the
record nearest to it in the features; L_proto towards the mean embedding of its k-means cluster of
features. The source has one lead at 125 Hz. Ours, where it says nothing of 12 leads: one draw per
record for all of its leads (but noise, drawn for each sample), features of lead II.
"""

from dataclasses import dataclass
from math import inf

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Generator, Tensor, nn

from beatssl.methods.base import (
    Batch, Entry, Method, Setup, ResNetSettings, TrainSettings, step_losses,
)  # fmt: skip
from beatssl.methods.encoder import EncoderConfig, StandardisedConfig, autocast, zscore
from beatssl.methods.losses import soft_target_nce, view_health
from beatssl.methods.targets import two_views


@dataclass(frozen=True)
class DomainSSLSettings(ResNetSettings, TrainSettings):
    """The defaults are the source's."""

    method: str = "domain_ssl"
    temperature: float = 0.07  # of L_inst, and the mean over clusters in L_proto
    clusters: int = 128
    prototype_momentum: float = 0.5  # share of the old prototype in the new one
    jitter_seconds: float = 0.04  # largest circular shift either way: 5 samples at 125 Hz
    time_scale: tuple[float, ...] = (0.8, 1.2)
    magnitude: tuple[float, ...] = (0.8, 1.2)
    noise_sd: float = 0.2  # in standard deviations of the lead
    cutout: float = 0.25  # share of the record
    concentration_m: float = 10.0
    lowest_temperature: float = 0.1  # of the mean one; ours, for a cluster that is all alike
    projector_hidden: int = 128
    projector_out: int = 128
    warm_share: float = 0.04  # of the training, without L_proto: 40 of 1000 epochs
    ramp_share: float = 1.0  # of the training, over which its weight then grows to 1

    limits = (
        (1e-6, inf, "temperature", "clusters", "concentration_m", "ramp_share"),
        (1e-6, inf, "time_scale", "magnitude"),
        (0, inf, "jitter_seconds", "noise_sd", "warm_share"),
        (0, 1, "prototype_momentum", "cutout"),
    )

    def architecture(self, resnet: EncoderConfig) -> StandardisedConfig:
        return StandardisedConfig(**vars(super().architecture(resnet)))

    def prototype_weight(self, progress: float) -> float:
        """w of L_proto: 0 up to `warm_share`, then linear towards 1.

        Args: progress: share of the training that is done. The source counts epochs, of at most
        1000; shares keep its schedule where there are fewer."""
        return min(1.0, max(progress - self.warm_share, 0) / self.ramp_share)


def circular_shift(signals: Tensor, samples: Tensor) -> Tensor:
    """Move each record later in time, its end coming in at the start.

    Args: signals (batch, leads, time); samples (batch,) integer, negative moves earlier."""
    time = signals.shape[2]
    where = (torch.arange(time, device=signals.device) - samples[:, None]) % time  # (batch, time)
    return signals.gather(2, where[:, None, :].expand_as(signals))


def time_scale(signals: Tensor, factor: Tensor) -> Tensor:
    """Stretch each record from its first sample, linearly interpolated: sample t moves to
    `t * factor`. The length stays: a shrunk record ends in zeros, a stretched one is cut at its end
    (the source resamples, then pads or crops).

    Args: signals (batch, leads, time); factor (batch,) > 0."""
    time = signals.shape[2]
    where = torch.arange(time, device=signals.device) / factor[:, None]  # (batch, time)
    low = where.floor().clamp(max=time - 1).long()
    high = (low + 1).clamp(max=time - 1)
    before, after = (signals.gather(2, at[:, None].expand_as(signals)) for at in (low, high))
    weight = (where - low).clamp(0, 1).to(signals)[:, None, :]
    inside = (where <= time - 1)[:, None, :]
    return torch.where(inside, torch.lerp(before, after, weight), 0.0)


def cutout(signals: Tensor, start: Tensor, width: int) -> Tensor:
    """Zero one window of all leads. Args: signals (batch, leads, time); start (batch,) and width in
    samples."""
    since = torch.arange(signals.shape[2], device=signals.device) - start[:, None]  # (batch, time)
    hidden = (since >= 0) & (since < width)
    return signals.masked_fill(hidden[:, None, :], 0.0)


def augment(
    signals: Tensor, generator: Generator, config: DomainSSLSettings, sampling_rate: int
) -> Tensor:
    """One view of each record; every step is always applied, in this order.

    Z-score per lead, circular shift, time scaling, magnitude, Gaussian noise, cutout of one window.

    Args:
        signals: (batch, 12, time), any unit.
        generator: source of all draws.
        sampling_rate: Hz.

    Returns:
        (batch, 12, time), same type and device.
    """
    n, _, time = signals.shape
    device = signals.device
    jitter, width = round(config.jitter_seconds * sampling_rate), round(config.cutout * time)
    shift = torch.randint(-jitter, jitter + 1, (n,), generator=generator)
    stretch = _uniform(n, config.time_scale, generator)
    size = _uniform(n, config.magnitude, generator)
    noise = torch.randn(signals.shape, generator=generator)
    start = torch.randint(time - width + 1, (n,), generator=generator)
    view = circular_shift(zscore(signals), shift.to(device))
    view = time_scale(view, stretch.to(device)) * size.to(signals)[:, None, None]
    view = view + config.noise_sd * noise.to(signals)
    return cutout(view, start.to(device), width)


def _uniform(n: int, limits: tuple[float, float], generator: Generator) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * torch.rand(n, generator=generator)


def nearest_neighbour_targets(features: Tensor) -> Tensor:
    """Positives of L_inst, as a target matrix for `losses.soft_target_nce`.

    Row i has 1 at its other view and at both views of the record nearest to it (Euclidean, itself
    left out). "Nearest" is not symmetric: j may be the nearest of i while i is not that of j, so
    the matrix is not symmetric either. Of equally near records the first one counts.

    Args:
        features: (N, F), standardised, without NaN, N >= 2.

    Returns:
        (2N, 2N) of 0 and 1, layout [view 1 of all, view 2 of all], three 1s in each row.
    """
    exact = "donot_use_mm_for_euclid_dist"  # else equal records may be a little apart
    distance = torch.cdist(features, features, compute_mode=exact)
    nearest = distance.fill_diagonal_(torch.inf).argmin(dim=1)  # (N,)
    return two_views(F.one_hot(nearest, len(features)).float())


def instance_loss(z: Tensor, features: Tensor, temperature: float) -> Tensor:
    """L_inst: SupCon (arXiv 2004.11362) with the positives of `nearest_neighbour_targets`.

    Args: z (2N, dim), of any length; features (N, F), standardised."""
    return soft_target_nce(z, nearest_neighbour_targets(features), temperature)


def cluster_ids(features: Tensor, clusters: int, seed: int) -> Tensor:
    """k-means cluster of each record (scikit-learn, best of 10 starts).

    Args:
        features: (records, F), standardised, without NaN.
        clusters: wanted number; never more than there are different records.

    Returns:
        (records,) int64, from 0.
    """
    x = features.double().cpu().numpy()
    count = min(clusters, len(np.unique(x, axis=0)))
    labels = KMeans(count, n_init=10, random_state=seed).fit(x).labels_
    return torch.from_numpy(labels).long()


class Prototypes(nn.Module):
    """Moving-average mean embedding of each cluster, with a temperature of its own.

    Embeddings are normalised first. A batch moves only the clusters that it holds: the first time
    to their mean, later by `c = beta c + (1 - beta) mean`. (In the published code the absent ones
    decay towards 0.) Clusters not yet seen take no part in the loss. Prototypes carry no gradient.

    Attributes:
        centre: (clusters, dim), means; their length is at most 1.
        concentration: (clusters,), when last seen: `sum |z - c| / (n log(n + m))` over the
            cluster's n embeddings in the batch, both views counted, after the move.
        seen: (clusters,) bool.
    """

    def __init__(self, config: DomainSSLSettings):
        super().__init__()
        self.config = config
        self.register_buffer("centre", torch.zeros(config.clusters, config.projector_out))
        self.register_buffer("concentration", torch.zeros(config.clusters))
        self.register_buffer("seen", torch.zeros(config.clusters, dtype=torch.bool))

    @torch.no_grad()
    def update(self, z: Tensor, ids: Tensor) -> None:
        """Move the clusters of one batch. Args: z (M, dim), ids (M,)."""
        z = F.normalize(z.float(), dim=1)
        member = F.one_hot(ids, self.config.clusters).to(z)  # (M, clusters)
        count = member.sum(dim=0)
        here = count > 0
        mean = member.T @ z / count.clamp_min(1)[:, None]
        beta = self.config.prototype_momentum
        moved = torch.where(self.seen[:, None], beta * self.centre + (1 - beta) * mean, mean)
        self.centre.copy_(torch.where(here[:, None], moved, self.centre))
        distance = member.T @ (z - self.centre[ids]).norm(dim=1)  # (clusters,), summed
        share = distance / (count * (count + self.config.concentration_m).log()).clamp_min(1e-12)
        self.concentration.copy_(torch.where(here, share, self.concentration))
        self.seen |= here

    def temperatures(self) -> Tensor:
        """tau_k: the concentrations, scaled so that their mean over the clusters seen is
        `temperature`, and then not below a tenth of it. Returns: (clusters,)."""
        mean = self.concentration[self.seen].mean()
        tau = self.config.temperature * self.concentration / mean.clamp_min(1e-12)
        return tau.clamp_min(self.config.lowest_temperature * self.config.temperature)

    def loss(self, z: Tensor, ids: Tensor) -> Tensor:
        """L_proto: cross-entropy of `cos(z, c_k) / tau_k` over the clusters seen to the own one.

        Args: z (M, dim), of any length; ids (M,), all of them seen."""
        cosine = F.normalize(z.float(), dim=1) @ F.normalize(self.centre, dim=1).T
        logits = (cosine / self.temperatures()).masked_fill(~self.seen, -1e9)  # (M, clusters)
        return F.cross_entropy(logits, ids)


class DomainSSL(Method):
    """Encoder, projector (Linear, ReLU, Linear) and prototypes; only the encoder is kept. It
    z-scores what it is given; views are z-scored by `augment`, and go through its `layers`.

    Attributes:
        ids: (records,) cluster of each training record.
        steps: training steps done.
    """

    def __init__(self, setup: Setup):
        super().__init__(setup)
        c = self.config
        self.feature_scale, self.total_steps = setup.record_scale, setup.steps
        known = setup.record_scale.standardise(setup.record_features)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("ids", cluster_ids(known, c.clusters, c.seed))
        self.projector = nn.Sequential(
            nn.Linear(self.encoder.channels, c.projector_hidden), nn.ReLU(),
            nn.Linear(c.projector_hidden, c.projector_out),
        )  # fmt: skip
        self.prototypes = Prototypes(c)

    def training_step(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """Losses of one batch; moves the prototypes, before their loss is taken.

        Args:
            batch: N >= 2 records; its items (indices into `ids`), signals and record features are
                used.

        Returns:
            `total` (to differentiate), and detached: instance, prototype, prototype_weight,
            alignment, uniformity.
        """
        c, n = self.config, len(batch.signals)
        views = [augment(batch.signals, generator, c, self.sampling_rate) for _ in range(2)]
        with autocast(batch.signals.device):
            e = self.encoder.layers(torch.cat(views))  # (2N, C, steps)
            z = self.projector(e.mean(dim=2)).float()  # (2N, dim)
        features = self.feature_scale.standardise(batch.record_features)
        instance = instance_loss(z, features, c.temperature)
        ids = self.ids[batch.items].repeat(2)  # (2N,)
        self.prototypes.update(z.detach(), ids)
        prototype = self.prototypes.loss(z, ids)
        weight = c.prototype_weight(int(self.steps) / self.total_steps)
        self.steps += 1
        return step_losses(
            instance + weight * prototype, instance=instance, prototype=prototype,
            prototype_weight=torch.tensor(weight), **view_health(z[:n], z[n:]),
        )  # fmt: skip


ENTRY = Entry("Domain-SSL", DomainSSLSettings, DomainSSL, ("total", "instance", "prototype"))
