"""TS2Vec: the loss against loops in plain NumPy, its memory, the encoder, crops, running mean."""

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from beatssl.methods import ts2vec
from beatssl.methods.base import Batch, Setup
from beatssl.methods.ts2vec import TS2Vec, TS2VecConfig, TS2VecEncoder, TS2VecSettings

TINY = TS2VecConfig(hidden=6, depth=2, channels=8)


def views(b, t, c=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, b, t, c, generator=generator, dtype=torch.float64).unbind()


def signals(b=3, t=40, seed=0):
    return torch.randn(b, 12, t, generator=torch.Generator().manual_seed(seed))


BATCH = Batch(None, signals(), *[None] * 5)


def encoder(config=TINY, seed=0):
    torch.manual_seed(seed)
    return TS2VecEncoder(config).eval()


def method(config=TINY, seed=0, **settings):
    return TS2Vec(Setup(TS2VecSettings(network=config, **settings), encoder(config, seed)))


def receptive_field(config):
    """1 + sum over blocks i of 2 (kernel - 1) 2^i input samples."""
    return 1 + sum(4 * 2**i for i in range(config.depth + 1))


# The loss.


def nats(anchor, positive, others):
    """-log of the positive's share; `others` holds the positive."""
    return np.log(sum(np.exp(anchor @ v) for v in others)) - anchor @ positive


def numpy_instance(a, b):
    n, steps, _ = a.shape
    terms = []
    for t in range(steps):
        for i in range(n):
            rest = [v[j, t] for v in (a, b) for j in range(n) if j != i]
            terms.append(nats(a[i, t], b[i, t], [*rest, b[i, t]]))
            terms.append(nats(b[i, t], a[i, t], [*rest, a[i, t]]))
    return np.mean(terms)


def numpy_temporal(a, b):
    n, steps, _ = a.shape
    terms = []
    for i in range(n):
        for t in range(steps):
            rest = [v[i, s] for v in (a, b) for s in range(steps) if s != t]
            terms.append(nats(a[i, t], b[i, t], [*rest, b[i, t]]))
            terms.append(nats(b[i, t], a[i, t], [*rest, a[i, t]]))
    return np.mean(terms)


def numpy_hierarchical(a, b, alpha, temporal_unit):
    total, level = 0.0, 0
    while a.shape[1] > 1:
        total += alpha * numpy_instance(a, b)
        if level >= temporal_unit:
            total += (1 - alpha) * numpy_temporal(a, b)
        level += 1
        half = a.shape[1] // 2
        a, b = (
            np.stack([np.maximum(v[:, 2 * s], v[:, 2 * s + 1]) for s in range(half)], axis=1)
            for v in (a, b)
        )
    return (total + alpha * numpy_instance(a, b)) / (level + 1)


def full_matrices(z_1, z_2):
    """One level's contrast as its equation reads: all (2n)^2 dot products of all groups at once.

    Args: z_1, z_2: (groups, n, channels)."""
    both, n = torch.cat([z_1, z_2], dim=1), z_1.shape[1]
    itself = torch.eye(2 * n, dtype=torch.bool)
    raw = torch.einsum("gtc,gsc->gts", both, both).masked_fill(itself, -torch.inf)
    log_p = raw.log_softmax(dim=2)
    return -(log_p.diagonal(n, 1, 2).mean() + log_p.diagonal(-n, 1, 2).mean()) / 2


def full_hierarchical(z_1, z_2):
    """Instance and temporal loss over all levels of the pyramid, from `full_matrices`."""
    instance, temporal = [], []
    while True:
        instance.append(full_matrices(z_1.transpose(0, 1), z_2.transpose(0, 1)))
        if z_1.shape[1] == 1:
            return sum(instance) / len(instance), sum(temporal) / len(instance)
        temporal.append(full_matrices(z_1, z_2))
        z_1, z_2 = (torch.nn.functional.max_pool1d(z.mT, 2).mT for z in (z_1, z_2))


def test_full_matrices_equal_the_equations():
    z_1, z_2 = views(3, 5)
    found = full_hierarchical(z_1, z_2)
    a, b = z_1.numpy(), z_2.numpy()
    for weight, value in zip((1.0, 0.0), found, strict=True):
        assert value.item() == pytest.approx(numpy_hierarchical(a, b, weight, 0), abs=1e-9)


