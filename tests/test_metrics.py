"""Scores against scikit-learn, hand-counted examples and their identities."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from beatssl.data.records import SUPERCLASSES, WAVES, wave_marks
from beatssl.data.store import resample_labels
from beatssl.tasks import scores as metrics
from beatssl.tasks.scores import MetricError


def labelled(n: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, 5)) < [0.5, 0.3, 0.3, 0.2, 0.15]).astype(np.int8)
    score = np.round(rng.random((n, 5)) * 0.7 + truth * 0.3, 1)  # rounded: many ties
    return truth, score


def runs(time: int, *waves: tuple[int, int, int]) -> np.ndarray:
    """(1, time) labels with waves (class, first sample, last sample)."""
    row = np.zeros((1, time), np.int8)
    for wave, first, last in waves:
        row[0, first : last + 1] = wave
    return row


def sums(truth: np.ndarray, predicted: np.ndarray, wave: int = 2, border: str = "onset"):
    """Event sums at 100 Hz with a tolerance of 150 ms = 15 samples."""
    return metrics.border_sums(segmented(truth, predicted), wave, border)


def segmented(truth: np.ndarray, predicted: np.ndarray, tolerance_ms: float = 150.0) -> dict:
    """Predictions at 100 Hz whose marks lie on samples."""
    return {
        "truth": truth,
        "marks": wave_marks(truth, 100),
        "prediction": predicted,
        "sampling_rate": 100,
        "tolerance_ms": tolerance_ms,
    }


def test_classification_scores_equal_scikit_learn_with_ties():
    truth, score = labelled()
    threshold = np.array([0.5, 0.4, 0.5, 0.6, 0.7])
    found = metrics.classification_scores({"truth": truth, "score": score, "threshold": threshold})
    aucs = [roc_auc_score(truth[:, k], score[:, k]) for k in range(5)]
    called = (score >= threshold).astype(int)
    for k, name in enumerate(SUPERCLASSES):
        assert found[f"auroc_{name}"][0] == pytest.approx(aucs[k], abs=1e-12)
        assert found[f"f1_{name}"][0] == pytest.approx(f1_score(truth[:, k], called[:, k]))
    assert found["auroc_macro"][0] == pytest.approx(np.mean(aucs), abs=1e-12)
    assert found["f1_macro"][0] == pytest.approx(f1_score(truth, called, average="macro"))


def test_weights_equal_repeating_the_records():
    truth, score = labelled(40)
    threshold = np.full(5, 0.5)
    times = np.random.default_rng(1).integers(0, 4, 40)
    weighted = metrics.classification_scores(
        {"truth": truth, "score": score, "threshold": threshold}, times[None].astype(float)
    )
    repeated = metrics.classification_scores(
        {"truth": truth.repeat(times, 0), "score": score.repeat(times, 0), "threshold": threshold}
    )
    for name in weighted:
        assert weighted[name][0] == pytest.approx(repeated[name][0], abs=1e-12)


def test_auroc_in_pieces_is_that_of_all_pairs(monkeypatch):
    rng = np.random.default_rng(3)
    truth, score = rng.random(90) < 0.3, rng.integers(0, 12, 90) / 4.0  # many ties
    weights = rng.multinomial(90, np.full(90, 1 / 90), size=20).astype(float)
    whole = metrics.auroc(truth, score, weights)
    monkeypatch.setattr(metrics, "MOST_PAIRS", 100)
    assert metrics.auroc(truth, score, weights) == pytest.approx(whole, abs=1e-12)
    for row, found in zip(weights.astype(int), whole, strict=True):
        drawn = np.repeat(np.arange(90), row)
        assert found == pytest.approx(roc_auc_score(truth[drawn], score[drawn]), abs=1e-12)


def test_auroc_is_invariant_to_monotone_change_and_mirrored_by_sign():
    truth, score = labelled()
    ones = np.ones((1, len(truth)))
    a = metrics.auroc(truth[:, 0], score[:, 0], ones)
    assert metrics.auroc(truth[:, 0], np.exp(3 * score[:, 0]), ones) == pytest.approx(a)
    assert metrics.auroc(truth[:, 0], -score[:, 0], ones) == pytest.approx(1 - a)


def test_undefined_class_is_nan_and_so_is_the_macro_mean():
    truth, score = labelled()
    truth[:, 4] = 0
    found = metrics.classification_scores(
        {"truth": truth, "score": score, "threshold": np.full(5, 0.5)}
    )
    assert np.isnan(found["auroc_HYP"][0]) and np.isnan(found["f1_HYP"][0])
    assert np.isnan(found["auroc_macro"][0]) and np.isnan(found["f1_macro"][0])
    assert np.isfinite(found["auroc_MI"][0])


def test_check_classes_names_the_class_and_the_part():
    truth, _ = labelled()
    metrics.check_classes(truth, "fold 9")
    truth[:, 1] = 0
    with pytest.raises(MetricError, match="fold 9.*no positive.*MI"):
        metrics.check_classes(truth, "fold 9")
    truth[:, 1] = 1
    with pytest.raises(MetricError, match="only positive.*MI"):
        metrics.check_classes(truth, "fold 9")
    with pytest.raises(MetricError, match="fold 9 holds no labelled record"):
        metrics.check_classes(truth[:0], "fold 9")


def test_thresholds_are_the_best_of_all_cuts():
    truth, score = labelled(60, seed=3)
    found = metrics.thresholds(truth, score)
    for k in range(5):
        best = max(
            f1_score(truth[:, k], score[:, k] >= cut)
            for cut in np.r_[np.unique(score[:, k]) - 0.01, 2.0]
        )
        assert f1_score(truth[:, k], score[:, k] >= found[k]) == pytest.approx(best)


def test_threshold_is_the_highest_of_equally_good_ones_and_separates():
    truth = np.array([[1], [1], [0], [0]])
    assert metrics.thresholds(truth, np.array([[0.9], [0.8], [0.2], [0.1]]))[0] == 0.5


def test_segmentation_f1_equals_scikit_learn_on_annotated_samples():
    rng = np.random.default_rng(0)
    truth = rng.integers(-1, 4, (6, 200)).astype(np.int8)
    predicted = np.where(rng.random(truth.shape) < 0.7, truth.clip(0), rng.integers(0, 4, (6, 200)))
    found = metrics.segmentation_scores(segmented(truth, predicted))
    seen = truth >= 0
    expected = f1_score(truth[seen], predicted[seen], labels=[1, 2, 3], average=None)
    for k, name in enumerate(WAVES):
        assert found[f"f1_{name}"][0] == pytest.approx(expected[k])
    assert found["f1_macro"][0] == pytest.approx(expected.mean())
    dice = [
        f1_score(t[t >= 0], p[t >= 0], labels=[1, 2, 3], average="macro")
        for t, p in zip(truth, predicted, strict=True)
    ]
    assert found["dice"][0] == pytest.approx(np.mean(dice))


def test_dice_leaves_out_a_wave_that_a_record_does_not_have():
    truth = runs(100, (2, 10, 19), (3, 40, 59))
    found = metrics.segmentation_scores(segmented(truth, truth))
    assert found["dice"][0] == 1.0
    assert np.isnan(found["f1_P"][0]) and np.isnan(found["f1_macro"][0])
    assert np.isnan(found["event_sensitivity_P_onset"][0])
    wrong = truth | runs(100, (1, 0, 4))  # a P wave that is not there: Dice of P is 0
    found = metrics.segmentation_scores(segmented(truth, wrong))
    assert found["dice"][0] == pytest.approx(2 / 3)


def test_samples_without_annotation_do_not_count():
    truth = runs(300, (1, 60, 69), (2, 80, 89), (3, 110, 139), (1, 160, 169), (2, 180, 189))
    truth[:, :50] = truth[:, 250:] = -1
    predicted = truth.clip(0)
    noisy = predicted.copy()
    noisy[:, :50] = np.random.default_rng(0).integers(0, 4, 50)
    noisy[:, 255:] = 3
    a = metrics.segmentation_scores(segmented(truth, predicted, 20.0))
    b = metrics.segmentation_scores(segmented(truth, noisy, 20.0))
    for name in a:
        assert a[name] == pytest.approx(b[name], nan_ok=True), name


def test_perfect_prediction_scores_one_everywhere():
    truth = np.concatenate([runs(200, (1, 20, 29), (2, 40, 49), (3, 70, 99))] * 3)
    found = metrics.segmentation_scores(segmented(truth, truth))
    for name, value in found.items():
        assert value[0] == (0.0 if "error" in name else 1.0), name


@pytest.mark.parametrize("border", metrics.BORDERS)
def test_event_error_is_signed_and_in_milliseconds(border):
    truth = runs(300, (2, 50, 59), (2, 150, 159))
    late = runs(300, (2, 53, 62), (2, 151, 160))  # 3 and 1 samples late, 10 ms each
    assert sums(truth, late, border=border).tolist() == [[2, 0, 0, 40.0, 30.0**2 + 10.0**2]]
    found = metrics.segmentation_scores(segmented(truth, late))
    assert found[f"event_error_mean_ms_QRS_{border}"][0] == pytest.approx(20.0)
    assert found[f"event_error_sd_ms_QRS_{border}"][0] == pytest.approx(10.0)


def test_tolerance_is_inclusive_and_beyond_it_an_event_is_missed_and_false():
    truth = runs(300, (2, 100, 109))
    assert sums(truth, runs(300, (2, 115, 124)))[0, :3].tolist() == [1, 0, 0]
    assert sums(truth, runs(300, (2, 116, 125)))[0, :3].tolist() == [0, 1, 1]


def test_events_match_one_to_one_nearest_first():
    truth = runs(300, (2, 100, 104))
    double = runs(300, (2, 98, 99), (2, 103, 104))  # onsets 2 before and 3 after
    assert sums(truth, double).tolist() == [[1, 1, 0, -20.0, 400.0]]


def test_events_of_neighbouring_records_never_match():
    truth = np.concatenate([runs(100, (2, 90, 99)), runs(100)])
    predicted = np.concatenate([runs(100), runs(100, (2, 2, 9))])
    assert sums(truth, predicted)[:, :3].tolist() == [[0, 0, 1], [0, 1, 0]]


def test_border_at_the_unannotated_region_is_not_scored():
    truth = runs(300, (2, 60, 69), (2, 160, 169))
    truth[:, :60] = -1  # the first wave touches the region with its onset, not with its offset
    predicted = runs(300, (2, 63, 69), (2, 160, 169))
    assert sums(truth, predicted, border="onset")[0, :3].tolist() == [1, 0, 0]
    assert sums(truth, predicted, border="offset")[0, :3].tolist() == [2, 0, 0]
    nothing = runs(300)
    assert sums(truth, nothing, border="onset")[0, :3].tolist() == [0, 0, 1]
    assert sums(truth, nothing, border="offset")[0, :3].tolist() == [0, 0, 2]


def test_prediction_in_the_unannotated_region_may_match_but_is_never_false():
    truth = runs(300, (2, 60, 69))
    truth[:, :55] = -1
    assert sums(truth, runs(300, (2, 52, 69)))[0, :3].tolist() == [1, 0, 0]
    assert sums(truth, runs(300, (2, 10, 19), (2, 60, 69)))[0, :3].tolist() == [1, 0, 0]


def at_500_hz(seed: int, n: int = 40) -> np.ndarray:
    """(n, 5000) labels of random waves, none within 100 ms of another, all annotated."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((n, 5000), np.int8)
    for row in truth:
        at = 50
        while at < 4700:
            length = rng.integers(30, 120)
            row[at : at + length] = rng.integers(1, 4)
            at += length + rng.integers(51, 150)
    return truth


