"""Scores of the two tasks, defined once.

Every score takes `weights` (resamples, n): how often each of the n records counts. A row of ones
gives the plain score, rows of multiplicities give bootstrap resamples, so value and interval come
from the same lines. A score that is undefined (a class without positives) is NaN, and so is a macro
mean over it: an undefined class is never left out of a mean unseen.
"""

from collections.abc import Callable, Mapping

import numpy as np

from beatssl.data.records import SUPERCLASSES, WAVES, wave_marks

BORDERS = ("onset", "offset")
MOST_PAIRS = 2**22  # of a positive and a negative record at a time

Predictions = Mapping[str, np.ndarray]
Scores = dict[str, np.ndarray]  # name -> (resamples,)


class MetricError(ValueError):
    """A score cannot be computed from what was given."""


def check_classes(truth: np.ndarray, where: str) -> None:
    """Refuse labels on which a class can be neither ranked nor thresholded.

    Args:
        truth: (n, classes) 0 or 1.
        where: what the labels belong to, for the message ("fold 9 (validation)").

    Raises:
        MetricError: no record at all, or a class without a positive or without a negative record.
    """
    if len(truth) == 0:
        raise MetricError(f"{where} holds no labelled record: take a data set that fills it")
    for name, positives in zip(SUPERCLASSES, truth.sum(axis=0), strict=True):
        if positives in (0, len(truth)):
            which = "only" if positives else "no"
            raise MetricError(
                f"{where}: {which} positive records of class {name} among {len(truth)}; AUROC and "
                "thresholds need both kinds: take more records or a larger label fraction"
            )


# --- classification -------------------------------------------------------------------------------


