"""Both tasks for every run of a profile: what the classification and segmentation pages call."""

from __future__ import annotations

import pandas as pd
from tqdm import tqdm

from beatssl.pretrain import pretrain
from beatssl.results import frame
from beatssl.tasks.classify import classify_run
from beatssl.tasks.monitor import probe_monitor
from beatssl.tasks.segment import segment_run
from beatssl.workspace import Workspace

EVALUATE = {"classification": classify_run, "segmentation": segment_run}


def protocols(method: str, finetune: bool) -> list[str]:
    """Every encoder is probed frozen; the untrained one, trained on the labels, is the supervised
    reference; the others are fine-tuned on request."""
    extra = ["scratch"] if method == "random" else ["finetune"] if finetune else []
    return ["frozen", *extra]


def evaluate_all(w: Workspace, task: str, finetune: bool = False) -> pd.DataFrame:
    """Evaluate every run of the profile on one task; what is already done is read, not repeated.

    A run that is not trained yet is trained first.

    Args:
        task: classification | segmentation.
        finetune: also fine-tune the pretrained encoders.

    Returns:
        Result rows (`results.COLUMNS`), one seed each.
    """
    rows = []
    for config in tqdm(w.profile.runs, desc=task, unit="run"):
        run = pretrain(config, w.profile, w.store, w.beats, monitor=probe_monitor(w.store))
        for protocol in protocols(config.method, finetune):
            rows += EVALUATE[task](config, w.profile, w.store, run.encoder, protocol)
    return frame(rows)
