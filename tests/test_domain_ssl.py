"""Domain-SSL: augmentation, neighbours, losses and prototypes against plain NumPy."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from beatssl.data.features import BEAT_FEATURES, RECORD_FEATURES
from beatssl.methods import domain_ssl as d
from beatssl.methods import losses
from beatssl.methods.base import Batch, Setup
from beatssl.methods.encoder import StandardisedConfig, build_encoder, zscore
from beatssl.methods.targets import FeatureScale
from beatssl.tasks.classify import Classifier

CONFIG = d.DomainSSLSettings()
NEUTRAL = d.DomainSSLSettings(
    jitter_seconds=0, time_scale=(1, 1), magnitude=(1, 1), noise_sd=0, cutout=0
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def signals(n=3, time=80, seed=0):
    return 2 + torch.randn(n, 12, time, generator=generator(seed))


def unit(z):
    z = np.asarray(z, float)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


# Features


def test_the_54_features_are_the_sources_groups():
    """8 of the R peaks, 20 of the waves, 25 of hrv_time, 1 of quality (Gu et al. 2025)."""
    times = {f"time_{w}" for w in ["PR", "QR", "RS", "RT", "PQ", "PS", "PT", "QS", "QT", "ST"]}
    amplitudes = {f"amplitude_{w}" for w in ["PQ", "QR", "RS", "ST", "PS", "PT", "QS", "QT"]}
    waves = times | amplitudes | {"time_ST_over_QS", "time_RS_over_QR"}
    peaks = {"r_amplitude", "rr0", "rr1", "rr2", "rr_mean", "rr0_rr1", "rr2_rr1", "rr_mean_rr1"}
    hrv = {name for name in RECORD_FEATURES if name.startswith("HRV_")}
    assert (len(peaks), len(waves), len(hrv)) == (8, 20, 25)
    assert set(BEAT_FEATURES) == peaks | waves
    assert set(RECORD_FEATURES) == peaks | waves | hrv | {"quality"}
    assert len(RECORD_FEATURES) == len(set(RECORD_FEATURES)) == 54


# Augmentation


def test_neutral_augmentation_is_the_z_score():
    x = signals()
    x[1, 4] = 7.0  # a constant lead
    view = d.augment(x, generator(), NEUTRAL, 100)
    y = x.double().numpy()
    sd = y.std(axis=2, keepdims=True)
    expected = np.where(sd > 1e-6, (y - y.mean(axis=2, keepdims=True)) / np.maximum(sd, 1e-6), 0)
    np.testing.assert_allclose(view, expected, atol=1e-5)
    assert view.shape == x.shape and view.dtype == x.dtype and (view[1, 4] == 0).all()


def test_shift_is_circular_and_reaches_five_samples_at_125_hz_either_way():
    x = torch.arange(8.0).repeat(2, 12, 1)
    moved = d.circular_shift(x, torch.tensor([3, -2]))
    assert moved[0, 5].tolist() == [5, 6, 7, 0, 1, 2, 3, 4]
    assert moved[1, 0].tolist() == [2, 3, 4, 5, 6, 7, 0, 1]
    impulse = torch.zeros(300, 12, 40)
    impulse[:, :, 2] = 1
    for rate, reach in {125: 5, 100: 4, 500: 20}.items():
        config = replace(NEUTRAL, jitter_seconds=CONFIG.jitter_seconds)
        peak = d.augment(impulse, generator(), config, rate).argmax(dim=2)
        assert (peak == peak[:, :1]).all()  # the same in every lead
        expected = {(2 + s) % 40 for s in range(-reach, reach + 1)}
        assert set(peak[:, 0].tolist()) == expected


def test_time_scaling_moves_a_peak_pads_with_zeros_and_crops():
    t = torch.arange(100.0)
    bump = 1 + torch.exp(-((t - 60) ** 2) / 50).repeat(3, 12, 1)
    out = d.time_scale(bump, torch.tensor([1.25, 0.8, 1.0]))
    assert out.argmax(dim=2)[:, 0].tolist() == [75, 48, 60]
    torch.testing.assert_close(out[:, :, 0], bump[:, :, 0])
    torch.testing.assert_close(out[2], bump[2])
    assert (out[1, :, 80:] == 0).all() and (out[1, :, :79] > 0.9).all()
    assert (out[0] > 0.9).all()  # stretched: nothing to pad
    slope = d.time_scale(t.repeat(1, 12, 1), torch.tensor([1.25]))
    torch.testing.assert_close(slope[0, 0], t / 1.25)  # between samples: linear


def test_cutout_zeroes_exactly_the_share_in_all_leads_of_one_window():
    x = torch.ones(4, 12, 20)
    out = d.cutout(x, torch.tensor([0, 3, 7, 15]), 5)
    for record, start in zip(out, (0, 3, 7, 15), strict=True):
        for lead in record:
            assert (lead == 0).nonzero().ravel().tolist() == list(range(start, start + 5))
    starts = set()
    for hidden in d.augment(signals(300, 20), generator(), replace(NEUTRAL, cutout=0.25), 100) == 0:
        assert hidden.sum() == 12 * 5
        starts.add(int(hidden[0].int().argmax()))
    assert starts == set(range(16))


def test_magnitude_and_noise_have_the_stated_spread():
    x = signals(400, 40)
    z = zscore(x)
    size = d.augment(x, generator(), replace(NEUTRAL, magnitude=(0.8, 1.2)), 100) / z
    torch.testing.assert_close(size, size[:, :1, :1].expand_as(size), atol=1e-3, rtol=1e-3)
    size = size[:, 0, z[:, 0].abs().mean(dim=0).argmax()]
    assert 0.799 < size.min() < 0.81 and 1.19 < size.max() < 1.201
    noise = d.augment(x, generator(), replace(NEUTRAL, noise_sd=0.2), 100) - z
    assert noise.std().item() == pytest.approx(0.2, rel=0.01)
    assert abs(noise.mean().item()) < 2e-3
    both_leads = torch.corrcoef(torch.stack([noise[:, 0].ravel(), noise[:, 1].ravel()]))
    assert abs(both_leads[0, 1]) < 0.03


def test_augmentation_equals_a_record_by_record_derivation():
    """From the same draws, with NumPy's roll and interp, in the source's order."""
    n, time, x = 5, 60, signals(5, 60)
    out = d.augment(x, generator(7), CONFIG, 100)
    g = generator(7)
    shift = torch.randint(-4, 5, (n,), generator=g).numpy()
    stretch = (0.8 + 0.4 * torch.rand(n, generator=g)).numpy()
    size = (0.8 + 0.4 * torch.rand(n, generator=g)).numpy()
    noise = torch.randn(n, 12, time, generator=g).numpy()
    start = torch.randint(46, (n,), generator=g).numpy()
    t = np.arange(time)
    for i in range(n):
        for lead in range(12):
            y = x[i, lead].double().numpy()
            y = np.roll((y - y.mean()) / y.std(), shift[i])
            y = np.interp(t / stretch[i], t, y, right=0.0) * size[i] + 0.2 * noise[i, lead]
            y[start[i] : start[i] + 15] = 0
            np.testing.assert_allclose(out[i, lead], y, atol=1e-4)


def test_augmentation_is_decided_by_the_generator_and_leaves_its_input():
    x = signals()
    before = x.clone()
    state = torch.get_rng_state()
    first, again = (d.augment(x, generator(1), CONFIG, 100) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(x, before)
    assert not torch.equal(first, d.augment(x, generator(2), CONFIG, 100))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0}, {"noise_sd": -0.1}, {"cutout": 1.5}, {"time_scale": (1.2, 0.8)}]
)
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        d.DomainSSLSettings(**wrong)


# Instance loss


def test_neighbours_are_those_of_hand_made_features_and_not_symmetric():
    """On a line at 0, 1 and 3: the nearest are 1, 0 and 1. Record 2 points at 1, 1 not at 2."""
    t = d.nearest_neighbour_targets(torch.tensor([[0.0, 5.0], [1.0, 5.0], [3.0, 5.0]]))
    positives = {0: [1, 3, 4], 1: [0, 3, 4], 2: [1, 4, 5], 3: [0, 1, 4], 4: [0, 1, 3], 5: [1, 2, 4]}
    expected = np.zeros((6, 6))
    for row, columns in positives.items():
        expected[row, columns] = 1
    np.testing.assert_array_equal(t.numpy(), expected)
    assert not torch.equal(t, t.T)


def test_neighbours_far_from_the_origin_and_twins():
    """Small differences of large numbers count; of equal records the first is taken."""
    x = 1000 + torch.randn(60, 54, generator=generator())
    y = x.double().numpy()
    far = np.linalg.norm(y[:, None] - y[None], axis=2) + np.diag(np.full(60, np.inf))
    t = d.nearest_neighbour_targets(x)[:60, :60]
    assert t.argmax(dim=1).tolist() == far.argmin(axis=1).tolist()
    twins = d.nearest_neighbour_targets(torch.tensor([[1.0], [1.0], [1.0], [9.0]]))
    assert twins[:4, :4].nonzero().tolist() == [[0, 1], [1, 0], [2, 0], [3, 0]]


def test_instance_loss_is_supcon():
    """Khosla et al., eq. 2, with the source's positives, row by row."""
    n, tau = 6, 0.07
    z, x = torch.randn(2 * n, 5, generator=generator(3)), torch.randn(n, 4, generator=generator(4))
    u, y, total = unit(z.double()), x.double().numpy(), 0.0
    for a in range(2 * n):
        i = a % n
        far = [np.inf if j == i else np.linalg.norm(y[i] - y[j]) for j in range(n)]
        k = int(np.argmin(far))
        positives = [(a + n) % (2 * n), k, k + n]
        log_sum = np.log(sum(np.exp(u[a] @ u[b] / tau) for b in range(2 * n) if b != a))
        total += -np.mean([u[a] @ u[p] / tau - log_sum for p in positives])
    got = d.instance_loss(z, x, tau)
    assert got.item() == pytest.approx(total / (2 * n), rel=1e-5)
    hard = losses.soft_target_nce(z, d.nearest_neighbour_targets(x), tau)
    assert torch.equal(got, hard)


