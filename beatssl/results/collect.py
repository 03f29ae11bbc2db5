"""The only writer of `results/<profile>.csv`: from whole evaluations, never losing a line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from beatssl.profile import Profile
from beatssl.results import saved
from beatssl.results.saved import GROUP, StaleResultsError, frame, read, write_table
from beatssl.tasks import TASKS


@dataclass(frozen=True)
class Collection:
    """What `collect` did.

    Attributes:
        path: the file written; None where nothing has been evaluated.
        table: its rows.
        missing: why the committed file was left alone, a line each; empty where it was written.
    """

    path: Path | None
    table: pd.DataFrame
    missing: tuple[str, ...] = ()


def collect(profile: Profile, folder: Path = saved.RESULTS, add: bool = False) -> Collection:
    """Write `<profile>.csv` from the saved evaluations: its only writer, a stage of its own.

    The file is replaced only when nothing that it holds would be lost: every evaluation in it whose
    run the profile still lists must be saved here, and every method must have all of its seeds.
    Otherwise what is there goes to `<profile>.partial.csv` beside it.

    Scores of single classes, waves and borders are written only for combined rows without a
    variant, and not for the draws of labels, or most of the file would be theirs.

    Args:
        add: put the methods that the file does not have into it and change no other line.

    Raises:
        ResultsError: a saved evaluation or the file cannot be read.
    """
    path = folder / f"{profile.name}.csv"
    held = read(path) if path.is_file() else frame([])
    tables, missing = [frame([])], []
    for task in TASKS.values():
        try:
            rows = saved.with_combined(profile, task.name)
        except StaleResultsError as error:
            missing.append(f"{task.name}: {error}")
            continue
        listed = rows["metric"].isin(task.listed or rows["metric"])
        combined = (rows["seed"] == "all") & (rows["variant"] == "")
        tables.append(rows[listed | combined if task.detailed else listed])
    table = frame(pd.concat(tables).to_dict("records"))
    incomplete = _without_all_seeds(profile, table)
    if add:
        present = set(_groups_of(held))
        new = [g not in present and g not in incomplete for g in _groups_of(table)]
        table = frame([*held.to_dict("records"), *table[new].to_dict("records")])
        write_table(path, table)
        return Collection(path, table)
    missing += [f"{' '.join(map(str, group))}: seeds {gone}" for group, gone in incomplete.items()]
    missing += _lost(profile, held, table)
    if table.empty:
        return Collection(None, table, tuple(missing) or ("nothing has been evaluated",))
    if missing:
        path = path.with_name(f"{profile.name}.partial.csv")
    write_table(path, table)
    return Collection(path, table, tuple(missing))


def _groups_of(table: pd.DataFrame) -> list[tuple]:
    """Method, task, protocol and label fraction of each row."""
    columns = table[list(GROUP)].fillna({"exponent": 0.0})
    return list(columns.itertuples(index=False, name=None))


def _without_all_seeds(profile: Profile, table: pd.DataFrame) -> dict[tuple, str]:
    """Groups of which a listed seed is not there (fine-tuned ones have as many as were asked for)
    -> the absent seeds."""
    listed: dict[str, set[str]] = {}
    for run in profile.runs:
        listed.setdefault(run.name, set()).add(str(run.seed))
    absent = {}
    table = table.assign(
        group=_groups_of(table),
        name=table["run_id"]
        .str.replace(r"-s\d+$", "", regex=True)
        .str.replace("supervised", "random"),
    )
    for (group, name), part in table[table["seed"] != "all"].groupby(["group", "name"]):
        gone = listed.get(name, set()) - set(part["seed"])
        if gone and part["protocol"].iloc[0] != "finetune":
            absent[group] = ", ".join(sorted(gone))
    return absent


def _lost(profile: Profile, held: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """Evaluations that the committed file holds, the profile still lists, and `table` has not."""
    listed = {run.run_id for run in profile.runs}
    key = ["run_id", "task", "protocol", "label_fraction"]

    def singles(rows: pd.DataFrame) -> set[tuple]:
        one = rows[rows["seed"] != "all"]
        known = one["run_id"].str.replace("supervised", "random").isin(listed)
        return set(one.loc[known, key].itertuples(index=False, name=None))

    gone = sorted(singles(held) - singles(table))
    return [" ".join(map(str, line)) + ": not evaluated here" for line in gone]
