"""Vectorcardiogram and the 3KG augmentation, batched in torch.

The matrices are Dower's (12-lead from VCG) and the published inverse (Dower 1980; Edenbrandt &
Pahlm 1988), the augmentation is 3KG's (Gopal et al., ML4H 2021): `x' = mask(D S R D^-1 x)`.
"""

import numpy as np
import torch
from torch import Generator, Tensor

from beatssl.data.vcg import FROM_VCG, TO_VCG

Device = torch.device | str


def vcg(signals: Tensor) -> Tensor:
    """VCG of 12-lead signals by the inverse Dower matrix: (batch, 12, time) -> (batch, 3, time)."""
    return _as(TO_VCG, signals) @ signals


def twelve_leads(vcg_signals: Tensor) -> Tensor:
    """12-lead signals of a VCG by the Dower matrix: (batch, 3, time) -> (batch, 12, time)."""
    return _as(FROM_VCG, vcg_signals) @ vcg_signals


def random_rotations(n: int, degrees: float, generator: Generator) -> Tensor:
    """Rotations about all three axes, in random order, each angle U[-degrees, degrees].

    Returns:
        (n, 3, 3) float32 on the CPU.
    """
    angles = (2 * torch.rand(n, 3, generator=generator) - 1) * np.deg2rad(degrees)
    order = torch.rand(n, 3, generator=generator).argsort(dim=1)  # a random permutation a row
    cos, sin = angles.cos(), angles.sin()
    about = torch.zeros(n, 3, 3, 3)  # [record, axis] -> rotation about that axis
    for axis in range(3):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        about[:, axis, axis, axis] = 1.0
        about[:, axis, a, a] = about[:, axis, b, b] = cos[:, axis]
        about[:, axis, a, b], about[:, axis, b, a] = -sin[:, axis], sin[:, axis]
    rows = torch.arange(n)
    first, second, third = (about[rows, order[:, i]] for i in range(3))
    return third @ second @ first


def random_scales(n: int, scale_max: float, generator: Generator) -> Tensor:
    """Scale of each VCG axis, U[1, scale_max], inverted with probability one half: (n, 3)."""
    scale = 1 + (scale_max - 1) * torch.rand(n, 3, generator=generator)
    invert = torch.rand(n, 3, generator=generator) < 0.5
    return torch.where(invert, 1 / scale, scale)


def random_masks(
    n: int, leads: int, time: int, fraction: float, generator: Generator, device: Device = "cpu"
) -> Tensor:
    """Samples to hide: per lead, floor(fraction * time) samples from a random start are True,
    wrapping from the end to the beginning. (n, leads, time) bool on the device."""
    start = torch.randint(time, (n, leads, 1), generator=generator).int().to(device)
    since, width = (
        torch.arange(time, dtype=torch.int32, device=device) - start,
        int(time * fraction),
    )
    return (since < width - time) | ((since >= 0) & (since < width))


def augment(
    signals: Tensor,
    generator: Generator,
    rotation_degrees: float = 45.0,
    scale_max: float = 1.5,
    mask_fraction: float = 0.5,
) -> Tensor:
    """One 3KG view of each record: `mask(D S R D^-1 x)` (3KG, section 3).

    Random numbers are drawn on the CPU from `generator`, so a view does not depend on the device;
    all else happens where the signals are.
    The result is a rank-3 projection: without rotation, scale and mask it is still not `x`.

    Args:
        signals: (batch, 12, time), any unit, leads in the order of `records.LEADS`.
        generator: the only source of randomness.
        rotation_degrees: largest angle about each axis, degrees.
        scale_max: largest scale of an axis (its inverse is the smallest).
        mask_fraction: part of each lead set to zero.

    Returns:
        (batch, 12, time), same type and device.
    """
    n, leads, time = signals.shape
    rotation = random_rotations(n, rotation_degrees, generator)
    scale = random_scales(n, scale_max, generator)
    turned = scale[:, :, None] * rotation @ _as(TO_VCG, rotation)  # S R D^-1: (n, 3, 12)
    transform = twelve_leads(turned)  # (n, 12, 12): the whole chain is one matrix a record
    view = transform.to(signals) @ signals
    hidden = random_masks(n, leads, time, mask_fraction, generator, view.device)
    return view.masked_fill_(hidden, 0.0)


def _as(matrix: np.ndarray, like: Tensor) -> Tensor:
    return torch.as_tensor(matrix, dtype=like.dtype, device=like.device)
