"""What the comparison of methods adds to the two tasks: few labels drawn anew, and folds repeated.

`LabelDraws` is task 1 with a frozen encoder and a linear probe, for several fractions of the labels
and several stratified draws of each; the draws are the same for all methods and encoders.
`MoreFolds` is task 2 in as many runs as the paper's figure suggests (paper.md 7): cross-validation,
repeated with other splits, the same for all methods. Both keep what each draw or fold scored, which
is what the tests over repeated runs compare.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from beatssl.data.beats import Beats
from beatssl.data.store import Store
from beatssl.methods.base import RunSettings
from beatssl.progress import progress
from beatssl.settings import Rotation, to_dict
from beatssl.tasks.base import Case, Pair, Predictions
from beatssl.tasks.classify import Classification, Parts, features_of, probe, split, stratified_draw
from beatssl.tasks.delineate import Delineator, delineated
from beatssl.tasks.scores import MetricError, check_classes, draw_scores, fold_scores
from beatssl.tasks.segment import (
    Segmentation, SegmentConfig, cross_validate, ludb_rows, shared,
)  # fmt: skip

REDRAWS = 100
STACKED = ("fold", "prediction", "learning_rate", "repeat")  # arrays with a first axis of repeats


@dataclass(frozen=True)
class CompareConfig:
    """What the comparison of methods adds to the two tasks (paper.md 2.4 and 7, our default)."""

    label_fractions: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    draws: int = 5  # stratified draws of the labelled records at each fraction
    folds: int = 5  # of LUDB, by record
    repeats: int = 5  # of the folds, each with another split and decoder


def draw_with_all_classes(labels: np.ndarray, fraction: float, number: int) -> np.ndarray:
    """`classify.stratified_draw` number `number`, drawn again while a class is missing in it.

    At 1 % of few records a class can be without a positive, and then nothing can be learnt of it.

    Raises:
        MetricError: no such draw in a hundred.
    """
    for attempt in range(REDRAWS):
        chosen = stratified_draw(labels, fraction, number + 1000 * attempt)
        with contextlib.suppress(MetricError):
            check_classes(labels[chosen], "draw")
            return chosen
    raise MetricError(
        f"{fraction:.0%} of {len(labels)} records: a class is missing in each of {REDRAWS} draws; "
        "take a larger fraction (CompareConfig.label_fractions)"
    )


def probe_draws(
    features: Mapping[str, np.ndarray], parts: Parts, fraction: float, draws: int
) -> Predictions:
    """Linear probes of several draws of the labels, one with all labels.

    The selection fold chooses regularisation and thresholds with all of its labels, also where few
    labels are drawn from the training folds: it is the same for all methods.

    Args:
        features: (n, features) of train, validation, test.
        parts: of `classify.split`.

    Returns:
        truth (n, classes), score (draws, n, classes), threshold (draws, classes), record_id and
        patient_id (n,), drawn (draws, size) item numbers of the training part.
    """
    numbers, labels = range(draws if fraction < 1 else 1), parts["train"].labels
    drawn = [draw_with_all_classes(labels, fraction, number) for number in numbers]
    probes = [probe(features, parts, chosen) for chosen in progress(drawn, "label draws")]
    return {
        "truth": probes[0]["truth"],
        "score": np.stack([one["score"] for one in probes]),
        "threshold": np.stack([one["threshold"] for one in probes]),
        **parts["test"].ids,
        "drawn": np.stack(drawn),
    }


class LabelDraws(Classification):
    """PTB-XL superclasses from several draws of few labels."""

    key, name, group = "label draws", "ptbxl_label_draws", "compare"
    Settings = CompareConfig
    trainable = detailed = False
    headlines, of_runs = (), "compared"
    made_by = (probe_draws, features_of, split)
    scores = staticmethod(draw_scores)

    def resamples(self, profile: Any) -> int:
        return Classification().resamples(profile)

    def predictor(self, case: Case) -> Callable[[float], Predictions]:
        parts = split(case.store, case.rotation)
        features = features_of(case, parts)
        return lambda fraction: probe_draws(features, parts, fraction, case.settings.draws)


def stacked(each: Sequence[Predictions], repeats: Sequence[int]) -> Predictions:
    """Predictions of all repeats; what all have in common stands there once."""
    together = {name: np.stack([one[name] for one in each]) for name in STACKED if name in each[0]}
    return each[0] | together | {"repeat": np.array(repeats)}


def repeated(case: Case, only: Sequence[int] = ()) -> Predictions:
    """`segment.cross_validate` in several repeats, whose number gives split and seed."""
    each = [cross_validate(case, seed=k, split=k, only=only) for k in case.repeats]
    return stacked(each, case.repeats)


class MoreFolds(Segmentation):
    """LUDB waves in repeated cross-validation, and drawn by delineators.

    Each encoder is evaluated in its repeats; the repeat gives the split and the seed of the
    decoders, the same for all methods. A method with more seeds than repeats leaves the last ones
    without rows. Predictions are those of `segment.cross_validate`, but prediction
    (repeats, n, time) int8, fold (repeats, n) int8 and repeat (repeats,), their numbers from 0;
    those of a delineator, the same in each repeat, hold `failed`, the records where it failed.
    """

    key, name, group = "more folds", "ludb_more_folds", "compare"
    Settings = CompareConfig
    headlines, of_runs = (), "compared"
    made_by, instead = (repeated,), (delineated,)
    scores = staticmethod(fold_scores)

    def settings(self, profile: Any) -> SegmentConfig:
        return replace(Segmentation().settings(profile), folds=super().settings(profile).folds)

    def fractions(self, settings: SegmentConfig, repeats: Sequence[int]) -> tuple[float, ...]:
        return (1.0,) if repeats else ()

    def concerns(self, settings: SegmentConfig, fraction: float, repeats: Sequence[int]) -> list:
        return [to_dict(settings), list(repeats)]

    def without_encoder(
        self, run: RunSettings, store: Store, beats: Beats, rotation: Rotation
    ) -> Delineator | None:
        return None if run.method == "features" else Delineator(run.method)

    def _made(self, case: Case, only: Sequence[int] = ()) -> Predictions:
        if not isinstance(case.encoder, Delineator):
            return repeated(case, only)
        rows = ludb_rows(case.store, case.settings)
        waves, failed = delineated(case.encoder, case.store, rows, case.settings.lead)
        common = [shared(case.store, case.settings, k) for k in case.repeats]
        each = [one | {"prediction": waves} for one in common]
        return stacked(each, case.repeats) | {"failed": np.array(failed, dtype=str)}

    def replay(self, case: Case, fraction: float, stored: Predictions) -> Pair:
        first = {name: value[:1] for name, value in stored.items() if name in STACKED}
        return super().replay(replace(case, repeats=case.repeats[:1]), fraction, stored | first)
