"""Saved evaluations of methods held against each other and the paper: paired differences, and what
each draw and fold scored.

Draws and folds are the same for all methods. Where a method has several encoders (seeds), a draw's
value is their mean, and a fold's that of the encoder which takes its repeat (`Profile.repeats_of`).
Where PTB-XL's folds are tested in rotation, each rotation has draws of its own; and methods are
compared on the records of the rotations that both have, whose number stands beside the difference.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from beatssl.evaluate import COMPARED
from beatssl.methods import DELINEATORS, UNTRAINED
from beatssl.profile import Profile
from beatssl.report import tables
from beatssl.results import saved, uncertainty
from beatssl.results.saved import CLASSIFY, FOLDS, HEADLINES, LABELS, SEGMENT, Evaluation
from beatssl.tasks.compare import STACKED
from beatssl.tasks.scores import Predictions, classification_scores, segmentation_scores

BEST_LABEL = tables.label("beatssl", "soft_1", "hard", 50)  # the paper's best row
NO_RIVALS = (*UNTRAINED, "supervised", "features", *DELINEATORS)
REFERENCES = [tables.label(method) for method in NO_RIVALS]
FRACTION = 0.1  # of the labels, in the paper's "PTB-10"
DESIGNS = {  # scores of the comparison: heading -> task and metric
    "PTB-XL F1": (LABELS, "f1_macro"),
    "PTB-XL AUROC": (LABELS, "auroc_macro"),
    "LUDB F1": (FOLDS, "f1_macro"),
    "LUDB Dice": (FOLDS, "dice"),
}
LIKE = {LABELS: CLASSIFY, FOLDS: SEGMENT}  # the task that is scored in draws or folds


# --- saved evaluations, and differences of them ---------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Saved evaluations of one method on one task, one a seed.

    Attributes: name: of its runs, without the seed; `supervised` where trained from scratch."""

    name: str
    label: str
    evaluations: tuple[Evaluation, ...]

    @property
    def measured(self) -> Counter[str]:
        """What its evaluations were measured on, in words, one for each rotation of PTB-XL's folds
        -> number of seeds."""
        return Counter(e.data for e in self.evaluations)

    def load(self, profile: Profile, on: Collection[str] = ()) -> dict[int, Predictions]:
        """Predictions by seed. Args: on: `measured` to keep; default all."""
        chosen = [e for e in self.evaluations if not on or e.data in on]
        return {e.run.seed: saved.load_predictions(profile, e) for e in chosen}


def groups(
    profile: Profile, task: str, protocol: str = "frozen", fraction: float = 1.0
) -> dict[str, Group]:
    """Saved evaluations that did not fail by the method's name, in the order of `tables.rank`.

    Args:
        protocol: frozen | finetune; the supervised reference is there with both.
        fraction: of the labels of task 1.
    """
    lines = []
    for evaluation, rows in saved.evaluations(profile, task, protocols=(protocol, "scratch")):
        fits = LIKE.get(task, task) == SEGMENT or np.isclose(evaluation.label_fraction, fraction)
        if fits and evaluation.weights:
            method = [rows[0][column] for column in tables.METHOD]
            lines.append([*method, evaluation.run.seed, evaluation])
    table = pd.DataFrame(lines, columns=[*tables.METHOD, "seed", "evaluation"])
    members = tables.in_order(table.sort_values("seed")).groupby(["name", "label"], sort=False)
    return {name: Group(name, label, tuple(part)) for (name, label), part in members["evaluation"]}


def paired(
    profile: Profile, pairs: Iterable[tuple[Group, Group]], same_seeds: bool = False
) -> pd.DataFrame:
    """First minus second for the headline scores of their task, paired bootstrap
    (`uncertainty.difference`), on the records that both were tested on.

    Args:
        same_seeds: of the seeds and, of repeated folds, the repeats that both have; pairs without
            any are left out.

    Returns:
        Columns first, second (labels), names (of both), label_fraction, seeds (how many, of both),
        n (records), covers (what the interval is over, in words), score, difference, low, high,
        zero ("excludes zero" | "includes zero" | "no interval").
    """
    lines = []
    shared = [(*pair, list(pair[0].measured & pair[1].measured)) for pair in pairs]
    of_one_base = itertools.groupby(shared, lambda pair: pair if same_seeds else pair[1:])
    for _, members in of_one_base:
        firsts, (second, *_), (on, *_) = zip(*members, strict=True)  # the base is scored once
        if not on:
            continue
        base, *others = [group.load(profile, on) for group in (second, *firsts)]
        if same_seeds:
            base, *others = _of_same_seeds(base, *others)
        task = second.evaluations[0].task
        resamples = saved.resamples_of(profile, task)
        found = uncertainty.against(saved.SCORES[task], base, others, resamples) if base else []
        for first, own, estimates in zip(firsts, others, found):
            names = first.label, second.label, (first.name, second.name)
            fraction, seeds = first.evaluations[0].label_fraction, (len(own), len(base))
            covers = _covered(first, own, second, base)
            for score, of, metric in HEADLINES:
                if of == LIKE.get(task, task):
                    e = estimates[metric]
                    line = *names, fraction, seeds, e.n, covers, score, e.value, e.low, e.high
                    lines.append(line)
    columns = "first second names label_fraction seeds n covers score difference low high"
    table = pd.DataFrame(lines, columns=columns.split())
    zero = [table["low"].isna(), (table["low"] <= 0) & (table["high"] >= 0)]
    words = np.select(zero, ["no interval", "includes zero"], "excludes zero")
    return table.assign(zero=words)