# Prototypes


def test_weight_of_the_prototypes_over_the_training():
    """The source's weights at epochs 0, 40, 540, 1040 and 2000, counted in thousands."""
    weights = [CONFIG.prototype_weight(e) for e in (0, 0.04, 0.54, 1.04, 2.0)]
    assert weights == [0, 0, 0.5, 1, 1]


def test_clusters_are_those_of_the_data_and_the_same_each_time():
    centres = 20 * torch.eye(4)
    truth = torch.arange(4).repeat(15)
    x = centres[truth] + torch.randn(60, 4, generator=generator())
    ids = d.cluster_ids(x, 4, seed=0)
    assert ids.dtype == torch.int64 and ids.shape == (60,)
    assert len(set(zip(ids.tolist(), truth.tolist(), strict=True))) == 4  # one name for each
    noise = torch.randn(60, 4, generator=generator(1))
    assert torch.equal(d.cluster_ids(noise, 7, seed=5), d.cluster_ids(noise, 7, seed=5))
    assert set(d.cluster_ids(noise, 7, seed=5).tolist()) == set(range(7))


def test_there_are_no_more_clusters_than_records():
    ids = d.cluster_ids(torch.randn(5, 3, generator=generator()), 128, seed=0)
    assert sorted(ids.tolist()) == [0, 1, 2, 3, 4]
    assert d.cluster_ids(torch.ones(5, 3), 128, seed=0).tolist() == [0] * 5


