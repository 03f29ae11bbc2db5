"""Training and both tasks for the runs of a profile: what the pages call."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from beatssl.data.beats import pretraining_rows, training_rows
from beatssl.methods import DELINEATORS, UNTRAINED
from beatssl.methods.base import RunSettings
from beatssl.methods.encoder import pick_device
from beatssl.methods.targets import FeatureScale
from beatssl.profile import Workspace
from beatssl.progress import progress
from beatssl.results import saved as results
from beatssl.results.saved import frame
from beatssl.tasks.classify import classify_run
from beatssl.tasks.compare import folds_run, label_run
from beatssl.tasks.delineate import Delineator
from beatssl.tasks.embedding import embedding_run
from beatssl.tasks.monitor import probe_monitor
from beatssl.tasks.segment import segment_run
from beatssl.train import DivergedError, Run, pretrain

TASKS = {
    "classification": (results.CLASSIFY, classify_run),
    "segmentation": (results.SEGMENT, segment_run),
    "embedding": (results.EMBED, embedding_run),
    "label draws": (results.LABELS, label_run),
    "more folds": (results.FOLDS, folds_run),
}
DATA_OF = {"segmentation": "ludb", "more folds": "ludb"}  # of a task; of all others PTB-XL
COMPARED = (  # names of the methods of the comparison
    *UNTRAINED,
    "features",
    *DELINEATORS,
    "beatssl-hard-none-1",
    "cmsc",
    "domain_ssl",
    "ts2vec",
    "w2v",
    "ecg_fm",
    "beatssl-soft_1-hard-50",
)


def protocols(run: RunSettings, finetune: bool = False) -> list[str]:
    """Every encoder is probed frozen; the untrained ResNet, trained on the labels, is the
    supervised reference (not so its variants); trained ones are fine-tuned on request."""
    if run.untrained:
        return ["frozen", "scratch"] if run.name == "random" else ["frozen"]
    return ["frozen", "finetune"] if finetune else ["frozen"]


def absent(w: Workspace, task: str) -> str:
    """Why a task is not evaluated in this profile, in words; empty where its records are there.

    Args: task: one of TASKS."""
    if DATA_OF.get(task) == "ludb":
        words = "No LUDB records in this profile: task 2 is not evaluated."
        return "" if len(w.store.rows("ludb")) else words
    words = "No PTB-XL records in this profile: task 1 is not evaluated."
    return "" if len(w.store.rows("ptbxl")) else words


def train(w: Workspace, config: RunSettings) -> Run:
    """`pretrain` with the probe on fold 9 as a watch, where there is one. A run that diverges, or
    has no records to learn from, is handed over as failed (`Run.failure`), so that the other runs
    go on."""
    learns = config.method not in ("random", "ecg_fm")
    if learns and len(pretraining_rows(w.store, w.beats)) < 2:
        reason = "no records to pretrain on in this profile (PTB-XL folds 1-8, Challenge)"
        return Run(config, None, pd.DataFrame(), key="", failure=reason)
    monitor = None if absent(w, "classification") else probe_monitor(w.store)
    try:
        return pretrain(config, w.profile, w.store, w.beats, monitor=monitor)
    except DivergedError as error:
        return Run(config, None, error.curves, key="", failure=str(error))


def ecg_features(w: Workspace) -> np.ndarray:
    """The record features from which the soft targets are made, (rows of the store, 54); what is
    missing takes the median of the rows that are pretrained on."""
    known = torch.from_numpy(w.beats.record_features)
    scale = FeatureScale.fit(known[torch.from_numpy(training_rows(w.store))])
    return scale.impute(known).numpy()


def evaluate_run(w: Workspace, run: Run, task: str, finetune: bool = False) -> pd.DataFrame:
    """Evaluate one run on one task; predictions that were already made are read, not repeated.
    Without records of the task's data set there are no rows (see `absent`).

    Args:
        run: one that failed gets rows that say so, without values.
        task: one of TASKS.
        finetune: also fine-tune the encoder (not the untrained one, which is always trained).

    Returns:
        Result rows (`results.COLUMNS`).
    """
    name, evaluate = TASKS[task]
    if absent(w, task):
        return frame([])
    if run.failure:
        what = results.describe(run.config, w.profile, w.store, None, name, "frozen", 1.0)
        return frame(results.failed(what, w.profile, run.failure))
    rows = []
    encoder = run.encoder.to(pick_device())
    for protocol in protocols(run.config, finetune):
        rows += evaluate(run.config, w.profile, w.store, encoder, protocol)
    return frame(rows)


def without_encoder(w: Workspace, method: str, task: str) -> np.ndarray | Delineator | None:
    """What is evaluated in place of an encoder: the ECG features where a probe is, a delineator in
    the segmentation of the comparison; None for other tasks."""
    if method == "features":
        return ecg_features(w) if task in ("classification", "label draws") else None
    return Delineator(method) if task == "more folds" else None


def evaluate_all(
    w: Workspace, task: str, finetune_seeds: int = 0, names: Sequence[str] = ()
) -> pd.DataFrame:
    """`evaluate_run` for every run of the profile; one that is not trained yet is trained first.
    Without records of the task's data set nothing is trained, and there are no rows.

    Args:
        finetune_seeds: of each method, the encoders with seeds below this are also fine-tuned.
        names: of the methods to evaluate (`RunSettings.name`); default all.
    """
    prepare = functools.cache(functools.partial(without_encoder, w, task=task))
    tables = []
    if absent(w, task):
        return frame([])
    for config in progress(w.profile.runs, f"{task}, runs"):
        if names and config.name not in names:
            continue
        if config.has_encoder:
            tables.append(evaluate_run(w, train(w, config), task, config.seed < finetune_seeds))
        elif (found := prepare(config.method)) is not None:
            _, evaluate = TASKS[task]
            tables.append(frame(evaluate(config, w.profile, w.store, found, "frozen")))
    return pd.concat(tables, ignore_index=True) if tables else frame([])
