"""Tables of the book, from result rows: numbers are formatted here and typed nowhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from beatssl.data.records import SUPERCLASSES, WAVES
from beatssl.methods import UNTRAINED, make_run
from beatssl.methods.beatssl import BEAT_TARGETS, RHYTHM_TARGETS
from beatssl.pages.plan import PER_RUN
from beatssl.profile import Profile
from beatssl.results import saved as results
from beatssl.results.saved import EMBED, HEADLINES, SEGMENT
from beatssl.tasks.scores import BORDERS, record_dice, wave_counts

METHOD = list(results.METHOD)
TABLE_1 = ("AUROC", "F1", "LUDB F1")  # the scores of the paper's Table 1
MAIN = (  # the rows shown where there is no room for all: references, baseline, paper's best
    "random",
    "random_data",
    "supervised",
    "features",
    "beatssl-hard-none-1",
    "beatssl-soft_1-hard-50",
)
HEALTH = ("uniformity", "alignment", "alignment_chance", "effective_rank", "neighbour_agreement")
ABLATION = ("random", "random_data", "supervised", "features", "beatssl")  # Table 1, references
NAMES = {
    "random": "Untrained, as initialised",
    "random_data": "Untrained, data statistics",
    "random_ts2vec": "Untrained TS2Vec",
    "random_w2v": "Untrained W2V (small)",
    "supervised": "Supervised from scratch",
    "features": "ECG features, logistic regression",
    "beatssl": "Beat-SSL",
    "ts2vec": "TS2Vec",
    "domain_ssl": "Domain-SSL",
    "ecg_fm": "ECG-FM",
    "cmsc": "CMSC (CLOCS)",
    "w2v": "W2V+CMSC+RLM (small)",
    "neurokit_dwt": "NeuroKit2, dwt",
    "neurokit_peak": "NeuroKit2, peak",
    "neurokit_prominence": "NeuroKit2, prominence",
}


# --- words and numbers ----------------------------------------------------------------------------


def label(method: str, rhythm: str, beat: str, exponent: float, variant: str = "") -> str:
    """A method in the words of the tables: rhythm / beat / exponent for an ablation row."""
    if method != "beatssl":
        text = NAMES.get(method, method)
        return f"{text}, {variant}" if variant else text
    text = f"{rhythm} / {'-' if beat == 'none' else beat} / {exponent:g}"
    if variant:
        return f"{text}, {variant}"
    marks = {"hard / - / 1": " (baseline, 3KG)", "soft_1 / hard / 50": " (paper's best)"}
    return text + marks.get(text, "")


def rank(method: tuple) -> tuple:
    """Untrained, supervised, features, the ablation rows in the order of the paper's Table 1,
    others; variants after their row."""
    name, rhythm, beat, exponent, variant = method
    if name != "beatssl":
        place = {name: i for i, name in enumerate((*UNTRAINED, "supervised", "features"))}
        return (place.get(name, len(place) + 1), name, variant)
    row = RHYTHM_TARGETS.index(rhythm), BEAT_TARGETS.index(beat), exponent, variant
    return (len(UNTRAINED) + 2, *row)


def cell(value: float, sd: float, low: float, high: float) -> str:
    """`mean (sd over seeds) [95 % interval]`, parts that do not exist left out."""
    if np.isnan(value):
        return "–"
    text = f"{value:.3f}" + ("" if np.isnan(sd) else f" ({sd:.3f})")
    return text if np.isnan(low) else f"{text} [{low:.3f}, {high:.3f}]"


def cells(table: pd.DataFrame) -> list[str]:
    """`cell` of every line of a table with columns value, sd, ci_low, ci_high."""
    return [cell(*line) for line in table[["value", "sd", "ci_low", "ci_high"]].to_numpy(float)]


def difference(value: float, low: float, high: float) -> str:
    """`difference [95 % interval]`, all with their sign."""
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def p_text(p: float) -> str:
    """A p-value in three digits, small ones with their power of ten."""
    if np.isnan(p):
        return "–"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def borders(score: Mapping[str, float]) -> dict[str, str]:
    """Border -> `sensitivity / precision, error mean ± sd (ms)` from the scores of task 2."""
    kinds = ("sensitivity", "precision", "error_mean_ms", "error_sd_ms")
    return {
        f"{wave} {border}": "{:.3f} / {:.3f}, {:+.0f} ± {:.0f}".format(
            *[score[f"event_{kind}_{wave}_{border}"] for kind in kinds]
        )
        for wave in WAVES
        for border in BORDERS
    }


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


def by_method(rows: pd.DataFrame, variants: bool = False) -> pd.DataFrame:
    """Combined rows (seed `all`) with their sd over seeds, number of seeds, of failed seeds and
    label, in the order of `rank`, frozen before fine-tuned; where every seed failed, a row without
    value.

    Args: variants: the runs that differ from a row by one setting, instead of the rows."""
    rows = rows[(rows["variant"] != "") == variants]
    same = [*METHOD, "task", "protocol", "label_fraction", "metric"]
    seeds = rows[rows["seed"] != "all"].groupby(same, dropna=False)["value"]
    spread = seeds.agg(
        sd=lambda v: v.std(ddof=1), seeds="count", failed=lambda v: v.isna().sum()
    ).reset_index()
    table = rows[rows["seed"] == "all"].merge(spread, how="outer", on=same)
    methods = list(table[METHOD].itertuples(index=False, name=None))
    tuned = np.where(table["protocol"] == "finetune", " (fine-tuned)", "")
    table["label"] = [label(*m) + t for m, t in zip(methods, tuned, strict=True)]
    return table.iloc[sorted(range(len(table)), key=lambda i: (rank(methods[i]), tuned[i]))]


def by_fraction(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """`by_method` of one task as texts: one line a method and label fraction, a column a metric,
    with n and seeds."""
    table = table[table["metric"].isin(metrics)]
    table = table.assign(text=cells(table), labels=table["label_fraction"].map("{:.0%}".format))
    index = ["label", "labels", "n", "seeds"]
    order = pd.MultiIndex.from_frame(table[index].drop_duplicates())
    wide = table.pivot(index=index, columns="metric", values="text")
    wide = wide.reindex(order).reindex(columns=list(metrics))
    return titled(wide.reset_index(["labels", "n", "seeds"]), "method")


def main(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `by_method` that `MAIN` names."""
    names = [name_of(*row) for row in table[METHOD].to_numpy()]
    return table[np.isin(names, MAIN)]


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
    part = part.assign(text=cells(part), labels=part["label_fraction"].map("{:.0%}".format))
    index = ["run_id", "protocol", "labels", "n"]
    wide = part.pivot(index=index, columns="metric", values="text")
    return titled(wide.reindex(columns=list(metrics)).reset_index(index[1:]), "run")


