"""Tables of the book, from result rows: numbers are formatted here and typed nowhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from beatssl import results, stats
from beatssl.config import BEAT_TARGETS, RHYTHM_TARGETS, PretrainConfig, Profile
from beatssl.metrics import record_dice, wave_counts
from beatssl.pages import PER_RUN, has_page
from beatssl.records import SUPERCLASSES, WAVES
from beatssl.results import CLASSIFY, EMBED, HEADLINES, SCORES, SEGMENT

METHOD = list(results.METHOD)
TABLE_1 = ("AUROC", "F1", "LUDB F1")  # the scores of the paper's Table 1
MAIN = (  # the rows shown where there is no room for all: references, baseline, paper's best
    "random", "supervised", "features", "beatssl-hard-none-1", "beatssl-soft_1-hard-50",
)  # fmt: skip
CLAIMS = (  # what Table 1 says, as pairs of rows
    ("the paper's best row over its baseline", "soft_1-hard-50", "hard-none-1"),
    ("soft over hard rhythm targets", "soft_1-none-1", "hard-none-1"),
    ("soft over hard rhythm targets", "soft_1-none-50", "hard-none-1"),
    ("soft over hard rhythm targets", "soft_2-none-1", "hard-none-1"),
    ("two contexts over one", "hard-hard-1", "hard-none-1"),
    ("two contexts over one", "soft_1-hard-50", "soft_1-none-50"),
    ("two contexts over one", "soft_1-soft_1-50", "soft_1-none-50"),
    ("two contexts over one", "soft_2-hard-1", "soft_2-none-1"),
    ("two contexts over one", "soft_2-soft_2-1", "soft_2-none-1"),
    ("exponent 50 over 1", "soft_1-none-50", "soft_1-none-1"),
    ("exponent 50 over 1", "soft_1-hard-50", "soft_1-hard-1"),
    ("exponent 50 over 1", "soft_1-soft_1-50", "soft_1-soft_1-1"),
    ("exponent 50 over 1", "hard-soft_1-50", "hard-soft_1-1"),
)
NAMES = {
    "random": "Untrained encoder",
    "supervised": "Supervised from scratch",
    "features": "ECG features, logistic regression",
    "beatssl": "Beat-SSL", "ts2vec": "TS2Vec", "domain_ssl": "Domain-SSL", "ecg_fm": "ECG-FM",
}  # fmt: skip


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
        return ({"random": 0, "supervised": 1, "features": 2}.get(name, 4), name, variant)
    return (3, RHYTHM_TARGETS.index(rhythm), BEAT_TARGETS.index(beat), exponent, variant)


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


def by_method(rows: pd.DataFrame, variants: bool = False) -> pd.DataFrame:
    """Combined rows (seed `all`) with their sd over seeds, number of seeds, of failed seeds and
    label, in the order of `rank`; where every seed failed, a row without value.

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


