"""Run x task: what the pages call. Predictions are reused or made, scored and saved."""

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from beatssl.cache import write_text
from beatssl.data.beats import beats_code, pretraining_rows
from beatssl.data.store import store_code
from beatssl.methods import METHODS
from beatssl.methods.base import RunSettings
from beatssl.methods.encoder import pick_device, save_encoder
from beatssl.profile import Profile, Workspace
from beatssl.progress import progress
from beatssl.results import saved
from beatssl.results.claims import CLAIMED
from beatssl.settings import config_hash
from beatssl.tasks import TASKS, task_of
from beatssl.tasks.classify import probe_monitor
from beatssl.tasks.segment import fold_monitor
from beatssl.train import DivergedError, Run, pretrain, run_key

ROWS = ("beatssl-hard-none-1", "beatssl-soft_1-hard-50")  # the paper's baseline and best row
COMPARED = (*(method for method in METHODS if method != "beatssl"), *ROWS)  # on their pages
DATASETS = {"ptbxl": ("PTB-XL", "task 1"), "ludb": ("LUDB", "task 2")}  # and what needs them


def absent(w: Workspace, task: str) -> str:
    """Why a task is not evaluated in this profile, in words; empty where its records are there.

    Raises: ConfigError: an unknown task."""
    needed = task_of(task).dataset
    if not w.has_data:
        kept = saved.evaluations(w.profile, task)
        return "" if kept else "Neither recordings nor kept predictions are at hand."
    if len(w.store.rows(needed)):
        return ""
    records, what = DATASETS.get(needed, (needed, task))
    return f"No {records} records in this profile: {what} is not evaluated."


def measured(w: Workspace, task: str, rows: pd.DataFrame) -> str:
    """Data, number of different records, and on PTB-XL which folds are tested, in words.

    Args: rows: of single runs, as `evaluate_all` returns them; at least one."""
    text = saved.data_name(w.profile, task_of(task))
    text += f", n = {rows.groupby('data')['n'].max().sum()}"
    ptbxl = task_of(task).dataset == "ptbxl"
    return f"{text} ({w.profile.data.split_in_words})" if ptbxl else text


def train(w: Workspace, config: RunSettings) -> Run:
    """`pretrain` with a watch on both tasks (a probe on the selection fold, one fold of LUDB),
    where their records are there. A run that
    diverges, or has no records to learn from, is handed over as failed (`Run.failure`), so that
    the other runs go on."""
    learns, rotation = config.method not in ("random", "ecg_fm"), w.profile.rotation_of(config)
    if learns and len(pretraining_rows(w.store, w.beats, rotation)) < 2:
        folds = rotation.folds("train")
        reason = f"no records to pretrain on in this profile (PTB-XL {folds}, Challenge)"
        return Run(config, None, pd.DataFrame(), key="", failure=reason)
    watches = []
    if not absent(w, "classification"):
        watches.append(probe_monitor(w.store, rotation))
    if not absent(w, "segmentation"):
        watches.append(fold_monitor(config, w.store, w.profile.segment))

    def monitor(encoder: nn.Module) -> dict[str, float]:
        return {name: value for watch in watches for name, value in watch(encoder).items()}

    try:
        return pretrain(config, w.profile, w.store, w.beats, monitor=monitor)
    except DivergedError as error:
        return Run(config, None, error.curves, key="", failure=str(error))


def at_hand(w: Workspace, run: RunSettings) -> bool:
    """Whether `pretrain` would hand the run over without training it."""
    if not run.has_encoder or METHODS[run.method].load or run.untrained:
        return True
    folder = w.profile.work / "runs" / f"{run.run_id}-{key_of(w, run)['key']}"
    return (folder / "run.json").is_file()


def key_of(w: Workspace, run: RunSettings) -> dict[str, str]:
    """`train.run_key` of a run in its profile."""
    rotation = w.profile.rotation_of(run)
    return run_key(run, w.profile.encoder_of(run), w.store, w.beats, rotation)


def recipe_of(w: Workspace, run: RunSettings) -> str:
    """What a run's encoder is made from, the same on every machine: settings, code, the folders'
    records. Last bits of what was read may differ from machine to machine, and so do the weights;
    empty where there is no encoder, or one that was not made here."""
    if not run.has_encoder or METHODS[run.method].load:
        return ""
    made, rotation = key_of(w, run), w.profile.rotation_of(run)
    data = w.store.fingerprint, store_code(), beats_code(), *rotation.in_key
    return config_hash(made["settings"], made["code"], *data)


def evaluate_run(w: Workspace, run: Run, task: str, finetune: bool = False) -> pd.DataFrame:
    """Evaluate one run on one task; predictions that were already made are read, not repeated.
    Without records of the task's data set there are no rows (see `absent`).

    Args:
        run: one that failed gets rows that say so, without values.
        task: one of TASKS.
        finetune: also fine-tune the encoder (not the untrained one, which is always trained).

    Returns:
        Result rows (`saved.COLUMNS`).

    Raises:
        ConfigError: an unknown task.
    """
    if absent(w, task):
        return saved.frame([])
    if run.failure:
        case = saved.case_of(w.profile, task_of(task), run.config, w.store, None, "frozen")
        evaluation = saved.describe(w.profile, task_of(task), case, 1.0, recipe_of(w, run.config))
        return saved.frame(saved.failed(evaluation, w.profile, run.failure))
    protocols = task_of(task).protocols(run.config, finetune)
    return _rows(w, task, run.config, run.encoder.to(pick_device()), protocols)


