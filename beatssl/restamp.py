"""An edit that changes no number must not cost ten hours: replay a little, compare bit for bit, and
give what is identical the key of today's code.

A run is replayed by its first optimiser step, one seed of each set of settings; an evaluation by
one prediction of its kind from the stored encoder. What differs, and what cannot be replayed in
minutes (fine-tuned encoders), is left stale and named.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from beatssl.cache import write_text
from beatssl.methods.base import RunSettings
from beatssl.profile import Workspace
from beatssl.progress import progress
from beatssl.results import saved as results
from beatssl.tasks.classify import embed, predictor, split
from beatssl.tasks.compare import STACKED, probe_draws, repeated
from beatssl.tasks.embedding import diagnose
from beatssl.tasks.segment import cross_validate
from beatssl.train import first_step, pretrain, run_key

Arrays = Mapping[str, np.ndarray]


def restamp(w: Workspace) -> list[str]:
    """Replay and re-stamp the runs and evaluations of a profile; one line for each kind of product
    that was made by other code: how many were re-stamped, or why not."""
    return [*_runs(w), *_evaluations(w)]


# --- runs -----------------------------------------------------------------------------------------


def _runs(w: Workspace) -> list[str]:
    older: dict[str, list[tuple[RunSettings, Path, dict, dict]]] = {}
    for config in w.profile.runs:
        if _at_hand(w, config):
            continue
        parts = run_key(config, w.profile.encoder_of(config), w.store, w.beats)
        folder = w.profile.work / "runs"
        for path in sorted(folder.glob(f"{config.run_id}-*/run.json")):
            note = json.loads(path.read_text())
            same = all(note.get(name) == parts[name] for name in ("settings", "data"))
            if same and note.get("first_step"):
                older.setdefault(config.name, []).append((config, path.parent, note, parts))
                break
    lines = []
    for name, members in progress(older.items(), "runs"):
        config, _, note, _ = members[0]
        if first_step(config, w.profile, w.store, w.beats) != note["first_step"]:
            lines.append(f"{name}: trains differently now, left stale ({len(members)} runs)")
            continue
        for member, folder, kept, parts in members:
            text = json.dumps({**kept, **parts}, indent=1)
            write_text(folder / "run.json", text)  # first: a folder is read by its own key
            os.replace(folder, folder.with_name(f"{member.run_id}-{parts['key']}"))
        lines.append(f"{name}: re-stamped {len(members)} runs")
    return lines


# --- evaluations ----------------------------------------------------------------------------------


def _classification(w: Workspace, what: results.Evaluation, encoder: object) -> Arrays:
    predict = predictor(what.run, w.profile, w.store, encoder, what.protocol)
    return predict(what.label_fraction)


def _label_draws(w: Workspace, what: results.Evaluation, encoder: object) -> Arrays:
    parts = split(w.store)
    known = {name: embed(encoder, w.store, part.rows) for name, part in parts.items()}
    return probe_draws(known, parts, what.label_fraction, w.profile.compare.draws)


def _segmentation(w: Workspace, what: results.Evaluation, encoder: object) -> Arrays:
    made = cross_validate(encoder, w.store, w.profile.segment, what.run.seed, False, only=[1])
    tested = made["fold"] == 1
    return {**made, "prediction": np.where(tested[:, None], made["prediction"], -1)}


def _more_folds(w: Workspace, what: results.Evaluation, encoder: object) -> Arrays:
    config = dataclasses.replace(w.profile.segment, folds=w.profile.compare.folds)
    repeat = w.profile.repeats_of(what.run)[:1]
    made = repeated(encoder, w.store, config, repeat, False, only=[1])
    tested = made["fold"] == 1
    return {**made, "prediction": np.where(tested[..., None], made["prediction"], -1)}


def _health(w: Workspace, what: results.Evaluation, encoder: object) -> Arrays:
    return diagnose(what.run, w.store, encoder)


REPLAYS: dict[str, Callable[[Workspace, results.Evaluation, object], Arrays]] = {
    results.CLASSIFY: _classification,
    results.LABELS: _label_draws,
    results.SEGMENT: _segmentation,
    results.EMBED: _health,
    results.FOLDS: _more_folds,
}


def _at_hand(w: Workspace, config: RunSettings) -> bool:
    """Whether `pretrain` would hand the run over without training it."""
    if not config.has_encoder or config.method == "ecg_fm" or config.untrained:
        return True
    key = run_key(config, w.profile.encoder_of(config), w.store, w.beats)["key"]
    return (w.profile.work / "runs" / f"{config.run_id}-{key}" / "run.json").is_file()


def _evaluations(w: Workspace) -> list[str]:
    listed = {run.run_id: run for run in w.profile.runs}
    groups: dict[tuple, list[tuple[Path, results.Evaluation, str]]] = {}
    for path in sorted((w.profile.work / "results").glob("*.json")):
        what, _ = results.read_rows(path)
        run = listed.get(what.run.run_id)
        if run is None or not what.weights or what.content != w.store.content:
            continue
        code = results.code_of(run, w.profile, what.task)
        now = results.settings_hash(
            run, w.profile, what.fingerprint, what.task, what.protocol, what.label_fraction
        )
        if code != what.code and now == what.config_hash:
            network = type(w.profile.encoder_of(run)).__name__ if run.has_encoder else run.method
            group = what.task, what.protocol, network, what.code
            groups.setdefault(group, []).append((path, what, code))
    lines = []
    for (kind, protocol, network, _), members in progress(groups.items(), "evaluations"):
        title = f"{kind}, {protocol}, {network}"
        ready = [what for _, what, _ in members if _at_hand(w, listed[what.run.run_id])]
        if not ready:
            lines.append(f"{title}: their runs are stale, left stale ({len(members)})")
            continue
        example = ready[0]
        if protocol != "frozen" or not example.run.has_encoder:
            why = "cannot be replayed in" if example.run.has_encoder else "is made again in"
            lines.append(f"{title}: {why} minutes, left stale ({len(members)})")
            continue
        encoder = pretrain(listed[example.run.run_id], w.profile, w.store, w.beats).encoder
        made = REPLAYS[kind](w, example, encoder)
        stored = results.load_predictions(w.profile, example)
        if kind == results.FOLDS:  # of the first repeat
            stored |= {name: stored[name][:1] for name in STACKED}
        if kind in (results.SEGMENT, results.FOLDS):  # of the records that the first fold tests
            tested = (stored["fold"] == 1)[..., None]
            stored["prediction"] = np.where(tested, stored["prediction"], -1)
        differing = [name for name in made if not _equal(made[name], stored.get(name))]
        if results.content_hash(encoder) != example.weights or differing:
            what = ", ".join(differing) or "the encoder"
            lines.append(f"{title}: {what} differs now, left stale ({len(members)})")
            continue
        for path, what, code in members:
            results.rekey(w.profile, path, what, dataclasses.replace(what, code=code))
        lines.append(f"{title}: re-stamped {len(members)} evaluations")
    return lines


def _equal(first: np.ndarray, second: np.ndarray | None) -> bool:
    return second is not None and np.array_equal(first, second, equal_nan=first.dtype.kind == "f")