def _covered(first: Group, own: Collection[int], second: Group, base: Collection[int]) -> str:
    """What an interval is over: seeds where each rotation has several."""
    several = 0
    for group, seeds in ((first, own), (second, base)):
        of = Counter(e.data for e in group.evaluations if e.run.seed in seeds)
        several += min(of.values()) > 1
    return ("patients", "patients and the seeds of one side", "patients and seeds")[several]


def _of_same_seeds(*sides: Mapping[int, Predictions]) -> list[dict[int, Predictions]]:
    """Two sides, by seed, cut to the seeds and, of repeated folds, the repeats that both have."""
    cut = [{}, {}]
    for seed in sorted(sides[0].keys() & sides[1].keys()):
        one, other = sides[0][seed], sides[1][seed]
        if "repeat" in one:
            one, other = _in_repeats(one, other["repeat"]), _in_repeats(other, one["repeat"])
        if len(one.get("repeat", [seed])):
            cut[0][seed], cut[1][seed] = one, other
    return cut


def _in_repeats(predictions: Predictions, repeats: np.ndarray) -> Predictions:
    at = np.isin(predictions["repeat"], repeats)
    return predictions | {n: predictions[n][at] for n in STACKED if n in predictions}


def differences(
    profile: Profile, pairs: Iterable[tuple[str, str]], fraction: float = 1.0
) -> tuple[pd.DataFrame, list[str]]:
    """`paired` for frozen encoders, by the names of two methods ("random", "supervised",
    "beatssl-soft_1-hard-50"); and the pairs and tasks that were not evaluated.

    Args: fraction: of the labels of task 1; with fewer than all of them, task 2 is left out."""
    tasks = (CLASSIFY, SEGMENT) if fraction == 1 else (CLASSIFY,)
    known = {task: groups(profile, task, fraction=fraction) for task in tasks}
    evaluated, absent = [], []
    for task, (first, second) in itertools.product(tasks, pairs):
        both = [known[task].get(name) for name in (first, second)]
        if all(both) and both[0].measured & both[1].measured:
            evaluated.append((both[0], both[1]))
        else:
            absent.append(f"{first} and {second} on {'the same records of ' * all(both)}{task}")
    return paired(profile, evaluated), absent


def finetuning_gains(profile: Profile, task: str, base: str, by: str = "") -> pd.DataFrame:
    """Fine-tuned encoders minus `base`, as texts: paired difference [95 % interval over patients
    and, with several, seeds] of the same seeds, which have the same labels and folds; a line a
    method, a column a headline score and fraction of the labels.

    Args:
        task: CLASSIFY or FOLDS.
        base: "supervised": the untrained ResNet trained on the same labels; "frozen": the same
            encoder with a probe or decoder on top.
        by: the task that fine-tuned, with the labels of `task`; default it itself.
    """
    fractions = profile.classify.label_fractions if task == CLASSIFY else (1.0,)
    pairs = []
    for fraction in fractions:
        bases = groups(profile, task, "frozen", fraction)
        for name, tuned in groups(profile, by or task, "finetune", fraction).items():
            second = bases.get(name if base == "frozen" else base)
            if name != "supervised" and second:
                pairs.append((tuned, second))
    table = paired(profile, pairs, same_seeds=True)
    labels = table["label_fraction"].map(", {:.0%} of labels".format)
    table["heading"] = table["score"] + (labels if len(fractions) > 1 else "")
    corner = f"fine-tuned − {'supervised from scratch' if base == 'supervised' else 'frozen'}"
    return tables.wide(table.assign(text=tables.signed(table)), ["first"], "heading", corner)


# --- draws and folds ------------------------------------------------------------------------------


