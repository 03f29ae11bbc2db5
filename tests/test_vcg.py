"""Dower's matrices and the 3KG augmentation, against published digits and plain NumPy."""

import numpy as np
import pytest
import torch

from beatssl.data.vcg import DOWER, INVERSE_DOWER
from beatssl.methods import views as vcg

LEAD = {
    name: i
    for i, name in enumerate(
        ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    )
}


def signals(n=5, time=200, seed=0):
    return torch.randn(n, 12, time, generator=torch.Generator().manual_seed(seed))


def test_published_inverse_is_the_pseudo_inverse():
    assert np.abs(INVERSE_DOWER - np.linalg.pinv(DOWER)).max() < 6e-4
    assert np.abs(INVERSE_DOWER @ DOWER - np.eye(3)).max() < 1e-3


def test_vcg_of_projected_leads_is_the_vcg():
    heart = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(1))
    assert (vcg.vcg(vcg.twelve_leads(heart)) - heart).abs().max() < 5e-3


def test_derived_leads_obey_einthoven_and_goldberger():
    x = vcg.augment(signals(), torch.Generator().manual_seed(0), mask_fraction=0.0)
    lead = lambda name: x[:, LEAD[name]]  # noqa: E731
    for derived, expected in {
        "III": lead("II") - lead("I"),
        "aVR": -(lead("I") + lead("II")) / 2,
        "aVL": lead("I") - lead("II") / 2,
        "aVF": lead("II") - lead("I") / 2,
    }.items():
        torch.testing.assert_close(lead(derived), expected, atol=1e-5, rtol=1e-4)


def test_augmentation_is_a_rank_three_transform_of_the_vcg():
    x = vcg.augment(signals(), torch.Generator().manual_seed(3), mask_fraction=0.0)
    for record in x.double():
        assert torch.linalg.matrix_rank(record, rtol=1e-5) == 3


def test_no_rotation_scale_or_mask_is_the_dower_projection():
    x = signals()
    same = vcg.augment(x, torch.Generator(), rotation_degrees=0, scale_max=1, mask_fraction=0)
    torch.testing.assert_close(same, vcg.twelve_leads(vcg.vcg(x)), atol=1e-5, rtol=1e-4)


def record_by_record(x, generator, degrees=45.0, scale_max=1.5, mask_fraction=0.5):
    """mask(D S R D^-1 x) by a loop over records in plain NumPy, from the same draws as `augment`.

    Args: x (n, 12, time) array, generator as for `augment`. Returns: the same shape and type."""
    (n, _, time), g = x.shape, {"generator": generator}
    angles = np.deg2rad(degrees) * (2 * torch.rand(n, 3, **g) - 1).numpy().astype(float)
    order = torch.rand(n, 3, **g).argsort(dim=1).numpy()
    scale = 1 + (scale_max - 1) * torch.rand(n, 3, **g).numpy()
    invert = torch.rand(n, 3, **g).numpy() < 0.5
    start = torch.randint(time, (n, 12, 1), **g).numpy()
    gone, out = np.arange(int(time * mask_fraction)), np.empty_like(x)
    to_vcg, from_vcg = INVERSE_DOWER.astype(x.dtype), DOWER.astype(x.dtype)
    for i in range(n):
        heart = to_vcg @ x[i, [0, 1, 6, 7, 8, 9, 10, 11]]
        for axis in order[i]:
            c, s = np.cos(angles[i, axis]), np.sin(angles[i, axis])
            turn = {
                0: [[1, 0, 0], [0, c, -s], [0, s, c]],
                1: [[c, 0, s], [0, 1, 0], [-s, 0, c]],
                2: [[c, -s, 0], [s, c, 0], [0, 0, 1]],
            }[axis]
            heart = np.array(turn, x.dtype) @ heart
        heart = np.where(invert[i], 1 / scale[i], scale[i])[:, None] * heart
        i_, ii, *chest = from_vcg @ heart
        out[i] = np.stack([i_, ii, ii - i_, -(i_ + ii) / 2, i_ - ii / 2, ii - i_ / 2, *chest])
        np.put_along_axis(out[i], (start[i] + gone) % time, 0, axis=1)  # wrapping
    return out


@pytest.mark.parametrize("settings", [(45.0, 1.5, 0.25), (20.0, 1.2, 0.5)])
def test_augmentation_equals_a_record_by_record_derivation(settings):
    """D S R D^-1 x then the mask, re-derived with NumPy from the same draws."""
    x = signals(3, 40)
    out = vcg.augment(x, torch.Generator().manual_seed(7), *settings)
    expected = record_by_record(x.numpy(), torch.Generator().manual_seed(7), *settings)
    np.testing.assert_allclose(out.numpy(), expected, atol=2e-5)
    assert ((out == 0).sum(dim=2) == int(40 * settings[2])).all()


def test_rotations_are_rotations_within_the_angle_and_in_random_order():
    r = vcg.random_rotations(500, 45.0, torch.Generator().manual_seed(0)).double()
    eye = torch.eye(3, dtype=torch.float64).expand_as(r)
    torch.testing.assert_close(r @ r.transpose(1, 2), eye, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        torch.linalg.det(r), torch.ones(500, dtype=torch.float64), atol=1e-5, rtol=0
    )
    # one axis order only would pin one entry to sin of a single angle: |sin| <= sin 45
    assert all(
        r[:, i, j].abs().max() > np.sin(np.pi / 4) + 0.01
        for i in range(3)
        for j in range(3)
        if i != j
    )


def test_scales_are_inverted_half_of_the_time():
    s = vcg.random_scales(4000, 1.5, torch.Generator().manual_seed(0))
    assert s.min() >= 1 / 1.5 and s.max() <= 1.5
    assert abs((s < 1).float().mean() - 0.5) < 0.02


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5])
def test_masks_zero_the_stated_part_of_each_lead_in_one_wrapping_run(fraction):
    hidden = vcg.random_masks(50, 12, 101, fraction, torch.Generator().manual_seed(0))
    assert (hidden.sum(dim=2) == int(101 * fraction)).all()
    borders = (hidden != hidden.roll(1, dims=2)).sum(dim=2)
    assert (borders == (2 if fraction else 0)).all()
    start = torch.randint(101, (50, 12, 1), generator=torch.Generator().manual_seed(0))
    assert hidden.gather(2, start).all() == (fraction > 0)  # from the drawn sample on
    assert not hidden.gather(2, (start - 1) % 101).any()
    if fraction:
        assert (hidden[:, 0] != hidden[:, 1]).any(dim=1).float().mean() > 0.9  # for each lead


def test_same_generator_same_view_and_other_leads_are_refused():
    first = vcg.augment(signals(), torch.Generator().manual_seed(5))
    assert torch.equal(first, vcg.augment(signals(), torch.Generator().manual_seed(5)))
    assert not torch.equal(first, vcg.augment(signals(), torch.Generator().manual_seed(6)))
    with pytest.raises(RuntimeError, match="12, 12.*8, 10|size"):
        vcg.augment(torch.zeros(2, 8, 10), torch.Generator())