SMALL = d.DomainSSLSettings(clusters=4, projector_out=2)
A = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]), torch.tensor([0, 0, 2])
B = torch.tensor([[0.0, -1.0], [4.0, 0.0], [3.0, 4.0]]), torch.tensor([0, 0, 1])


def test_prototypes_move_by_half_and_absent_ones_stay():
    p = d.Prototypes(SMALL)
    p.update(*A)
    r = math.sqrt(0.5)
    expected = torch.tensor([[0.5, 0.5], [0, 0], [r, r], [0, 0]])
    torch.testing.assert_close(p.centre, expected)  # first time: the mean itself
    assert p.seen.tolist() == [True, False, True, False]
    p.update(*B)
    expected[0] = (torch.tensor([0.5, 0.5]) + torch.tensor([0.5, -0.5])) / 2
    expected[1] = torch.tensor([0.6, 0.8])
    torch.testing.assert_close(p.centre, expected)  # 2 is absent and unchanged
    assert p.seen.tolist() == [True, True, True, False]
    assert not p.centre.requires_grad


def test_temperatures_by_hand():
    """Two embeddings of cluster 0 at sqrt(.5) from their mean (.5, .5), cluster 1 alone at 0."""
    config = replace(SMALL, temperature=0.1)
    p = d.Prototypes(config)
    p.update(*A)
    share = 2 * math.sqrt(0.5) / (2 * math.log(12))
    torch.testing.assert_close(p.concentration, torch.tensor([share, 0, 0, 0]))
    # the mean over the two seen is share / 2: scaled 0.2 and 0, the latter raised to the floor
    torch.testing.assert_close(p.temperatures()[[0, 2]], torch.tensor([0.2, 0.01]))
    p.update(*B)
    # now at (.5, 0): (0, -1) is sqrt(1.25) away, (1, 0) is 0.5; cluster 1 alone on its mean
    share = (math.sqrt(1.25) + 0.5) / (2 * math.log(12))
    torch.testing.assert_close(p.concentration, torch.tensor([share, 0, 0, 0]))