def main(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `by_method` that `MAIN` names."""
    names = [_name(*row) for row in table[METHOD].to_numpy()]
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
        One line a method and score: label, name, score (AUROC, F1, LUDB F1, Dice), paper, value,
        sd, ci_low, ci_high, n, seeds, failed (seeds), data; NaN where there is none.
    """
    ours = by_method(results.read(folder / f"{profile.name}.csv"))
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
    grid.insert(1, "name", [_name(*row) for row in rows])
    order = sorted(range(len(grid)), key=lambda i: rank(rows[i]))
    return grid.iloc[order].drop(columns=key).reset_index(drop=True)


def paper_and_ours(table: pd.DataFrame, scores: Sequence[str] | None = None) -> pd.DataFrame:
    """`headlines` as texts: paper and ours of each score, number of test records and seeds.

    Where the two tasks differ in n or seeds, both stand there: PTB-XL / LUDB."""
    lines: dict[str, dict] = {}
    counts: dict[str, dict] = {}
    for row in table.assign(text=_cells(table)).to_dict("records"):
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


def _name(method: str, rhythm: str, beat: str, exponent: float, variant: str) -> str:
    """`PretrainConfig.name` of a row."""
    if method != "beatssl":
        return f"{method}-{variant}" if variant else method
    config = PretrainConfig(rhythm=rhythm, beat=beat, exponent=exponent, variant=variant)
    return config.name


def linked(table: pd.DataFrame, rows: pd.DataFrame, profile: Profile) -> str:
    """A table of texts as HTML whose last column links to the executed pages of each row's runs.

    Args: table: its index holds labels. rows: `headlines`, which knows their names."""
    names = dict(zip(rows["label"], rows["name"], strict=True))
    links = []
    for label_ in table.index:
        runs = [run for run in profile.runs if run.name == names[label_] and has_page(run)]
        links.append(" ".join(
            f'<a href="{PER_RUN}--{run.run_id}.html">{run.seed}</a>' for run in runs
        ))
    return table.assign(**{"page of seed": links}).to_html(escape=False)


def ranks(table: pd.DataFrame, scores: Sequence[str] = TABLE_1) -> pd.DataFrame:
    """Rank (1 is best) of the ablation rows in the paper and here, among the rows that both have.

    Args: table: `headlines`. Returns: columns label, score, paper, ours."""
    both = table[table["paper"].notna() & table["value"].notna() & table["score"].isin(scores)]
    ranked = both.groupby("score")[["paper", "value"]].rank(ascending=False, method="min")
    return both[["label", "score"]].assign(
        paper=ranked["paper"].astype(int), ours=ranked["value"].astype(int)
    )


def rank_texts(table: pd.DataFrame) -> pd.DataFrame:
    """`ranks` as texts, a line a row: rank in the paper → here."""
    text = table["paper"].astype(str) + " → " + table["ours"].astype(str)
    wide = table.assign(text=text).pivot(index="label", columns="score", values="text")
    scores = [score for score in TABLE_1 if score in wide]
    return titled(wide.loc[list(dict.fromkeys(table["label"])), scores], "rank, paper → ours")


def agreement(profile: Profile, *, label_fraction: float = 1.0) -> pd.DataFrame:
    """Spearman correlation of our scores with the paper's over the ablation rows, with a bootstrap
    interval over the test records, a line a score; empty below five rows."""
    groups = _groups(profile, "frozen", label_fraction)
    printed = results.paper().query("source == 'Table 1'")
    lines = {}
    for task, scores in SCORES.items():
        asked = {metric: heading for heading, of, metric in HEADLINES if of == task}
        for metric in asked:
            known = printed[(printed["task"] == task) & (printed["metric"] == metric)]
            value = {_name(*row[:5]): row[5] for row in known[[*METHOD, "value"]].to_numpy()}
            names = [name for name in value if (name, task) in groups]
            if len(names) < 5:
                continue
            found = stats.rank_agreement(
                scores,
                [_load(profile, groups[name, task]) for name in names],
                metric,
                [value[name] for name in names],
                results.resamples_of(profile, task),
            )
            lines[asked[metric]] = {
                "rows": len(names),
                "Spearman": f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]",
                "includes zero": "yes" if found.low <= 0 <= found.high else "no",
            }
    return titled(pd.DataFrame(lines).T, "paper and ours")


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
    groups = _groups(profile, protocol, label_fraction)
    lines, absent = [], []
    for first, second in pairs:
        for task in dict.fromkeys(task for _, task, _ in HEADLINES):
            if (first, task) not in groups or (second, task) not in groups:
                absent.append(f"{first} and {second} on {task}")
                continue
            sides = [_load(profile, groups[name, task]) for name in (first, second)]
            found = stats.difference(SCORES[task], *sides, results.resamples_of(profile, task))
            words = [_label_of(groups[name, task][0]) for name in (first, second)]
            for heading, of_task, metric in HEADLINES:
                if of_task == task:
                    lines.append(_difference(*words, heading, found[metric]))
    return pd.DataFrame(lines, columns=DIFFERENCE), absent


DIFFERENCE = ["first", "second", "score", "difference", "low", "high", "zero", "n"]


def _groups(
    profile: Profile, protocol: str, label_fraction: float
) -> dict[tuple[str, str], list[results.Evaluation]]:
    """Saved evaluations that did not fail, by name and task, in the order of the seeds."""
    groups: dict[tuple[str, str], list[results.Evaluation]] = {}
    for what, _ in results.evaluations(profile):
        fits = what.task != CLASSIFY or np.isclose(what.label_fraction, label_fraction)
        if what.weights and fits and what.protocol in (protocol, "scratch"):
            groups.setdefault((what.name, what.task), []).append(what)
    return {k: sorted(g, key=lambda what: what.run.seed) for k, g in groups.items()}


def _load(profile: Profile, group: Sequence[results.Evaluation]) -> list[Mapping]:
    return [results.load_predictions(profile, what) for what in group]


def _label_of(what: results.Evaluation) -> str:
    run = what.run
    method = "supervised" if what.protocol == "scratch" else run.method
    return label(method, run.rhythm, run.beat, run.exponent, run.variant)


