"""Tables of the book, from result rows: numbers are formatted here and typed nowhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from beatssl import results, stats
from beatssl.config import BEAT_TARGETS, RHYTHM_TARGETS, Profile
from beatssl.metrics import record_dice, wave_counts
from beatssl.records import SUPERCLASSES, WAVES
from beatssl.results import HEADLINES, SCORES, SEGMENT

METHOD = ["method", "rhythm", "beat", "exponent"]
TABLE_1 = ("AUROC", "F1", "LUDB F1")  # the scores of the paper's Table 1
NAMES = {"beatssl": "Beat-SSL", "ts2vec": "TS2Vec", "domain_ssl": "Domain-SSL", "ecg_fm": "ECG-FM"}


# --- words and numbers ----------------------------------------------------------------------------


def label(method: str, rhythm: str, beat: str, exponent: float) -> str:
    """A method in the words of the tables: rhythm / beat / exponent for an ablation row."""
    if method == "random":
        return "Untrained encoder"
    if method == "supervised":
        return "Supervised from scratch"
    if method != "beatssl":
        return NAMES.get(method, method)
    text = f"{rhythm} / {'-' if beat == 'none' else beat} / {exponent:g}"
    marks = {"hard / - / 1": " (baseline, 3KG)", "soft_1 / hard / 50": " (paper's best)"}
    return text + marks.get(text, "")


def rank(method: tuple) -> tuple:
    """Untrained, supervised, the ablation rows in the order of the paper's Table 1, others."""
    name, rhythm, beat, exponent = method
    if name != "beatssl":
        return ({"random": 0, "supervised": 1}.get(name, 3), name)
    return (2, RHYTHM_TARGETS.index(rhythm), BEAT_TARGETS.index(beat), exponent)


def cell(value: float, sd: float, low: float, high: float) -> str:
    """`mean (sd over seeds) [95 % interval]`, parts that do not exist left out."""
    if np.isnan(value):
        return "–"
    text = f"{value:.3f}" + ("" if np.isnan(sd) else f" ({sd:.3f})")
    return text if np.isnan(low) else f"{text} [{low:.3f}, {high:.3f}]"


def _cells(table: pd.DataFrame) -> list[str]:
    return [cell(*line) for line in table[["value", "sd", "ci_low", "ci_high"]].to_numpy(float)]


def titled(table: pd.DataFrame, corner: str) -> pd.DataFrame:
    """The name of the index in the corner, in one line with the headings."""
    return table.rename_axis(index=None, columns=corner)


def markdown(table: pd.DataFrame) -> str:
    """A table of texts as Markdown, the corner's name first."""
    lines = [[table.columns.name or "", *table.columns]]
    lines += [[index, *row] for index, row in zip(table.index, table.to_numpy(), strict=True)]
    rows = ["| " + " | ".join(map(str, cells)) + " |" for cells in lines]
    rows.insert(1, "|" + "---|" * len(lines[0]))
    return "\n".join(rows)


# --- ours -----------------------------------------------------------------------------------------


def by_method(rows: pd.DataFrame) -> pd.DataFrame:
    """Combined rows (seed `all`) with their sd over seeds, number of seeds and label, in the order
    of `rank`."""
    same = [*METHOD, "task", "protocol", "label_fraction", "metric"]
    seeds = rows[rows["seed"] != "all"].groupby(same, dropna=False)["value"]
    spread = seeds.agg(sd=lambda v: v.std(ddof=1), seeds="size").reset_index()
    table = rows[rows["seed"] == "all"].merge(spread, on=same)
    methods = list(table[METHOD].itertuples(index=False, name=None))
    tuned = np.where(table["protocol"] == "finetune", " (fine-tuned)", "")
    table["label"] = [label(*m) + t for m, t in zip(methods, tuned, strict=True)]
    return table.iloc[sorted(range(len(table)), key=lambda i: rank(methods[i]))]


