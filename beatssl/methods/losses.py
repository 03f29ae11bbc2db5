"""The contrastive loss in the forms that fit the paper's figure, and two health measures.

The paper's loss form is not stated. Ours is the normalised one, soft-target InfoNCE: with hard
targets it is NT-Xent (SimCLR, arXiv 2002.05709) for records and SupCon (arXiv 2004.11362) for
beats. The other forms are there to see how much hangs on it (book page "What the choices do").

A new form is one function and one line in `LOSSES`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from beatssl.settings import one_of

Pairs = Tensor | None  # (M, M) bool, pairs that take part; None = all


def soft_target_nce(
    z: Tensor, targets: Tensor, temperature: float, allowed: Pairs = None, normalise: bool = True
) -> Tensor:
    """Cross-entropy between targets and the softmax over the other embeddings.

    `p_ij = softmax_{j != i}(z_i . z_j / temperature)`,
    `L = -mean_i sum_j T_ij log p_ij / sum_j T_ij`; rows without any target are left out.

    Args:
        z: (M, dim) embeddings, of any length: they are normalised here.
        targets: (M, M) in [0, 1]; the diagonal is ignored.
        temperature: > 0.
        allowed: (M, M) bool, pairs that take part (in the softmax too); None = all.
        normalise: divide each row by the sum of its targets; without it rows with many positives
            weigh more (the form of SoftCLT, ICLR 2024).

    Returns:
        Scalar; 0 (with a gradient of 0) if no row has a target.

    Raises:
        ValueError: shapes that do not fit.
    """
    cosine, targets, keep = _pairs(z, targets, allowed)
    mass = targets.sum(dim=1)  # (M,)
    logits = (cosine / temperature).masked_fill(~keep, -1e9)  # (M, M)
    rows = -(targets * logits.log_softmax(dim=1)).sum(dim=1)  # (M,)
    if normalise:
        rows = rows / mass.clamp_min(1e-12)
    has_target = mass > 0
    return (rows * has_target).sum() / has_target.sum().clamp_min(1)


def unnormalised(z: Tensor, targets: Tensor, temperature: float, allowed: Pairs = None) -> Tensor:
    """`soft_target_nce` without the division by a row's targets."""
    return soft_target_nce(z, targets, temperature, allowed, normalise=False)


def bce(z: Tensor, targets: Tensor, temperature: float, allowed: Pairs = None) -> Tensor:
    """Binary cross-entropy of every pair, logits `z_i . z_j / temperature`."""
    cosine, targets, keep = _pairs(z, targets, allowed)
    return _mean(
        F.binary_cross_entropy_with_logits(cosine / temperature, targets, reduction="none"), keep
    )


def mse(z: Tensor, targets: Tensor, temperature: float, allowed: Pairs = None) -> Tensor:
    """Mean of `(z_i . z_j - T_ij)^2` over the pairs; the temperature has no part in it."""
    cosine, targets, keep = _pairs(z, targets, allowed)
    return _mean((cosine - targets).square(), keep)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "normalised": soft_target_nce,
    "unnormalised": unnormalised,
    "bce": bce,
    "mse": mse,
}


def contrastive_loss(
    form: str, z: Tensor, targets: Tensor, temperature: float, allowed: Pairs = None
) -> Tensor:
    """The loss in one of the forms of `LOSSES`; arguments as `soft_target_nce`.

    Raises:
        ValueError: an unknown form (the known ones are listed), or shapes that do not fit.
    """
    one_of("loss", form, LOSSES)
    return LOSSES[form](z, targets, temperature, allowed)


def _pairs(z: Tensor, targets: Tensor, allowed: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines, targets (0 where a pair takes no part) and which pairs take part: (M, M) each."""
    m = len(z)
    if targets.shape != (m, m):
        raise ValueError(f"targets have shape {tuple(targets.shape)}, expected {(m, m)}")
    z = F.normalize(z.float(), dim=1)
    keep = ~torch.eye(m, dtype=torch.bool, device=z.device)
    if allowed is not None:
        keep = keep & allowed
    return z @ z.T, targets * keep, keep


def _mean(values: Tensor, keep: Tensor) -> Tensor:
    """Mean over the pairs that take part; a device need not tell the processor how many."""
    return (values * keep).sum() / keep.sum().clamp_min(1)


def alignment(z_1: Tensor, z_2: Tensor) -> Tensor:
    """Mean squared distance of the two views on the sphere (Wang & Isola, arXiv 2005.10242).

    Args: z_1, z_2: (N, dim). 0 is perfect, 2 is chance in high dimension."""
    return (F.normalize(z_1.float(), dim=1) - F.normalize(z_2.float(), dim=1)).pow(2).sum(1).mean()


def view_health(z_1: Tensor, z_2: Tensor) -> dict[str, Tensor]:
    """`alignment` and `uniformity` of two views, (N, dim) each."""
    return {"alignment": alignment(z_1, z_2), "uniformity": uniformity(torch.cat([z_1, z_2]))}


def uniformity(z: Tensor) -> Tensor:
    """log mean exp(-2 |z_i - z_j|^2) over pairs, on the sphere (Wang & Isola, arXiv 2005.10242).

    Args: z: (N, dim). 0 is collapse, about -4 is uniform in high dimension."""
    z = F.normalize(z.float(), dim=1)
    return torch.pdist(z).pow(2).mul(-2).exp().mean().log()