def numpy_prototypes(batches, clusters, dim, beta=0.5, m=10, mean_tau=0.07):
    """Loss of the last batch after all of them, cluster by cluster."""
    centre, share = {}, {}
    for z, ids in batches:
        u = unit(z.double())
        for k in sorted(set(ids.tolist())):
            own = u[ids.numpy() == k]
            mean = own.mean(axis=0)
            centre[k] = beta * centre[k] + (1 - beta) * mean if k in centre else mean
            size = len(own)
            spread = sum(np.linalg.norm(v - centre[k]) for v in own)
            share[k] = spread / (size * np.log(size + m))
    tau = {k: mean_tau * share[k] / np.mean(list(share.values())) for k in centre}
    rows = []
    for v, k in zip(u, ids.tolist(), strict=True):
        logit = {j: v @ c / np.linalg.norm(c) / tau[j] for j, c in centre.items()}
        rows.append(np.log(sum(np.exp(x) for x in logit.values())) - logit[k])
    return np.mean(rows), tau


def test_prototype_loss_equals_plain_numpy():
    config = d.DomainSSLSettings(clusters=6, projector_out=5)
    z = torch.randn(3, 10, 5, generator=generator(2))
    ids = torch.tensor(
        [
            [0, 0, 1, 1, 2, 2, 3, 3, 3, 3],
            [0, 0, 0, 0, 1, 1, 1, 3, 3, 3],
            [2, 2, 2, 0, 0, 0, 1, 1, 1, 1],
        ]
    )
    p = d.Prototypes(config)
    for step in zip(z, ids, strict=True):
        p.update(*step)
    expected, tau = numpy_prototypes(list(zip(z, ids, strict=True)), 6, 5)
    assert min(tau.values()) > 0.01  # above the floor
    got = p.temperatures()
    np.testing.assert_allclose(got[:4], [tau[k] for k in range(4)], rtol=1e-4)
    assert got[:4].mean().item() == pytest.approx(0.07, rel=1e-5)
    assert p.loss(z[-1], ids[-1]).item() == pytest.approx(expected, rel=1e-4)


def test_collapsed_embeddings_give_a_finite_loss():
    p = d.Prototypes(SMALL)
    z = torch.ones(4, 2, requires_grad=True)
    ids = torch.tensor([0, 1, 0, 1])
    p.update(z.detach(), ids)
    loss = p.loss(z, ids)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-3) and torch.isfinite(z.grad).all()


# The method


class Doubler(torch.nn.Module):
    """A smallest encoder: each lead's value times a weight."""

    channels, stride = 12, 1

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(12, 1))

    def layers(self, x):
        return torch.relu(self.weight * x)


RECORDS, N = 20, 6
FEATURES = 3 + torch.randn(RECORDS, 54, generator=generator(11)) * torch.logspace(-2, 3, 54)
FEATURES[2, 7] = float("nan")
SCALE = FeatureScale.fit(FEATURES)
ITEMS = torch.tensor([2, 3, 5, 7, 11, 13])
BATCH = Batch(ITEMS, signals(N, 100), FEATURES[ITEMS], *[None] * 4)