def claims(profile: Profile, *, label_fraction: float = 1.0) -> pd.DataFrame:
    """Every claim of Table 1 as differences of two rows, with the paper's own difference.

    Returns:
        `differences` of the scores of Table 1, with columns claim, paper (its difference) and
        verdict: as in the paper | the reverse | not shown.
    """
    pairs = [(f"beatssl-{first}", f"beatssl-{second}") for _, first, second in CLAIMS]
    printed = results.paper().query("source == 'Table 1'")
    heading = {(task, metric): score for score, task, metric in HEADLINES}
    value = {
        (_name(*row[METHOD]), heading[row["task"], row["metric"]]): row["value"]
        for _, row in printed.iterrows()
    }
    parts = []
    for (claim, _, _), (first, second) in zip(CLAIMS, pairs, strict=True):
        found, _ = differences(profile, [(first, second)], label_fraction=label_fraction)
        found = found[found["score"].isin(TABLE_1)]
        paper = [value[first, score] - value[second, score] for score in found["score"]]
        parts.append(found.assign(claim=claim, paper=paper))
    table = pd.concat(parts, ignore_index=True)
    same = np.sign(table["difference"]) == np.sign(table["paper"])
    said = np.where(same, "as in the paper", "the reverse")
    return table.assign(verdict=np.where(table["zero"] == "excludes zero", said, "not shown"))


def claim_texts(table: pd.DataFrame) -> pd.DataFrame:
    """`claims` as texts: a line a pair, ours and the paper's difference for each score."""
    text = [f"{r.difference:+.3f} [{r.low:+.3f}, {r.high:+.3f}]" for r in table.itertuples()]
    paper = table["paper"].map("{:+.3f}".format)
    pair = table["first"] + " − " + table["second"]
    pair = pair.str.replace(r" \([^)]*\)", "", regex=True)
    long = table.assign(pair=pair, ours=text, paper=paper)
    wide = long.pivot(index=["claim", "pair"], columns="score", values=["paper", "ours"])
    order = pd.MultiIndex.from_frame(long[["claim", "pair"]].drop_duplicates())
    columns = [(who, score) for score in TABLE_1 for who in ("paper", "ours")]
    wide = wide.reindex(order)[[c for c in columns if c in wide]]
    wide.columns = [f"{score}, {who}" for who, score in wide.columns]
    return titled(wide.reset_index("pair"), "claim").fillna("–")


def claim_findings(table: pd.DataFrame) -> str:
    """One sentence a claim: in how many pairs it held, did not show, or went the other way."""
    lines = []
    for claim, of_claim in table.groupby("claim", sort=False):
        said = []
        for score, part in of_claim.groupby("score", sort=False):
            count = part["verdict"].value_counts()
            known = ["as in the paper", "the reverse", "not shown"]
            words = [f"{count[v]} {v}" for v in known if v in count]
            said.append(f"**{score}** {', '.join(words)}")
        pairs = len(of_claim.drop_duplicates(["first", "second"]))
        lines.append(f"- *{claim}* ({pairs} pair{'s' if pairs > 1 else ''}): {'; '.join(said)}.")
    return "\n".join(lines) or "None of these pairs has been run."


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


# --- what the choices do, and the health of the encoders ------------------------------------------


def changes(run: PretrainConfig, base: PretrainConfig) -> str:
    """The settings in which a variant differs from its base: `loss = mse`."""
    names = [f.name for f in dataclasses.fields(run) if f.name not in ("variant", "seed")]
    differing = [n for n in names if getattr(run, n) != getattr(base, n)]
    values = [getattr(run, n) for n in differing]
    texts = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    return ", ".join(f"{n} = {t}" for n, t in zip(differing, texts, strict=True))


