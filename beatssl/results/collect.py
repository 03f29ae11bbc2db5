"""The only writer of `results/<profile>.csv`: from whole evaluations, never losing a line."""

import itertools
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

import pandas as pd

from beatssl.cache import write_text
from beatssl.data.records import SUPERCLASSES
from beatssl.data.store import Store
from beatssl.profile import Profile
from beatssl.progress import progress
from beatssl.results import kept, saved
from beatssl.results.saved import StaleResultsError, frame, read, write_table
from beatssl.tasks import TASKS
from beatssl.tasks.base import Task


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
            tables.append(listed_rows(task, saved.with_combined(profile, task.name)))
        except StaleResultsError as error:
            missing.append(f"{task.name}: {error}")
    table = frame(pd.concat(tables).to_dict("records"))
    listed: dict[tuple[str, str], set[str]] = defaultdict(set)
    for run, task in itertools.product(profile.runs, TASKS.values()):
        if task.fractions(task.settings(profile), profile.repeats_of(run)):  # else has no part
            for name in (run.name, run.name.replace("random", "supervised")):
                listed[name, task.name].add(str(run.seed))
    here, there = _seeds(table), _seeds(held)
    absent = {key: listed[key[:2]] - seeds for key, seeds in here.items()}
    # fine-tuned ones have as many seeds as were asked for
    absent = {key: seeds for key, seeds in absent.items() if seeds and key[2] != "finetune"}
    if add:
        new = [key not in there and key not in absent for key in _keys(table)]
        table = frame([*held.to_dict("records"), *table[new].to_dict("records")])
        write_table(path, table)
        return Collection(path, table)
    for key, seeds in absent.items():
        missing.append("{} {} {} {}: seeds ".format(*key) + ", ".join(sorted(seeds)))
    for (name, *key), seeds in sorted(there.items()):
        for seed in sorted((seeds & listed[name, key[0]]) - here.get((name, *key), set())):
            missing.append("{}-s{} {} {} {}: not evaluated here".format(name, seed, *key))
    if table.empty:
        return Collection(None, table, tuple(missing) or ("nothing has been evaluated",))
    if missing:
        path = path.with_name(f"{profile.name}.partial.csv")
    write_table(path, table)
    return Collection(path, table, tuple(missing))


def listed_rows(task: Task, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a task that stand in the file. Scores of single classes, waves and borders do only
    for combined rows without a variant, and not for the draws of labels, or most of the file would
    be theirs."""
    listed = rows["metric"].isin(task.listed or rows["metric"])
    combined = (rows["seed"] == "all") & (rows["variant"] == "")
    return rows[listed | combined if task.detailed else listed]


def keep(profile: Profile) -> int:
    """Put the profile's saved evaluations on the shelf (`results.kept`), where those of the same
    runs give way and others stay, and the versions of all packages; returns how many evaluations
    were put there."""
    of_run: dict[str, dict] = defaultdict(dict)
    for evaluation, rows in saved.evaluations(profile):
        if (profile.work / "results" / f"{evaluation.stem}.json").is_file():
            made = saved.load_predictions(profile, evaluation) if evaluation.weights else None
            entry = saved.as_entry(evaluation, rows)
            of_run[evaluation.run_id][evaluation.stem] = entry, made
    for run, entries in progress(of_run.items(), "predictions to keep", delay=5):
        kept.write(saved.shelf(profile), run, entries)
    named = sorted({f"{found.name}=={found.version}" for found in distributions()})
    write_text(saved.shelf(profile) / "packages.txt", "\n".join([*named, ""]))
    return sum(map(len, of_run.values()))


def keep_folds(profile: Profile, store: Store) -> None:
    """Put beside the kept predictions in which fold each tested record stands: PTB-XL's with known
    superclasses, all of LUDB's."""
    table = store.table[["record_id", "dataset", "fold"]]
    known = store.table[list(SUPERCLASSES)].ge(0).all(axis=1)
    table = table[(known & table["dataset"].eq("ptbxl")) | table["dataset"].eq("ludb")]
    write_text(saved.shelf(profile) / "folds.csv", table.to_csv(index=False))


def _keys(table: pd.DataFrame) -> list[tuple]:
    """Run without its seed, task, protocol and label fraction of each row."""
    name = table["run_id"].str.replace(r"-s\d+$", "", regex=True)
    return list(zip(name, table["task"], table["protocol"], table["label_fraction"]))


def _seeds(table: pd.DataFrame) -> dict[tuple, set[str]]:
    """`_keys` -> seeds that have rows of their own."""
    single = table[table["seed"] != "all"]
    seeds: dict[tuple, set[str]] = defaultdict(set)
    for key, seed in zip(_keys(single), single["seed"]):
        seeds[key].add(seed)
    return seeds
