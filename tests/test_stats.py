"""Bootstrap over patients and seeds: weights, intervals, paired differences; tests over runs."""

from __future__ import annotations

import numpy as np
import pytest
from notebook_functions import page
from sklearn.metrics import roc_auc_score

from beatssl.results import uncertainty as stats
from beatssl.tasks import scores as metrics


def predictions(n: int = 120, seed: int = 0, skill: float = 0.5) -> dict[str, np.ndarray]:
    labels = np.random.default_rng(99)
    truth = (labels.random((n, 5)) < 0.4).astype(np.int8)
    score = np.random.default_rng(seed).random((n, 5)) + skill * truth
    return {
        "record_id": np.arange(n).astype(str),
        "patient_id": np.arange(n).astype(str),
        "truth": truth,
        "score": score,
        "threshold": np.full(5, 0.7),
    }


def mean_score(given, weights):
    """A score with known sampling error: the mean of column `x`."""
    return {"mean": weights @ given["x"] / weights.sum(axis=1)}


def of_patients(x, patient_id=None) -> dict[str, np.ndarray]:
    """What `mean_score` needs; each record is another patient unless said."""
    records = np.arange(len(x)).astype(str)
    own = records if patient_id is None else np.asarray(patient_id)
    return {"record_id": records, "patient_id": own, "x": np.asarray(x, float)}


def test_first_row_is_the_data_and_all_rows_draw_as_many_patients():
    weights = stats.resample_weights(np.arange(30), 200, seed=1)
    assert weights.shape == (201, 30)
    assert (weights[0] == 1).all()
    assert (weights.sum(axis=1) == 30).all()
    assert weights[1:].mean(axis=0) == pytest.approx(np.ones(30), abs=0.35)
    assert np.array_equal(weights, stats.resample_weights(np.arange(30), 200, seed=1))
    assert not np.array_equal(weights, stats.resample_weights(np.arange(30), 200, seed=2))
    patients = np.array(["b", "a", "b", "c", "b"])
    weights = stats.resample_weights(patients, 200, seed=1)
    assert (weights[0] == 1).all()
    assert (weights[:, [0]] == weights[:, [2, 4]]).all()  # records of a patient come together
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()  # three patients are drawn


def test_one_record_a_patient_draws_records_by_the_documented_generator():
    """Whatever the names: the intervals of such data are those of a bootstrap of records."""
    drawn = np.random.default_rng(3).multinomial(6, np.full(6, 1 / 6), size=50)
    weights = stats.resample_weights(list("fbdace"), 50, seed=3)
    assert np.array_equal(weights, np.concatenate([np.ones((1, 6)), drawn]))
    x = np.array([3.0, 1, 4, 1, 5, 9])
    found = stats.estimate(mean_score, [of_patients(x, list("fbdace"))], 50, seed=3)["mean"]
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn @ x / 6, [0.025, 0.975]))


def test_interval_of_patients_and_seeds_by_hand():
    """Drawn one by one in plain loops, from the multiplicities that the two streams give."""
    rng = np.random.default_rng(4)
    patients = np.array(["p", "q", "p", "r", "s", "q", "p"])
    per_seed = [of_patients(rng.normal(size=7), patients) for _ in range(3)]
    found = stats.estimate(mean_score, per_seed, 40, seed=8)["mean"]
    numbers = {"p": 0, "q": 1, "r": 2, "s": 3}
    of_patient = np.random.default_rng(8).multinomial(4, np.full(4, 1 / 4), size=40)
    stream = np.random.SeedSequence(8, spawn_key=(1, 0, 1, 2))
    of_seed = np.random.default_rng(stream).multinomial(3, np.full(3, 1 / 3), size=40)
    samples = []
    for patient_times, seed_times in zip(of_patient, of_seed, strict=True):
        scores = []
        for one, times in zip(per_seed, seed_times, strict=True):
            values = []
            for x, patient in zip(one["x"], patients, strict=True):
                values += [x] * patient_times[numbers[patient]]
            scores += [np.mean(values)] * times
        samples.append(np.mean(scores))
    assert (found.low, found.high) == pytest.approx(np.quantile(samples, [0.025, 0.975]))
    assert found.value == pytest.approx(np.mean([one["x"].mean() for one in per_seed]))
    assert found.n == 7


