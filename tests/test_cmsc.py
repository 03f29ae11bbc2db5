"""CMSC: halves of a record and the loss, against plain NumPy."""

import numpy as np
import pytest
import torch

from beatssl.methods import cmsc
from beatssl.methods.base import Batch, Setup
from beatssl.methods.encoder import EncoderConfig, build_encoder
from beatssl.methods.losses import soft_target_nce

Z_1, Z_2 = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))


def signals(n=6, time=101):
    return torch.randn(n, 12, time, generator=torch.Generator().manual_seed(1))


def test_halves_are_adjacent_and_do_not_overlap():
    x = torch.arange(9.0).repeat(2, 12, 1)
    x[1] += 100
    out = cmsc.halves(x)
    assert out.shape == (4, 12, 4)
    assert out[:, 3].tolist() == [
        [0, 1, 2, 3],
        [100, 101, 102, 103],
        [4, 5, 6, 7],
        [104, 105, 106, 107],
    ]
    assert torch.equal(torch.cat(cmsc.halves(x[:, :, :8]).split(2), dim=2), x[:, :, :8])


def test_loss_equals_plain_numpy():
    """Both directions, row by row; halves of the same side are no negatives."""
    for tau in (0.1, 1.0):
        u, v = (z.double().numpy() for z in (Z_1, Z_2))
        total = 0.0
        for a, b in ((u, v), (v, u)):
            for i in range(6):
                cosine = [a[i] @ w / np.linalg.norm(a[i]) / np.linalg.norm(w) for w in b]
                s = np.exp(np.array(cosine) / tau)
                total += -np.log(s[i] / s.sum()) / 12
        assert cmsc.cmsc_loss(Z_1, Z_2, tau).item() == pytest.approx(total, rel=1e-5)


def test_loss_is_nt_xent_between_the_halves():
    n = len(Z_1)
    cross = torch.ones(2 * n, 2 * n, dtype=torch.bool)
    cross[:n, :n] = cross[n:, n:] = False
    own = torch.eye(n).repeat(2, 2) * cross
    expected = soft_target_nce(torch.cat([Z_1, Z_2]), own, 0.1, cross)
    torch.testing.assert_close(cmsc.cmsc_loss(Z_1, Z_2, 0.1), expected)


def test_loss_is_almost_zero_for_matching_halves_and_log_n_for_halves_all_alike():
    eye = torch.eye(6)
    assert cmsc.cmsc_loss(eye, 3 * eye, 0.05).item() == pytest.approx(0, abs=1e-6)
    assert cmsc.cmsc_loss(eye, eye.roll(1, 0), 0.05).item() == pytest.approx(20, abs=1e-4)
    alike = cmsc.cmsc_loss(torch.ones(6, 3), torch.ones(6, 3), 0.1)
    assert alike.item() == pytest.approx(np.log(6), rel=1e-5)


def test_loss_does_not_know_first_from_second_nor_the_order_of_records():
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    reference = cmsc.cmsc_loss(Z_1, Z_2, 0.1)
    torch.testing.assert_close(cmsc.cmsc_loss(Z_2, Z_1, 0.1), reference)
    torch.testing.assert_close(cmsc.cmsc_loss(Z_1[order], Z_2[order], 0.1), reference)
    with pytest.raises(IndexError, match="out of bounds"):
        cmsc.cmsc_loss(Z_1, Z_2[:5], 0.1)
    with pytest.raises(ValueError, match="batch_size"):
        cmsc.cmsc_loss(Z_1[:5], Z_2, 0.1)
    with pytest.raises(ValueError, match="temperature must lie in"):
        cmsc.CMSCSettings(temperature=0)


def method():
    small = EncoderConfig(widths=(4,), strides=(1,), dilations=(1,), blocks=1)
    torch.manual_seed(0)
    settings = cmsc.CMSCSettings(projector_hidden=8, projector_out=4)
    return cmsc.CMSC(Setup(settings, build_encoder(small, 0)))


def test_training_step_is_finite_draws_nothing_and_reaches_the_encoder():
    model, batch = method(), Batch(None, signals(), *[None] * 5)
    g = torch.Generator().manual_seed(0)
    before, outside = g.get_state(), torch.get_rng_state()
    parts = model.training_step(batch, g)
    assert torch.equal(before, g.get_state()) and torch.equal(outside, torch.get_rng_state())
    assert all(torch.isfinite(v) for v in parts.values())
    assert [k for k, v in parts.items() if v.requires_grad] == ["total"]
    parts["total"].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.encoder.parameters())
    assert model.encode(batch.signals).shape == (6, 4, 51)


def test_training_step_contrasts_the_halves_of_the_same_record():
    model = method().eval()  # running statistics: each half alone gives the same embedding
    x = signals(6, 100)
    parts = model.training_step(Batch(None, x, *[None] * 5), torch.Generator())
    with cmsc.autocast(x.device):
        z_1, z_2 = (
            model.projector(model.encode(h).mean(dim=2)) for h in (x[..., :50], x[..., 50:])
        )
    torch.testing.assert_close(parts["total"], cmsc.cmsc_loss(z_1, z_2, 0.1), rtol=1e-2, atol=1e-2)


def test_a_few_steps_lower_the_loss():
    """Records that differ in frequency: their halves can be told apart."""
    t = torch.arange(100.0)
    tone = torch.sin(2 * torch.pi * torch.linspace(0.02, 0.3, 6)[:, None] * t)
    batch = Batch(None, tone[:, None, :].repeat(1, 12, 1), *[None] * 5)
    model = method()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    curve = []
    for _ in range(30):
        total = model.training_step(batch, torch.Generator())["total"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        curve.append(total.item())
    assert np.mean(curve[-5:]) < 0.5 * curve[0]
