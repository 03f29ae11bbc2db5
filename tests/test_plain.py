"""The plainer evaluation: what standardisation and tuning hide."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from beatssl.methods import make_run
from beatssl.tasks import segment
from beatssl.tasks.base import Case
from beatssl.tasks.classify import Part, probe
from beatssl.tasks.plain import RATE, STEPS, THRESHOLD, PlainDecoder, plain_probe
from beatssl.tasks.scores import classification_scores
from beatssl.tasks.segment import SegmentConfig


def parts_and_features(scale: float, seed: int = 0) -> tuple[dict, dict]:
    """Records whose classes show in the features; `scale` shrinks all features alike."""
    rng = np.random.default_rng(seed)
    parts, features = {}, {}
    for name, n in (("train", 300), ("validation", 120), ("test", 200)):
        labels = (rng.random((n, 5)) < 0.3).astype(np.int8)
        ids = np.array([f"{name}{i}" for i in range(n)])
        parts[name] = Part(np.arange(n), labels, {"record_id": ids, "patient_id": ids}, 0)
        noise = rng.normal(size=(n, 8)).astype(np.float32)
        noise[:, :5] += 2 * labels
        features[name] = scale * noise
    return parts, features


def test_shrunken_features_mislead_the_plain_probe_and_not_the_tuned_one() -> None:
    found = {}
    for scale in (1.0, 1e-3):
        parts, features = parts_and_features(scale)
        chosen = np.arange(300)
        for name, fit in (("tuned", probe), ("plain", plain_probe)):
            scores = classification_scores(fit(features, parts, chosen))
            found[name, scale] = float(scores["f1_macro"][0])
    assert found["tuned", 1e-3] == pytest.approx(found["tuned", 1.0], abs=1e-3)
    assert found["tuned", 1.0] > 0.6 and found["plain", 1.0] > 0.6
    assert found["plain", 1e-3] == 0  # nothing reaches .5 in so few steps


def test_the_plain_probe_is_adam_from_zero() -> None:
    """The same in NumPy, by the equations of Kingma and Ba (2015)."""
    parts, features = parts_and_features(1.0, seed=3)
    chosen = np.arange(0, 300, 3)
    found = plain_probe(features, parts, chosen)
    x = np.column_stack([features["train"][chosen], np.ones(len(chosen))]).astype(np.float64)
    y = parts["train"].labels[chosen]
    w, m, v = (np.zeros((x.shape[1], 5)) for _ in range(3))
    for t in range(1, STEPS + 1):
        gradient = x.T @ (1 / (1 + np.exp(-x @ w)) - y) / y.size
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w -= RATE * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    test = np.column_stack([features["test"], np.ones(200)])
    assert found["score"] == pytest.approx(1 / (1 + np.exp(-test @ w)), abs=1e-4)
    assert (found["threshold"] == THRESHOLD).all()
    assert np.array_equal(found["truth"], parts["test"].labels)


class Encoder(nn.Module):
    channels, stride = 6, 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize("standardise", [True, False])
def test_only_the_standardised_decoder_does_not_see_the_scale(standardise: bool) -> None:
    class Store:
        sampling_rate = 100

    config = SegmentConfig(epochs=1, batch_size=4, decoder_width=8)
    case = Case(make_run(seed=0), config, Store(), Encoder())
    inputs = torch.randn(8, 6, 20, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(8, 80, dtype=torch.int64)
    target[:, 20:40] = 1
    decoder = segment.fitted(case, inputs, target, 1e-3, 0, standardise).decoder.train()
    made = [decoder.narrow(scale * inputs) for scale in (1.0, 100.0)]
    assert torch.allclose(*made, atol=1e-3) == standardise


def test_the_plain_task_decodes_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        "beatssl.tasks.plain.cross_validate", lambda case, **how: calls.append(how) or {}
    )
    PlainDecoder().predictor(Case(make_run(seed=4), SegmentConfig(), None, Encoder()))(1.0)
    assert calls == [{"seed": 4, "standardise": False}]