@pytest.mark.parametrize("rate", [100, 125, 250])
def test_borders_are_scored_against_the_marks_at_their_own_rate(rate):
    """Labels at a lower rate are the best that can be predicted there: right on average, off by the
    rounding, which is uniform over the samples of 500 Hz within one of the lower rate."""
    fine = at_500_hz(1)
    coarse = resample_labels(fine, 500, rate, 10 * rate)
    given = segmented(coarse, coarse) | {"marks": wave_marks(fine, 500), "sampling_rate": rate}
    scores = metrics.segmentation_scores(given)
    within = np.arange(500) * rate / 500
    rounding = np.std(np.rint(within) - within) * 1000 / rate
    for wave in WAVES:
        for border in metrics.BORDERS:
            assert scores[f"event_f1_{wave}_{border}"][0] == 1
            assert abs(scores[f"event_error_mean_ms_{wave}_{border}"][0]) < 0.5
            sd = scores[f"event_error_sd_ms_{wave}_{border}"][0]
            assert sd == pytest.approx(rounding, abs=0.3) and sd > 0.5


def test_perfect_predictions_at_the_rate_of_the_marks_have_no_error():
    fine = at_500_hz(2, n=5)
    given = segmented(fine, fine) | {"marks": wave_marks(fine, 500), "sampling_rate": 500}
    for name, value in metrics.segmentation_scores(given).items():
        assert value[0] == pytest.approx(0.0 if "error" in name else 1.0), name


