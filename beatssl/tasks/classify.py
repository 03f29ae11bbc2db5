"""Task 1: PTB-XL superdiagnostic classes (NORM, MI, STTC, CD, HYP), multilabel.

Official folds 1-8 train, 9 selects (regularisation, learning rate, epoch, thresholds), 10 tests
(paper.md 2.4; Strodthoff et al. 2021). Protocols: `frozen` fits a linear probe on the time mean of
the encoder's output; `finetune` trains encoder and linear head together; `scratch` is the same from
an untrained encoder, the supervised reference.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from beatssl.data.records import SUPERCLASSES
from beatssl.data.store import Store
from beatssl.methods.base import RunSettings, dropout_from
from beatssl.methods.encoder import Encoder, autocast
from beatssl.progress import progress
from beatssl.results import saved as results
from beatssl.settings import some_rates
from beatssl.tasks import (
    batches, best_rate, check_loss, cosine_schedule, count_batches, device_of, require,
)  # fmt: skip
from beatssl.tasks.scores import auroc, check_classes, thresholds

if TYPE_CHECKING:
    from beatssl.profile import Profile

TASK = "ptbxl_superdiagnostic"
PARTS = {"train": range(1, 9), "validation": (9,), "test": (10,)}  # official folds
REGULARISATION = tuple(10.0**k for k in range(-4, 3))  # scikit-learn's C
MOST_PASSES = 4  # fewer labels, more passes over them: at most this many times the epochs

Predictions = dict[str, np.ndarray]


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
        record_id, patient_id: (n,) text.
        unlabelled: number of records of these folds without a superclass, left out.
    """

    rows: np.ndarray
    labels: np.ndarray
    record_id: np.ndarray
    patient_id: np.ndarray
    unlabelled: int


def split(store: Store) -> dict[str, Part]:
    """Training, validation and test part of the PTB-XL records.

    Raises:
        MetricError: a part is empty, or one of its classes has no positive or no negative.
    """
    parts = {}
    for part, folds in PARTS.items():
        rows = np.asarray(store.rows("ptbxl", list(folds)))
        labels = store.table.iloc[rows][list(SUPERCLASSES)].to_numpy()
        known = (labels >= 0).all(axis=1)
        rows, labels = rows[known], labels[known].astype(np.int8)
        numbers = f"folds {folds[0]}-{folds[-1]}" if len(folds) > 1 else f"fold {folds[0]}"
        check_classes(labels, f"PTB-XL {numbers} ({part})")
        record_id, patient_id = (
            store.table[name].iloc[rows].to_numpy(dtype=str) for name in ("record_id", "patient_id")
        )
        parts[part] = Part(rows, labels, record_id, patient_id, int((~known).sum()))
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
    n = len(labels)
    size = max(1, round(fraction * n))
    rng = np.random.default_rng(seed)
    combination = labels @ (1 << np.arange(labels.shape[1]))
    order = np.lexsort([rng.random(n), combination])
    taken = np.floor((np.arange(size) + rng.random()) * n / size).astype(int)
    return np.sort(order[taken])


def embed(encoder: nn.Module, store: Store, rows: np.ndarray, batch_size: int = 128) -> np.ndarray:
    """Mean over time of the encoder's output, one vector a record (evaluation mode, float32).

    Returns:
        (len(rows), channels) float32.

    Raises:
        ValueError: the encoder's output is not finite; names the first record.
    """
    features = _apply(encoder, lambda e: e.float().mean(dim=2), store, rows, batch_size)
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        name = store.table["record_id"].iloc[rows[bad[0]]]
        raise ValueError(
            f"record {name}: the encoder's output is not finite ({len(bad)} records in all); "
            "train the encoder again"
        )
    return features


def probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    val_x: np.ndarray,
    val_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
) -> Predictions:
    """Linear probe on any feature matrix: one L2-regularised logistic regression a class.

    Features are standardised on the training records. One C for all classes is chosen by macro
    AUROC on the validation records (of equals the smallest), thresholds by F1 there.

    Args:
        train_x, val_x, test_x: (n, features).
        train_y, val_y, test_y: (n, classes) 0 or 1.

    Returns:
        truth (n_test, classes) int8, score (n_test, classes) probabilities, threshold (classes,),
        regularisation (the chosen C).

    Raises:
        MetricError: a class has no positive or no negative in one of the parts.
        ValueError: features are not finite.
    """
    for y, name in ((train_y, "training part"), (val_y, "validation part"), (test_y, "test part")):
        check_classes(y, name)
    scaler = StandardScaler().fit(train_x.astype(np.float64))
    train_x, val_x, test_x = (scaler.transform(x) for x in (train_x, val_x, test_x))
    best = (-1.0, 0.0, None, None)
    for c in progress(REGULARISATION, "regularisation", delay=5):
        val_score, test_score = np.empty(val_y.shape), np.empty(test_y.shape)
        for k in range(train_y.shape[1]):
            model = LogisticRegression(C=c, solver="newton-cholesky", max_iter=200)
            model.fit(train_x, train_y[:, k])
            val_score[:, k] = model.predict_proba(val_x)[:, 1]
            test_score[:, k] = model.predict_proba(test_x)[:, 1]
        quality = macro_auroc(val_y, val_score)
        if quality > best[0]:
            best = (quality, c, val_score, test_score)
    _, c, val_score, test_score = best
    return {
        "truth": np.asarray(test_y, np.int8),
        "score": test_score,
        "threshold": thresholds(val_y, val_score),
        "regularisation": np.array(c),
    }


