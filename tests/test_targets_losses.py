"""Target matrices and the one loss, against hand-computed numbers and plain NumPy."""

import numpy as np
import pytest
from notebook_functions import page
import torch
import torch.nn.functional as F

from beatssl.methods import losses, make_run, targets
from beatssl.methods.losses import LOSSES
from beatssl.methods.targets import MEASURES

GEN = torch.Generator().manual_seed(0)
Z = torch.randn(8, 5, generator=GEN)
FEATURES = torch.rand(4, 6, generator=GEN) + 0.5
SCALE = targets.FeatureScale.fit(FEATURES)


def numpy_loss(z, t, tau, allowed=None):
    """Row by row, from the equation."""
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    rows = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i and (allowed is None or allowed[i, j])]
        mass = sum(t[i, j] for j in others)
        if not mass:
            continue
        denominator = np.log(sum(np.exp(z[i] @ z[k] / tau) for k in others))
        rows.append(-sum(t[i, j] * (z[i] @ z[j] / tau - denominator) for j in others) / mass)
    return np.mean(rows)


def test_hard_targets_give_nt_xent():
    """SimCLR's own formula: cross-entropy with the other view as the class."""
    t = targets.record_targets("hard", FEATURES, SCALE)
    z = F.normalize(Z, dim=1)
    logits = (z @ z.T / 0.1).fill_diagonal_(-1e9)
    nt_xent = F.cross_entropy(logits, (torch.arange(8) + 4) % 8)
    torch.testing.assert_close(losses.soft_target_nce(Z, t, 0.1), nt_xent)


def test_same_class_targets_give_supcon():
    """SupCon (Khosla et al., eq. 2): mean over positives inside, mean over anchors outside."""
    classes = torch.tensor([0, 0, 1, 2])
    t = targets.beat_targets("hard", classes, FEATURES, SCALE)
    z = F.normalize(Z.double(), dim=1).numpy()
    label = np.tile(classes.numpy(), 2)
    total = 0.0
    for i in range(8):
        positives = [p for p in range(8) if p != i and label[p] == label[i]]
        a = [k for k in range(8) if k != i]
        log_sum = np.log(np.exp(z[a] @ z[i] / 0.2).sum())
        total += -np.mean([z[i] @ z[p] / 0.2 - log_sum for p in positives])
    assert losses.soft_target_nce(Z, t, 0.2).item() == pytest.approx(total / 8, rel=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "inverse_distance"])
