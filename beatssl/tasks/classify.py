"""Task 1: PTB-XL superdiagnostic classes (NORM, MI, STTC, CD, HYP), multilabel.

Some folds train, one selects (regularisation, learning rate, epoch, thresholds), others are tested:
officially 1-8, 9 and 10 (paper.md 2.4; Strodthoff et al. 2021), or those of a run's `Rotation`.
Protocols: `frozen` fits a linear probe on the time mean of
the encoder's output; `finetune` trains encoder and linear head together; `scratch` is the same from
an untrained encoder, the supervised reference.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from beatssl.data.beats import Beats, training_rows
from beatssl.data.records import SUPERCLASSES
from beatssl.data.store import Store
from beatssl.methods.base import RunSettings, dropout_from
from beatssl.methods.targets import FeatureScale
from beatssl.progress import progress
from beatssl.settings import Rotation, folds_in_words, some_rates
from beatssl.tasks.base import Case, Headlines, Predictions, Task, ids_of
from beatssl.tasks.fit import Fit, Plan, best_rate, device_of, outputs
from beatssl.tasks.scores import (
    auroc, check_classes, classification_scores, effective_rank, thresholds,
)  # fmt: skip

REGULARISATION = tuple(10.0**k for k in range(-4, 3))  # scikit-learn's C
MOST_PASSES = 4  # fewer labels, more passes over them: at most this many times the epochs


@dataclass(frozen=True)
class ClassifyConfig:
    """Task 1, PTB-XL superdiagnostic classes."""

    label_fractions: tuple[float, ...] = (0.1, 1.0)
    bootstrap: int = 1000
    finetune_epochs: int = 15
    finetune_batch_size: int = 64
    finetune_learning_rates: tuple[float, ...] = (3.0e-4, 1.0e-3, 3.0e-3)
    finetune_weight_decay: float = 1.0e-2

    def __post_init__(self) -> None:
        some_rates(self.finetune_learning_rates)


@dataclass(frozen=True)
class Part:
    """Labelled records of some folds.

    Attributes:
        rows: (n,) rows of the store.
        labels: (n, 5) 0 or 1.
        ids: record_id and patient_id, (n,) text.
        unlabelled: number of records of these folds without a superclass, left out.
    """

    rows: np.ndarray
    labels: np.ndarray
    ids: Predictions
    unlabelled: int


Parts = Mapping[str, Part]  # train, validation, test


def split(store: Store, rotation: Rotation) -> Parts:
    """Training, validation and test part of the PTB-XL records.

    Raises:
        MetricError: a part is empty, or one of its classes has no positive or no negative; names
            rotation, folds and class.
    """
    parts = {}
    for name, folds in rotation.parts.items():
        rows = np.asarray(store.rows("ptbxl", folds))
        labels = store.table.iloc[rows][list(SUPERCLASSES)].to_numpy()
        known = (labels >= 0).all(axis=1)
        rows, labels = rows[known], labels[known].astype(np.int8)
        where = f"PTB-XL {folds_in_words(folds)} ({name})"
        check_classes(labels, f"rotation that tests {rotation.folds('test')}: {where}")
        parts[name] = Part(rows, labels, ids_of(store, rows), int((~known).sum()))
    return parts


def stratified_draw(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draw a fraction of the records that keeps the proportions of all label combinations.

    Systematic sampling: records are ordered by their label combination, at random within it, and
    every 1/fraction-th is taken from a random start. So each combination gets its share rounded up
    or down, and the whole is `round(fraction * n)` records.

    Args:
        labels: (n, classes) 0 or 1.
        fraction: of the records, 0 < fraction <= 1.
        seed: of the draw.

    Returns:
        Ascending item numbers.

    Raises:
        ValueError: fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"label fraction must be above 0 and at most 1, got {fraction}")
    n, rng = len(labels), np.random.default_rng(seed)
    size = max(1, round(fraction * n))
    combination = labels @ (1 << np.arange(labels.shape[1]))
    order = np.lexsort([rng.random(n), combination])
    taken = np.floor((np.arange(size) + rng.random()) * n / size).astype(int)
    return np.sort(order[taken])


def embed(encoder: nn.Module, store: Store, rows: np.ndarray) -> np.ndarray:
    """Mean over time of the encoder's output, one vector a record (evaluation mode, float32).

    Returns:
        (len(rows), channels) float32.

    Raises:
        ValueError: the encoder's output is not finite; names the first record.
    """
    features = _apply(encoder, store, rows, lambda e: e.float().mean(dim=2))
    bad = rows[~np.isfinite(features).all(axis=1)]
    if len(bad):
        raise ValueError(
            f"record {store.table['record_id'].iloc[bad[0]]}: the encoder's output is not finite "
            f"({len(bad)} records in all); train the encoder again"
        )
    return features


def _apply(model: nn.Module, store: Store, rows: np.ndarray, finish: Callable) -> np.ndarray:
    pieces = [rows[start : start + 128] for start in range(0, len(rows), 128)]
    return outputs(model, pieces, lambda part: torch.from_numpy(store.load(part)), finish).numpy()


def features_of(case: Case, parts: Parts) -> dict[str, np.ndarray]:
    """What is probed of each part, (n, features): the encoder's, or what stands in its place."""
    if isinstance(case.encoder, np.ndarray):
        return {name: case.encoder[part.rows] for name, part in parts.items()}
    return {name: embed(case.encoder, case.store, part.rows) for name, part in parts.items()}


