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
from beatssl.results import CLASSIFY, HEADLINES, SCORES, SEGMENT

METHOD = ["method", "rhythm", "beat", "exponent"]


def cell(value: float, sd: float, low: float, high: float) -> str:
    """`mean (sd over seeds) [95 % interval]`, parts that do not exist left out."""
    if np.isnan(value):
        return "–"
    text = f"{value:.3f}" + ("" if np.isnan(sd) else f" ({sd:.3f})")
    return text if np.isnan(low) else f"{text} [{low:.3f}, {high:.3f}]"


def by_method(rows: pd.DataFrame) -> pd.DataFrame:
    """Combined rows (seed `all`) with their sd over seeds, number of seeds, label and text."""
    same = [*METHOD, "task", "protocol", "label_fraction", "metric"]
    seeds = rows[rows["seed"] != "all"].groupby(same, dropna=False)["value"]
    spread = seeds.agg(sd=lambda v: v.std(ddof=1), seeds="size").reset_index()
    table = rows[rows["seed"] == "all"].merge(spread, on=same)
    table["label"] = [label(*m) for m in table[METHOD].itertuples(index=False)]
    table["label"] += [" (fine-tuned)" if p == "finetune" else "" for p in table["protocol"]]
    order = [rank(m) for m in table[METHOD].itertuples(index=False, name=None)]
    table = table.iloc[sorted(range(len(table)), key=lambda i: order[i])]
    numbers = table[["value", "sd", "ci_low", "ci_high"]].to_numpy(float)
    return table.assign(text=[cell(*line) for line in numbers]).reset_index(drop=True)


def all_rows(profile: Profile, task: str) -> pd.DataFrame:
    """Rows of one task, of the saved evaluations and combined over seeds."""
    return results.with_combined(profile, task)


def by_fraction(profile: Profile, task: str, metrics: Sequence[str]) -> pd.DataFrame:
    """One line a method and label fraction, a column a metric, with n and seeds."""
    table = by_method(all_rows(profile, task))
    table = table[table["metric"].isin(metrics)]
    index = ["label", "label_fraction", "n", "seeds"]
    order = table[index].drop_duplicates()
    wide = table.pivot(index=index, columns="metric", values="text")[list(metrics)]
    wide = wide.reindex(pd.MultiIndex.from_frame(order)).reset_index()
    wide["label_fraction"] = wide["label_fraction"].map("{:.0%}".format)
    wide = wide.rename(columns={"label": "method", "label_fraction": "labels"})
    return wide.rename_axis(columns=None).set_index("method")


def per_class(profile: Profile, task: str, prefix: str) -> pd.DataFrame:
    """Columns label, class, value, ci_low, ci_high of a class-wise score with all labels."""
    table = by_method(all_rows(profile, task))
    table = table[(table["label_fraction"] == 1) & table["metric"].str.startswith(prefix)]
    table = table.assign(**{"class": table["metric"].str.removeprefix(prefix)})
    classes = [c for c in (*SUPERCLASSES, *WAVES) if c in set(table["class"])]
    table = table[table["class"].isin(classes)]
    order = table["class"].map(classes.index)
    return table.iloc[np.lexsort([order, range(len(table))])]