@pytest.mark.parametrize("exponent", [1.0, 50.0])
def test_soft_loss_equals_the_equation(kind, exponent):
    t = targets.record_targets(kind, FEATURES, SCALE, exponent)
    expected = numpy_loss(Z.double().numpy(), t.double().numpy(), 0.1)
    assert losses.soft_target_nce(Z, t, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_loss_scoped_to_pairs_of_one_record():
    allowed = targets.same_record(torch.tensor([0, 0, 1, 1]))
    t = targets.beat_targets("hard", torch.tensor([0, 1, 0, 0]), FEATURES, SCALE) * allowed
    expected = numpy_loss(Z.double().numpy(), t.double().numpy(), 0.1, allowed.numpy())
    got = losses.soft_target_nce(Z, t, 0.1, allowed)
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_rows_without_target_are_left_out_and_none_gives_zero_gradient():
    t = torch.zeros(8, 8)
    t[0, 1] = t[1, 0] = 1.0
    alone = numpy_loss(Z.double().numpy(), t.double().numpy(), 0.1)
    assert losses.soft_target_nce(Z, t, 0.1).item() == pytest.approx(alone, rel=1e-5)
    z = Z.clone().requires_grad_()
    losses.soft_target_nce(z, torch.zeros(8, 8), 0.1).backward()
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_loss_ignores_scale_of_targets_length_of_embeddings_and_order_of_items():
    t = targets.record_targets("cosine", FEATURES, SCALE, 50)
    reference = losses.soft_target_nce(Z, t, 0.1)
    torch.testing.assert_close(losses.soft_target_nce(3 * Z, 0.5 * t, 0.1), reference)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(losses.soft_target_nce(Z[order], t[order][:, order], 0.1), reference)


def test_other_forms_of_the_loss_equal_their_equations():
    t = targets.record_targets("cosine", FEATURES, SCALE, 50)
    z, u = F.normalize(Z.double(), dim=1).numpy(), t.double().numpy()
    cosine, off = z @ z.T, ~np.eye(8, dtype=bool)
    log_p = np.stack(
        [cosine[i] / 0.1 - np.log(np.exp(cosine[i][off[i]] / 0.1).sum()) for i in range(8)]
    )
    p = 1 / (1 + np.exp(-cosine / 0.1))
    expected = {
        "normalised": numpy_loss(z, u, 0.1),
        "unnormalised": -(u * log_p)[off].sum() / 8,
        "bce": -(u * np.log(p) + (1 - u) * np.log(1 - p))[off].mean(),
        "mse": ((cosine - u)[off] ** 2).mean(),
    }
    assert set(expected) == set(LOSSES)
    for form, value in expected.items():
        got = losses.contrastive_loss(form, Z, t, 0.1).item()
        assert got == pytest.approx(value, rel=1e-5), form
    with pytest.raises(ValueError, match="known: normalised, unnormalised, bce, mse"):
        losses.contrastive_loss("triplet", Z, t, 0.1)


@pytest.mark.parametrize("form", LOSSES)
def test_pairs_that_take_no_part_have_no_gradient(form):
    """With pairs of one record only, moving another record changes nothing."""
    allowed = targets.same_record(torch.tensor([0, 0, 1, 1]))
    t = targets.beat_targets("hard", torch.tensor([0, 1, 0, 0]), FEATURES, SCALE) * allowed
    z = Z.clone().requires_grad_()
    only = allowed & (torch.arange(8) % 4 < 2)[None, :] & (torch.arange(8) % 4 < 2)[:, None]
    losses.contrastive_loss(form, z, t, 0.2, only).backward()
    assert z.grad[[0, 1, 4, 5]].abs().sum() > 0 and z.grad[[2, 3, 6, 7]].abs().sum() == 0


def test_loss_gradient_is_right_and_shapes_are_checked():
    t = targets.record_targets("linear_distance", FEATURES, SCALE)
    step, direction = 1e-2, torch.randn(8, 5, generator=torch.Generator().manual_seed(2))
    z = Z.clone().requires_grad_()
    losses.soft_target_nce(z, t, 0.5).backward()
    up, down = (losses.soft_target_nce(Z + s * step * direction, t, 0.5) for s in (1, -1))
    slope = ((up - down) / (2 * step)).item()
    assert (z.grad * direction).sum().item() == pytest.approx(slope, rel=2e-2)
    with pytest.raises(ValueError, match="expected"):
        losses.soft_target_nce(Z, torch.zeros(4, 4), 0.1)


def test_hard_matrix_has_the_papers_layout():
    """Figure, panel "Hard Contrast", N = 3: 1 at (i, i + N) and (i + N, i)."""
    nothing = torch.zeros(3, 2)
    t = targets.record_targets("hard", nothing, targets.FeatureScale.fit(nothing))
    expected = np.zeros((6, 6))
    for i in range(3):
        expected[i, i + 3] = expected[i + 3, i] = 1
    np.testing.assert_array_equal(t.numpy(), expected)


def test_soft_matrix_has_the_papers_layout_and_row_sums():
    """Figure, panel "Soft Contrast w/ ^50": raw similarities .99939 .99555 .99289 give entries
    0.97 0.80 0.70 in all four blocks and rows that sum to 4.54, 4.34, 4.00."""
    raw = torch.eye(3)
    for (i, j), s in {(0, 1): 0.99939, (0, 2): 0.99555, (1, 2): 0.99289}.items():
        raw[i, j] = raw[j, i] = s
    t = targets.two_views(raw**50)
    assert t[0, 1].item() == pytest.approx(0.97, abs=0.005)
    assert t[0, 2].item() == pytest.approx(0.80, abs=0.005)
    assert t[1, 2].item() == pytest.approx(0.70, abs=0.005)
    np.testing.assert_allclose(sorted(t.sum(dim=1)[:3], reverse=True), [4.54, 4.34, 4.0], atol=0.02)
    assert torch.equal(t[:3, :3], t[3:, 3:]) and (t.diagonal() == 0).all()
    assert (t.diagonal(offset=3) == 1).all()


def test_cosine_and_inverse_distance_are_what_they_say():
    x = FEATURES.double().numpy()
    cosine = targets.similarity("cosine", FEATURES, SCALE).numpy()
    distance = targets.similarity("inverse_distance", FEATURES, SCALE).numpy()
    u = (x - x.mean(axis=0)) / x.std(axis=0)
    for i in range(4):
        for j in range(4):
            c = x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j])
            assert cosine[i, j] == pytest.approx(c, abs=1e-6)
            d = np.linalg.norm(u[i] - u[j]) / np.sqrt(6)
            assert distance[i, j] == pytest.approx(1 / (1 + d), abs=1e-3)