def macro_auroc(truth: np.ndarray, score: np.ndarray) -> float:
    """Mean over the classes of the AUROC; (n, classes) each."""
    ones = np.ones((1, len(truth)))
    return float(np.mean([auroc(t, s, ones) for t, s in zip(truth.T, score.T, strict=True)]))


class Classifier(nn.Module):
    """Encoder, mean over time, linear layer: (batch, 12, time) -> logits (batch, classes)."""

    def __init__(self, encoder: nn.Module, classes: int):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.channels, classes)
        nn.init.zeros_(self.head.weight)  # no random draw; the bias learns the prevalence first
        nn.init.zeros_(self.head.bias)

    def forward(self, signals: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(signals).mean(dim=2))


@dataclass(frozen=True)
class Tuned:
    """A trained classifier at its best epoch.

    Attributes:
        model: with the weights of that epoch.
        epoch: its number, from 1.
        curve: validation macro AUROC at each check.
        score: (n, classes) of the validation part at that epoch.
    """

    model: Classifier
    epoch: int
    curve: list[float]
    score: np.ndarray


def finetune(
    encoder: nn.Module,
    store: Store,
    parts: Mapping[str, Part],
    chosen: np.ndarray,
    config: ClassifyConfig,
    seed: int,
) -> Predictions:
    """Train a copy of the encoder with a linear head for each learning rate; rate and epoch are
    chosen by macro AUROC on the validation part (of equals the first).

    A rate whose loss leaves the finite numbers is out; the test part is scored once, at the end.

    Args:
        chosen: item numbers of the training part whose labels are used.
        seed: of shuffling and dropout, the same for every rate.

    Returns:
        truth, score, threshold as `probe`; `learning_rate`, `epoch` (chosen), `validation_auroc`
        (checks,) of that rate, and `rate_auroc` (rates,), the best of each rate, NaN where it is
        out.

    Raises:
        FloatingPointError: no rate is left.
    """
    train, val, test = parts["train"], parts["validation"], parts["test"]
    check_classes(train.labels[chosen], f"training draw of {len(chosen)} records")
    rates = config.finetune_learning_rates

    def quality(rate: float) -> tuple[float, Tuned]:
        tuned = fit(encoder, store, train, val, chosen, config, rate, seed)
        return max(tuned.curve), tuned

    rate, qualities, best = best_rate(rates, quality)
    return {
        "truth": test.labels,
        "score": _score(best.model, store, test.rows),
        "threshold": thresholds(val.labels, best.score),
        "learning_rate": np.array(rate),
        "epoch": np.array(best.epoch),
        "validation_auroc": np.array(best.curve),
        "rate_auroc": qualities,
    }


def fit(
    encoder: nn.Module,
    store: Store,
    train: Part,
    val: Part,
    chosen: np.ndarray,
    config: ClassifyConfig,
    rate: float,
    seed: int,
) -> Tuned:
    """Train a copy of the encoder with a linear head; the epoch is chosen on the validation part.

    Binary cross-entropy, AdamW, warm-up to `rate` and cosine decay. With a part of the labels the
    epochs are multiplied by n / len(chosen), at most by 4, and validated as often as with all
    labels, so that few labels do not mean few optimiser steps.

    Raises:
        FloatingPointError: the loss is NaN or infinite.
    """
    device = device_of(encoder)
    model = Classifier(copy.deepcopy(encoder), train.labels.shape[1]).to(device)
    model.requires_grad_(True)
    repeat = min(MOST_PASSES, max(1, round(len(train.rows) / len(chosen))))
    epochs, size = config.finetune_epochs * repeat, config.finetune_batch_size
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, weight_decay=config.finetune_weight_decay
    )
    schedule = cosine_schedule(optimizer, epochs * count_batches(len(chosen), size))
    generator, dropout = (torch.Generator().manual_seed(seed) for _ in range(2))
    curve, best = [], None
    for epoch in progress(range(1, epochs + 1), "fine-tuning epochs"):
        model.train()
        with dropout_from(dropout, device):
            for items in batches(len(chosen), size, generator):
                picked = chosen[items.numpy()]
                signals = torch.from_numpy(store.load(train.rows[picked])).to(device)
                target = torch.from_numpy(train.labels[picked]).float().to(device)
                with autocast(device):
                    logits = model(signals)
                loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), target)
                check_loss(loss, "PTB-XL fine-tuning")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
        if epoch % repeat == 0:
            val_score = _score(model, store, val.rows)
            curve.append(macro_auroc(val.labels, val_score))
            if best is None or curve[-1] > best[0]:
                best = (curve[-1], epoch, val_score, copy.deepcopy(model.state_dict()))
    _, epoch, val_score, state = best
    model.load_state_dict(state)
    return Tuned(model, epoch, curve, val_score)