def test_an_early_and_a_late_mark_are_no_error_of_the_sample_between():
    """50 ms at 100 Hz is sample 5; marks at 48 and 52 ms err by +2 and -2 ms."""
    truth = predicted = np.concatenate([runs(100, (2, 5, 9))] * 2)
    marks = np.array([[0, 2, 48.0, 90.0], [1, 2, 52.0, 90.0]])
    found = metrics.border_sums(segmented(truth, predicted) | {"marks": marks}, 2, "onset")
    np.testing.assert_allclose(found, [[1, 0, 0, 2, 4], [1, 0, 0, -2, 4]])


def test_match_borders_against_a_plain_search():
    rng = np.random.default_rng(5)
    for _ in range(20):
        a, b = (np.sort(rng.choice(400, 12, replace=False)) for _ in range(2))
        pairs = sorted((abs(x - y), i, j) for i, x in enumerate(a) for j, y in enumerate(b))
        used_a, used_b, expected = set(), set(), set()
        for distance, i, j in pairs:
            if distance <= 15 and i not in used_a and j not in used_b:
                used_a.add(i), used_b.add(j), expected.add((i, j))
        found = metrics.match_borders(a, b, 15)
        assert set(zip(*map(np.ndarray.tolist, found), strict=True)) == expected


def test_no_record_and_wrong_weights_are_refused():
    empty = {"truth": np.zeros((0, 5)), "score": np.zeros((0, 5)), "threshold": np.zeros(5)}
    with pytest.raises(MetricError, match="no record"):
        metrics.classification_scores(empty)
    truth, score = labelled()
    with pytest.raises(MetricError, match="weights"):
        metrics.classification_scores(
            {"truth": truth, "score": score, "threshold": np.zeros(5)}, np.ones((2, 3))
        )