def test_four_equal_records_a_patient_are_not_four_observations():
    """The interval is twice as wide as that of records taken as independent."""
    x = np.repeat(np.random.default_rng(0).normal(size=100), 4)
    patients = np.repeat(np.arange(100), 4)
    wide, narrow = (
        stats.estimate(mean_score, [of_patients(x, who)], 4000)["mean"] for who in (patients, None)
    )
    assert wide.value == narrow.value
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2, rel=0.08)


def test_seeds_that_differ_widen_the_interval_of_records_that_do_not():
    same = [of_patients(np.full(20, level)) for level in (0.2, 0.5, 0.8)]
    found = stats.estimate(mean_score, same, 2000)["mean"]
    assert found.value == pytest.approx(0.5)
    assert (found.low, found.high) == pytest.approx((0.2, 0.8))  # 1 of 27 draws one seed thrice
    one = stats.estimate(mean_score, same[:1], 500)["mean"]
    assert (one.low, one.high) == pytest.approx((0.2, 0.2))  # one seed: the patients only


def test_predictions_without_patients_are_refused():
    old = {name: v for name, v in of_patients(np.ones(5)).items() if name != "patient_id"}
    with pytest.raises(ValueError, match="do not name the patients.*evaluate the runs again"):
        stats.estimate(mean_score, [old], 10)
    with pytest.raises(ValueError, match="patients"):
        stats.difference(mean_score, {0: of_patients(np.ones(5))}, {0: old}, 10)


