"""Bootstrap intervals over patients and seeds, paired differences, and tests over repeated runs.

Percentile bootstrap: patients are drawn with replacement, each with all of its records, and seeds
of the training with replacement too; the score is computed on every draw, and the interval holds
the middle 95 %. Both are drawn independently of each other (the pigeonhole bootstrap of Owen 2007,
Ann. Appl. Stat. 1:386). With a single seed the interval covers the patients only; with few seeds it
covers them a little too narrowly, as any bootstrap of k values does: by the factor sqrt(1 - 1/k).

Where seeds are tested on different folds in rotation, a score is computed within each rotation (its
encoders and thresholds are others), averaged over the seeds of the rotation, and then over the
rotations with the weights of their records. The folds are fixed, not drawn: patients are drawn
within each rotation, as many as it has, and so are seeds. With one seed a rotation only patients
are resampled: such an interval does not cover what another seed, and what other training folds,
would give, although the mean over the rotations averages some of it out.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import chi2, friedmanchisquare, rankdata, studentized_range, t, wilcoxon

LEVEL = 0.95
PERMUTATIONS = 100_000
MOST_UNDEFINED = 0.05  # share of resamples without a score above which no interval is given

DIFFERENT = (
    "predictions were made on different test records and cannot be compared: run the older ones "
    "again, or each method in all rotations"
)

Predictions = Mapping[str, np.ndarray]
Scores = Callable[[Predictions, np.ndarray], dict[str, np.ndarray]]
Group = Mapping[int, Predictions]  # of one method, by training seed


@dataclass(frozen=True)
class Estimate:
    """A score with its interval, and the number of different records; `per_seed` holds the plain
    score of every seed."""

    value: float
    low: float
    high: float
    n: int
    per_seed: tuple[float, ...]


def resample_weights(
    patient_id: Sequence | np.ndarray, resamples: int, seed: int | np.random.Generator
) -> np.ndarray:
    """How often each record counts in each resample: as often as its patient is drawn.

    As many patients are drawn as there are, numbered in the order in which they first appear, by
    `default_rng(seed).multinomial`; with one record a patient this draws records.

    Args:
        patient_id: (n,), of each record.
        seed: or a generator, which is drawn from.

    Returns:
        (1 + resamples, n) float64; row 0 is the data as they are (all ones).
    """
    patient, names = pd.factorize(np.asarray(patient_id))
    k, rng = len(names), np.random.default_rng(seed)
    drawn = rng.multinomial(k, np.full(k, 1 / k), size=resamples)
    return np.concatenate([np.ones((1, len(patient))), drawn[:, patient]])


def seed_weights(seeds: Sequence[int], resamples: int, seed: int) -> np.ndarray:
    """Weight of each training seed in each resample: k seeds are drawn with replacement.

    The draw depends on the seeds' numbers, so that methods trained with the same seeds are averaged
    over the same drawn seeds (paired), and others each over their own. It has a random stream of
    its own (`SeedSequence(seed, spawn_key=(1, *seeds))`) and leaves that of the patients alone.

    Returns:
        (k, 1 + resamples), columns sum to 1; column 0 is the plain mean.
    """
    k = len(seeds)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, *seeds)))
    drawn = rng.multinomial(k, np.full(k, 1 / k), size=resamples)
    return np.concatenate([np.ones((1, k)), drawn]).T / k


def interval(samples: np.ndarray) -> tuple[float, float]:
    """Percentile interval of bootstrap scores (resamples,).

    Resamples on which the score is undefined (no positive drawn) are left out; above 5 % of them,
    or without any resample, there is no interval: NaN, NaN.
    """
    undefined = np.isnan(samples)
    if len(samples) == 0 or undefined.mean() > MOST_UNDEFINED:
        return float("nan"), float("nan")
    low, high = np.quantile(samples[~undefined], [(1 - LEVEL) / 2, 1 - (1 - LEVEL) / 2])
    return float(low), float(high)


def estimate(
    scores: Scores, per_seed: Sequence[Predictions], resamples: int, seed: int = 0
) -> dict[str, Estimate]:
    """Mean score over seeds with its interval over patients and seeds.

    All seeds are scored on the same resamples of the patients, and the mean over the drawn seeds is
    taken within each resample. Seeds on the same records belong to one rotation; rotations share
    neither records nor patients.

    Args:
        scores: `classification_scores` or `segmentation_scores`.
        per_seed: saved predictions, one mapping per training seed; they hold `record_id` and
            `patient_id` (n,).
        resamples: number of bootstrap resamples.
        seed: of the resampling, not of the training.

    Raises:
        ValueError: the seeds were scored on different records that overlap or are of the same
            patients, or predictions name no patients.
    """
    (samples,), n = _sample(scores, [dict(enumerate(per_seed))], resamples, seed)
    return {name: _estimate(s.mean, s.single, n) for name, s in samples.items()}


def difference(scores: Scores, first: Group, second: Group, resamples: int) -> dict[str, Estimate]:
    """Mean score of `first` minus that of `second`, paired: both see the same resamples.

    The same seed gives two methods the same initial weights where they share a network, the same
    draw of labels and the same decoder. So where both sides have the same seeds they are paired by
    seed: the same drawn seeds count on both sides. Otherwise each side draws its own.

    Args:
        first, second: predictions by training seed.

    Returns:
        `per_seed` holds differences seed by seed where both sides have the same seeds, and is empty
        otherwise. Errors as in `estimate`, and where one side has a rotation that the other lacks.
    """
    return against(scores, second, [first], resamples)[0]


def against(
    scores: Scores, base: Group, others: Sequence[Group], resamples: int
) -> list[dict[str, Estimate]]:
    """`difference` of each of `others` from the same base, which is scored only once."""
    (b, *rest), n = _sample(scores, [base, *others], resamples)
    found = []
    for group, a in zip(others, rest, strict=True):
        same = list(group) == list(base)
        single = {name: a[name].single - b[name].single if same else () for name in a}
        mean = {name: a[name].mean - b[name].mean for name in a}
        found.append({name: _estimate(mean[name], single[name], n) for name in a})
    return found


def ratio(scores: Scores, first: Group, second: Group, resamples: int) -> dict[str, Estimate]:
    """Mean score of `first` over that of `second`, on the same resamples; see `difference`."""
    (a, b), n = _sample(scores, [first, second], resamples)
    return {name: _estimate(a[name].mean / b[name].mean, (), n) for name in a}


def rank_agreement(
    scores: Scores, groups: Sequence[Group], metric: str, reference: Sequence[float], resamples: int
) -> Estimate:
    """Spearman correlation over methods: their mean score here against a published number.

    On every resample of patients and seeds the methods are scored and ranked anew, so the interval
    says how far the order depends on these; it does not cover that the methods are few, which
    the p of `spearman` does.

    Args:
        groups: predictions by training seed, one group a method; at least two methods.
        metric: which of the scores.
        reference: one number a method.
    """
    samples, n = _sample(scores, groups, resamples)
    means = np.stack([s[metric].mean for s in samples])  # (methods, 1 + resamples)
    ours = _standardised(rankdata(means, axis=0))
    theirs = _standardised(rankdata(np.asarray(reference, float))[:, None])
    return _estimate((ours * theirs).mean(axis=0), (), n)


def spearman(
    ours: Sequence[float], reference: Sequence[float], permutations: int = PERMUTATIONS
) -> tuple[float, float]:
    """Spearman correlation of two lists, one number a method each, and how often chance does it.

    The reference is permuted over the methods: p is the share of permutations whose |rho| is not
    below the found one, counted with the data themselves, (b + 1) / (m + 1), two-sided.

    Returns:
        rho, p; NaN where all of one list are equal.
    """
    a = _standardised(rankdata(np.asarray(ours, float)))
    b = _standardised(rankdata(np.asarray(reference, float)))
    rho = float(a @ b / len(a))
    if np.isnan(rho):
        return rho, rho
    rng = np.random.default_rng(0)
    drawn = rng.permuted(np.tile(b, (permutations, 1)), axis=1) @ a / len(a)
    as_far = int((np.abs(drawn) >= abs(rho) - 1e-9).sum())
    return rho, (as_far + 1) / (permutations + 1)


def _standardised(ranks: np.ndarray) -> np.ndarray:
    """Zero mean and unit sd over the first axis; NaN where all are equal."""
    with np.errstate(invalid="ignore"):
        return (ranks - ranks.mean(axis=0)) / ranks.std(axis=0)


def _estimate(samples: np.ndarray, per_seed: Iterable[float], n: int) -> Estimate:
    low, high = interval(samples[1:])
    return Estimate(float(samples[0]), low, high, n, tuple(map(float, per_seed)))


class _Samples(NamedTuple):
    mean: np.ndarray  # (1 + resamples,) over the drawn seeds
    single: np.ndarray  # (seeds,) of the data as they are


def _sample(
    scores: Scores, groups: Sequence[Group], resamples: int, seed: int = 0
) -> tuple[list[dict[str, _Samples]], int]:
    """Per group the samples by score name, on the same resamples everywhere; and the number of
    records."""
    weights = _patient_weights([p for group in groups for p in group.values()], resamples, seed)
    records = [of_rotation.sum(axis=1) for of_rotation in weights.values()]
    parts = dict(zip(weights, np.stack(records) / sum(records)))  # of each rotation
    sampled = []
    for group in groups:
        values: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
        means: dict[str, np.ndarray | float] = defaultdict(float)
        for rotation, part in parts.items():
            seeds = [number for number, p in group.items() if _records(p) == rotation]
            if not seeds:
                raise ValueError(DIFFERENT)
            share = seed_weights(seeds, resamples, seed)
            rows = [scores(group[number], weights[rotation]) for number in seeds]
            for name in rows[0]:
                v = np.stack([row[name] for row in rows])
                values[name] |= dict(zip(seeds, v[:, 0]))
                # where: an undefined score counts only where its seed is drawn
                means[name] += part * np.where(share > 0, share * v, 0).sum(axis=0)
        single = {name: np.array([of[number] for number in group]) for name, of in values.items()}
        sampled.append({name: _Samples(means[name], single[name]) for name in values})
    return sampled, sum(map(len, weights))


def _records(predictions: Predictions) -> tuple[str, ...]:
    return tuple(predictions["record_id"].tolist())


def _patient_weights(
    every: Sequence[Predictions], resamples: int, seed: int
) -> dict[tuple[str, ...], np.ndarray]:
    """Records of each rotation -> `resample_weights` of their patients, of one stream of draws."""
    if any("patient_id" not in predictions for predictions in every):
        raise ValueError(
            "predictions do not name the patients (patient_id): evaluate the runs again "
            "(`python -m beatssl run`)"
        )
    patients = {_records(predictions): predictions["patient_id"] for predictions in every}
    if any(not np.array_equal(patients[_records(one)], one["patient_id"]) for one in every):
        raise ValueError(DIFFERENT)
    for ids in (patients, patients.values()):  # neither a record nor a patient in two rotations
        each = [set(of) for of in ids]
        if sum(map(len, each)) > len(set().union(*each)):
            raise ValueError(DIFFERENT)
    rotations = sorted(patients)
    of_each = tuple(tuple(patients[rotation].tolist()) for rotation in rotations)
    return dict(zip(rotations, _drawn(of_each, resamples, seed), strict=True))


@functools.lru_cache(maxsize=4)
def _drawn(patients: tuple[tuple, ...], resamples: int, seed: int) -> list[np.ndarray]:
    """`resample_weights` of each rotation, of one stream; kept, as most calls ask for the same."""
    stream = np.random.default_rng(seed)
    drawn = [resample_weights(of_rotation, resamples, stream) for of_rotation in patients]
    for weights in drawn:
        weights.flags.writeable = False
    return drawn


# --- what another seed does ---------------------------------------------------------------------


def pooled_sd(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Standard deviation within groups and its degrees of freedom (values minus groups).

    Args: groups: the scores of the seeds of one method each; those with fewer than two are left
    out. Returns: sd, df; NaN, 0 where no group has two."""
    several = [np.asarray(group, float) for group in groups if len(group) > 1]
    df = sum(len(group) - 1 for group in several)
    if df == 0:
        return float("nan"), 0
    squares = sum(((group - group.mean()) ** 2).sum() for group in several)
    return float(np.sqrt(squares / df)), df