def test_similarity_stays_in_range_and_negative_cosine_is_zero():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    s = targets.similarity("cosine", x, targets.FeatureScale.fit(x))
    assert s.min() == 0 and s.max() == 1 and s[0, 1] == 0
    with pytest.raises(ValueError, match="cosine_minmax, inverse_distance"):
        targets.similarity("soft_3", x, targets.FeatureScale.fit(x))


def test_every_measure_is_a_similarity_and_the_settings_know_its_name():
    for measure in MEASURES:
        assert make_run(soft_1=measure).soft_1 == measure
        s = targets.similarity(measure, FEATURES, SCALE)
        assert ((s >= 0) & (s <= 1)).all(), measure
        torch.testing.assert_close(s, s.T)
        torch.testing.assert_close(s.diagonal(), torch.ones(4), atol=2e-3, rtol=0)


def test_other_measures_equal_their_definitions():
    x = FEATURES.double().numpy()
    u, v = (x - x.mean(axis=0)) / x.std(axis=0), (x - x.min(axis=0)) / np.ptp(x, axis=0)

    def cosine(a):
        return np.clip(a @ a.T / np.outer(*[np.linalg.norm(a, axis=1)] * 2), 0, 1)

    d = np.sqrt(((u[:, None] - u[None]) ** 2).mean(axis=2))
    expected = {
        "cosine_standardised": cosine(u),
        "cosine_minmax": cosine(v),
        "exp_distance": np.exp(-d),
        "linear_distance": 1 - d / d.max(),
    }
    for measure, s in expected.items():
        np.testing.assert_allclose(targets.similarity(measure, FEATURES, SCALE), s, atol=1e-3)


def test_closest_triple_finds_the_one_that_was_hidden():
    generator = torch.Generator().manual_seed(3)
    s = torch.rand(30, 30, generator=generator) * 0.5
    s = (s + s.T) / 2
    for (i, j), value in {(4, 9): 0.97, (4, 20): 0.80, (9, 20): 0.70}.items():
        s[i, j] = s[j, i] = value
    found, off = page("03_targets").closest_triple(s, (0.97, 0.80, 0.70))
    assert found == (4, 9, 20) and off == pytest.approx(0, abs=1e-6)


def test_missing_features_take_the_training_median_only():
    train = torch.tensor([[1.0, float("nan")], [3.0, float("nan")], [8.0, float("nan")]])
    scale = targets.FeatureScale.fit(train)
    other = torch.tensor([[float("nan"), 100.0]])
    assert scale.impute(other).tolist() == [[3.0, 100.0]]
    assert scale.standardise(train)[:, 1].tolist() == [0, 0, 0]  # all NaN: median 0, sd 1
    assert torch.isfinite(targets.similarity("inverse_distance", train, scale)).all()


