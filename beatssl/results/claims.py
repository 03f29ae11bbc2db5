"""The paper's claims, each as a difference of two of our scores, with the verdict of a rule that
was fixed before the runs (the book's "The search for the reading")."""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from beatssl.cache import write_text
from beatssl.profile import Profile
from beatssl.progress import in_processes
from beatssl.results import saved
from beatssl.results.saved import FOLDS, HEADLINES, LABELS, SCORES
from beatssl.results.uncertainty import Estimate, Group, difference, ratio
from beatssl.settings import cores

BASELINE, BEST = "hard-none-1", "soft_1-hard-50"  # rows of Table 1 as their names in a run
PAIRS = {  # what Table 1 is said to show: pairs of its rows, first over second
    "best row over baseline": [(BEST, BASELINE)],
    "soft over hard": [("soft_1-none-1", BASELINE), ("soft_1-hard-1", "hard-hard-1")],
    "two contexts over one": [
        ("hard-hard-1", BASELINE),
        ("soft_1-hard-1", "soft_1-none-1"),
        (BEST, "soft_1-none-50"),
    ],
    "exponent 50 over 1": [("soft_1-none-50", "soft_1-none-1"), (BEST, "soft_1-hard-1")],
}
CLAIMED = {row for pairs in PAIRS.values() for pair in pairs for row in pair}
IN_TABLE_1 = {"AUROC", "F1", "LUDB F1"}
OPPOSITE = "no claim"  # the paper's own numbers say the opposite
NUMBERS = ("paper", "value", "ci_low", "ci_high")
TOLD = ("reproduced", "not reproduced", "cannot be told")


class Compared(NamedTuple):
    """A claim against another method: our best row's score over that method's, as a ratio.

    Attributes: score: heading. effect: what the paper has. fraction: of the labels. usable: whether
    the method here is the paper's."""

    claim: str
    second: str
    task: str
    score: str
    metric: str
    effect: float
    fraction: float
    usable: bool


RATIOS = (  # paper.md 7: both claims are ratios of means
    Compared("93 % of ECG-FM", "w2v", LABELS, "F1 / F1", "f1_macro", 0.937, 0.1, False),
    Compared(
        "4 % above TS2Vec", "ts2vec", FOLDS, "LUDB F1 / LUDB F1", "f1_macro", 1.041, 1.0, True
    ),
)


@dataclass(frozen=True)
class Claim:
    """A line of the table of claims; `reading` is a variant of Beat-SSL's rows, empty: as the
    profile says. `value` has no number where one of the two was not evaluated in all rotations."""

    reading: str
    claim: str
    first: str
    second: str
    score: str
    paper: float
    value: float
    ci_low: float
    ci_high: float
    n: int
    verdict: str


def verdict(low: float, high: float, effect: float, none: float = 0.0) -> str:
    """Does an interval show the paper's effect?

    Args:
        effect: the paper's, on the scale on which `none` is no effect.

    Returns:
        reproduced: the interval lies above `none`; not reproduced: it lies below half of the
        effect; cannot be told: else. OPPOSITE where the paper's effect is none or negative.
    """
    if effect <= none:
        return OPPOSITE
    if low > none:
        return TOLD[0]
    return TOLD[1] if high < none + (effect - none) / 2 else TOLD[2]


def readings(profile: Profile) -> list[str]:
    """Variants of Beat-SSL in which the profile has all the rows that claims are about."""
    of: dict[str, set[str]] = defaultdict(set)
    for run in profile.runs:
        of[run.variant].add(run.name.removeprefix("beatssl-").removesuffix(f"-{run.variant}"))
    return sorted(variant for variant, names in of.items() if names >= CLAIMED)


def claims(profile: Profile) -> pd.DataFrame:
    """Every claim in every reading of which something was measured: columns of `Claim`."""
    asked = [*_asked(readings(profile))]
    lines = in_processes(functools.partial(_line, profile), asked, cores(), "claims")
    table = pd.DataFrame(list(lines), columns=list(Claim.__annotations__))
    measured = table.loc[table["n"] > 0, "reading"]
    return table[table["reading"].isin(measured)].reset_index(drop=True)


def _asked(readings: list[str]) -> Iterator[tuple]:
    """Reading, claim, rows, and the score or the other method."""
    for reading, (claim, pairs) in itertools.product(readings, PAIRS.items()):
        for pair, headline in itertools.product(pairs, HEADLINES):
            if headline[0] in IN_TABLE_1:
                yield reading, claim, pair, headline
    for reading, other in itertools.product(readings, RATIOS):
        yield reading, other.claim, (BEST, other.second), other


def _line(profile: Profile, asked: tuple) -> Claim:
    reading, claim, (first, second), what = asked
    names = [f"beatssl-{row}{'-' * bool(reading)}{reading}" for row in (first, second)]
    if isinstance(what, Compared):
        sides = [_group(profile, name, what.task, what.fraction) for name in (names[0], second)]
        found = _estimate(ratio, profile, what.task, sides, what.metric)
        said = verdict(found.low, found.high, what.effect, 1.0) if what.usable else TOLD[2]
        return _claim(asked, what.score, what.effect, found, said)
    score, task, metric = what
    printed = saved.paper().query("source == 'Table 1' and task == @task and metric == @metric")
    printed = printed.set_index(printed["run_id"].str.removeprefix("paper-"))["value"]
    effect = float(printed[first] - printed[second])
    sides = [_group(profile, name, task, 1.0) for name in names]
    found = _estimate(difference, profile, task, sides, metric)
    return _claim(asked, score, effect, found, verdict(found.low, found.high, effect))


def _claim(asked: tuple, score: str, effect: float, found: Estimate, said: str) -> Claim:
    reading, claim, (first, second), _ = asked
    said = said if found.n else "not measured"
    numbers = effect, found.value, found.low, found.high, found.n
    return Claim(reading, claim, first, second, score, *numbers, said)


def file_of(profile: Profile) -> Path:
    """Where the claims of a profile stand."""
    return saved.RESULTS / f"{profile.name}-claims.csv"


def write(profile: Profile) -> pd.DataFrame:
    """Put the claims into their file; none where the profile has not all rows of one reading."""
    table = claims(profile)
    if len(table):
        text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_text(file_of(profile), text)
    return table


def read(profile: Profile) -> pd.DataFrame:
    """The claims in their file; an empty table where there is none."""
    path = file_of(profile)
    if not path.is_file():
        return pd.DataFrame(columns=list(Claim.__annotations__))
    return pd.read_csv(path, keep_default_na=False, na_values={c: [""] for c in NUMBERS})


def _group(profile: Profile, name: str, task: str, fraction: float) -> Group:
    """Predictions by seed; none where a rotation is missing."""
    of = [
        evaluation
        for evaluation, _ in saved.evaluations(profile, task, protocols=("frozen",))
        if evaluation.name == name and evaluation.label_fraction == fraction and evaluation.weights
    ]
    if not of or saved.missing_rotations(profile, of):
        return {}
    return {one.run.seed: saved.load_predictions(profile, one) for one in of}


def _estimate(
    how: Callable, profile: Profile, task: str, sides: list[Group], metric: str
) -> Estimate:
    if not all(sides):
        return saved.NOTHING
    return how(SCORES[task], *sides, saved.resamples_of(profile, task))[metric]
