"""Both tasks for the runs of a profile: what the pretraining and the task pages call."""

from __future__ import annotations

import pandas as pd
from tqdm import tqdm

from beatssl.models import pick_device
from beatssl.pretrain import Run, pretrain
from beatssl.results import frame
from beatssl.tasks.classify import classify_run
from beatssl.tasks.monitor import probe_monitor
from beatssl.tasks.segment import segment_run
from beatssl.workspace import Workspace

TASKS = {"classification": classify_run, "segmentation": segment_run}


def protocols(method: str, finetune: bool = False) -> list[str]:
    """Every encoder is probed frozen; the untrained one, trained on the labels, is the supervised
    reference; the others are fine-tuned on request."""
    extra = ["scratch"] if method == "random" else ["finetune"] if finetune else []
    return ["frozen", *extra]


def evaluate_run(w: Workspace, run: Run, task: str, finetune: bool = False) -> pd.DataFrame:
    """Evaluate one run on one task; predictions that were already made are read, not repeated.

    Args:
        task: classification | segmentation.
        finetune: also fine-tune the encoder (not the untrained one, which is always trained).

    Returns:
        Result rows (`results.COLUMNS`).
    """
    encoder = run.encoder.to(pick_device())
    rows = []
    for protocol in protocols(run.config.method, finetune):
        rows += TASKS[task](run.config, w.profile, w.store, encoder, protocol)
    return frame(rows)


def evaluate_all(w: Workspace, task: str, finetune: bool = False) -> pd.DataFrame:
    """`evaluate_run` for every run of the profile; one that is not trained yet is trained first."""
    monitor = probe_monitor(w.store)
    tables = []
    for config in tqdm(w.profile.runs, desc=task, unit="run"):
        run = pretrain(config, w.profile, w.store, w.beats, monitor=monitor)
        tables.append(evaluate_run(w, run, task, finetune))
    return pd.concat(tables, ignore_index=True)