def events(table: pd.DataFrame) -> pd.DataFrame:
    """`by_method` of the segmentation: sensitivity / precision and timing error (mean ± sd, ms) of
    each border, a line a method."""
    value = table.set_index(["label", "metric"])["value"]
    names = dict.fromkeys(table.loc[table["metric"].str.startswith("event_"), "label"])
    lines = {name: borders(value[name]) for name in names}  # a run that failed has no events
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
    """The headline scores of `results/<profile>.csv` with the paper's number for the same row: the
    ablation and its references, not the compared methods.

    Args:
        every_row: also the rows of the paper's Table 1 that were not run here.
        protocol: of the encoders, frozen | finetune; the supervised reference is always there.
        label_fraction: of the classification task.

    Returns:
        One line a method and score: label, name, score (AUROC, F1, LUDB F1, Dice), paper, value,
        sd, ci_low, ci_high, n, seeds, failed (seeds), data; NaN where there is none.
    """
    ours = by_method(results.read(folder / f"{profile.name}.csv"))
    ours = ours[ours["method"].isin(ABLATION)]
    ours = ours[ours["protocol"].isin([protocol, "scratch"])]
    ours = ours[(ours["task"] == SEGMENT) | np.isclose(ours["label_fraction"], label_fraction)]
    printed = results.paper().query("source == 'Table 1'")
    methods = pd.concat([ours, printed] if every_row else [ours])[METHOD].drop_duplicates()
    scores = pd.DataFrame(HEADLINES, columns=["score", "task", "metric"])
    grid = methods.merge(scores, how="cross")
    key = [*METHOD, "task", "metric"]
    numbers = ["value", "sd", "ci_low", "ci_high", "n", "seeds", "failed", "data"]
    grid = grid.merge(ours[[*key, *numbers]], how="left", on=key)
    paper = printed.rename(columns={"value": "paper"})[[*key, "paper"]]
    grid = grid.merge(paper, how="left", on=key)
    rows = list(grid[METHOD].itertuples(index=False, name=None))
    grid.insert(0, "label", [label(*row) for row in rows])
    grid.insert(1, "name", [name_of(*row) for row in rows])
    order = sorted(range(len(grid)), key=lambda i: rank(rows[i]))
    return grid.iloc[order].drop(columns=key).reset_index(drop=True)


