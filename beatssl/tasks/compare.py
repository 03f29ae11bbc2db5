"""What the comparison of methods adds to the two tasks: few labels drawn anew, and folds repeated.

`LABELS` is task 1 with a frozen encoder and a linear probe, for several fractions of the labels and
several stratified draws of each; the draws are the same for all methods and encoders. `FOLDS` is
task 2 in as many runs as the paper's figure suggests (paper.md 7): cross-validation, repeated with
other splits, the same for all methods. Both keep what each draw or fold scored, which is what the
tests over repeated runs compare.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from beatssl.data.store import Store
from beatssl.methods.base import RunSettings
from beatssl.progress import progress
from beatssl.results import saved as results
from beatssl.results.saved import FOLDS, LABELS
from beatssl.tasks import require
from beatssl.tasks.classify import Part, embed, probe, split, stratified_draw
from beatssl.tasks.delineate import Delineator, delineated
from beatssl.tasks.scores import MetricError, check_classes
from beatssl.tasks.segment import SegmentConfig, cross_validate, shared

if TYPE_CHECKING:
    from beatssl.profile import Profile

REDRAWS = 100

Predictions = dict[str, np.ndarray]


def draw_with_all_classes(labels: np.ndarray, fraction: float, number: int) -> np.ndarray:
    """`classify.stratified_draw` number `number`, drawn again while a class is missing in it.

    At 1 % of few records a class can be without a positive, and then nothing can be learnt of it.

    Raises:
        MetricError: no such draw in a hundred.
    """
    for attempt in range(REDRAWS):
        chosen = stratified_draw(labels, fraction, number + 1000 * attempt)
        try:
            check_classes(labels[chosen], "draw")
        except MetricError:
            continue
        return chosen
    raise MetricError(
        f"{fraction:.0%} of {len(labels)} records: a class is missing in each of {REDRAWS} draws; "
        "take a larger fraction (CompareConfig.label_fractions)"
    )


def probe_draws(
    features: Mapping[str, np.ndarray], parts: Mapping[str, Part], fraction: float, draws: int
) -> Predictions:
    """Linear probes of several draws of the labels, one with all labels.

    Fold 9 chooses regularisation and thresholds with all of its labels, also where few labels are
    drawn from folds 1-8: it is the same for all methods.

    Args:
        features: (n, features) of train, validation, test.
        parts: of `classify.split`.

    Returns:
        truth (n, classes), score (draws, n, classes), threshold (draws, classes), record_id and
        patient_id (n,), drawn (draws, size) item numbers of the training part.
    """
    train = parts["train"]
    drawn, found = [], []
    for number in progress(range(draws if fraction < 1 else 1), "label draws"):
        chosen = draw_with_all_classes(train.labels, fraction, number)
        drawn.append(chosen)
        found.append(
            probe(
                features["train"][chosen],
                train.labels[chosen],
                features["validation"],
                parts["validation"].labels,
                features["test"],
                parts["test"].labels,
            )
        )
    return {
        "truth": found[0]["truth"],
        "score": np.stack([f["score"] for f in found]),
        "threshold": np.stack([f["threshold"] for f in found]),
        "record_id": parts["test"].record_id,
        "patient_id": parts["test"].patient_id,
        "drawn": np.stack(drawn),
    }


def label_run(
    run: RunSettings, profile: Profile, store: Store, encoder: nn.Module | np.ndarray, protocol: str
) -> list[dict]:
    """Result rows of task `LABELS` for all label fractions, saved and reused.

    Args:
        encoder: or (rows of the store, features).
        protocol: frozen; others give no rows.
    """
    if protocol != "frozen":
        return []

    @functools.cache
    def prepared() -> tuple[dict, dict]:
        parts = split(store)
        if isinstance(encoder, np.ndarray):
            return {name: encoder[part.rows] for name, part in parts.items()}, parts
        return {name: embed(encoder, store, part.rows) for name, part in parts.items()}, parts

    rows = []
    for fraction in progress(profile.compare.label_fractions, "label fractions"):
        what = results.describe(run, profile, store, encoder, LABELS, protocol, fraction)
        rows += results.reuse_or_make(
            what,
            profile,
            lambda f=fraction: probe_draws(*prepared(), f, profile.compare.draws),
            profile.classify.bootstrap,
        )
    return rows


STACKED = ("fold", "prediction", "learning_rate", "repeat")  # arrays with a first axis of repeats


def stacked(each: Sequence[Predictions], repeats: Sequence[int]) -> Predictions:
    """Predictions of all repeats; what all have in common stands there once."""
    own = [name for name in STACKED if name in each[0]]
    together = {name: np.stack([one[name] for one in each]) for name in own}
    return each[0] | together | {"repeat": np.array(repeats)}


def repeated(
    encoder: nn.Module,
    store: Store,
    config: SegmentConfig,
    repeats: Sequence[int],
    trainable: bool,
    only: Sequence[int] | None = None,
) -> Predictions:
    """`segment.cross_validate` in several repeats, whose number gives split and seed."""
    each = [cross_validate(encoder, store, config, k, trainable, k, only) for k in repeats]
    return stacked(each, repeats)


def folds_run(
    run: RunSettings, profile: Profile, store: Store, encoder: nn.Module | Delineator, protocol: str
) -> list[dict]:
    """Result rows of task `FOLDS`, saved and reused.

    The encoder is evaluated in its repeats (`Profile.repeats_of`); the repeat gives the split and
    the seed of the decoders, the same for all methods. A method with more seeds than repeats
    leaves the last ones without rows. Predictions are those of `segment.cross_validate`, but
    prediction (repeats, n, time) int8, fold (repeats, n) int8 and repeat (repeats,), their numbers
    from 0; those of a delineator, the same in each repeat, hold `failed`, the records where it
    failed.

    Args:
        encoder: or what draws the waves without one.
        protocol: frozen | finetune | scratch.
    """
    require(protocol, run.method)
    config = dataclasses.replace(profile.segment, folds=profile.compare.folds)
    repeats = profile.repeats_of(run)
    if not repeats:
        return []
    what = results.describe(run, profile, store, encoder, FOLDS, protocol, 1.0)

    def predict() -> Predictions:
        if not isinstance(encoder, Delineator):
            return repeated(encoder, store, config, repeats, protocol != "frozen")
        waves, failed = delineated(encoder, profile, store)
        each = [shared(store, config, k) | {"prediction": waves} for k in repeats]
        return stacked(each, repeats) | {"failed": np.array(failed, dtype=str)}

    return results.reuse_or_make(what, profile, predict, config.bootstrap)