def block_scores(task: str, predictions: Predictions, metric: str) -> pd.Series:
    """The score of each draw (task `LABELS`, index its number) or of the records of each fold of
    each repeat (`FOLDS`, index repeat and fold), numbers from 1."""
    if task == LABELS:
        draws = zip(predictions["score"], predictions["threshold"], strict=True)
        each = [predictions | {"score": s, "threshold": t} for s, t in draws]
        values = [classification_scores(draw)[metric][0] for draw in each]
        return pd.Series(values, index=range(1, len(values) + 1))
    found = {}
    repeats = (predictions[name] for name in ("repeat", "fold", "prediction"))
    for repeat, fold, prediction in zip(*repeats, strict=True):
        numbers = np.unique(fold)
        member = (fold == numbers[:, None]).astype(float)  # (folds, records)
        values = segmentation_scores(predictions | {"prediction": prediction}, member)[metric]
        found |= {(int(repeat) + 1, int(k)): value for k, value in zip(numbers, values)}
    return pd.Series(found)


def blocks(profile: Profile, heading: str, protocol: str = "frozen") -> pd.DataFrame:
    """Value of each draw (of each rotation) or fold (rows) for each method (columns, labels of the
    tables); blocks that not all of the methods have are left out. Args: heading: of `DESIGNS`."""
    task, metric = DESIGNS[heading]
    columns = {}
    for group in groups(profile, task, protocol, FRACTION).values():
        loaded = [saved.load_predictions(profile, e) for e in group.evaluations]
        each = [block_scores(task, predictions, metric) for predictions in loaded]
        values = pd.concat(each, keys=[e.data for e in group.evaluations])
        columns[group.label] = values.groupby(values.index).mean()
    table = pd.concat(columns, axis=1, join="inner") if columns else pd.DataFrame()
    return table.set_axis(range(1, len(table) + 1))


def compared(profile: Profile, task: str) -> pd.DataFrame:
    """`tables.by_method` of one task without the rows of the ablation that are not compared."""
    table = tables.by_method(saved.with_combined(profile, task))
    return table[(table["method"] != "beatssl") | table["name"].isin(COMPARED)]


# --- the paper beside ours ------------------------------------------------------------------------


def paper_medians(heading: str) -> dict[str, float]:
    """Label of the tables -> median of the paper's violin; empty where it shows none."""
    task, metric = DESIGNS[heading]
    printed = saved.paper().query("source.str.contains('violin')")
    printed = printed[(printed["task"] == LIKE[task]) & (printed["metric"] == metric)]
    labels = [BEST_LABEL if m == "beatssl" else tables.label(m) for m in printed["method"]]
    return dict(zip(labels, printed["value"], strict=True))


def medians(values: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A line a method: the paper's median and ours [quartiles] over draws or folds, as texts.

    Args: values: heading of `DESIGNS` -> `blocks`."""
    texts, repeated = {}, {}
    for heading, table in values.items():
        repeated[f"{len(table)} {'draws' if DESIGNS[heading][0] == LABELS else 'folds'}"] = None
        quartiles = table.quantile([0.5, 0.25, 0.75]).items()
        texts[heading] = {name: "{:.3f} [{:.3f}, {:.3f}]".format(*q) for name, q in quartiles}
    return tables.titled(_with_paper(texts), f"median [quartiles] over {' / '.join(repeated)}")


def beside_paper(rows: pd.DataFrame) -> pd.DataFrame:
    """The comparison as a table of texts, a line a method: the paper's median beside our mean over
    draws or folds and seeds (sd over seeds) [95 % interval over patients and seeds], frozen
    encoders.

    Args: rows: of the methods of the comparison, as in `results/<profile>.csv`."""
    table = tables.by_method(rows)
    table = table[table["protocol"].isin(["frozen", "scratch"]) & table["task"].isin(LIKE)]
    chosen = table[(table["task"] == FOLDS) | np.isclose(table["label_fraction"], FRACTION)]
    texts = {}
    for heading, (task, metric) in DESIGNS.items():
        part = chosen[(chosen["task"] == task) & (chosen["metric"] == metric)]
        texts[heading] = dict(zip(part["label"], tables.cells(part), strict=True))
    seeds = table.groupby("label", sort=False)["seeds"].max().map("{:.0f}".format)
    out = _with_paper(texts, seeds.index)
    return tables.titled(out.assign(seeds=seeds).fillna("–"), "method")


def _with_paper(ours: Mapping[str, Mapping[str, str]], first: Iterable[str] = ()) -> pd.DataFrame:
    """Texts by heading and method as a table, the paper's medians before ours where it shows any.

    Args: first: methods in the order of the lines; those that are not named follow."""
    columns: dict[str, Mapping[str, str]] = {}
    for heading, texts in ours.items():
        if paper := paper_medians(heading):
            columns[f"{heading}, paper"] = {n: f"{median:.3f}" for n, median in paper.items()}
        columns[f"{heading}, ours"] = texts
    lines = dict.fromkeys(itertools.chain(first, *ours.values(), *columns.values()))
    return pd.DataFrame(columns).reindex(list(lines)).fillna("–")