def evaluate_everywhere(w: Workspace, run: Run) -> None:
    """`evaluate_run` on every task that wants this run, so that its encoder is not needed again but
    to be fine-tuned: what is kept in the repository then stands for it."""
    for task in TASKS.values():
        wanted = {"all": True, "compared": run.config.name in COMPARED}.get(task.of_runs, False)
        if wanted and run.config in w.profile.runs:
            evaluate_run(w, run, task.key)


def keep_runs(w: Workspace) -> int:
    """Put the curves of all runs beside the kept predictions, and in bf16 the first encoder of each
    row that the claims are about; what is not at hand is left as it is. Returns: how many runs."""
    names = {f"beatssl-{row}" for row in CLAIMED}
    own = [r for r in w.profile.runs if METHODS[r.method].build]  # trained here
    runs = [run for run in own if at_hand(w, run)]
    for run in runs:
        made, shelf = train(w, run), saved.shelf(w.profile)
        if len(made.curves):
            write_text(_curves_file(w.profile, run), made.curves.to_csv(index=False))
        if made.encoder is not None and run.name in names and run.seed == 0:
            save_encoder(made.encoder.bfloat16(), shelf / "encoders" / f"{run.run_id}.safetensors")
    return len(runs)


def kept_curves(profile: Profile, run: RunSettings) -> pd.DataFrame:
    """`train.Run.curves` as they were kept (`keep`); empty where they were not."""
    file = _curves_file(profile, run)
    return pd.read_csv(file) if file.is_file() else pd.DataFrame()


def _curves_file(profile: Profile, run: RunSettings) -> Path:
    return saved.shelf(profile) / "curves" / f"{run.run_id}.csv"


def _rows(
    w: Workspace, name: str, run: RunSettings, encoder: Any, protocols: Sequence[str] = ("frozen",)
) -> pd.DataFrame:
    task, rows, recipe = task_of(name), [], recipe_of(w, run)
    for protocol in protocols:
        case = saved.case_of(w.profile, task, run, w.store, encoder, protocol)
        predictor = functools.cache(functools.partial(task.predictor, case))  # where one is missing
        fractions = task.fractions(case.settings, case.repeats)
        for fraction in progress(fractions, f"{protocol}, label fractions", delay=5):
            evaluation = saved.describe(w.profile, task, case, fraction, recipe)
            rows += saved.reuse_or_make(evaluation, w.profile, predictor)
    return saved.frame(rows)


def _standing(w: Workspace, run: RunSettings, name: str, finetune: bool) -> list[dict]:
    """Rows of a run whose encoder is not at hand but was evaluated; empty where any is missing."""
    task, rows, recipe = task_of(name), [], recipe_of(w, run)
    fractions = task.fractions(task.settings(w.profile), w.profile.repeats_of(run))
    for protocol, fraction in itertools.product(task.protocols(run, finetune), fractions):
        found = saved.standing(w.profile, task, run, protocol, fraction, recipe)
        if not found:
            return []
        rows += found
    return rows


def evaluate_all(
    w: Workspace, task: str, finetune_seeds: int = 0, names: Sequence[str] = ()
) -> pd.DataFrame:
    """`evaluate_run` for every run of the profile; one that is not trained yet is trained first,
    unless an encoder of its recipe was evaluated, here or elsewhere (`saved.standing`).
    Without records of the task's data set nothing is trained, and there are no rows; where no
    recordings are at hand at all, they are those of the kept predictions.

    Args:
        finetune_seeds: of each method, so many encoders are also fine-tuned, those with the first
            seeds; on PTB-XL so many of each rotation, so that each record is tested.
        names: of the methods to evaluate (`RunSettings.name`); default all.

    Raises:
        ConfigError: an unknown task.
    """
    tables = [saved.frame([])]
    if absent(w, task):
        return tables[0]
    if not w.has_data:
        found = saved.evaluations(w.profile, task)
        chosen = [own for e, own in found if not names or e.run.name in names]
        return saved.frame([row for own in chosen for row in own])
    each = len(w.profile.data.rotations) if task_of(task).dataset == "ptbxl" else 1
    instead: dict[tuple, Any] = {}  # by method and rotation, for all of its seeds
    for run in progress(w.profile.runs, f"{task}, runs"):
        if names and run.name not in names:
            continue
        if run.has_encoder:
            finetune = run.seed < each * finetune_seeds
            trained = at_hand(w, run) and not run.untrained
            rows = [] if trained else _standing(w, run, task, finetune)
            made = saved.frame(rows) if rows else evaluate_run(w, train(w, run), task, finetune)
            tables.append(made)
            continue
        of = run.method, w.profile.rotation_of(run)
        if of not in instead:
            instead[of] = task_of(task).without_encoder(run, w.store, w.beats, of[1])
        if instead[of] is not None:
            tables.append(_rows(w, task, run, instead[of]))
    return pd.concat(tables, ignore_index=True)