def _score(model: Classifier, store: Store, rows: np.ndarray) -> np.ndarray:
    """Probabilities (len(rows), classes)."""
    return _apply(model, lambda logits: logits.double().sigmoid(), store, rows)


def _apply(
    model: nn.Module,
    finish: Callable[[torch.Tensor], torch.Tensor],
    store: Store,
    rows: np.ndarray,
    batch_size: int = 128,
) -> np.ndarray:
    """`finish(model(signals))` of the rows in evaluation mode, float32 arithmetic."""
    model.eval()
    device = device_of(model)
    out = []
    with torch.no_grad():
        starts = range(0, len(rows), batch_size)
        for start in progress(starts, "batches of records", delay=5):
            signals = torch.from_numpy(store.load(rows[start : start + batch_size])).to(device)
            out.append(finish(model(signals)).cpu().numpy())
    return np.concatenate(out)


def predictor(
    run: RunSettings, profile: Profile, store: Store, encoder: Encoder | np.ndarray, protocol: str
) -> Callable[[float], Predictions]:
    """A function label fraction -> test predictions; frozen features are computed once for all.

    The draw of the labels uses the run's seed. Predictions also carry `record_id` and
    `patient_id` (n_test,), `train_record_id` (drawn,) and `unlabelled` (records left out of train,
    validation, test).

    Args:
        encoder: or (rows of the store, features), features that no encoder made, to be probed.
    """
    require(protocol, run.method)
    parts = split(store)

    @functools.cache
    def features() -> dict[str, np.ndarray]:
        if isinstance(encoder, np.ndarray):
            return {name: encoder[part.rows] for name, part in parts.items()}
        return {name: embed(encoder, store, part.rows) for name, part in parts.items()}

    def predict(fraction: float) -> Predictions:
        train = parts["train"]
        chosen = stratified_draw(train.labels, fraction, run.seed)
        if protocol == "frozen":
            x = features()
            found = probe(
                x["train"][chosen],
                train.labels[chosen],
                x["validation"],
                parts["validation"].labels,
                x["test"],
                parts["test"].labels,
            )
        else:
            found = finetune(encoder, store, parts, chosen, profile.classify, run.seed)
        found["record_id"] = parts["test"].record_id
        found["patient_id"] = parts["test"].patient_id
        found["train_record_id"] = train.record_id[chosen]
        found["unlabelled"] = np.array([part.unlabelled for part in parts.values()])
        return found

    return predict


def evaluate(
    run: RunSettings, profile: Profile, store: Store, encoder: Encoder, protocol: str
) -> tuple[list[dict], dict[float, Predictions]]:
    """Result rows and test predictions for every label fraction, nothing written.

    Args:
        run: whose encoder it is; `scratch` needs the untrained run of that seed.
        protocol: frozen | finetune | scratch.
    """
    predict = predictor(run, profile, store, encoder, protocol)
    rows, predictions = [], {}
    for fraction in profile.classify.label_fractions:
        what = results.describe(run, profile, store, encoder, TASK, protocol, fraction)
        predictions[fraction] = predict(fraction)
        rows += results.score(what, predictions[fraction], profile.classify.bootstrap)
    return rows, predictions


def classify_run(
    run: RunSettings, profile: Profile, store: Store, encoder: Encoder | np.ndarray, protocol: str
) -> list[dict]:
    """Like `evaluate`, but each label fraction is saved when done and reused when nothing changed.

    Returns:
        The result rows; predictions lie in `work/<profile>/predictions/`.
    """
    lazy = functools.cache(lambda: predictor(run, profile, store, encoder, protocol))
    require(protocol, run.method)
    rows = []
    for fraction in progress(profile.classify.label_fractions, f"{protocol}, label fractions"):
        what = results.describe(run, profile, store, encoder, TASK, protocol, fraction)
        rows += results.reuse_or_make(
            what, profile, lambda f=fraction: lazy()(f), profile.classify.bootstrap
        )
    return rows
