"""Fine-tuning that starts from the linear probe: ours, not the paper's.

`classify.finetune` starts from a head of zeros, and batch normalisation follows the few labelled
records. Here the head is the probe's, so that no step of the optimiser is spent on finding it, and
the statistics stay those of pretraining (the book's "The better encoder").
"""

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from beatssl.methods.base import RunSettings, dropout_from
from beatssl.progress import progress
from beatssl.settings import some_rates
from beatssl.tasks.base import Case, Headlines, Predictions
from beatssl.tasks.classify import (
    MOST_PASSES, Classification, Classifier, Parts, Tuned, _logistic, _score, features_of,
    macro_auroc, probe, split, stratified_draw,
)  # fmt: skip
from beatssl.tasks.fit import Fit, Plan, best_rate, device_of
from beatssl.tasks.scores import thresholds


@dataclass(frozen=True)
class FromProbeConfig:
    """Fine-tuning from the probe."""

    label_fractions: tuple[float, ...] = (0.1, 1.0)
    bootstrap: int = 1000
    epochs: int = 15
    batch_size: int = 64
    learning_rates: tuple[float, ...] = (3.0e-4, 1.0e-3)
    weight_decay: float = 1.0e-2

    def __post_init__(self) -> None:
        some_rates(self.learning_rates)


class ProbedClassifier(Classifier):
    """A classifier whose head is a linear probe of its encoder, and whose batch normalisation keeps
    its statistics while it learns.

    Args: weight, bias: of the probe on the encoder's mean over time; (classes, channels),
        (classes,).
    """

    def __init__(self, encoder: nn.Module, weight: np.ndarray, bias: np.ndarray):
        super().__init__(encoder, len(bias))
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight))
            self.head.bias.copy_(torch.from_numpy(bias))

    def train(self, mode: bool = True) -> "ProbedClassifier":
        super().train(mode)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm1d):
                layer.eval()
        return self


def probed(
    encoder: nn.Module, features: Mapping[str, np.ndarray], parts: Parts, chosen: np.ndarray
) -> Classifier:
    """A copy of the encoder with the head that `classify.probe` finds; it scores as the probe.

    Args: features, parts, chosen: as of `classify.probe`."""
    strength = float(probe(features, parts, chosen)["regularisation"])
    train = features["train"][chosen].astype(np.float64)
    scaler = StandardScaler().fit(train)
    model = _logistic(C=strength, max_iter=200)
    model.fit(scaler.transform(train), parts["train"].labels[chosen])
    weight = np.concatenate([one.coef_ for one in model.estimators_]) / scaler.scale_
    bias = np.concatenate([one.intercept_ for one in model.estimators_]) - weight @ scaler.mean_
    return ProbedClassifier(copy.deepcopy(encoder), weight, bias).to(device_of(encoder))


def tune(case: Case, start: Classifier, parts: Parts, chosen: np.ndarray, rate: float) -> Tuned:
    """Train a copy of `start`; the epoch is chosen on the validation part, 0 the start itself.

    Loss, batches, passes over few labels and checks are those of `classify.tune`.

    Raises:
        FloatingPointError: the loss is NaN or infinite.
    """
    store, config, val = case.store, case.settings, parts["validation"]
    rows, labels = parts["train"].rows[chosen], parts["train"].labels[chosen]
    model = copy.deepcopy(start).requires_grad_(True)
    repeat = min(MOST_PASSES, max(1, round(len(parts["train"].rows) / len(chosen))))
    epochs = config.epochs * repeat

    def load(items: Tensor) -> tuple[Tensor, Tensor]:
        signals = store.load(rows[items.numpy()])
        return torch.from_numpy(signals), torch.from_numpy(labels[items.numpy()]).float()

    plan = Plan(len(chosen), config.batch_size, epochs, rate, config.weight_decay)
    fit = Fit(model, load, binary_cross_entropy_with_logits, plan, case.run.seed)
    dropout = torch.Generator().manual_seed(case.run.seed)
    score = _score(model, store, val.rows)
    curve, best = [macro_auroc(val.labels, score)], (0, score, copy.deepcopy(model.state_dict()))
    for epoch in progress(range(1, epochs + 1), "fine-tuning epochs"):
        with dropout_from(dropout, device_of(model)):
            fit.epoch()
        if epoch % repeat == 0:
            score = _score(model, store, val.rows)
            if (quality := macro_auroc(val.labels, score)) > max(curve):
                best = epoch, score, copy.deepcopy(model.state_dict())
            curve.append(quality)
    model.load_state_dict(best[2])
    return Tuned(model, best[0], curve, best[1])


def predictor(case: Case) -> Callable[[float], Predictions]:
    """As `classify.predictor`, for encoders that are fine-tuned from their probe."""
    parts = split(case.store, case.rotation)
    features = functools.cache(lambda: features_of(case, parts))

    def predict(fraction: float) -> Predictions:
        train, test = parts["train"], parts["test"]
        draw = stratified_draw(train.labels, fraction, case.run.seed)
        start = probed(case.encoder, features(), parts, draw)
        learn = functools.partial(tune, case, start, parts, draw)
        rates = case.settings.learning_rates
        rate, qualities, best = best_rate(rates, learn, lambda tuned: max(tuned.curve))
        return {
            "truth": test.labels,
            "score": _score(best.model, case.store, test.rows),
            "threshold": thresholds(parts["validation"].labels, best.score),
            "learning_rate": np.array(rate),
            "epoch": np.array(best.epoch),
            "validation_auroc": np.array(best.curve),
            "rate_auroc": qualities,
            "train_record_id": train.ids["record_id"][draw],
            "unlabelled": np.array([part.unlabelled for part in parts.values()]),
        } | test.ids

    return predict


class FromProbe(Classification):
    """PTB-XL superclasses by fine-tuning from the probe, for each label fraction."""

    key, name, group = "from probe", "ptbxl_from_probe", "from_probe"
    Settings = FromProbeConfig
    of_runs = "asked"
    headlines: Headlines = ()
    made_by = (predictor,)
    predictor = staticmethod(predictor)

    def protocols(self, run: RunSettings, finetune: bool = False) -> list[str]:
        learns = finetune and run.has_encoder and not run.untrained
        return ["finetune"] if learns else []
