"""What should be alike, in [0, 1]: target matrices for records and for beats.

Layout of the paper's figure: both views of all N items, [view 1 of all, view 2 of all], a
(2N, 2N) matrix with zero diagonal; the two views of one item have target 1.
`soft_1` and `soft_2` are not defined in what is known of the paper: what each of them measures is
one of `MEASURES`, by default `cosine` and `inverse_distance` (book page "What the paper does not
say").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from beatssl.settings import one_of


@dataclass(frozen=True)
class FeatureScale:
    """Medians and spreads of features, taken from training records only.

    Attributes: median, mean, sd, low, high: (features,) float32."""

    median: Tensor
    mean: Tensor
    sd: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def fit(cls, features: Tensor) -> FeatureScale:
        """From (items, features) with NaN; a column that is all NaN gets median 0, a constant one
        sd 1 (its standardised value is 0)."""
        median = features.nanmedian(dim=0).values.nan_to_num(0.0)
        filled = torch.where(features.isnan(), median, features)
        sd = filled.std(dim=0, unbiased=False)
        sd = torch.where(sd > 1e-6, sd, 1.0)
        return cls(median, filled.mean(dim=0), sd, *filled.aminmax(dim=0))

    def impute(self, features: Tensor) -> Tensor:
        """NaN -> median."""
        return torch.where(features.isnan(), self.median.to(features), features)

    def standardise(self, features: Tensor) -> Tensor:
        """NaN -> median, then zero mean and unit sd."""
        return (self.impute(features) - self.mean.to(features)) / self.sd.to(features)

    def minmax(self, features: Tensor) -> Tensor:
        """NaN -> median, then the training range to [0, 1]; a constant feature is 0."""
        low, high = self.low.to(features), self.high.to(features)
        return (self.impute(features) - low) / (high - low).clamp_min(1e-6)


def _cosine(x: Tensor) -> Tensor:
    """max(0, cosine) of every pair of rows; double, for 1 - cosine is as small as 1e-6."""
    unit = F.normalize(x.double(), dim=1)
    return (unit @ unit.T).clamp(0, 1).float()


def _distance(x: Tensor, scale: FeatureScale) -> Tensor:
    """Root mean square difference of standardised features, of every pair of rows."""
    u = scale.standardise(x)
    return torch.cdist(u, u) / u.shape[1] ** 0.5


def cosine(x: Tensor, scale: FeatureScale) -> Tensor:
    """Of raw features: times in ms, so that intervals decide; amplitudes in mV have no weight."""
    return _cosine(scale.impute(x))


def cosine_standardised(x: Tensor, scale: FeatureScale) -> Tensor:
    return _cosine(scale.standardise(x))


def cosine_minmax(x: Tensor, scale: FeatureScale) -> Tensor:
    return _cosine(scale.minmax(x))


def inverse_distance(x: Tensor, scale: FeatureScale) -> Tensor:
    return 1 / (1 + _distance(x, scale))


def exp_distance(x: Tensor, scale: FeatureScale) -> Tensor:
    return torch.exp(-_distance(x, scale))


def linear_distance(x: Tensor, scale: FeatureScale) -> Tensor:
    """1 - d / d_max, the largest of this batch."""
    d = _distance(x, scale)
    return 1 - d / d.max().clamp_min(1e-6)


MEASURES: dict[str, Callable[[Tensor, FeatureScale], Tensor]] = {
    measure.__name__: measure
    for measure in (
        cosine, cosine_standardised, cosine_minmax, inverse_distance, exp_distance, linear_distance,
    )
}  # fmt: skip


def similarity(measure: str, features: Tensor, scale: FeatureScale) -> Tensor:
    """Similarity in [0, 1] of every pair, before the exponent.

    `cosine..`: max(0, cosine). Distances d are root mean square differences of standardised
    features: 1 / (1 + d), exp(-d), 1 - d / d_max. NaN takes the training median everywhere.

    Args:
        features: (N, F), raw, may hold NaN.

    Returns:
        (N, N), ones on the diagonal.

    Raises:
        ValueError: an unknown measure.
    """
    one_of("measure", measure, MEASURES)
    return MEASURES[measure](features, scale)


def two_views(item_targets: Tensor) -> Tensor:
    """(N, N) targets between items -> (2N, 2N) between views: repeated in all four blocks, 1 for
    the two views of one item, 0 on the diagonal."""
    return item_targets.clone().fill_diagonal_(1.0).repeat(2, 2).fill_diagonal_(0.0)


def record_targets(
    target: str, features: Tensor, scale: FeatureScale, exponent: float = 1.0
) -> Tensor:
    """Rhythm context: (2N, 2N) targets of N records, `hard` or one of `MEASURES`.

    `hard` is 1 for the two views of one record and 0 elsewhere (NT-Xent's layout).

    Args:
        features: (N, F) record features; only their number matters to `hard`.
        exponent: element-wise power of the soft similarity (column "Exp." of Table 1)."""
    if target == "hard":
        return two_views(torch.zeros(len(features), len(features), device=features.device))
    return two_views(similarity(target, features, scale) ** exponent)


def beat_targets(
    target: str, classes: Tensor, features: Tensor, scale: FeatureScale, exponent: float = 1.0
) -> Tensor:
    """Beat context: (2K, 2K) targets of K beats, `hard` or one of `MEASURES`.

    `hard` is 1 for beats of the same predicted class (SupCon with pseudo-labels).

    Args:
        classes: (K,) integer class of each beat.
        features: (K, F) beat features."""
    if target == "hard":
        return two_views((classes[:, None] == classes[None, :]).float())
    return two_views(similarity(target, features, scale) ** exponent)


def same_record(record: Tensor) -> Tensor:
    """(2K, 2K) bool: pairs of beats from one record (either view), for `beat_scope="record"`.

    Args: record: (K,) index of each beat's record."""
    twice = record.repeat(2)
    return twice[:, None] == twice[None, :]


def off_diagonal(matrix: Tensor) -> Tensor:
    """All elements of an (n, n) matrix but its diagonal: (n - 1, n)."""
    n = len(matrix)
    return matrix.flatten()[1:].view(n - 1, n + 1)[:, :-1]


def row_entropies(targets: Tensor) -> Tensor:
    """Entropy of each row of normalised targets in nats, 0 for one without a target: log of the
    row's effective number of positives. Args: targets (M, M) with zero diagonal."""
    p = targets / targets.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return torch.special.entr(p).sum(dim=1)


def row_entropy(targets: Tensor) -> Tensor:
    """Mean of `row_entropies` over the rows with a target; 0 where there is none."""
    return row_entropies(targets).sum() / (targets.sum(dim=1) > 0).sum().clamp_min(1)