def ecg_features(store: Store, beats: Beats, rotation: Rotation) -> np.ndarray:
    """The record features from which the soft targets are made, (rows of the store, 54); what is
    missing takes the median of the rows that are pretrained on."""
    known = torch.from_numpy(beats.record_features)
    scale = FeatureScale.fit(known[torch.from_numpy(training_rows(store, rotation))])
    return scale.impute(known).numpy()


def probe(features: Mapping[str, np.ndarray], parts: Parts, chosen: np.ndarray) -> Predictions:
    """Linear probe on any feature matrix: one L2-regularised logistic regression a class.

    Features are standardised on the training records. One C for all classes is chosen by macro
    AUROC on the validation records (of equals the smallest), thresholds by F1 there.

    Args:
        features: (n, features) of train, validation, test.
        parts: of `split`.
        chosen: item numbers of the training part whose labels are used.

    Returns:
        truth (n_test, classes) int8, score (n_test, classes) probabilities, threshold (classes,),
        regularisation (the chosen C).

    Raises:
        MetricError: a class has no positive or no negative in one of the parts.
        ValueError: features are not finite.
    """
    y = {name: part.labels for name, part in parts.items()}
    y["train"] = y["train"][chosen]
    for name, labels in y.items():
        check_classes(labels, f"{name} part")
    train = features["train"][chosen]
    scaler = StandardScaler().fit(train.astype(np.float64))
    train, val, test = map(scaler.transform, (train, features["validation"], features["test"]))
    strengths = progress(REGULARISATION, "regularisation", delay=5)
    models = [_logistic(C=c, max_iter=200).fit(train, y["train"]) for c in strengths]
    scores = [model.predict_proba(val) for model in models]
    best = int(np.argmax([macro_auroc(y["validation"], score) for score in scores]))
    return {
        "truth": np.asarray(y["test"], np.int8),
        "score": np.ascontiguousarray(models[best].predict_proba(test), np.float64),
        "threshold": thresholds(y["validation"], scores[best]),
        "regularisation": np.array(REGULARISATION[best]),
    }


def _logistic(**settings: float) -> OneVsRestClassifier:
    return OneVsRestClassifier(LogisticRegression(solver="newton-cholesky", **settings))


def macro_auroc(truth: np.ndarray, score: np.ndarray) -> float:
    """Mean over the classes of the AUROC; (n, classes) each."""
    ones = np.ones((1, len(truth)))
    return float(np.mean([auroc(t, s, ones) for t, s in zip(truth.T, score.T, strict=True)]))


def probe_monitor(store: Store, rotation: Rotation) -> Callable[[nn.Module], dict[str, float]]:
    """Function encoder -> macro AUROC on the selection fold of a linear probe of the training
    folds, and the effective rank of the selection fold.

    A watch during pretraining, not a result: C is fixed at 0.01, and no test fold is touched.
    """
    parts = split(store, rotation)
    train, val = parts["train"], parts["validation"]

    def watch(encoder: nn.Module) -> dict[str, float]:
        model = make_pipeline(StandardScaler(), _logistic(C=0.01))
        model.fit(embed(encoder, store, train.rows), train.labels)
        seen = embed(encoder, store, val.rows)
        auroc_of_val = macro_auroc(val.labels, model.predict_proba(seen))
        return {"probe_auroc": auroc_of_val, "effective_rank": effective_rank(seen)}

    return watch


class Classifier(nn.Module):
    """Encoder, mean over time, linear layer: (batch, 12, time) -> logits (batch, classes)."""

    def __init__(self, encoder: nn.Module, classes: int):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.channels, classes)
        nn.init.zeros_(self.head.weight)  # no random draw; the bias learns the prevalence first
        nn.init.zeros_(self.head.bias)

    def forward(self, signals: Tensor) -> Tensor:
        return self.head(self.encoder(signals).mean(dim=2))


class Tuned(NamedTuple):
    """A trained classifier with the weights of its best epoch, whose number counts from 1; `curve`
    holds the validation macro AUROC at each check, `score` (n, classes) is of that part, then."""

    model: Classifier
    epoch: int
    curve: list[float]
    score: np.ndarray