@pytest.mark.parametrize("t", [1, 5, 8])
@pytest.mark.parametrize(("alpha", "unit"), [(0.5, 0), (0.3, 1), (0.5, 9)])
def test_loss_equals_the_equations(t, alpha, unit):
    z_1, z_2 = views(3, t)
    expected = numpy_hierarchical(z_1.numpy(), z_2.numpy(), alpha, unit)
    instance, temporal = ts2vec.hierarchical_parts(z_1, z_2, unit)
    got = (alpha * instance + (1 - alpha) * temporal).item()
    assert got == pytest.approx(expected, abs=1e-6)


def test_parts_equal_the_equations_and_are_zero_without_negatives():
    z_1, z_2 = views(3, 5)
    a, b = z_1.numpy(), z_2.numpy()
    assert ts2vec.instance_loss(z_1, z_2).item() == pytest.approx(numpy_instance(a, b), abs=1e-6)
    assert ts2vec.temporal_loss(z_1, z_2).item() == pytest.approx(numpy_temporal(a, b), abs=1e-6)
    z_1, z_2 = (30 * z.float() for z in (z_1, z_2))
    assert ts2vec.instance_loss(z_1[:1], z_2[:1]) == 0
    assert ts2vec.temporal_loss(z_1[:, :1], z_2[:, :1]) == 0
    lone = z_1[:1, :1].requires_grad_()
    sum(ts2vec.hierarchical_parts(lone, z_2[:1, :1])).backward()
    assert torch.equal(lone.grad, torch.zeros_like(lone))


def test_shapes_of_the_views_are_checked():
    z_1, z_2 = views(3, 5)
    with pytest.raises(RuntimeError, match="Expected size 5 but got size 4"):
        ts2vec.hierarchical_parts(z_1, z_2[:, :4])


@pytest.mark.parametrize("elements", [1, 3 * 14**2, 2**24])
def test_gradient_in_chunks_equals_the_one_in_one_piece(monkeypatch, elements):
    """7 steps: a matrix has 14^2 elements, so the 5 records go in 5, 2 (uneven) and 1 chunks."""
    monkeypatch.setattr(ts2vec, "CHUNK_ELEMENTS", elements)
    z = torch.stack(views(5, 7)).requires_grad_()
    naive = full_matrices(z[0], z[1])
    chunked = ts2vec.temporal_loss(z[0], z[1])
    torch.testing.assert_close(chunked, naive)
    expected, got = (torch.autograd.grad(loss, z)[0] for loss in (naive, chunked))
    assert got.abs().max() > 0
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


class Memory(TorchDispatchMode):
    """Elements of the largest tensor that was made, and most elements alive at the same time."""

    def __init__(self):
        super().__init__()
        self.alive, self.largest, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
                ref = StorageWeakRef(x.untyped_storage())
                self.alive[ref] = x.untyped_storage().nbytes() // x.element_size()
        self.alive = {ref: n for ref, n in self.alive.items() if not ref.expired()}
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def test_memory_of_the_temporal_loss_grows_with_the_chunk_not_with_the_batch(monkeypatch):
    """Forward and backward; one record's matrix has 64^2 elements, z 64 times fewer a record."""
    one = 64**2
    for records in (4, 16):
        for chunk in (1, 2):
            monkeypatch.setattr(ts2vec, "CHUNK_ELEMENTS", chunk * one)
            z_1, z_2 = (z.float().requires_grad_() for z in views(records, 32, c=1))
            with Memory() as memory:
                ts2vec.temporal_loss(z_1, z_2).backward()
            assert memory.largest == chunk * one
            assert memory.peak < (3 * chunk + 1) * one + 12 * 32 * records


def test_default_chunk_keeps_the_papers_case_under_two_gigabytes():
    """16 records of 1000 steps, float32: three matrices of a chunk and the diagonal's mask."""
    records = ts2vec.CHUNK_ELEMENTS // 2000**2
    assert records >= 1 and 4 * 2000**2 * (3 * records + 1) < 2e9 / 8