def paper_and_ours(table: pd.DataFrame, scores: Sequence[str] | None = None) -> pd.DataFrame:
    """`headlines` as texts: paper and ours of each score, number of test records and seeds.

    Where the two tasks differ in n or seeds, both stand there: PTB-XL / LUDB."""
    lines: dict[str, dict] = {}
    counts: dict[str, dict] = {}
    for row in table.assign(text=cells(table)).to_dict("records"):
        line = lines.setdefault(row["label"], {})
        missing = "failed" if row["failed"] > 0 else "–" if np.isnan(row["paper"]) else "not run"
        line[f"{row['score']}, paper"] = "–" if np.isnan(row["paper"]) else f"{row['paper']:.3f}"
        line[f"{row['score']}, ours"] = missing if row["text"] == "–" else row["text"]
        for what in ("n", "seeds"):
            text = "–" if pd.isna(row[what]) else f"{row[what]:.0f}"
            if what == "seeds" and row["failed"] > 0:
                text += f" ({row['failed']:.0f} failed)"
            counts.setdefault(row["label"], {}).setdefault(what, {})[text] = None
    scores = scores or list(dict.fromkeys(table["score"]))
    out = pd.DataFrame(lines).T[[f"{s}, {who}" for s in scores for who in ("paper", "ours")]]
    for what, heading in (("n", "test records"), ("seeds", "seeds")):
        out[heading] = [" / ".join(counts[name][what]) for name in out.index]
    return titled(out, "rhythm / beat / exponent")


def name_of(method: str, rhythm: str, beat: str, exponent: float, variant: str) -> str:
    """`RunSettings.name` of a row."""
    if method != "beatssl":
        return f"{method}-{variant}" if variant else method
    config = make_run(rhythm=rhythm, beat=beat, exponent=exponent, variant=variant)
    return config.name


def linked(table: pd.DataFrame, rows: pd.DataFrame, profile: Profile) -> str:
    """A table of texts as HTML whose last column links to the executed pages of each row's runs.

    Args: table: its index holds labels. rows: `headlines`, which knows their names."""
    names = dict(zip(rows["label"], rows["name"], strict=True))
    links = []
    for label_ in table.index:
        runs = [run for run in profile.runs if run.name == names[label_] and run.has_encoder]
        links.append(
            " ".join(f'<a href="{PER_RUN}--{run.run_id}.html">{run.seed}</a>' for run in runs)
        )
    return table.assign(**{"page of seed": links}).to_html(escape=False)


def ranks(table: pd.DataFrame, scores: Sequence[str] = TABLE_1) -> pd.DataFrame:
    """Rank (1 is best) of the ablation rows in the paper and here, among the rows that both have;
    of equal ones, the row that stands first in the table has the better rank.

    Args: table: `headlines`. Returns: columns label, score, paper, ours."""
    both = table[table["paper"].notna() & table["value"].notna() & table["score"].isin(scores)]
    ranked = both.groupby("score")[["paper", "value"]].rank(ascending=False, method="first")
    return both[["label", "score"]].assign(
        paper=ranked["paper"].astype(int), ours=ranked["value"].astype(int)
    )


def rank_texts(table: pd.DataFrame) -> pd.DataFrame:
    """`ranks` as texts, a line a row: rank in the paper → here."""
    text = table["paper"].astype(str) + " → " + table["ours"].astype(str)
    wide = table.assign(text=text).pivot(index="label", columns="score", values="text")
    scores = [score for score in TABLE_1 if score in wide]
    return titled(wide.loc[list(dict.fromkeys(table["label"])), scores], "rank, paper → ours")


# --- health of the encoders -----------------------------------------------------------------------


def health(table: pd.DataFrame) -> pd.DataFrame:
    """`by_method` of task `ptbxl_embedding` as texts, a line a row."""
    table = table.assign(text=cells(table))
    wide = table[table["metric"].isin(HEALTH)].pivot(index="label", columns="metric", values="text")
    wide = wide.reindex(list(dict.fromkeys(table["label"])), columns=list(HEALTH))
    return titled(wide.rename(columns=lambda name: name.replace("_", " ")), "encoder")


def health_and_scores(profile: Profile, variants: bool = False) -> pd.DataFrame:
    """One line an encoder: label, kind of rhythm target, health measures and headline scores (mean
    over seeds), for a plot of one against the other; NaN where there is none."""
    rows = results.of_profile(profile)
    table = by_method(rows, variants)
    table = table[(table["protocol"] == "frozen") & (table["label_fraction"] == 1)]
    heading = {(task, metric): name for name, task, metric in HEADLINES}
    health_rows = table["task"] == EMBED
    column = [
        m if is_health else heading.get((t, m))
        for t, m, is_health in zip(table["task"], table["metric"], health_rows, strict=True)
    ]
    table = table.assign(column=column).dropna(subset=["column"])
    wide = table.pivot(index=["label", "method", "rhythm"], columns="column", values="value")
    wide = wide.reindex(columns=[*HEALTH, *heading.values()])
    return wide.reset_index().rename_axis(columns=None)