def test_vectorised_auroc_equals_scikit_learn_on_every_resample():
    given = predictions(60)
    weights = stats.resample_weights(np.arange(60) // 2, 20, seed=0)
    found = metrics.classification_scores(given, weights)["auroc_macro"]
    for row, value in zip(weights.astype(int), found, strict=True):
        truth, score = given["truth"].repeat(row, 0), given["score"].repeat(row, 0)
        assert value == pytest.approx(roc_auc_score(truth, score, average="macro"), abs=1e-12)


def test_interval_of_a_mean_has_the_width_of_theory():
    x = np.random.default_rng(0).normal(size=400)
    found = stats.estimate(mean_score, [of_patients(x)], 4000)["mean"]
    error = x.std() / 20
    assert found.value == pytest.approx(x.mean())
    assert found.low == pytest.approx(x.mean() - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(x.mean() + 1.96 * error, abs=0.2 * error)
    assert found.n == 400


def test_all_seeds_see_the_same_patients_within_a_resample():
    rng = np.random.default_rng(0)
    x = rng.normal(size=100)
    per_seed = [of_patients(sign * x + 1) for sign in (1, -1)]
    samples = stats._sample(mean_score, [dict(enumerate(per_seed))], 500, 0)[0][0]["mean"].mean
    both = stats.seed_weights([0, 1], 500, 0)[0] == 0.5
    assert 0.4 < both.mean() < 0.6
    assert samples[both] == pytest.approx(1.0)  # both drawn: the seeds' errors cancel
    assert (np.abs(samples[~both] - 1) > 1e-6).all()  # one drawn twice: they do not
    found = stats.estimate(mean_score, per_seed, 500)["mean"]
    assert found.value == pytest.approx(1.0)
    assert found.per_seed == pytest.approx((1 + x.mean(), 1 - x.mean()))


def test_paired_difference_of_equal_predictions_is_exactly_zero():
    one = predictions()
    found = stats.difference(metrics.classification_scores, {0: one}, {0: one}, 200)["auroc_macro"]
    assert (found.value, found.low, found.high, found.per_seed) == (0, 0, 0, (0.0,))


def test_paired_difference_is_antisymmetric_and_sees_a_clear_gap():
    good = {s: predictions(seed=s, skill=1.0) for s in range(3)}
    bad = {s: predictions(seed=s, skill=0.1) for s in range(2)}
    a = stats.difference(metrics.classification_scores, good, bad, 300)["auroc_macro"]
    b = stats.difference(metrics.classification_scores, bad, good, 300)["auroc_macro"]
    assert a.low > 0
    assert (a.value, a.low, a.high) == pytest.approx((-b.value, -b.high, -b.low))
    assert a.per_seed == ()  # three seeds against two: not paired seed by seed


def test_the_same_seeds_are_drawn_on_both_sides_and_others_are_not():
    """Two methods that differ by 0.1 in every seed, whose seeds differ by much more."""
    levels = {0: 0.2, 1: 0.5, 2: 0.8}
    first = {s: of_patients(np.full(9, v + 0.1)) for s, v in levels.items()}
    second = {s: of_patients(np.full(9, v)) for s, v in levels.items()}
    paired = stats.difference(mean_score, first, second, 500)["mean"]
    assert (paired.low, paired.high) == pytest.approx((0.1, 0.1))
    assert paired.per_seed == pytest.approx((0.1, 0.1, 0.1))
    other = {s + 3: of_patients(np.full(9, v)) for s, v in levels.items()}
    unpaired = stats.difference(mean_score, first, other, 500)["mean"]
    assert unpaired.value == pytest.approx(0.1) and unpaired.low < -0.2 and unpaired.high > 0.4
    assert unpaired.per_seed == ()


def test_different_records_are_refused():
    other = predictions()
    other["record_id"] = other["record_id"][::-1]
    with pytest.raises(ValueError, match="different test records"):
        stats.estimate(metrics.classification_scores, [predictions(), other], 10)
    with pytest.raises(ValueError, match="different test records"):
        stats.difference(metrics.classification_scores, {0: predictions()}, {0: other}, 10)


def test_undefined_resamples_are_left_out_and_too_many_give_no_interval():
    few = np.r_[np.linspace(0, 1, 99), np.nan]
    assert stats.interval(few) == pytest.approx((0.025, 0.975))
    assert np.isnan(stats.interval(np.r_[np.ones(9), np.nan])).all()
    assert np.isnan(stats.interval(np.empty(0))).all()
    given = predictions(40)
    given["truth"][:, 2] = 0
    given["truth"][0, 2] = 1  # one positive: 37 % of the resamples do not draw it
    found = stats.estimate(metrics.classification_scores, [given], 200)
    assert np.isfinite(found["auroc_macro"].value) and np.isnan(found["auroc_macro"].low)
    assert np.isfinite(found["auroc_NORM"].low)


def test_rank_agreement_is_spearmans_on_the_data_and_on_every_resample():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(5)
    patients = np.arange(30) // 3
    groups = [
        {s: of_patients(rng.normal(k / 4, 1, 30), patients) for s in range(2)} for k in range(6)
    ]
    reference = [0.1, 0.5, 0.2, 0.9, 0.7, 0.4]

    found = stats.rank_agreement(mean_score, groups, "mean", reference, 200)
    weights, share = stats.resample_weights(patients, 200, 0), stats.seed_weights([0, 1], 200, 0)
    means = np.array(
        [
            sum(share[s] * mean_score(one, weights)["mean"] for s, one in group.items())
            for group in groups
        ]
    )
    expected = [spearmanr(column, reference).statistic for column in means.T]
    assert found.value == pytest.approx(expected[0])
    low, high = np.quantile(expected[1:], [0.025, 0.975])
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_p_of_an_order_is_that_of_all_permutations():
    """Six rows: all 720 orders, by SciPy; ties as they are."""
    from itertools import permutations

    from scipy.stats import spearmanr

    ours = [0.1, 0.5, 0.2, 0.5, 0.7, 0.6]
    paper = [0.3, 0.4, 0.1, 0.9, 0.8, 0.7]
    rho, p = stats.spearman(ours, paper)
    assert rho == pytest.approx(spearmanr(ours, paper).statistic)
    every = [spearmanr(ours, order).statistic for order in permutations(paper)]
    exact = np.mean(np.abs(every) >= abs(rho) - 1e-9)
    assert 0.01 < exact < 0.2 and p == pytest.approx(exact, rel=0.05)
    reverse = stats.spearman(ours, [-x for x in paper])
    assert reverse == (pytest.approx(-rho), pytest.approx(p, rel=0.05))  # two-sided
    b = round(p * 100_001) - 1  # permutations as far out, and the data themselves
    assert p == (b + 1) / 100_001 and stats.spearman(ours, paper) == (rho, p)
    assert stats.spearman(range(12), range(12), 99)[1] == 0.01  # none of 99, so 1 / 100
    assert np.isnan(stats.spearman([1, 1, 1], [1, 2, 3])).all()


def test_against_is_difference_for_each():
    rng = np.random.default_rng(6)
    make = lambda n: {s: of_patients(rng.normal(size=20)) for s in range(n)}  # noqa: E731
    base, others = make(3), [make(1), make(3)]
    assert stats.against(mean_score, base, others, 50) == [
        stats.difference(mean_score, other, base, 50) for other in others
    ]


# --- what another seed does ---------------------------------------------------------------------


def test_pooled_spread_is_the_residual_of_the_group_means():
    """By least squares on one dummy column a group; a group of one has nothing to say."""
    rng = np.random.default_rng(0)
    groups = [rng.normal(m, 0.3, n) for m, n in ((0.0, 3), (5.0, 2), (2.0, 4))]
    y, of = np.concatenate(groups), np.repeat(np.arange(3), [3, 2, 4])
    _, squares, rank, _ = np.linalg.lstsq(np.eye(3)[of], y, rcond=None)
    found = stats.pooled_sd([*groups, [7.0]])
    assert found == (pytest.approx(np.sqrt(squares[0] / (9 - rank))), 9 - rank)
    sd, df = stats.pooled_sd([[1.0], [2.0]])
    assert np.isnan(sd) and df == 0


def test_test_of_seeds_is_students_where_the_two_make_the_pool():
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(1)
    a, b = rng.normal(0.4, 0.2, 4), rng.normal(0.0, 0.2, 3)
    limit, p = stats.seed_test(a.mean() - b.mean(), *stats.pooled_sd([a, b]), 4, 3)
    expected = ttest_ind(a, b)
    assert p == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    assert limit == pytest.approx((high - low) / 2)
    assert stats.seed_test(limit, *stats.pooled_sd([a, b]), 4, 3)[1] == pytest.approx(0.05)
    assert np.isnan(stats.seed_test(0.1, float("nan"), 0, 1, 3)).all()


def test_one_more_seed_is_called_a_change_in_five_percent():
    """A fourth seed of the same method leaves the range of three half the time."""
    rng = np.random.default_rng(2)
    outside, called = [], []
    for _ in range(1500):
        rows, base, new = rng.normal(size=(13, 3)), rng.normal(size=3), rng.normal()
        sd, df = stats.pooled_sd([*rows, base])
        assert df == 28
        outside.append(not base.min() <= new <= base.max())
        called.append(stats.seed_test(new - base.mean(), sd, df, 1, 3)[1] < 0.05)
    assert np.mean(outside) == pytest.approx(0.5, abs=0.05)
    assert np.mean(called) == pytest.approx(0.05, abs=0.02)


# --- tests over repeated runs ---------------------------------------------------------------------


def test_friedman_equals_the_textbook():
    """Friedman's formula by hand, Kendall's W from it, and the published critical values: q of
    Demsar 2006, table 5a, for 4 methods 2.569 and for 10 methods 3.164."""
    values = np.random.default_rng(0).normal(size=(7, 4))
    found = stats.friedman(values)
    n, k = values.shape
    ranks = np.array([[1 + sum(b > a for b in row) for a in row] for row in values])
    chi = 12 * n / (k * (k + 1)) * (((ranks.mean(axis=0) - (k + 1) / 2) ** 2).sum())
    assert found.statistic == pytest.approx(chi)
    assert found.kendall_w == pytest.approx(chi / (n * (k - 1)))
    np.testing.assert_allclose(found.mean_rank, ranks.mean(axis=0))
    assert found.critical_difference == pytest.approx(2.569 * np.sqrt(20 / 42), abs=1e-3)
    ten = stats.friedman(np.random.default_rng(1).normal(size=(5, 10)))
    assert ten.critical_difference == pytest.approx(3.164 * np.sqrt(110 / 30), abs=2e-3)


def test_smallest_p_is_reached_where_all_blocks_agree():
    values = np.arange(5)[:, None] * 0.1 + np.array([0.3, 0.2, 0.1, 0.0])
    found = stats.friedman(values)
    assert found.p == pytest.approx(found.smallest_p) and found.kendall_w == pytest.approx(1)
    assert found.mean_rank.tolist() == [1, 2, 3, 4]
    noisy = values + 1e-3 * np.arange(20).reshape(5, 4)  # differences without ties
    pairs = stats.wilcoxon_holm(noisy, [(0, 1), (0, 2), (0, 3)])
    assert [pair.p for pair in pairs] == [0.0625] * 3 == [pair.smallest_p for pair in pairs]
    assert [pair.p_holm for pair in pairs] == [0.1875] * 3
    assert all(pair.rank_biserial == 1 for pair in pairs)
    assert stats.wilcoxon_holm(-noisy, [(0, 1)])[0].rank_biserial == -1


def test_five_blocks_cannot_reach_five_percent_and_ten_can_reach_one():
    """What lets the paper's classification show '#' and its segmentation '**' (paper.md 2.3)."""
    rng = np.random.default_rng(0)
    for n, floor in ((5, 0.0625), (10, 2**-9)):
        values = np.stack([1 + rng.random(n), rng.random(n) - 1], axis=1)
        (pair,) = stats.wilcoxon_holm(values, [(0, 1)])
        assert pair.p == pytest.approx(floor) == pair.smallest_p


def test_wilcoxon_of_equal_methods_and_effect_size_by_hand():
    values = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    (pair,) = stats.wilcoxon_holm(values, [(0, 1)])
    assert (pair.p, pair.median, pair.rank_biserial) == (1, 0, 0)
    d = np.array([0.5, -0.1, 0.3, 0.2])  # ranks 4, -1, 3, 2
    (pair,) = stats.wilcoxon_holm(np.stack([d, 0 * d], axis=1), [(0, 1)])
    assert pair.rank_biserial == pytest.approx((4 - 1 + 3 + 2) / 10)
    assert pair.median == pytest.approx(0.25)


def test_nemenyi_is_demsars_example():
    """Demsar 2006, table 2: ranks of four classifiers on 14 data sets. At 5 % nothing is shown; at
    10 % C4.5 is worse than C4.5+m and C4.5+m+cf, and no more."""
    ranks = np.array(
        [
            [4, 3, 2, 1],
            [1, 2, 3, 4],
            [4, 1, 2, 3],
            [4, 1, 3, 2],
            [4, 2, 3, 1],
            [1, 2.5, 4, 2.5],
            [3, 2, 4, 1],
            [2.5, 2.5, 4, 1],
            [4, 3, 2, 1],
            [2.5] * 4,
            [4, 2.5, 1, 2.5],
            [3, 2, 4, 1],
            [4, 1, 2, 3],
            [3, 1, 4, 2],
        ]
    )
    mean = stats.mean_ranks(-ranks)
    np.testing.assert_allclose(mean, [3.143, 2.000, 2.893, 1.964], atol=5e-4)
    p = stats.nemenyi(mean[:, None] - mean, 4, 14)
    assert (p[~np.eye(4, dtype=bool)] > 0.05).all() and np.allclose(np.diag(p), 1)
    assert set(map(tuple, np.argwhere(p < 0.1))) == {(0, 1), (1, 0), (0, 3), (3, 0)}
    found = stats.friedman(-ranks)
    assert found.critical_difference == pytest.approx(1.25, abs=5e-3)
    assert stats.nemenyi(found.critical_difference, 4, 14) == pytest.approx(0.05, abs=1e-6)
    assert stats.nemenyi(1.12, 4, 14) == pytest.approx(0.10, abs=5e-3)


def test_nemenyi_is_the_range_of_normal_values():
    """P(range of k standard normals > q), integrated: 1 - k E[(Phi(z) - Phi(z - q))^(k - 1)]."""
    from scipy.stats import norm

    z = np.linspace(-9, 9, 20001)
    for difference, k, n in ((1.5, 4, 25), (2.0, 4, 5), (3.1, 10, 12)):
        q = difference / np.sqrt(k * (k + 1) / (12 * n))
        inside = k * norm.pdf(z) * (norm.cdf(z) - norm.cdf(z - q)) ** (k - 1)
        expected = 1 - np.trapezoid(inside, z)
        assert stats.nemenyi(difference, k, n) == pytest.approx(expected, abs=1e-6)


def test_what_the_papers_marks_need_by_nemenyi():
    """paper.md 7: of four methods, two mean ranks are '#' with 5 runs, 1.14 '**' with 25."""
    assert stats.nemenyi(2, 4, 5) > 0.05
    assert stats.nemenyi(1.14, 4, 25) == pytest.approx(0.01, abs=1e-3)


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.6, 0.7]) == [1, 1]


def test_cliques_are_the_largest_groups_within_the_critical_difference():
    ranks = np.array([4.0, 1.0, 2.0, 2.9])
    assert page("14_statistics").cliques(ranks, 1.0) == [(1, 2), (2, 3)]
    assert page("14_statistics").cliques(ranks, 1.2) == [(1, 2), (2, 3), (3, 0)]
    assert page("14_statistics").cliques(ranks, 9.0) == [(1, 2, 3, 0)]
    assert page("14_statistics").cliques(ranks, 0.5) == []


def test_friedman_refuses_gaps_and_too_few():
    for values in (np.ones((1, 3)), np.ones((4, 2)), np.full((4, 3), np.nan)):
        with pytest.raises(ValueError, match="Friedman"):
            stats.friedman(values)