TOTAL = 1000  # steps


def method(encoder=None, **change):
    config = d.DomainSSLSettings(clusters=8, **change)
    torch.manual_seed(0)
    setup = Setup(config, encoder or Doubler(), 100, FEATURES, SCALE, SCALE, TOTAL)
    return d.DomainSSL(setup)


def small_encoder():
    config = StandardisedConfig(widths=(4,), strides=(1,), dilations=(1,), blocks=1)
    return build_encoder(config, 0)


def test_views_reach_the_layers_untouched_and_records_z_scored():
    """Also where a task goes on training the encoder; views are z-scored before they are masked."""
    model = method(small_encoder()).train()
    seen = []
    model.kept.layers[0].register_forward_hook(lambda m, args, out: seen.append(args[0]))
    model.training_step(BATCH, generator(4))
    g = generator(4)
    views = torch.cat([d.augment(BATCH.signals, g, model.config, 100) for _ in range(2)])
    assert len(seen) == 1 and torch.equal(seen[0], views)
    x = BATCH.signals * torch.logspace(-2, 2, 12)[:, None]
    for training in (True, False):
        Classifier(model.kept, 5).train(training)(x)
        leads = seen.pop().double()
        np.testing.assert_allclose(leads.mean(dim=2), 0, atol=1e-5)
        torch.testing.assert_close(leads.std(dim=2, correction=0), torch.ones(N, 12).double())


@pytest.mark.parametrize("step", [0, 540, 2000])
def test_training_step_is_finite_and_its_gradient_reaches_the_encoder(step):
    model = method(small_encoder())
    model.steps.fill_(step)
    parts = model.training_step(BATCH, generator())
    assert int(model.steps) == step + 1
    assert all(torch.isfinite(v) for v in parts.values())
    expected = parts["instance"] + CONFIG.prototype_weight(step / TOTAL) * parts["prototype"]
    torch.testing.assert_close(parts["total"].detach(), expected)
    assert [k for k, v in parts.items() if v.requires_grad] == ["total"]
    parts["total"].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.encoder.parameters())
    assert model.encode(BATCH.signals).shape == (N, 4, 50)


def test_training_step_uses_two_views_standardised_features_and_the_items_clusters():
    model = method()
    parts = model.training_step(BATCH, generator(4))
    g = generator(4)
    views = torch.cat([d.augment(BATCH.signals, g, model.config, 100) for _ in range(2)])
    with d.autocast(views.device):
        z = model.projector(model.encoder.layers(views).mean(dim=2)).float()
    features = SCALE.standardise(FEATURES)[ITEMS]
    torch.testing.assert_close(parts["instance"], d.instance_loss(z, features, 0.07).detach())
    ids = model.ids[ITEMS].repeat(2)
    fresh = d.Prototypes(model.config)
    fresh.update(z.detach(), ids)
    torch.testing.assert_close(parts["prototype"], fresh.loss(z, ids).detach())
    assert torch.equal(model.prototypes.centre, fresh.centre)
    assert set(model.prototypes.seen.nonzero().ravel().tolist()) == set(ids.tolist())
    assert not torch.equal(views[:N], views[N:])


def test_training_step_is_decided_by_the_generator_and_the_saved_state():
    first, second = method(), method()
    for seed in (0, 1):
        first.training_step(BATCH, generator(seed))
    second.training_step(BATCH, generator(0))
    resumed = method()
    resumed.load_state_dict(second.state_dict())
    resumed.training_step(BATCH, generator(1))
    assert torch.equal(first.prototypes.centre, resumed.prototypes.centre)
    a, b = (m.training_step(BATCH, generator(2))["total"] for m in (first, resumed))
    assert torch.equal(a, b)


def test_a_few_steps_lower_the_loss():
    model = method(warm_share=0.0, ramp_share=1e-6)
    model.steps.fill_(1)  # L_proto has its full weight from the first step on
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    curve = []
    for step in range(20):
        total = model.training_step(BATCH, generator(step))["total"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        curve.append(total.item())
    assert np.mean(curve[-5:]) < np.mean(curve[:5])
