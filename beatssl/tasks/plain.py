"""Both tasks as a plainer evaluation would have them, on the same frozen encoders.

Standardised features, a tuned penalty and tuned thresholds let a probe read even an encoder whose
output has nearly collapsed; batch normalisation does the same for the decoder. The paper does not
say which of these it has. These two tasks go without, to show how far the level of a table depends
on it (the book's "The search for the reading", reading 0); no choice is made from them.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from beatssl.tasks.base import Case, Headlines, Predictions
from beatssl.tasks.classify import Classification, Parts, features_of, split, stratified_draw
from beatssl.tasks.segment import Segmentation, cross_validate

STEPS, RATE, THRESHOLD = 1000, 1.0e-3, 0.5


def plain_probe(
    features: Mapping[str, np.ndarray], parts: Parts, chosen: np.ndarray
) -> Predictions:
    """Logistic regression on the features as they are, by Adam at 1e-3 in 1,000 steps over all
    labels at once, from zero; threshold .5. Nothing is selected on the validation part.

    Args, Returns: see `classify.probe`; the truth, score and threshold of it.
    """
    inputs = torch.from_numpy(features["train"][chosen]).float()
    labels = torch.from_numpy(parts["train"].labels[chosen]).float()
    probe = nn.Linear(inputs.shape[1], labels.shape[1])
    for weights in probe.parameters():
        nn.init.zeros_(weights)
    optimizer = torch.optim.Adam(probe.parameters(), lr=RATE)
    for _ in range(STEPS):
        loss = binary_cross_entropy_with_logits(probe(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        score = probe(torch.from_numpy(features["test"]).float()).double().sigmoid().numpy()
    threshold = np.full(labels.shape[1], THRESHOLD)
    return {"truth": parts["test"].labels, "score": score, "threshold": threshold}


class PlainProbe(Classification):
    """PTB-XL superclasses by `plain_probe`, for each label fraction."""

    key, name = "plain probe", "ptbxl_plain_probe"
    trainable = False
    headlines: Headlines = ()
    made_by = (plain_probe, features_of, split, stratified_draw)

    def predictor(self, case: Case) -> Callable[[float], Predictions]:
        parts = split(case.store, case.rotation)
        features = features_of(case, parts)

        def predict(fraction: float) -> Predictions:
            draw = stratified_draw(parts["train"].labels, fraction, case.run.seed)
            return plain_probe(features, parts, draw) | parts["test"].ids

        return predict


class PlainDecoder(Segmentation):
    """LUDB waves by a decoder that does not standardise the encoder's output."""

    key, name = "plain decoder", "ludb_plain_decoder"
    trainable, of_runs = False, "asked"
    headlines: Headlines = ()

    def predictor(self, case: Case) -> Callable[[float], Predictions]:
        return lambda fraction: cross_validate(case, seed=case.run.seed, standardise=False)
