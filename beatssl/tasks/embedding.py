"""Health of an encoder's embedding, measured without training anything: collapse and neighbours.

The embedding is the encoder's output averaged over time (what the linear probe sees), minus its
mean over the training records, scaled to unit length. Measured on PTB-XL's test folds; neighbours
are looked up in the training folds. Augmented views are another population (masking moves all of
them to the same side): they have a mean of their own.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from beatssl.data.store import Store
from beatssl.methods.base import RunSettings
from beatssl.methods.views import augment
from beatssl.progress import progress
from beatssl.settings import Rotation
from beatssl.tasks.base import Case, Predictions, Task
from beatssl.tasks.classify import ClassifyConfig, Part, embed, split
from beatssl.tasks.fit import device_of
from beatssl.tasks.scores import effective_rank, embedding_scores

NEIGHBOURS = 5
VIEWS = {"rotation_degrees": 45.0, "scale_max": 1.5, "mask_fraction": 0.5}  # of 3KG


def views_of(run: Any) -> dict[str, float]:
    """Settings of the views; Beat-SSL's where the run's method makes none."""
    return {name: getattr(run, name, usual) for name, usual in VIEWS.items()}


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Jaccard overlap of label sets: |both| / |either|, 1 where neither has a label.

    Args: first (n, classes), second (m, classes), 0 or 1. Returns: (n, m)."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    both = a @ b.T
    either = a.sum(axis=1)[:, None] + b.sum(axis=1)[None, :] - both
    return np.divide(both, either, out=np.ones_like(both), where=either > 0)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-9)


def centred_views(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of two views minus the mean over both, scaled to unit length: (n, dim) each.

    With another centre, what all views share counts as agreement, and different records agree too.
    """
    centre = np.concatenate([first, second]).mean(axis=0)
    return _unit(first - centre), _unit(second - centre)


def _views(encoder: nn.Module, store: Store, part: Part, settings: dict) -> list[np.ndarray]:
    """Embeddings of two 3KG views of each record, the same views for every encoder."""
    generator = torch.Generator().manual_seed(0)
    place = device_of(encoder)
    pairs: list[list[np.ndarray]] = [[], []]
    pieces = np.array_split(part.rows, max(1, len(part.rows) // 128))
    with torch.no_grad():
        for rows in progress(pieces, "batches of views", delay=5):
            signals = torch.from_numpy(store.load(rows))
            for of_view in pairs:
                view = augment(signals, generator, **settings)
                of_view.append(encoder(view.to(place)).mean(dim=2).cpu().numpy())
    return [np.concatenate(of_view) for of_view in pairs]


def of_records(z: np.ndarray, first: np.ndarray, second: np.ndarray) -> Predictions:
    """What each record adds to the health of an embedding: no vector is kept, so that predictions
    are small.

    Args: embedding, and that of two augmented views, (n, channels) of unit length.

    Returns:
        alignment (n,), squared distance of the record's views; alignment_chance (n,), mean squared
        distance of its views and the other views of all others; uniformity (n,), mean of
        exp(-2 d^2) over all others; effective_rank of all, a scalar. float32.
    """
    z, first, second = (x.astype(np.float64) for x in (z, first, second))
    apart, near = 2 - 2 * first @ second.T, np.exp(-2 * np.maximum(2 - 2 * z @ z.T, 0))
    apart = (apart + apart.T) / 2
    others = [(of.sum(axis=1) - np.diag(of)) / max(1, len(z) - 1) for of in (apart, near)]
    alignment = ((first - second) ** 2).sum(axis=1)
    found = (alignment, *others, np.array(effective_rank(z)))
    names = ("alignment", "alignment_chance", "uniformity", "effective_rank")
    return {name: value.astype(np.float32) for name, value in zip(names, found)}


def diagnose(run: Any, store: Store, encoder: nn.Module, rotation: Rotation) -> Predictions:
    """What `scores.embedding_scores` needs, for each record of the test folds.

    Returns:
        record_id, patient_id (n,); `of_records`; agreement, chance (n,) of the neighbours.
    """
    encoder.eval()
    parts = split(store, rotation)
    train, test = parts["train"], parts["test"]
    known = embed(encoder, store, train.rows)
    centre = known.mean(axis=0)
    z = _unit(embed(encoder, store, test.rows) - centre)
    first, second = centred_views(*_views(encoder, store, test, views_of(run)))
    alike = overlap(test.labels, train.labels)
    nearest = np.argsort(-z @ _unit(known - centre).T, axis=1, kind="stable")[:, :NEIGHBOURS]
    return {
        **test.ids,
        **of_records(z, first, second),
        "agreement": np.take_along_axis(alike, nearest, axis=1).mean(axis=1).astype(np.float32),
        "chance": alike.mean(axis=1).astype(np.float32),
    }


class Embedding(Task):
    """Health of an encoder, which the supervised reference is none of."""

    key, name, group = "embedding", "ptbxl_embedding", "classify"
    Settings = ClassifyConfig
    made_by = (diagnose,)
    scores = staticmethod(embedding_scores)

    def of_run(self, run: RunSettings) -> dict:
        return super().of_run(run) | views_of(run)

    def predictor(self, case: Case) -> Callable[[float], Predictions]:
        return lambda fraction: diagnose(case.run, case.store, case.encoder, case.rotation)