def finetune(case: Case, parts: Parts, chosen: np.ndarray) -> Predictions:
    """Train a copy of the encoder with a linear head for each learning rate; rate and epoch are
    chosen by macro AUROC on the validation part (of equals the first).

    A rate whose loss leaves the finite numbers is out; the test part is scored once, at the end.
    Shuffling and dropout are seeded by the run, the same for every rate.

    Args:
        chosen: item numbers of the training part whose labels are used.

    Returns:
        truth, score, threshold as `probe`; `learning_rate`, `epoch` (chosen), `validation_auroc`
        (checks,) of that rate, and `rate_auroc` (rates,), the best of each rate, NaN where it is
        out.

    Raises:
        FloatingPointError: no rate is left.
    """
    test = parts["test"]
    check_classes(parts["train"].labels[chosen], f"training draw of {len(chosen)} records")
    train = functools.partial(tune, case, parts, chosen)
    rates = case.settings.finetune_learning_rates
    rate, qualities, best = best_rate(rates, train, lambda tuned: max(tuned.curve))
    return {
        "truth": test.labels,
        "score": _score(best.model, case.store, test.rows),
        "threshold": thresholds(parts["validation"].labels, best.score),
        "learning_rate": np.array(rate),
        "epoch": np.array(best.epoch),
        "validation_auroc": np.array(best.curve),
        "rate_auroc": qualities,
    }


def tune(case: Case, parts: Parts, chosen: np.ndarray, rate: float) -> Tuned:
    """Train a copy of the encoder with a linear head; the epoch is chosen on the validation part.

    Binary cross-entropy. With a part of the labels the epochs are multiplied by n / len(chosen), at
    most by 4, and validated as often as with all labels, so that few labels do not mean few
    optimiser steps.

    Raises:
        FloatingPointError: the loss is NaN or infinite.
    """
    store, config, val = case.store, case.settings, parts["validation"]
    device = device_of(case.encoder)
    rows, labels = parts["train"].rows[chosen], parts["train"].labels[chosen]
    model = Classifier(copy.deepcopy(case.encoder), labels.shape[1]).to(device).requires_grad_(True)
    repeat = min(MOST_PASSES, max(1, round(len(parts["train"].rows) / len(chosen))))
    epochs = config.finetune_epochs * repeat

    def load(items: Tensor) -> tuple[Tensor, Tensor]:
        signals = store.load(rows[items.numpy()])
        return torch.from_numpy(signals), torch.from_numpy(labels[items.numpy()]).float()

    plan = Plan(len(chosen), config.finetune_batch_size, epochs, rate, config.finetune_weight_decay)
    fit = Fit(model, load, binary_cross_entropy_with_logits, plan, case.run.seed)
    dropout = torch.Generator().manual_seed(case.run.seed)
    curve, best = [], None
    for epoch in progress(range(1, epochs + 1), "fine-tuning epochs"):
        with dropout_from(dropout, device):
            fit.epoch()
        if epoch % repeat == 0:
            score = _score(model, store, val.rows)
            curve.append(macro_auroc(val.labels, score))
            if best is None or curve[-1] > max(curve[:-1]):
                best = epoch, score, copy.deepcopy(model.state_dict())
    epoch, score, state = best
    model.load_state_dict(state)
    return Tuned(model, epoch, curve, score)


def _score(model: Classifier, store: Store, rows: np.ndarray) -> np.ndarray:
    return _apply(model, store, rows, lambda logits: logits.double().sigmoid())


def predictor(case: Case) -> Callable[[float], Predictions]:
    """A function label fraction -> test predictions; frozen features are computed once for all.

    The draw of the labels uses the run's seed. Predictions also carry `record_id` and
    `patient_id` (n_test,), `train_record_id` (drawn,) and `unlabelled` (records left out of train,
    validation, test).
    """
    parts = split(case.store, case.rotation)
    train = parts["train"]
    features = functools.cache(lambda: features_of(case, parts))

    def predict(fraction: float) -> Predictions:
        draw = stratified_draw(train.labels, fraction, case.run.seed)
        made = finetune(case, parts, draw) if case.trainable else probe(features(), parts, draw)
        made["train_record_id"] = train.ids["record_id"][draw]
        made["unlabelled"] = np.array([part.unlabelled for part in parts.values()])
        return made | parts["test"].ids

    return predict


class Classification(Task):
    """PTB-XL superclasses, for each label fraction."""

    key, name, group = "classification", "ptbxl_superdiagnostic", "classify"
    Settings: type = ClassifyConfig
    trainable = by_fraction = True
    headlines: Headlines = (("AUROC", "auroc_macro"), ("F1", "f1_macro"))
    listed = ("auroc_macro", "f1_macro")
    probabilities = ("score",)
    made_by: tuple[Callable, ...] = (predictor,)
    instead = (ecg_features,)
    predictor = staticmethod(predictor)
    scores = staticmethod(classification_scores)

    def without_encoder(
        self, run: RunSettings, store: Store, beats: Beats, rotation: Rotation
    ) -> np.ndarray | None:
        return ecg_features(store, beats, rotation) if run.method == "features" else None