def seed_test(
    difference: float, sd: float, df: int, first: int, second: int
) -> tuple[float, float]:
    """Are two means further apart than their seeds explain? A t-test with a pooled sd.

    Args:
        difference: of the mean of `first` seeds and the mean of `second` seeds.
        sd, df: `pooled_sd`.

    Returns:
        The difference with p = 5 %, and the two-sided p of this one; NaN where df is 0.
    """
    error = sd * np.sqrt(1 / first + 1 / second)
    with np.errstate(divide="ignore", invalid="ignore"):  # where seeds do not differ at all
        size = np.abs(np.float64(difference)) / error
    return float(t.ppf(0.975, df) * error), float(2 * t.sf(size, df))


# --- tests over repeated runs ---------------------------------------------------------------------


class Friedman(NamedTuple):
    """Do k methods differ over n blocks (draws or folds)?

    Attributes:
        statistic, p: chi-square approximation of Friedman's test.
        smallest_p: the p of n blocks that all agree: no result of this design can go below.
        kendall_w: effect size, 0 (no common order) to 1 (the same order in every block).
        mean_rank: (k,), 1 is best.
        critical_difference: of two mean ranks at 5 % (Nemenyi; Demsar 2006).
        blocks: n.
    """

    statistic: float
    p: float
    smallest_p: float
    kendall_w: float
    mean_rank: np.ndarray
    critical_difference: float
    blocks: int


