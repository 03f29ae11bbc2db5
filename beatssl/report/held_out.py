"""Scores on chosen records: those on which choices were made, and those that chose nothing.

Choices (the reading, the better encoder) are made on the first rotation of PTB-XL's folds, which
tests folds 1-3 and selects on fold 4, and on the first half of LUDB (the book's "The search for the
reading"); what was chosen is confirmed on the others.
"""

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

from beatssl.profile import Profile
from beatssl.report import comparison
from beatssl.results import saved, uncertainty
from beatssl.results.uncertainty import Estimate, Group
from beatssl.tasks.base import Predictions

CHOSE = {"folds 1-3": range(1, 4), "LUDB, first half": 0}
HELD_OUT = {"folds 5-10": range(5, 11), "folds 7-10": range(7, 11), "LUDB, second half": 1}
PAPER = {"AUROC": 0.032, "LUDB F1": 0.109}  # best row minus baseline, Table 1: divisors of D


def records(profile: Profile, of: Mapping[str, object]) -> dict[str, list[str]]:
    """Words of `CHOSE` or `HELD_OUT` -> record ids; empty where no folds are kept (`keep`)."""
    path = saved.shelf(profile) / "folds.csv"
    if not path.is_file():
        return {}
    table = pd.read_csv(path)
    ludb = table.loc[table["dataset"] == "ludb", "record_id"].tolist()
    halves = ludb[: len(ludb) // 2], ludb[len(ludb) // 2 :]
    chosen = {}
    for words, what in of.items():
        at = table["fold"].isin(what) if isinstance(what, range) else []
        chosen[words] = table.loc[at, "record_id"].tolist() if len(at) else halves[what]
    return chosen


def on_records(predictions: Predictions, wanted: Collection[str]) -> Predictions:
    """Predictions of these records alone; what has other lengths is handed through."""
    at = np.isin(predictions["record_id"], list(wanted))
    cut = dict(predictions)
    for name, array in predictions.items():
        if len(at) in array.shape:  # draws and repeats stand before the records
            cut[name] = np.compress(at, array, axis=array.shape.index(len(at)))
    if "marks" in predictions:  # their first column numbers the records
        marks, place = predictions["marks"], np.cumsum(at) - 1
        marks = marks[at[marks[:, 0].astype(int)]]
        cut["marks"] = np.column_stack([place[marks[:, 0].astype(int)], marks[:, 1:]])
    return cut


def sides(
    profile: Profile, task: str, names: Collection[str], wanted: Collection[str], fraction=1.0
) -> dict[str, Group]:
    """Predictions of these records by method and seed; a method that lacks some is left out."""
    groups, found = comparison.groups(profile, task, fraction=fraction), {}
    for name in names:
        loaded = groups[name].load(profile) if name in groups else {}
        cut = {seed: on_records(one, wanted) for seed, one in loaded.items()}
        cut = {seed: one for seed, one in cut.items() if len(one["record_id"])}
        if {i for one in cut.values() for i in one["record_id"]} == {*wanted}:
            found[name] = cut
    return found


def gains(
    profile: Profile, task: str, first: str, others: Collection[str], wanted: Collection[str],
    metric: str, fraction: float = 1.0,
) -> dict[str, Estimate]:  # fmt: skip
    """First minus each other that has all of these records, with intervals over patients and,
    where a rotation has several, seeds; empty where the first lacks some."""
    found = sides(profile, task, [first, *others], wanted, fraction)
    if first not in found or not wanted:
        return {}
    mine, how, n = found.pop(first), saved.SCORES[task], saved.resamples_of(profile, task)
    return {name: uncertainty.difference(how, mine, own, n)[metric] for name, own in found.items()}
