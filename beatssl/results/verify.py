"""`verify`: every number of a committed results file, computed again from the kept predictions."""

import functools
import os
import tempfile
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pandas as pd

from beatssl.profile import Profile
from beatssl.progress import in_processes
from beatssl.results import claims, kept, saved
from beatssl.results.collect import listed_rows
from beatssl.settings import cores
from beatssl.tasks import TASKS

SAME = 1.0e-5  # relative, of six printed digits
NAMES = ["run_id", "task", "protocol", "label_fraction", "metric", "seed"]
NUMBERS = ["value", "ci_low", "ci_high", "n"]
CLAIM = ["reading", "claim", "first", "second", "score", "verdict"]


def verify(profile: Profile) -> tuple[int, list[str]]:
    """Compare `results/<profile>.csv` with what the kept predictions give today.

    Recordings, encoders and the working folder are not looked at.

    Returns:
        number of lines of the file, and what differs, a line each; nothing where all is the same.

    Raises:
        ResultsError: there is no such file, or it cannot be read.
    """
    held = saved.of_profile(profile)
    groups = defaultdict(list)
    for stem, entry in sorted(kept.entries(saved.shelf(profile)).items()):
        evaluation, _ = saved.of_entry(entry)
        group = evaluation.name, evaluation.task, evaluation.protocol, evaluation.label_fraction
        groups[group].append(stem)
    before = os.environ.get("BEATSSL_WORK")
    try:
        with tempfile.TemporaryDirectory() as empty:
            os.environ["BEATSSL_WORK"] = empty
            recompute = functools.partial(_rows_of, profile)
            told = claims.claims(profile)
            rows = list(in_processes(recompute, [*groups.values()], cores(), "methods"))
    finally:
        os.environ.pop("BEATSSL_WORK")
        if before is not None:
            os.environ["BEATSSL_WORK"] = before
    table = saved.frame([row for part in rows for row in part])
    tables = [listed_rows(task, table[table["task"] == task.name]) for task in TASKS.values()]
    lines = _differing(held, pd.concat(tables), NAMES, NUMBERS)
    lines += _differing(claims.read(profile), told, CLAIM, claims.NUMBERS)
    return len(held), lines


def _rows_of(profile: Profile, stems: Sequence[str]) -> list[dict]:
    """Rows of one method's seeds on one task, and of all of them together."""
    found = []
    for stem in stems:
        evaluation, rows = saved.of_entry(kept.entries(saved.shelf(profile))[stem])
        if evaluation.weights:
            made = saved.load_predictions(profile, evaluation)
            rows = saved.scored(evaluation, profile, made)
        found.append((evaluation, rows))
    return [row for _, rows in found for row in rows] + saved.combine(profile, found)


def _differing(
    held: pd.DataFrame, made: pd.DataFrame, names: list[str], numbers: Sequence[str]
) -> list[str]:
    both = held.merge(made, how="outer", on=names, suffixes=("", " made"), indicator=True)
    lines = []
    for row in both.to_dict("records"):
        named = " ".join(str(row[name]) for name in names)
        if row["_merge"] != "both":
            where = "the file" if row["_merge"] == "left_only" else "the predictions"
            lines.append(f"{named}: only in {where}")
            continue
        for name in numbers:
            old, new = (float("nan") if pd.isna(v) else v for v in (row[name], row[f"{name} made"]))
            if not np.isclose(old, new, rtol=SAME, atol=1e-9, equal_nan=True):
                lines.append(
                    f"{named}: {name} is {old:g} in the file, {new:g} from the predictions"
                )
    return lines
