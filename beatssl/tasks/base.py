"""A downstream task: what it needs of a profile, how it predicts, how its predictions are scored.

A new task is a file with a subclass of `Task`, and a line in `beatssl.tasks.TASKS`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from beatssl.data.beats import Beats
from beatssl.data.store import Store
from beatssl.methods.base import RunSettings
from beatssl.settings import Rotation, one_of

PROTOCOLS = ("frozen", "finetune", "scratch")

Predictions = dict[str, np.ndarray]
Pair = tuple[Predictions, Predictions]
Headlines = tuple[tuple[str, str], ...]  # heading and metric of each


@dataclass(frozen=True)
class Case:
    """What a task is evaluated on.

    Attributes:
        run: settings of the run whose encoder it is.
        settings: of the task.
        encoder: a module (batch, 12, time) -> (batch, channels, steps), or what stands in its place
            (`Task.without_encoder`); None where a run failed.
        protocol: frozen | finetune (encoder and head learn) | scratch (the same, untrained).
        repeats: numbers of the repeats that this encoder is evaluated in (`Profile.repeats_of`).
        rotation: PTB-XL's folds that train, select and are tested.

    Raises:
        ValueError: a protocol that is not known, or that would report an encoder under the wrong
            name: `scratch` with a pretrained encoder, `finetune` with an untrained one.
    """

    run: Any  # the type's text would be in the key of every task
    settings: Any
    store: Store
    encoder: Any
    protocol: str = "frozen"
    repeats: tuple[int, ...] = ()
    rotation: Rotation = Rotation()

    def __post_init__(self) -> None:
        one_of("protocol", self.protocol, PROTOCOLS)
        method = self.run.method
        if self.protocol == "scratch" and method != "random":
            raise ValueError(f"'scratch' starts from an untrained encoder, not from {method}")
        if self.protocol == "finetune" and self.run.untrained:
            raise ValueError("fine-tuning an untrained encoder is protocol 'scratch'")

    @property
    def trainable(self) -> bool:
        """Whether the encoder learns too."""
        return self.protocol != "frozen"


def to_logits(probability: np.ndarray) -> np.ndarray:
    """Log odds in 16 bits, as probabilities are kept."""
    with np.errstate(divide="ignore", over="ignore"):
        return (np.log(probability) - np.log1p(-probability)).astype(np.float16)


def of_logits(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float64, of what `to_logits` gave."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-logits.astype(np.float64)))


def ids_of(store: Store, rows: np.ndarray) -> Predictions:
    """`record_id` and `patient_id` of these rows, (n,) text, as predictions name them."""
    table = store.table.iloc[rows]
    return {name: table[name].to_numpy(dtype=str) for name in ("record_id", "patient_id")}


class Task:
    """What all tasks have in common.

    Attributes:
        key: what `evaluate_all` calls it.
        name: in column `task` of the results.
        group: entry of a profile in runs.yml with its settings; its key where none is named.
        Settings: their dataclass.
        dataset: whose records it needs, ptbxl | ludb | challenge.
        trainable: whether encoders are fine-tuned, too.
        of_runs: which runs are evaluated as soon as they are trained: all | compared (those of the
            comparison of methods) | asked (none).
        by_fraction: whether it is evaluated for each of the settings' `label_fractions`.
        headlines: (heading, metric) of its columns in the main table.
        listed: metrics that the results file holds of every run; without any all of them.
        detailed: whether it holds the others of all seeds together.
        probabilities: arrays of its predictions that are rounded to 16 bits before they are scored.
        made_by: functions of this package that make the predictions; what they reach is in the key.
        instead: those that make what stands in place of an encoder.
    """

    key: str
    name: str
    group = ""
    Settings: type
    dataset = "ptbxl"
    trainable = False
    of_runs = "all"
    by_fraction = False
    headlines: Headlines = ()
    listed: tuple[str, ...] = ()
    detailed = True
    probabilities: tuple[str, ...] = ()
    made_by: tuple[Callable, ...] = ()
    instead: tuple[Callable, ...] = ()

    def settings(self, profile: Any) -> Any:
        """Its settings in a profile; defaults where the profile does not name them."""
        group = self.group or self.key
        return vars(profile).get(group) or profile.tasks.get(group) or self.Settings()

    def resamples(self, profile: Any) -> int:
        """Number of bootstrap resamples."""
        return self.settings(profile).bootstrap

    def fractions(self, settings: Any, repeats: Sequence[int]) -> tuple[float, ...]:
        """Label fractions to evaluate; none where this encoder has no part in the task."""
        return settings.label_fractions if self.by_fraction else (1.0,)

    def protocols(self, run: RunSettings, finetune: bool = False) -> list[str]:
        """Every encoder is probed frozen; the untrained ResNet, trained on the labels, is the
        supervised reference (not so its variants); trained ones are fine-tuned on request."""
        more = ["scratch"] if run.name == "random" else []
        if finetune and run.has_encoder and not run.untrained:
            more = ["finetune"]
        return ["frozen", *(more if self.trainable else [])]

    def concerns(self, settings: Any, fraction: float, repeats: Sequence[int]) -> Any:
        """The settings on which the predictions at one label fraction depend."""
        if self.by_fraction:
            return dataclasses.replace(settings, label_fractions=(fraction,))
        return settings

    def of_run(self, run: RunSettings) -> dict:
        """Settings of the run on which the predictions depend."""
        return {**run.own_settings(), "seed": run.seed}

    def code(self, run: RunSettings) -> tuple[Callable, ...]:
        """Definitions that make the predictions, the encoder's apart; for `code_of`."""
        return self.made_by + (() if run.has_encoder else self.instead)

    def without_encoder(
        self, run: RunSettings, store: Store, beats: Beats, rotation: Rotation
    ) -> Any:
        """What is evaluated of a run that has no encoder; None where the task has no use for it."""

    def predictor(self, case: Case) -> Callable[[float], Predictions]:
        """A function label fraction -> predictions: arrays by name, among them `record_id` and
        `patient_id` (n,) of the records that are scored."""
        raise NotImplementedError

    def rounded(self, predictions: Predictions) -> Predictions:
        """Predictions as they are kept, so that what is scored can be scored again."""
        kept = {name: of_logits(to_logits(predictions[name])) for name in self.probabilities}
        return {**predictions, **kept}

    def scores(self, predictions: Predictions, weights: np.ndarray | None = None) -> Predictions:
        """Metric -> (resamples,); see `beatssl.tasks.scores`."""
        raise NotImplementedError

    def replay(self, case: Case, fraction: float, stored: Predictions) -> Pair:
        """Predictions made anew, in minutes, and what of the stored ones they must equal."""
        return self.predictor(case)(fraction), stored