def by_fraction(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """`by_method` of one task as texts: one line a method and label fraction, a column a metric,
    with n and seeds."""
    table = table[table["metric"].isin(metrics)]
    table = table.assign(text=_cells(table), labels=table["label_fraction"].map("{:.0%}".format))
    index = ["label", "labels", "n", "seeds"]
    order = pd.MultiIndex.from_frame(table[index].drop_duplicates())
    wide = table.pivot(index=index, columns="metric", values="text")[list(metrics)].reindex(order)
    return titled(wide.reset_index(["labels", "n", "seeds"]), "method")


def per_class(table: pd.DataFrame, prefix: str) -> pd.DataFrame:
    """`by_method` of one task: columns label, class, value, ci_low, ci_high of a class-wise score
    with all labels."""
    table = table[(table["label_fraction"] == 1) & table["metric"].str.startswith(prefix)]
    table = table.assign(**{"class": table["metric"].str.removeprefix(prefix)})
    place = {name: i for i, name in enumerate((*SUPERCLASSES, *WAVES))}
    table = table[table["class"].isin(place)]
    return table.sort_values("class", key=lambda names: names.map(place), kind="stable")


def per_run(rows: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """One line a run, protocol and label fraction: n and value [interval] of each metric."""
    part = rows[rows["metric"].isin(metrics)].assign(sd=np.nan)
    part = part.assign(text=_cells(part), labels=part["label_fraction"].map("{:.0%}".format))
    index = ["run_id", "protocol", "labels", "n"]
    wide = part.pivot(index=index, columns="metric", values="text")
    return titled(wide[list(metrics)].reset_index(index[1:]), "run")


def events(table: pd.DataFrame) -> pd.DataFrame:
    """`by_method` of the segmentation: sensitivity / precision and timing error (mean ± sd, ms) of
    each border, a line a method."""
    value = table.set_index(["label", "metric"])["value"]
    borders = [f"{wave}_{border}" for wave in WAVES for border in ("onset", "offset")]
    kinds = ("sensitivity", "precision", "error_mean_ms", "error_sd_ms")
    lines = {
        name: {
            border.replace("_", " "): "{:.3f} / {:.3f}, {:+.0f} ± {:.0f}".format(
                *[value[name, f"event_{kind}_{border}"] for kind in kinds]
            )
            for border in borders
        }
        for name in dict.fromkeys(table["label"])
    }
    return titled(pd.DataFrame(lines).T, "sensitivity / precision, error in ms")


def records_by_dice(predictions: Mapping[str, np.ndarray]) -> np.ndarray:
    """Item numbers of one method's segmentation from the worst record to the best, by Dice."""
    dice = record_dice(wave_counts(predictions["truth"], predictions["prediction"]))
    return np.argsort(np.nan_to_num(dice), kind="stable")


# --- the paper beside ours ------------------------------------------------------------------------


def headlines(
    profile: Profile,
    *,
    every_row: bool = False,
    protocol: str = "frozen",
    label_fraction: float = 1.0,
    folder: Path = results.RESULTS,
) -> pd.DataFrame:
    """The headline scores of `results/<profile>.csv` with the paper's number for the same row.

    Args:
        every_row: also the rows of the paper's Table 1 that were not run here.
        protocol: of the encoders, frozen | finetune; the supervised reference is always there.
        label_fraction: of the classification task.

    Returns:
        One line a method and score: label, score (AUROC, F1, LUDB F1, Dice), paper, value, sd,
        ci_low, ci_high, n, seeds, data; NaN where there is none.
    """
    ours = by_method(results.read(folder / f"{profile.name}.csv"))
    ours = ours[ours["protocol"].isin([protocol, "scratch"])]
    ours = ours[(ours["task"] == SEGMENT) | np.isclose(ours["label_fraction"], label_fraction)]
    printed = results.paper().query("source == 'Table 1'")
    methods = pd.concat([ours, printed] if every_row else [ours])[METHOD].drop_duplicates()
    scores = pd.DataFrame(HEADLINES, columns=["score", "task", "metric"])
    grid = methods.merge(scores, how="cross")
    key = [*METHOD, "task", "metric"]
    numbers = ["value", "sd", "ci_low", "ci_high", "n", "seeds", "data"]
    grid = grid.merge(ours[[*key, *numbers]], how="left", on=key)
    paper = printed.rename(columns={"value": "paper"})[[*key, "paper"]]
    grid = grid.merge(paper, how="left", on=key)
    rows = list(grid[METHOD].itertuples(index=False, name=None))
    grid.insert(0, "label", [label(*row) for row in rows])
    order = sorted(range(len(grid)), key=lambda i: rank(rows[i]))
    return grid.iloc[order].drop(columns=key).reset_index(drop=True)


def paper_and_ours(table: pd.DataFrame, scores: Sequence[str] | None = None) -> pd.DataFrame:
    """`headlines` as texts: paper and ours of each score, number of test records and seeds.

    Where the two tasks differ in n or seeds, both stand there: PTB-XL / LUDB."""
    lines: dict[str, dict] = {}
    counts: dict[str, dict] = {}
    for row in table.assign(text=_cells(table)).to_dict("records"):
        line = lines.setdefault(row["label"], {})
        missing = "not run" if not np.isnan(row["paper"]) else "–"
        line[f"{row['score']}, paper"] = "–" if np.isnan(row["paper"]) else f"{row['paper']:.3f}"
        line[f"{row['score']}, ours"] = missing if row["text"] == "–" else row["text"]
        for what in ("n", "seeds"):
            text = "–" if pd.isna(row[what]) else f"{row[what]:.0f}"
            counts.setdefault(row["label"], {}).setdefault(what, {})[text] = None
    scores = scores or list(dict.fromkeys(table["score"]))
    out = pd.DataFrame(lines).T[[f"{s}, {who}" for s in scores for who in ("paper", "ours")]]
    for what, heading in (("n", "test records"), ("seeds", "seeds")):
        out[heading] = [" / ".join(counts[name][what]) for name in out.index]
    return titled(out, "rhythm / beat / exponent")


def comparison(profile: Profile) -> pd.DataFrame:
    """The paper's violin medians for the compared methods, and our rows below them."""
    printed = results.paper()
    printed = printed[printed["source"].str.contains("violin")]
    heading = {(task, metric): score for score, task, metric in HEADLINES}
    lines: dict[str, dict] = {}
    for row in printed.itertuples():
        line = lines.setdefault(f"{NAMES[row.method]} (paper, median)", {})
        line[heading[row.task, row.metric]] = f"{row.value:.3f}"
    ours = paper_and_ours(headlines(profile))
    order = ["F1", "LUDB F1", "Dice"]
    for name, row in ours.iterrows():
        line = {score: row[f"{score}, ours"] for score in order}
        lines[f"{name} (ours)"] = line | {"test records": row["test records"]}
    columns = [*order, "test records"]
    return titled(pd.DataFrame(lines).T.reindex(columns=columns).fillna("–"), "method")


# --- differences ----------------------------------------------------------------------------------


def differences(
    profile: Profile,
    pairs: Sequence[tuple[str, str]],
    *,
    protocol: str = "frozen",
    label_fraction: float = 1.0,
) -> tuple[pd.DataFrame, list[str]]:
    """First minus second for the headline scores, paired joint bootstrap (`stats.difference`).

    Args:
        pairs: names of methods: a run id without its seed ("random", "supervised",
            "beatssl-soft_1-hard-50").
        protocol, label_fraction: as in `headlines`.

    Returns:
        Columns first, second, score, difference, low, high, zero ("excludes zero" | "includes
        zero" | "no interval"), n; and the pairs and tasks that were not evaluated.
    """
    groups: dict[tuple[str, str], list[results.Evaluation]] = {}
    labels = {}
    for what, rows in results.evaluations(profile):
        wanted = what.protocol in (protocol, "scratch")
        if wanted and (what.task == SEGMENT or np.isclose(what.label_fraction, label_fraction)):
            groups.setdefault((what.name, what.task), []).append(what)
            labels[what.name] = label(*[rows[0][column] for column in METHOD])
    lines, absent = [], []
    for first, second in pairs:
        for task, scores in SCORES.items():
            if (first, task) not in groups or (second, task) not in groups:
                absent.append(f"{first} and {second} on {task}")
                continue
            sides = [
                [
                    results.load_predictions(profile, what)
                    for what in sorted(groups[name, task], key=lambda what: what.run.seed)
                ]
                for name in (first, second)
            ]
            found = stats.difference(scores, *sides, results.resamples_of(profile, task))
            for heading, of_task, metric in HEADLINES:
                if of_task == task:
                    lines.append(_difference(labels[first], labels[second], heading, found[metric]))
    names = ["first", "second", "score", "difference", "low", "high", "zero", "n"]
    return pd.DataFrame(lines, columns=names), absent


def _difference(first: str, second: str, heading: str, found: stats.Estimate) -> tuple:
    zero = "includes zero" if found.low <= 0 <= found.high else "excludes zero"
    if np.isnan(found.low):
        zero = "no interval"
    return first, second, heading, found.value, found.low, found.high, zero, found.n


def difference_texts(table: pd.DataFrame) -> pd.DataFrame:
    """`differences` as texts, a line a pair, a column a score."""
    text = [f"{r.difference:+.3f} [{r.low:+.3f}, {r.high:+.3f}]" for r in table.itertuples()]
    pair = table["first"] + " − " + table["second"]
    wide = table.assign(text=text, pair=pair).pivot(index="pair", columns="score", values="text")
    order = [score for score, _, _ in HEADLINES if score in wide]
    return titled(wide.loc[list(dict.fromkeys(pair)), order].fillna("–"), "difference")


def findings(table: pd.DataFrame) -> str:
    """One plain sentence a pair of `differences`, as Markdown."""
    lines = []
    for (first, second), part in table.groupby(["first", "second"], sort=False):
        words = {"higher": [], "lower": [], "no difference shown": []}
        for row in part.itertuples():
            sign = "higher" if row.difference > 0 else "lower"
            words[sign if row.zero == "excludes zero" else "no difference shown"].append(row.score)
        said = [f"**{word}** in {', '.join(scores)}" for word, scores in words.items() if scores]
        lines.append(f"- *{first}* against *{second}*: {'; '.join(said)}.")
    return "\n".join(lines) or "Nothing to compare yet."
