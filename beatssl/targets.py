"""What should be alike, in [0, 1]: target matrices for records and for beats.

Layout of the paper's figure: both views of all N items, [view 1 of all, view 2 of all], a
(2N, 2N) matrix with zero diagonal; the two views of one item have target 1.
`soft_1` and `soft_2` are not defined in what is known of the paper: both are our candidates
(book page "What the paper does not say").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class FeatureScale:
    """Medians and spreads of features, taken from training records only.

    Attributes: median, mean, sd: (features,) float32."""

    median: torch.Tensor
    mean: torch.Tensor
    sd: torch.Tensor

    @classmethod
    def fit(cls, features: torch.Tensor) -> "FeatureScale":
        """From (items, features) with NaN; a column that is all NaN gets median 0, a constant one
        sd 1 (its standardised value is 0)."""
        median = features.nanmedian(dim=0).values.nan_to_num(0.0)
        filled = torch.where(features.isnan(), median, features)
        sd = filled.std(dim=0, unbiased=False)
        return cls(median, filled.mean(dim=0), torch.where(sd > 1e-6, sd, torch.ones_like(sd)))

    def impute(self, features: torch.Tensor) -> torch.Tensor:
        """NaN -> median."""
        return torch.where(features.isnan(), self.median.to(features), features)

    def standardise(self, features: torch.Tensor) -> torch.Tensor:
        """NaN -> median, then zero mean and unit sd."""
        return (self.impute(features) - self.mean.to(features)) / self.sd.to(features)


def similarity(kind: str, features: torch.Tensor, scale: FeatureScale) -> torch.Tensor:
    """Similarity in [0, 1] of every pair, before the exponent.

    `soft_1`: max(0, cosine) of raw features (times in ms), NaN -> training median.
    `soft_2`: 1 / (1 + |u_i - u_j| / sqrt(F)) on standardised features u.

    Args:
        features: (N, F), raw, may hold NaN.

    Returns:
        (N, N), ones on the diagonal.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "soft_1":
        unit = F.normalize(scale.impute(features).double(), dim=1)  # 1 - cos is as small as 1e-6
        return (unit @ unit.T).clamp(0, 1).float()
    if kind == "soft_2":
        u = scale.standardise(features)
        return 1 / (1 + torch.cdist(u, u) / u.shape[1] ** 0.5)
    raise ValueError(f"soft target {kind!r} is not known; known: soft_1, soft_2")


def two_views(item_targets: torch.Tensor) -> torch.Tensor:
    """(N, N) targets between items -> (2N, 2N) between views: repeated in all four blocks, 1 for
    the two views of one item, 0 on the diagonal."""
    n = len(item_targets)
    block = item_targets.clone()
    block.fill_diagonal_(1.0)
    full = block.repeat(2, 2)
    full.fill_diagonal_(0.0)
    assert full.shape == (2 * n, 2 * n)
    return full


def record_targets(
    kind: str, features: torch.Tensor, scale: FeatureScale, exponent: float = 1.0
) -> torch.Tensor:
    """Rhythm context: (2N, 2N) targets of N records.

    `hard` is 1 for the two views of one record and 0 elsewhere (NT-Xent's layout).

    Args:
        features: (N, F) record features; only their number matters to `hard`.
        exponent: element-wise power of the soft similarity (column "Exp." of Table 1)."""
    if kind == "hard":
        return two_views(torch.zeros(len(features), len(features), device=features.device))
    return two_views(similarity(kind, features, scale) ** exponent)


def beat_targets(
    kind: str,
    classes: torch.Tensor,
    features: torch.Tensor,
    scale: FeatureScale,
    exponent: float = 1.0,
) -> torch.Tensor:
    """Beat context: (2K, 2K) targets of K beats.

    `hard` is 1 for beats of the same predicted class (SupCon with pseudo-labels).

    Args:
        classes: (K,) integer class of each beat.
        features: (K, F) beat features."""
    if kind == "hard":
        return two_views((classes[:, None] == classes[None, :]).float())
    return two_views(similarity(kind, features, scale) ** exponent)


def same_record(record: torch.Tensor) -> torch.Tensor:
    """(2K, 2K) bool: pairs of beats from one record (either view), for `beat_scope="record"`.

    Args: record: (K,) index of each beat's record."""
    twice = record.repeat(2)
    return twice[:, None] == twice[None, :]


def row_entropy(targets: torch.Tensor) -> torch.Tensor:
    """Entropy of each row of normalised targets in nats, mean over rows with a target: log of the
    effective number of positives. Args: targets (M, M) with zero diagonal."""
    mass = targets.sum(dim=1, keepdim=True)
    p = targets / mass.clamp_min(1e-12)
    entropy = -(p * p.clamp_min(1e-12).log()).sum(dim=1)
    return entropy[mass[:, 0] > 0].mean()