def test_row_entropy_counts_positives():
    assert targets.row_entropy(targets.two_views(torch.ones(4, 4))).exp().item() == pytest.approx(7)
    hard = targets.record_targets("hard", FEATURES, SCALE)
    assert targets.row_entropy(hard).item() == pytest.approx(0, abs=1e-6)


def test_shares_of_the_norm_are_weights_in_the_cosine():
    x = torch.tensor([[3.0, 4.0, 0.0], [0.0, 2.0, 0.0]])  # squares 9 16 0 of 25, 0 4 0 of 4
    shares = page("03_targets").norm_shares(
        x, ["a", "b", "c"], {"one": ("a", "absent"), "two": ("c", "b")}
    )
    assert shares == pytest.approx({"one": 0.5 * 9 / 25, "two": 0.5 * (16 / 25 + 1)})


def kl(z, t, temperature=0.1, allowed=None):
    """What the curves show: the normalised loss minus the entropy of its targets."""
    loss = losses.contrastive_loss("normalised", z.double(), t.double(), temperature, allowed)
    return (loss - targets.row_entropy(t.double())).item()


@pytest.mark.parametrize("exponent", [1, 50])
def test_loss_minus_entropy_is_torchs_kl_of_the_rows_with_a_target(exponent):
    t = targets.record_targets("cosine", FEATURES, SCALE, exponent)
    t[3] = 0  # a row without a target: in neither mean
    off = ~torch.eye(8, dtype=torch.bool)
    z = F.normalize(Z.double(), dim=1)
    log_p = (z @ z.T / 0.1)[off].reshape(8, 7).log_softmax(dim=1)
    q = t.double()[off].reshape(8, 7)
    there = q.sum(dim=1) > 0
    q = q[there] / q[there].sum(dim=1, keepdim=True)
    expected = F.kl_div(log_p[there], q, reduction="batchmean")
    assert kl(Z, t) == pytest.approx(expected.item(), rel=1e-4) and expected > 0
    assert kl(Z, torch.zeros(8, 8)) == 0


def test_kl_is_zero_where_the_logits_are_the_log_targets():
    z = F.normalize(Z.double(), dim=1)
    t = ((z @ z.T - 1) / 0.5).exp().fill_diagonal_(0)  # in (0, 1]
    assert kl(Z, t, 0.5) == pytest.approx(0, abs=1e-6)
    assert kl(Z, t, 0.4) > 1e-3


def test_alignment_and_uniformity_at_their_known_values():
    assert losses.alignment(Z, 2 * Z).item() == pytest.approx(0, abs=1e-6)
    assert losses.alignment(Z, -Z).item() == pytest.approx(4, abs=1e-5)
    assert losses.uniformity(torch.ones(5, 3)).item() == pytest.approx(0, abs=1e-6)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert losses.uniformity(opposite).item() == pytest.approx(-8, abs=1e-4)


def test_every_row_of_the_papers_ablation_can_be_expressed():
    rows = [
        ("hard", "none", 1),
        ("hard", "hard", 1),
        ("hard", "soft_1", 1),
        ("hard", "soft_1", 50),
        ("hard", "soft_2", 1),
        ("soft_1", "none", 1),
        ("soft_1", "none", 50),
        ("soft_1", "hard", 1),
        ("soft_1", "hard", 50),
        ("soft_1", "soft_1", 1),
        ("soft_1", "soft_1", 50),
        ("soft_2", "none", 1),
        ("soft_2", "hard", 1),
        ("soft_2", "soft_2", 1),
    ]
    names = {make_run(rhythm=r, beat=b, exponent=e).run_id for r, b, e in rows}
    assert len(names) == 14