def per_run(rows: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """One line a run, protocol and label fraction: value [interval] of each metric."""
    part = rows[rows["metric"].isin(metrics)]
    numbers = part[["value", "ci_low", "ci_high"]].to_numpy(float)
    part = part.assign(text=[cell(v, np.nan, low, high) for v, low, high in numbers])
    wide = part.pivot(index=["run_id", "protocol", "label_fraction"], columns="metric", values="text")
    return wide[list(metrics)].rename_axis(columns=None).reset_index().set_index("run_id")


def events(profile: Profile) -> pd.DataFrame:
    """Sensitivity, precision and timing error (mean, sd in ms) of each border, a line a method."""
    table = by_method(all_rows(profile, SEGMENT))
    value = table.set_index(["label", "metric"])["value"]
    lines = {}
    for label in dict.fromkeys(table["label"]):
        for wave in WAVES:
            for border in ("onset", "offset"):
                name = f"{wave}_{border}"
                found = [value[label, f"event_{kind}_{name}"]
                         for kind in ("sensitivity", "precision", "error_mean_ms", "error_sd_ms")]
                text = "{:.3f} / {:.3f}, {:+.0f} ± {:.0f}".format(*found)
                lines.setdefault(label, {})[f"{wave} {border}"] = text
    out = pd.DataFrame(lines).T.rename_axis("sensitivity / precision, mean ± sd (ms)")
    return out


def records_by_dice(predictions: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
    """Item numbers from the worst to the best segmented record, by the last method's Dice."""
    last = list(predictions.values())[-1]
    dice = record_dice(wave_counts(last["truth"], last["prediction"]))
    return np.argsort(np.nan_to_num(dice), kind="stable")


def headlines(profile: Profile) -> pd.DataFrame:
    """Paper and ours in the long form of `plots.paper_and_ours`: every row of Table 1 and the
    references; metric is auroc_macro, f1_macro or ludb_f1_macro; NaN where there is none."""
    ours = by_method(results.read(results.RESULTS / f"{profile.name}.csv"))
    ours = ours[(ours["label_fraction"] == 1) & (ours["protocol"] != "finetune")]
    printed = results.paper()
    printed = printed[printed["source"] == "Table 1"]
    paper = {(label(*r[:4]), r[4], r[5]): r[6] for r in printed[
        [*METHOD, "task", "metric", "value"]].itertuples(index=False, name=None)}
    mine = ours.set_index(["label", "task", "metric"])
    references = [label for label in dict.fromkeys(ours["label"]) if (label, CLASSIFY, "auroc_macro") not in paper]
    methods = printed[METHOD].drop_duplicates().itertuples(index=False, name=None)
    labels = [*references, *(label(*m) for m in sorted(methods, key=rank))]
    lines = []
    for label in labels:
        for _, task, metric in HEADLINES:
            key = (label, task, metric)
            own = mine.loc[key] if key in mine.index else None
            line = {"label": label, "metric": f"ludb_{metric}" if task == SEGMENT else metric}
            line["paper"] = paper.get(key, np.nan)
            for name in ("value", "sd", "ci_low", "ci_high", "n", "seeds"):
                line[name] = np.nan if own is None else own[name]
            lines.append(line)
    return pd.DataFrame(lines)


def ablation(profile: Profile) -> pd.DataFrame:
    """Table 1: the paper's number and ours for each row and score; `not run` where there is none."""
    long = headlines(profile)
    lines: dict[str, dict] = {}
    names = {"auroc_macro": "AUROC", "f1_macro": "F1", "ludb_f1_macro": "LUDB F1"}
    for row in long[long["metric"].isin(names)].to_dict("records"):
        line = lines.setdefault(row["label"], {})
        name = names[row["metric"]]
        line[f"{name}, paper"] = "–" if np.isnan(row["paper"]) else f"{row['paper']:.3f}"
        text = cell(row["value"], row["sd"], row["ci_low"], row["ci_high"])
        line[f"{name}, ours"] = "not run" if text == "–" else text
        if not np.isnan(row["n"]):
            line[f"n, {name}"] = f"{row['n']:.0f}"
            line["seeds"] = f"{row['seeds']:.0f}"
    table = pd.DataFrame(lines).T.fillna("–").rename_axis("rhythm / beat / exponent")
    order = [f"{n}, {who}" for n in names.values() for who in ("paper", "ours")]
    rest = [c for c in table.columns if c not in order]
    return table[order + sorted(rest)]


def comparison(profile: Profile) -> pd.DataFrame:
    """The paper's violin medians for the compared methods, and our rows below them."""
    printed = results.paper()
    printed = printed[printed["source"].str.contains("violin")]
    names = {"beatssl": "Beat-SSL", "ts2vec": "TS2Vec", "domain_ssl": "Domain-SSL", "ecg_fm": "ECG-FM"}
    columns = {(CLASSIFY, "f1_macro"): "PTB-XL F1", (SEGMENT, "f1_macro"): "LUDB F1",
               (SEGMENT, "dice"): "LUDB Dice"}
    lines: dict[str, dict] = {}
    for row in printed.itertuples():
        name = columns.get((row.task, row.metric))
        if name:
            line = lines.setdefault(f"{names[row.method]} (paper, median)", {})
            line[name] = f"{row.value:.3f}"
    ours = headlines(profile).dropna(subset="value")
    short = {"f1_macro": "PTB-XL F1", "ludb_f1_macro": "LUDB F1", "ludb_dice": "LUDB Dice"}
    for row in ours[ours["metric"].isin(short)].to_dict("records"):
        text = cell(row["value"], row["sd"], row["ci_low"], row["ci_high"])
        lines.setdefault(f"{row['label']} (ours)", {})[short[row["metric"]]] = text
    return pd.DataFrame(lines).T.fillna("–").rename_axis("method")


def findings(differences: pd.DataFrame, profile: Profile) -> str:
    """One plain sentence a difference, from the table of `results.differences`.

    Args: differences with columns first, second, score, difference, low, high, zero, n."""
    start = "On simulated records, which say nothing about patients:" if profile.data.synthetic else ""
    lines = [start] if start else []
    for (first, second), part in differences.groupby(["first", "second"], sort=False):
        words = []
        for row in part.itertuples():
            interval = f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
            if row.zero == "excludes zero":
                words.append(f"**{'higher' if row.difference > 0 else 'lower'}** {row.score} ({interval})")
            else:
                words.append(f"no difference shown in {row.score} ({interval})")
        lines.append(f"- *{first}* against *{second}*: " + "; ".join(words) + ".")
    return "\n".join(lines) or "Nothing to compare yet."


def label(method: str, rhythm: str, beat: str, exponent: float) -> str:
    """A method in the words of the tables: rhythm / beat / exponent for an ablation row."""
    if method == "random":
        return "Untrained encoder"
    if method == "supervised":
        return "Supervised from scratch"
    if method != "beatssl":
        return method
    text = f"{rhythm} / {'-' if beat == 'none' else beat} / {exponent:g}"
    marks = {"hard / - / 1": " (baseline, 3KG)", "soft_1 / hard / 50": " (paper's best)"}
    return text + marks.get(text, "")


def main_table(
    profile: Profile,
    *,
    protocol: str = "frozen",
    label_fraction: float = 1.0,
    folder: Path = results.RESULTS,
) -> tuple[pd.DataFrame, str]:
    """The paper beside ours, for whatever runs `results/<profile>.csv` holds.

    Args:
        protocol: of the encoders, frozen | finetune; the supervised reference is always shown.
        label_fraction: of the classification task.

    Returns:
        Numbers (one row a method: label, run_id, and for each of auroc, f1, ludb_f1, dice the
        columns <it>_paper, <it>, _sd over seeds, _low, _high, _n, _seeds, _data; NaN where there
        is none), and the same as Markdown.
    """
    ours = results.read(folder / f"{profile.name}.csv")
    ours = ours[ours["protocol"].isin([protocol, "scratch"])]
    ours = ours[(ours["task"] == SEGMENT) | np.isclose(ours["label_fraction"], label_fraction)]
    printed = results.paper()
    printed = printed[printed["source"] == "Table 1"]
    methods = ours[list(METHOD)].drop_duplicates()
    methods = sorted(methods.itertuples(index=False, name=None), key=rank)
    lines = []
    for method in methods:
        own, theirs = _of(ours, method), _of(printed, method)
        combined = own[own["seed"] == "all"]
        line = {"label": label(*method), "run_id": combined["run_id"].iloc[0]}
        for heading, task, metric in HEADLINES:
            line |= _cells(_column(heading), _pick(own, task, metric), _pick(theirs, task, metric))
        lines.append(line)
    table = pd.DataFrame(lines)
    return table, _main_markdown(table)


def _column(heading: str) -> str:
    return heading.lower().replace(" ", "_")


def _of(table: pd.DataFrame, method: tuple) -> pd.DataFrame:
    """The rows of one (method, rhythm, beat, exponent)."""
    name, rhythm, beat, exponent = method
    same = (table["method"] == name) & (table["rhythm"] == rhythm) & (table["beat"] == beat)
    if name == "beatssl":
        same &= np.isclose(table["exponent"], exponent)
    return table[same]


def _pick(table: pd.DataFrame, task: str, metric: str) -> pd.DataFrame:
    return table[(table["task"] == task) & (table["metric"] == metric)]


def rank(method: tuple) -> tuple:
    """Untrained, supervised, the ablation rows in the order of the paper's Table 1, others."""
    name, rhythm, beat, exponent = method
    if name != "beatssl":
        return ({"random": 0, "supervised": 1}.get(name, 3), name)
    return (2, RHYTHM_TARGETS.index(rhythm), BEAT_TARGETS.index(beat), exponent)


def _cells(name: str, own: pd.DataFrame, theirs: pd.DataFrame) -> dict:
    seeds, combined = own[own["seed"] != "all"], own[own["seed"] == "all"]
    nan = float("nan")
    one = combined.iloc[0] if len(combined) else None
    return {
        f"{name}_paper": float(theirs["value"].iloc[0]) if len(theirs) else nan,
        name: nan if one is None else float(one["value"]),
        f"{name}_sd": float(seeds["value"].std(ddof=1)) if len(seeds) > 1 else nan,
        f"{name}_low": nan if one is None else float(one["ci_low"]),
        f"{name}_high": nan if one is None else float(one["ci_high"]),
        f"{name}_n": 0 if one is None else int(one["n"]),
        f"{name}_seeds": len(seeds),
        f"{name}_data": "" if one is None else str(one["data"]),
    }


def _main_markdown(table: pd.DataFrame) -> str:
    headings = ["Method"]
    for heading, _, _ in HEADLINES:
        headings += [f"{heading}, paper", f"{heading}, ours"]
    lines = [headings + ["test records", "seeds"]]
    for row in table.to_dict("records"):
        names = [_column(heading) for heading, _, _ in HEADLINES]
        cells = [row["label"]]
        for name in names:
            cells += [_number(row[f"{name}_paper"]), _ours(row, name)]
        cells += [_distinct(row, names, "n"), _distinct(row, names, "seeds")]
        lines.append(cells)
    return _markdown(lines)


def _distinct(row: Mapping, names: Sequence[str], what: str) -> str:
    """Classification / segmentation count, once where both are equal."""
    pair = [row[f"{names[0]}_{what}"], row[f"{names[2]}_{what}"]]
    pair = [str(int(value)) if value else "–" for value in pair]
    return pair[0] if pair[0] == pair[1] else " / ".join(pair)


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def _ours(row: Mapping, name: str) -> str:
    """mean (sd over seeds) [95 % interval]"""
    if np.isnan(row[name]):
        return "–"
    text = f"{row[name]:.3f} ({_number(row[f'{name}_sd'])})"
    if np.isnan(row[f"{name}_low"]):
        return text + " [–]"
    return text + f" [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    rows = ["| " + " | ".join(cells) + " |" for cells in lines]
    rows.insert(1, "|" + "---|" * len(lines[0]))
    return "\n".join(rows)


def differences(
    profile: Profile,
    pairs: Sequence[tuple[str, str]],
    *,
    protocol: str = "frozen",
    label_fraction: float = 1.0,
) -> tuple[pd.DataFrame, str]:
    """First minus second for the main table's scores, paired joint bootstrap (`stats.difference`).

    Args:
        pairs: names of methods: a run id without its seed ("random", "supervised",
            "beatssl-soft_1-hard-50").
        protocol, label_fraction: as in `main_table`.

    Returns:
        Columns first, second, score, difference, low, high, zero ("excludes zero" | "includes
        zero" | "no interval"), n; and the same as Markdown. Pairs that were not evaluated are
        left out of the table and named below the Markdown one.
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
        for task in SCORES:
            if (first, task) not in groups or (second, task) not in groups:
                absent.append(f"{first} and {second} on {task}")
                continue
            sides = [
                [results.load_predictions(profile, what) for what in sorted(group, key=lambda what: what.run.seed)]
                for group in (groups[first, task], groups[second, task])
            ]
            found = stats.difference(SCORES[task], *sides, results.resamples_of(profile, task))
            for heading, of_task, metric in HEADLINES:
                if of_task == task:
                    lines.append(_difference(labels[first], labels[second], heading, found[metric]))
    names = ["first", "second", "score", "difference", "low", "high", "zero", "n"]
    table = pd.DataFrame(lines, columns=names)
    text = [["First", "Second", "score", "first − second [95 % interval]", "", "test records"]]
    for line in lines:
        _, _, heading, value, low, high, zero, n = line
        bounds = "" if np.isnan(low) else f" [{low:+.3f}, {high:+.3f}]"
        text.append([line[0], line[1], heading, f"{value:+.3f}{bounds}", zero, str(n)])
    markdown = _markdown(text)
    if absent:
        markdown += "\n\nNot evaluated: " + "; ".join(absent) + "."
    return table, markdown


def _difference(first: str, second: str, heading: str, found: stats.Estimate) -> tuple:
    zero = "includes zero" if found.low <= 0 <= found.high else "excludes zero"
    if np.isnan(found.low):
        zero = "no interval"
    return first, second, heading, found.value, found.low, found.high, zero, found.n
