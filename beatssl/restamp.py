"""An edit that changes no number must not cost ten hours: replay a little, compare bit for bit, and
give what is identical the key of today's code.

A run is replayed by its first optimiser step, one seed of each set of settings; an evaluation by
one prediction of its kind from the stored encoder (`Task.replay`). What differs, and what cannot be
replayed in minutes (fine-tuned encoders), is left stale and named; nothing is trained for it.
"""

import json
import os

import numpy as np

from beatssl import compute
from beatssl.cache import write_text
from beatssl.evaluate import at_hand, key_of, recipe_of
from beatssl.methods.base import RunSettings
from beatssl.profile import Workspace
from beatssl.progress import progress
from beatssl.results import saved
from beatssl.settings import config_hash
from beatssl.tasks import task_of
from beatssl.train import first_step, pretrain

# settings of a run that keys held before each method had its own: all of Beat-SSL's, and of others
OLDER = "method seed epochs batch_size learning_rate weight_decay warmup_fraction".split()


def restamp(w: Workspace) -> list[str]:
    """Replay and re-stamp the runs and evaluations of a profile; one line for each kind of product
    that was made by other code: how many were re-stamped, or why not."""
    return [*_runs(w), *_evaluations(w)]


def _runs(w: Workspace) -> list[str]:
    older: dict[str, list[tuple]] = {}
    for run in w.profile.runs:
        if at_hand(w, run):
            continue
        parts = key_of(w, run)
        for path in sorted((w.profile.work / "runs").glob(f"{run.run_id}-*/run.json")):
            note = json.loads(path.read_text())
            then = {name: value for name, value in run.own_settings().items() if name in OLDER}
            settings = config_hash(then, w.profile.encoder_of(run), compute.name())
            same = note.get("settings") in (parts["settings"], settings)
            if same and note.get("data") == parts["data"] and note.get("first_step"):
                older.setdefault(run.name, []).append((run, path.parent, note, parts))
                break
    lines = []
    for name, members in progress(older.items(), "runs"):
        run, _, note, _ = members[0]
        if first_step(run, w.profile, w.store, w.beats) != note["first_step"]:
            lines.append(f"{name}: trains differently now, left stale ({len(members)} runs)")
            continue
        for run, folder, note, parts in members:
            text = json.dumps({**note, **parts}, indent=1)
            write_text(folder / "run.json", text)  # first: a folder is read by its own key
            os.replace(folder, folder.with_name(f"{run.run_id}-{parts['key']}"))
        lines.append(f"{name}: re-stamped {len(members)} runs")
    return lines


def _evaluations(w: Workspace) -> list[str]:
    listed = {run.run_id: run for run in w.profile.runs}
    groups: dict[tuple, list[tuple]] = {}
    lines = []
    for path in sorted((w.profile.work / "results").glob("*.json")):
        try:
            old, _ = saved.read_rows(path)
        except saved.ResultsError as error:
            lines.append(str(error))
            continue
        fault = saved.fault_of(w.profile, old)
        if fault not in saved.FAULTS[1:] or not old.weights or old.content != w.store.content:
            continue
        run = listed[old.run.run_id]
        network = type(w.profile.encoder_of(run)).__name__ if run.has_encoder else run.method
        group = old.task, old.protocol, network, old.code, _hindrance(w, run, old, fault)
        groups.setdefault(group, []).append((run, old))
    for (*title, _, why), members in progress(groups.items(), "evaluations"):
        try:
            why = why or _differing(w, *members[0])
            for run, old in [] if why else members:
                saved.rekey(w.profile, run, old, recipe_of(w, run))
        except saved.ResultsError as error:
            why = str(error)
        left = f"{why}, left stale ({len(members)})"
        verdict = left if why else f"re-stamped {len(members)} evaluations"
        lines.append(f"{', '.join(title)}: {verdict}")
    if any("left stale" in line for line in lines):
        lines.append(f"`python -m beatssl run --profile {w.profile.name}` makes them again")
    return lines


def _hindrance(w: Workspace, run: RunSettings, old: saved.Evaluation, fault: str) -> str:
    """Why an evaluation cannot be taken over whatever a replay gives; empty where it can."""
    made_with = task_of(old.task), old.protocol, old.label_fraction, old.fingerprint, OLDER
    older = saved.settings_hash(run, w.profile, *made_with) == old.config_hash
    if fault == saved.FAULTS[1] and not older:
        return fault
    if not run.has_encoder:
        return "is made again in minutes"
    if old.protocol != "frozen":
        return "cannot be replayed in minutes"
    if not at_hand(w, run):
        return "their runs are stale"
    encoder = pretrain(run, w.profile, w.store, w.beats).encoder
    return "" if saved.content_hash(encoder) == old.weights else "the encoder differs now"


def _differing(w: Workspace, run: RunSettings, old: saved.Evaluation) -> str:
    """In which arrays the code of today makes other predictions; empty where in none."""
    task, encoder = task_of(old.task), pretrain(run, w.profile, w.store, w.beats).encoder
    case = saved.case_of(w.profile, task, run, w.store, encoder, old.protocol)
    stored = saved.load_predictions(w.profile, old)
    made, stored = map(task.rounded, task.replay(case, old.label_fraction, stored))
    names = [name for name in made if not _equal(made[name], stored.get(name))]
    return f"{', '.join(names)} differs now" if names else ""


def _equal(first: np.ndarray, second: np.ndarray | None) -> bool:
    return second is not None and np.array_equal(first, second, equal_nan=first.dtype.kind == "f")