# The encoder.


def test_encoder_has_the_papers_size_and_receptive_field():
    e = encoder(TS2VecConfig())
    assert sum(p.numel() for p in e.parameters()) == 637_952
    assert receptive_field(TS2VecConfig()) == 8_189
    assert (e.channels, e.stride) == (320, 1)
    assert e(signals(1, 9)).shape == (1, 320, 9)


@pytest.mark.parametrize("depth", [0, 2])
def test_one_sample_reaches_as_far_as_the_receptive_field(depth):
    config = TS2VecConfig(hidden=6, depth=depth, channels=8)
    e, x, at = encoder(config).double(), signals(1, 81).double(), 40
    moved = x.clone()
    moved[:, 3, at] += 1
    changed = (e(x) != e(moved)).any(dim=1)[0].nonzero()[:, 0]
    field = receptive_field(config)
    assert field == {0: 5, 2: 29}[depth]
    assert (changed.min(), changed.max()) == (at - field // 2, at + field // 2)


def test_shortcut_is_projected_where_the_width_changes_and_in_the_last_block():
    e = encoder(TS2VecConfig(hidden=8, depth=2, channels=8))
    assert [isinstance(b.shortcut, torch.nn.Conv1d) for b in e.blocks] == [False, False, True]
    assert isinstance(encoder().blocks[-1].shortcut, torch.nn.Conv1d)


def test_mask_sets_latents_to_zero_after_the_linear_layer():
    e, x = encoder(), signals()
    mask = ts2vec.random_masks(3, 40, 0.5, torch.Generator().manual_seed(1))
    latents = []
    e.blocks.register_forward_pre_hook(lambda module, args: latents.append(args[0]))
    masked, full = e(x, mask), e(x)
    assert (latents[0].transpose(1, 2)[~mask] == 0).all()
    assert torch.equal(latents[0].transpose(1, 2)[mask], latents[1].transpose(1, 2)[mask])
    assert not torch.allclose(masked, full)
    torch.testing.assert_close(e(x, torch.ones_like(mask)), full)


def test_masked_samples_have_no_influence():
    e, x = encoder(), signals()
    mask = ts2vec.random_masks(3, 40, 0.5, torch.Generator().manual_seed(1))
    moved = torch.where(mask[:, None], x, 100.0)
    assert not torch.equal(e(x), e(moved))
    assert torch.equal(e(x, mask), e(moved, mask))


def test_nan_counts_as_zero_and_the_callers_tensor_stays():
    e, x = encoder(), signals()
    x[0, 3, 5:9] = torch.nan
    x[1, :, 20] = torch.nan
    before = x.clone()
    torch.testing.assert_close(e(x), e(x.nan_to_num(0.0)))
    torch.testing.assert_close(x, before, rtol=0, atol=0, equal_nan=True)


def test_shapes_of_signals_and_mask_are_checked():
    with pytest.raises(RuntimeError, match="80x3 and 12x"):
        encoder()(torch.zeros(2, 3, 40))
    with pytest.raises(RuntimeError, match="39.* must match .*40"):
        encoder()(signals(), torch.ones(3, 39, dtype=torch.bool))


# The views.


@pytest.mark.parametrize("unit", [0, 2])
def test_crops_overlap_in_the_same_samples_of_the_same_series(unit):
    """On a ramp of integers, a sample's value says where it is from."""
    ramp = torch.arange(6 * 12 * 30).reshape(6, 12, 30)
    overlaps, spread = set(), False
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        crop_1, crop_2, overlap = ts2vec.overlapping_crops(ramp, generator, unit)
        assert torch.equal(crop_1[..., -overlap:], crop_2[..., :overlap])
        for crop in (crop_1, crop_2):
            assert overlap <= crop.shape[2] <= 30
            assert (crop.diff(dim=2) == 1).all()
            assert torch.equal(crop // 30, (ramp // 30)[..., : crop.shape[2]])
        starts = crop_1[:, 0, 0] % 30
        overlaps.add(overlap)
        spread |= len(starts.unique()) > 1
    assert spread and min(overlaps) == 2 ** (unit + 1) and max(overlaps) == 30


def test_series_too_short_to_crop_are_refused():
    generator = torch.Generator().manual_seed(0)
    assert ts2vec.overlapping_crops(torch.zeros(1, 12, 4), generator, 1)[2] == 4
    with pytest.raises(ValueError, match="3 samples are shorter than the least overlap, 4"):
        ts2vec.overlapping_crops(torch.zeros(1, 12, 3), generator, 1)


def test_share_of_masked_steps_is_the_probability():
    generator = torch.Generator().manual_seed(0)
    kept = ts2vec.random_masks(40, 500, 0.2, generator)
    assert kept.double().mean().item() == pytest.approx(0.8, abs=0.01)  # 3.5 standard errors


# The method.


def test_training_step_repeats_with_the_generator_and_gives_the_parts():
    model = method().train()

    def step(seed):
        return model.training_step(BATCH, torch.Generator().manual_seed(seed))

    first, again, other = step(1), step(1), step(2)
    assert set(first) == {"total", "instance", "temporal"}
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert first["total"] != other["total"]
    half = (first["instance"] + first["temporal"]) / 2
    torch.testing.assert_close(first["total"].detach(), half)
    assert not first["instance"].requires_grad and not first["temporal"].requires_grad
    first["total"].backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert all(p.grad is None for p in model.averaged.parameters())


def test_training_step_masks_both_views():
    """All steps masked and no biases in the blocks: all vectors are 0, the loss is log(2B - 1)."""
    model = method(TS2VecConfig(hidden=6, depth=1, channels=8), mask_probability=1.0)
    with torch.no_grad():
        for name, p in model.encoder.blocks.named_parameters():
            p.mul_(not name.endswith("bias"))
    losses = model.training_step(BATCH, torch.Generator().manual_seed(4))
    assert losses["instance"].item() == pytest.approx(np.log(5))


def test_training_step_contrasts_the_same_time_steps(monkeypatch):
    """Without masks, vectors of the two views differ only near the ends of the crops."""
    config = TS2VecConfig(hidden=6, depth=0, channels=8, dropout=0.0)
    model, seen = method(config, mask_probability=0.0), []
    parts = ts2vec.hierarchical_parts
    monkeypatch.setattr(
        ts2vec, "hierarchical_parts", lambda *args: seen.append(args) or parts(*args)
    )
    for seed in range(5):
        model.training_step(BATCH, torch.Generator().manual_seed(seed))
    assert max(z_1.shape[1] for z_1, _, _ in seen) > 8
    reach = receptive_field(config) // 2
    for z_1, z_2, unit in seen:
        inside = slice(reach, z_1.shape[1] - reach)
        assert z_1.shape == z_2.shape and unit == 0
        torch.testing.assert_close(z_1[:, inside], z_2[:, inside], rtol=0, atol=0.02)  # bfloat16


def test_training_lowers_the_loss():
    model = method().train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    totals = []
    for seed in range(12):
        total = model.training_step(BATCH, torch.Generator().manual_seed(seed % 3))["total"]
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        model.after_step()
        totals.append(total.item())
    assert sum(totals[-3:]) < sum(totals[:3])


def test_running_mean_is_that_of_the_initial_weights_and_those_after_each_step():
    model = method().eval()
    x, states = signals(), [[p.clone() for p in model.encoder.parameters()]]
    torch.testing.assert_close(model.encode(x), model.encoder(x))  # before the first step
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.encoder.parameters():
                p.add_(torch.randn(p.shape, generator=generator))
        model.after_step()
        states.append([p.clone() for p in model.encoder.parameters()])
    assert len(states) == model.averages.item() == 5
    for mean, *weights in zip(model.averaged.parameters(), *states, strict=True):
        torch.testing.assert_close(mean, torch.stack(weights).mean(dim=0), rtol=1e-5, atol=1e-6)
    assert torch.equal(model.encode(x), model.averaged(x))
    assert model.encode(x).shape == (3, 8, 40)
    assert not torch.allclose(model.encode(x), model.encoder(x))


def test_running_mean_goes_on_after_saving_and_loading():
    model, loaded = method(), method(seed=1)
    model.after_step()
    loaded.load_state_dict(model.state_dict())
    assert loaded.averages.item() == 2
