"""The one loss, soft-target InfoNCE, and two diagnostics of an embedding.

With hard targets it is NT-Xent (SimCLR, arXiv 2002.05709) for records and SupCon (arXiv
2004.11362) for beats; the paper's loss form is not stated, this one is ours (book page "What the
paper does not say").
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def soft_target_nce(
    z: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    allowed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy between row-normalised targets and the softmax over the other embeddings.

    `p_ij = softmax_{j != i}(z_i . z_j / temperature)`,
    `L = -mean_i sum_j T_ij log p_ij / sum_j T_ij`; rows without any target are left out.

    Args:
        z: (M, dim) embeddings, of any length: they are normalised here.
        targets: (M, M) in [0, 1]; the diagonal is ignored.
        temperature: > 0.
        allowed: (M, M) bool, pairs that take part (in the softmax too); None = all.

    Returns:
        Scalar; 0 (with a gradient of 0) if no row has a target.

    Raises:
        ValueError: shapes that do not fit.
    """
    m = len(z)
    if targets.shape != (m, m):
        raise ValueError(f"targets have shape {tuple(targets.shape)}, expected {(m, m)}")
    z = F.normalize(z.float(), dim=1)
    keep = ~torch.eye(m, dtype=torch.bool, device=z.device)
    if allowed is not None:
        keep = keep & allowed
    targets = targets * keep  # (M, M)
    mass = targets.sum(dim=1)  # (M,)
    logits = (z @ z.T / temperature).masked_fill(~keep, -1e9)  # (M, M)
    log_p = logits.log_softmax(dim=1)
    rows = -(targets * log_p).sum(dim=1) / mass.clamp_min(1e-12)  # (M,)
    has_target = mass > 0
    return (rows * has_target).sum() / has_target.sum().clamp_min(1)


def alignment(z_1: torch.Tensor, z_2: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of the two views on the sphere (Wang & Isola, arXiv 2005.10242).

    Args: z_1, z_2: (N, dim). 0 is perfect, 2 is chance in high dimension."""
    return (F.normalize(z_1.float(), dim=1) - F.normalize(z_2.float(), dim=1)).pow(2).sum(1).mean()


def uniformity(z: torch.Tensor) -> torch.Tensor:
    """log mean exp(-2 |z_i - z_j|^2) over pairs, on the sphere (Wang & Isola, arXiv 2005.10242).

    Args: z: (N, dim). 0 is collapse, about -4 is uniform in high dimension."""
    z = F.normalize(z.float(), dim=1)
    return torch.pdist(z).pow(2).mul(-2).exp().mean().log()