def sensitivity(
    profile: Profile, rows: Sequence[str] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """Every variant of the profile minus the variant `base`, paired joint bootstrap over the test
    records; variants of the untrained encoder are compared with the profile's untrained encoder.

    Args:
        rows: names of rows of the ablation that differ from the base by one setting too.

    Returns:
        `differences` with the changed settings in `first`, and columns name, seeds (of the
        variant), seed_low, seed_high (single seeds of the base minus their mean), effect (whether
        the interval excludes zero and the difference lies outside that range); and the variants
        that have no scores, with the reason.
    """
    groups = _groups(profile, "frozen", 1.0)
    first = {run.name: run for run in reversed(profile.runs)}
    base = next((name for name, run in first.items() if run.variant == "base"), "")
    against: dict[str, list[PretrainConfig]] = {}
    for run in first.values():
        if run.name != base and (run.variant or run.name in rows):
            against.setdefault("random" if run.method == "random" else base, []).append(run)
    lines, absent = [], []
    for task in dict.fromkeys(task for _, task, _ in HEADLINES):
        for of, runs in against.items():
            there = [run for run in reversed(runs) if (run.name, task) in groups]
            absent += [f"{run.name} on {task}" for run in runs if (run.name, task) not in groups]
            if (of, task) not in groups or not there:
                continue
            second = _load(profile, groups[of, task])
            found = stats.against(
                SCORES[task], second, [_load(profile, groups[run.name, task]) for run in there],
                results.resamples_of(profile, task),
            )  # fmt: skip
            own = stats.estimate(SCORES[task], second, 0)
            for run, scores in zip(there, found, strict=True):
                text = changes(run, first[of])
                if not text:  # a row with the same settings as the base
                    continue
                text = f"untrained: {text}" if of == "random" else text
                for heading, of_task, metric in HEADLINES:
                    if of_task == task:
                        line = _difference(text, _label_of(groups[of, task][0]), heading,
                                           scores[metric])
                        spread = np.array(own[metric].per_seed) - own[metric].value
                        seeds = len(groups[run.name, task])
                        lines.append((*line, run.name, seeds, spread.min(), spread.max()))
    table = pd.DataFrame(lines, columns=[*DIFFERENCE, "name", "seeds", "seed_low", "seed_high"])
    beyond = (table["difference"] < table["seed_low"]) | (table["difference"] > table["seed_high"])
    return table.assign(effect=beyond & (table["zero"] == "excludes zero")), absent


def sensitivity_texts(table: pd.DataFrame) -> pd.DataFrame:
    """`sensitivity` as texts: a line a change, a column a score; * marks an effect."""
    text = [
        f"{r.difference:+.3f} [{r.low:+.3f}, {r.high:+.3f}]{' *' if r.effect else ''}"
        for r in table.itertuples()
    ]
    wide = table.assign(text=text).pivot(index=["first", "seeds"], columns="score", values="text")
    order = pd.MultiIndex.from_frame(table[["first", "seeds"]].drop_duplicates())
    wide = wide.reindex(order)[[score for score, _, _ in HEADLINES if score in wide]]
    return titled(wide.reset_index("seeds"), "change (* = effect)").fillna("–")


def sensitivity_findings(table: pd.DataFrame, first: str, second: str) -> str:
    """Which changes move a score further than the paper's own difference between two rows.

    Args: table: `sensitivity`. first, second: names of two rows of the paper's Table 1."""
    printed = results.paper().query("source == 'Table 1'")
    printed = printed.assign(name=[_name(*row) for row in printed[METHOD].to_numpy()])
    lines = []
    for heading, task, metric in HEADLINES:
        known = printed[(printed["task"] == task) & (printed["metric"] == metric)]
        value = known.set_index("name")["value"]
        part = table[(table["score"] == heading) & ~table["first"].str.startswith("untrained")]
        if value.empty or part.empty:
            continue
        gap = value[first] - value[second]
        real = part[part["effect"]]
        far = real[real["difference"].abs() > abs(gap)]
        text = (
            f"- **{heading}**: in the paper, the best row lies {gap:+.3f} from the baseline. Of "
            f"{len(part)} changed settings, {len(real)} move our score beyond what another seed "
            f"does, {len(far)} of them further than {abs(gap):.3f}"
        )
        listed = far.sort_values("difference", key=abs, ascending=False)
        named = [f"`{r.first}` {r.difference:+.3f}" for r in listed.itertuples()]
        lines.append(text + (": " + ", ".join(named) if named else "") + ".")
    return "\n".join(lines) or "No variant has been run."


def health(table: pd.DataFrame) -> pd.DataFrame:
    """`by_method` of task `ptbxl_embedding` as texts, a line a row."""
    metrics = ["uniformity", "alignment", "effective_rank", "neighbour_agreement"]
    table = table.assign(text=_cells(table))
    wide = table[table["metric"].isin(metrics)].pivot(
        index="label", columns="metric", values="text"
    )
    wide = wide.loc[list(dict.fromkeys(table["label"])), metrics]
    return titled(wide.rename(columns=lambda name: name.replace("_", " ")), "encoder")


def health_and_scores(profile: Profile, variants: bool = False) -> pd.DataFrame:
    """One line an encoder: label, kind of rhythm target, health measures and headline scores (mean
    over seeds), for a plot of one against the other."""
    rows = results.read(results.RESULTS / f"{profile.name}.csv")
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
    return wide.reset_index().rename_axis(columns=None)


def health_findings(table: pd.DataFrame) -> str:
    """Spearman correlation of each health measure with each score over the rows, one line each.

    Args: table: `health_and_scores`."""
    measures = ["uniformity", "effective_rank", "neighbour_agreement"]
    table = table.dropna(subset=[*measures, "AUROC", "LUDB F1"])
    if len(table) < 5:
        return "Fewer than five rows: nothing to correlate."
    lines = []
    for score in ("AUROC", "LUDB F1"):
        for measure in measures:
            found = spearmanr(table[measure], table[score])
            lines.append(
                f"- {measure.replace('_', ' ')} and {score}: Spearman {found.statistic:+.2f} over "
                f"{len(table)} rows (two-sided p = {found.pvalue:.3f}, not corrected for the "
                "number of lines here)"
            )
    return "\n".join(lines)