def friedman(values: np.ndarray, alpha: float = 0.05) -> Friedman:
    """Friedman's test with ranks and Nemenyi's critical difference.

    Args: values: (blocks, methods), higher is better.

    Raises:
        ValueError: fewer than two blocks or three methods, or a value is missing.
    """
    n, k = values.shape
    if n < 2 or k < 3 or np.isnan(values).any():
        raise ValueError(f"Friedman's test needs 2 blocks and 3 methods, no gaps; got {n} x {k}")
    statistic, p = map(float, friedmanchisquare(*values.T))
    smallest, w = float(chi2.sf(n * (k - 1), k - 1)), statistic / (n * (k - 1))
    q = studentized_range.ppf(1 - alpha, k, np.inf) / np.sqrt(2)
    critical = float(q * np.sqrt(k * (k + 1) / (6 * n)))
    return Friedman(statistic, p, smallest, w, mean_ranks(values), critical, n)


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Mean rank over the blocks, 1 is best: (blocks, methods), higher is better -> (methods,)."""
    return rankdata(-values, axis=1).mean(axis=0)


def nemenyi(difference: np.ndarray | float, methods: int, blocks: int) -> np.ndarray:
    """p of a difference of two mean ranks after Friedman's test (Nemenyi; Demsar 2006): the chance
    that of `methods` alike ones the best and the worst lie so far apart over the blocks.

    Args: difference: of mean ranks, any shape. Returns: p of that shape."""
    error = np.sqrt(methods * (methods + 1) / (6 * blocks))
    size = np.abs(np.asarray(difference, float)) / error * np.sqrt(2)
    return studentized_range.sf(size, methods, np.inf)


class Pair(NamedTuple):
    """Wilcoxon's signed-rank test of two methods over n blocks.

    Attributes:
        median: of first minus second.
        p, p_holm: exact two-sided where blocks have no ties; corrected for all pairs.
        smallest_p: 2 / 2^n, if all n differences have the same sign.
        smallest_p_holm: the same, corrected.
        rank_biserial: effect size, -1 (second better in every block) to 1.
    """

    median: float
    p: float
    p_holm: float
    smallest_p: float
    smallest_p_holm: float
    rank_biserial: float


def wilcoxon_holm(values: np.ndarray, pairs: Sequence[tuple[int, int]]) -> list[Pair]:
    """Pairwise Wilcoxon signed-rank tests with Holm's correction over `pairs`.

    Args:
        values: (blocks, methods).
        pairs: columns to compare.
    """
    n = len(values)
    tested = []
    for first, second in pairs:
        d = values[:, first] - values[:, second]
        p = float(wilcoxon(d, zero_method="zsplit").pvalue) if d.any() else 1.0
        ranks = rankdata(np.abs(d)) * np.sign(d)
        tested.append((float(np.median(d)), p, float(ranks.sum() / (n * (n + 1) / 2))))
    floor = min(1.0, 2.0 ** (1 - n))
    corrected = holm([p for _, p, _ in tested])
    return [
        Pair(median, p, c, floor, min(1.0, floor * len(pairs)), effect)
        for (median, p, effect), c in zip(tested, corrected, strict=True)
    ]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the i-th smallest of m times (m - i + 1), never falling."""
    values = np.asarray(p, float)
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * (len(p) - np.arange(len(p))))
    return np.minimum(steps, 1.0)[np.argsort(order)].tolist()