def auroc(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve over pairs: P(score of a positive > of a negative), ties count half.

    Args:
        truth: (n,) 0 or 1.
        score: (n,) larger means more likely positive.
        weights: (resamples, n).

    Returns:
        (resamples,), NaN where a resample has no positive or no negative.
    """
    positive = np.flatnonzero(truth > 0)
    of_negative, less = weights[:, truth <= 0], score[truth <= 0]
    below = np.zeros(len(weights))
    for few in np.array_split(positive, 1 + len(positive) * len(less) // MOST_PAIRS):
        wins = (score[few, None] > less) + 0.5 * (score[few, None] == less)
        below += ((weights[:, few] @ wins) * of_negative).sum(axis=1)
    pairs = weights[:, positive].sum(axis=1) * of_negative.sum(axis=1)
    return _divide(below, pairs)


def thresholds(truth: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Per class the threshold with the best F1 on these (validation) records.

    Candidates lie halfway between neighbouring scores; of equally good ones the highest is taken.
    A record is positive where `score >= threshold`.

    Args:
        truth: (n, classes) 0 or 1, each class with positives.
        score: (n, classes).

    Returns:
        (classes,) float64.
    """
    best = []
    for y, s in zip(truth.T, np.asarray(score, np.float64).T, strict=True):
        values = np.unique(s)[::-1]
        cuts = np.append((values[:-1] + values[1:]) / 2, values[-1])  # the last: all positive
        order = np.argsort(-s, kind="stable")
        called = np.searchsorted(-s[order], -cuts, side="right")  # records at or above each cut
        hits = np.concatenate([[0], np.cumsum(y[order])])[called]
        best.append(cuts[np.argmax(2 * hits / (called + y.sum()))])
    return np.array(best)


def classification_scores(predictions: Predictions, weights: np.ndarray | None = None) -> Scores:
    """Macro and per-class AUROC and F1 of a multilabel test set.

    F1 of a class is 2 TP / (2 TP + FP + FN) at its threshold; macro is the plain mean over the
    classes (paper.md 2.4; the paper's own averaging is unknown).

    Args:
        predictions: `truth` (n, classes) 0/1, `score` (n, classes), `threshold` (classes,) found
            on other records.
        weights: (resamples, n); default one row of ones.

    Returns:
        name -> (resamples,).
    """
    truth, score = (np.asarray(predictions[name], np.float64) for name in ("truth", "score"))
    called = (score >= predictions["threshold"]).astype(np.float64)
    weights = _weights(weights, len(truth))
    ranked = np.stack([auroc(t, s, weights) for t, s in zip(truth.T, score.T, strict=True)])
    positives = weights @ truth
    f1 = _divide(2 * (weights @ (truth * called)), positives + weights @ called)
    f1 = np.where(positives > 0, f1, np.nan).T  # (classes, resamples)
    scores = {"auroc_macro": ranked.mean(axis=0), "f1_macro": f1.mean(axis=0)}
    for k, name in enumerate(SUPERCLASSES):
        scores |= {f"auroc_{name}": ranked[k], f"f1_{name}": f1[k]}
    return scores


def draw_scores(predictions: Predictions, weights: np.ndarray | None = None) -> Scores:
    """`classification_scores`, as the mean over several draws of the training labels.

    Args: predictions: `truth` (n, classes), `score` (draws, n, classes), `threshold` (draws,
    classes). weights: (resamples, n). Returns: name -> (resamples,)."""
    return _mean_of(classification_scores, predictions, weights, "score", "threshold")


def _mean_of(
    scores: Callable, predictions: Predictions, weights: np.ndarray | None, *names: str
) -> Scores:
    """Mean of the scores over the first axis of the arrays of these names."""
    sets = zip(*(predictions[name] for name in names), strict=True)
    each = [scores({**predictions, **dict(zip(names, arrays))}, weights) for arrays in sets]
    return {name: np.mean([one[name] for one in each], axis=0) for name in each[0]}


# --- segmentation ---------------------------------------------------------------------------------


def wave_counts(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Per record and wave the samples that are true positive, false positive, false negative.

    Args:
        truth: (n, time) 0 background, 1 P, 2 QRS, 3 T, -1 not annotated (left out).
        predicted: (n, time) 0..3.

    Returns:
        (n, waves, 3) float64.
    """
    wave = np.arange(1, len(WAVES) + 1)[:, None]  # against (n, 1, time)
    is_wave, called = truth[:, None] == wave, (predicted[:, None] == wave) & (truth[:, None] >= 0)
    kinds = is_wave & called, called & ~is_wave, is_wave & ~called
    return np.stack([kind.sum(axis=2) for kind in kinds], axis=2).astype(float)


def f1(counts: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) over the last axis (TP, FP, FN); NaN where all three are 0."""
    return _divide(2 * counts[..., 0], 2 * counts[..., 0] + counts[..., 1] + counts[..., 2])


def record_dice(counts: np.ndarray) -> np.ndarray:
    """Mean Dice (= F1) over the waves of each record: (n, waves, 3) counts -> (n,), NaN where no
    wave is annotated or predicted."""
    per_wave = f1(counts)  # (n, waves)
    defined = ~np.isnan(per_wave)
    return _divide(np.where(defined, per_wave, 0).sum(axis=1), defined.sum(axis=1))


def match_borders(
    true_at: np.ndarray, predicted_at: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pair true and predicted positions one to one, nearest pairs first, at most `tolerance` apart.

    Args:
        true_at, predicted_at: (events,) ascending positions.
        tolerance: in the same unit, inclusive.

    Returns:
        Two index arrays of equal length, into `true_at` and `predicted_at`.
    """
    first = np.searchsorted(predicted_at, true_at - tolerance, side="left")
    last = np.searchsorted(predicted_at, true_at + tolerance, side="right")
    near = last - first
    of_true = np.repeat(np.arange(len(true_at)), near)
    of_predicted = np.arange(near.sum()) - np.repeat(np.cumsum(near) - near, near)
    of_predicted += np.repeat(first, near)
    order = np.argsort(np.abs(true_at[of_true] - predicted_at[of_predicted]), kind="stable")
    free_true, free_predicted = [True] * len(true_at), [True] * len(predicted_at)
    pairs = []
    for t, p in zip(of_true[order].tolist(), of_predicted[order].tolist(), strict=True):
        if free_true[t] and free_predicted[p]:
            free_true[t] = free_predicted[p] = False
            pairs.append((t, p))
    of_true, of_predicted = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return of_true, of_predicted


def border_sums(predictions: Predictions, wave: int, border: str) -> np.ndarray:
    """What the event scores of one border are computed from, summed per record.

    True and predicted borders are matched one to one within the tolerance (150 ms is usual,
    ANSI/AAMI EC57; see baselines.md 3.2). The true ones are the marks as annotated, at the rate of
    the file; only the predicted ones lie on samples. Not scored: a true border next to the
    unannotated region or at the record's end (the wave may be cut there) together with its match;
    a predicted border in the unannotated region that matches nothing.

    Args:
        predictions: as for `segmentation_scores`; or with `found`, laid out as `marks`, in place of
            `prediction`: borders that lie between samples.
        wave: 1 P, 2 QRS, 3 T.

    Returns:
        (n, 5): matched, false positive, missed, sum of the errors in ms (predicted minus true),
        sum of their squares.
    """
    truth, rate = predictions["truth"], float(predictions["sampling_rate"])
    tolerance = float(predictions["tolerance_ms"])
    n, time = truth.shape
    step = 1000.0 / rate  # ms per sample
    apart = time * step + tolerance + 1  # ms, keeps the records out of each other's reach
    column = 2 + BORDERS.index(border)
    true_record, true_ms = _of_wave(predictions["marks"], wave, column)
    found = predictions.get("found")
    found = wave_marks(predictions["prediction"], rate) if found is None else found
    pred_record, pred_ms = _of_wave(found, wave, column)
    of_true, of_pred = match_borders(
        true_record * apart + true_ms, pred_record * apart + pred_ms, tolerance + 1e-6
    )
    outside = _sample_of(true_ms, step, time) + (-1 if border == "onset" else 1)
    fenced = np.pad(truth, ((0, 0), (0, 1)), constant_values=-1)  # column -1 and column `time`
    scored = fenced[true_record, outside] >= 0

    counted = scored[of_true]
    record = true_record[of_true][counted]
    error = (pred_ms[of_pred] - true_ms[of_true])[counted]
    missed = np.setdiff1d(np.flatnonzero(scored), of_true)
    extra = np.setdiff1d(np.arange(len(pred_ms)), of_pred)
    extra = extra[truth[pred_record[extra], _sample_of(pred_ms[extra], step, time)] >= 0]
    records = record, pred_record[extra], true_record[missed], record, record
    values = None, None, None, error, error**2
    sums = [np.bincount(r, v, minlength=n) for r, v in zip(records, values)]
    return np.stack(sums, axis=1).astype(float)


def _of_wave(marks: np.ndarray, wave: int, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Record and time (ms) of one border of one wave."""
    chosen = marks[marks[:, 1] == wave]
    return chosen[:, 0].astype(int), chosen[:, column]


def _sample_of(ms: np.ndarray, step: float, time: int) -> np.ndarray:
    return np.rint(ms / step).astype(int).clip(0, time - 1)


def segmentation_scores(predictions: Predictions, weights: np.ndarray | None = None) -> Scores:
    """Sample-wise F1, Dice and event scores of P, QRS, T (definitions: paper.md 2.5, our default).

    - `f1_P`, `f1_QRS`, `f1_T`: samples of all records pooled; `f1_macro` their mean.
    - `dice`: per record the mean Dice (= F1) over the waves, then the mean over records. A wave
      that is neither annotated nor predicted in a record (no P in atrial fibrillation) has no Dice
      there and is left out of that record's mean; so is a record without any wave.
    - `event_<score>_<wave>_<border>`: see `border_sums`; sensitivity = matched / (matched +
      missed), precision = matched / (matched + false positive), f1 their harmonic mean,
      error_mean_ms and error_sd_ms over matched borders (positive: predicted too late; sd with
      divisor n).

    Args:
        predictions: `truth`, `prediction` (n, time); `marks` (waves, 4), the borders of the truth
            as annotated; `sampling_rate` Hz, `tolerance_ms` scalars.
        weights: (resamples, n); default one row of ones.

    Returns:
        name -> (resamples,).
    """
    truth, predicted = predictions["truth"], predictions["prediction"]
    weights = _weights(weights, len(truth))
    counts = wave_counts(truth, predicted)
    pooled = np.einsum("bn,nwc->wbc", weights, counts)
    per_wave = np.where(pooled[..., 0] + pooled[..., 2] > 0, f1(pooled), np.nan)
    scores = {"f1_macro": per_wave.mean(axis=0)}

    dice = record_dice(counts)
    usable = ~np.isnan(dice)
    scores["dice"] = _divide(weights @ np.where(usable, dice, 0), weights @ usable)

    scores |= {f"f1_{name}": per_wave[k] for k, name in enumerate(WAVES)}
    return scores | border_scores(predictions, weights)


def border_scores(predictions: Predictions, weights: np.ndarray | None = None) -> Scores:
    """The event scores of `segmentation_scores`. Args: see `border_sums`; weights (resamples, n).
    Returns: name -> (resamples,)."""
    weights, scores = _weights(weights, len(predictions["truth"])), {}
    for k, name in enumerate(WAVES):
        for border in BORDERS:
            events = _event_scores(weights @ border_sums(predictions, k + 1, border))
            scores |= {f"event_{key}_{name}_{border}": value for key, value in events.items()}
    return scores


def fold_scores(predictions: Predictions, weights: np.ndarray | None = None) -> Scores:
    """`segmentation_scores`, as the mean over several repeats of the cross-validation.

    Args: predictions: as there, but `prediction` (repeats, n, time). weights: (resamples, n).
    Returns: name -> (resamples,)."""
    return _mean_of(segmentation_scores, predictions, weights, "prediction")


def _event_scores(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Scores from (resamples, 5) sums in the order of `border_sums`."""
    hit, extra, missed, total, squares = sums.T
    mean = _divide(total, hit)
    return {
        "sensitivity": _divide(hit, hit + missed),
        "precision": _divide(hit, hit + extra),
        "f1": _divide(2 * hit, 2 * hit + extra + missed),
        "error_mean_ms": mean,
        "error_sd_ms": np.sqrt(np.maximum(_divide(squares, hit) - mean**2, 0)),
    }


# --- health of an embedding -----------------------------------------------------------------------


def effective_rank(embedding: np.ndarray) -> float:
    """Exponential of the entropy of the normalised singular values of the centred embedding
    (Roy & Vetterli 2007): how many directions it uses, 1 where all records lie on a line.

    Args: embedding (n, dim). NaN where all records are the same point."""
    values = np.linalg.svd(embedding - embedding.mean(axis=0), compute_uv=False)
    if values.sum() <= 1e-5 * np.linalg.norm(embedding):
        return float("nan")
    share = values / values.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def embedding_scores(predictions: Predictions, weights: np.ndarray | None = None) -> Scores:
    """Is an embedding collapsed, and are neighbours alike?

    - `alignment`: mean squared distance of the two views of a record on the sphere; 0 is perfect.
      `alignment_chance`: of view 1 of a record and view 2 of another.
    - `uniformity`: log mean exp(-2 |a - b|^2) over pairs of records on the sphere; 0 is collapse
      (alignment, too: Wang & Isola, arXiv 2005.10242).
    - `effective_rank`: see there; it has no interval, because a resample repeats records and so
      always has a lower rank.
    - `neighbour_agreement`: overlap (Jaccard) of a record's superclasses with those of its nearest
      training records; `neighbour_chance`: with those of all training records.

    Uniformity and chance are means over pairs of records. In a resample they are taken to first
    order, U + 2 mean(w (u - U)) with u the mean over a record's pairs (Hoeffding's projection): so
    a number a record is all that is kept.

    Args:
        predictions: (n,) each but the rank, see `embedding.of_records`; `agreement`, `chance` (n,).
        weights: (resamples, n); default one row of ones.

    Returns:
        name -> (resamples,).
    """
    n = len(predictions["alignment"])
    weights = _weights(weights, n)
    names = ("alignment", "alignment_chance", "uniformity", "agreement", "chance")
    values = {name: predictions[name].astype(np.float64) for name in names}
    mean = {name: weights @ value / weights.sum(axis=1) for name, value in values.items()}
    for name in ("alignment_chance", "uniformity"):
        mean[name] = 2 * mean[name] - values[name].mean()
    rank = np.full(len(weights), np.nan)
    rank[0] = predictions["effective_rank"]
    return {
        "alignment": mean["alignment"],
        "alignment_chance": mean["alignment_chance"],
        "uniformity": np.log(mean["uniformity"]),
        "effective_rank": rank,
        "neighbour_agreement": mean["agreement"],
        "neighbour_chance": mean["chance"],
    }


def _weights(weights: np.ndarray | None, n: int) -> np.ndarray:
    if n == 0:
        raise MetricError("no record to score")
    if weights is None:
        return np.ones((1, n))
    if weights.ndim != 2 or weights.shape[1] != n:
        raise MetricError(f"weights must be (resamples, {n}), got {weights.shape}")
    return np.asarray(weights, np.float64)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b with NaN where b is 0."""
    return np.divide(a, b, out=np.full(np.shape(b), np.nan), where=np.asarray(b) != 0)
