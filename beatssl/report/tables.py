"""Tables of the book, from result rows: numbers are formatted here and typed nowhere."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from beatssl.data.records import WAVES
from beatssl.methods import METHODS, UNTRAINED
from beatssl.profile import Profile
from beatssl.results import saved
from beatssl.results.claims import OPPOSITE, TOLD
from beatssl.results.saved import HEADLINES, SEGMENT
from beatssl.tasks.scores import BORDERS

METHOD = list(saved.METHOD)
SCORES = pd.DataFrame(HEADLINES, columns=["score", "task", "metric"])
TABLE_1 = ("AUROC", "F1", "LUDB F1")  # the scores of the paper's Table 1
ABLATION = ("random", "random_data", "supervised", "features", "beatssl")  # Table 1, references
BEST, BASELINE = "beatssl-soft_1-hard-50", "beatssl-hard-none-1"  # rows of the paper
MAIN = ("random", "random_data", "supervised", "features", BASELINE, BEST)  # where room is short


# --- methods --------------------------------------------------------------------------------------


def label(
    method: str, rhythm: str = "", beat: str = "", exponent: float = np.nan, variant: str = ""
) -> str:
    """A method in the words of the tables: rhythm / beat / exponent for an ablation row."""
    text = METHODS[method].label if method in METHODS else "Supervised from scratch"
    if rhythm:
        text = f"{rhythm} / {'-' if beat == 'none' else beat} / {exponent:g}"
        marks = {"hard / - / 1": " (baseline, 3KG)", "soft_1 / hard / 50": " (paper's best)"}
        text += "" if variant else marks.get(text, "")
    return f"{text}, {variant}" if variant else text


def name_of(method: str, rhythm: str, beat: str, exponent: float, variant: str) -> str:
    """Name of a row, a run id without its seed: `beatssl-soft_1-hard-50`."""
    row = [rhythm, beat, f"{exponent:g}"] if rhythm else []
    return "-".join([method, *row, *filter(None, [variant])])


def rank(method: tuple) -> tuple:
    """Untrained, supervised, features, the ablation rows in the order of the paper's Table 1,
    others; variants after their row."""
    name, rhythm, beat, exponent, variant = method
    first = [*UNTRAINED, "supervised", "features", "beatssl"]
    place = first.index(name) if name in first else len(first)
    return place, name, rhythm, beat != "none", beat, exponent if rhythm else 0, variant


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """A table with the columns `METHOD`, in the order of `rank`, with its labels and names."""
    methods = [tuple(row) for row in table[METHOD].to_numpy()]
    table = table.assign(label=[label(*m) for m in methods], name=[name_of(*m) for m in methods])
    return table.iloc[sorted(range(len(table)), key=lambda i: rank(methods[i]))]


# --- texts ----------------------------------------------------------------------------------------


def cells(table: pd.DataFrame) -> list[str]:
    """`mean (sd over seeds) [95 % interval]` of every line of a table with columns value, sd,
    ci_low, ci_high; parts that do not exist are left out. Where a rotation of PTB-XL's folds is
    missing (column source), that."""
    texts = []
    for value, sd, low, high in table[["value", "sd", "ci_low", "ci_high"]].to_numpy(float):
        spread = "" if np.isnan(sd) else f" ({sd:.3f})"
        interval = "" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]"
        texts.append("–" if np.isnan(value) else f"{value:.3f}{spread}{interval}")
    source = table.get("source", pd.Series("", table.index)).fillna("")
    lacks = source.str.startswith(saved.INCOMPLETE)
    return ["lacks a rotation" if lacking else t for t, lacking in zip(texts, lacks)]


def signed(table: pd.DataFrame) -> list[str]:
    """`difference [95 % interval]`, all with their sign, of every line of a table of differences;
    with the number of records where another difference of this score is over more of them."""
    numbers = table[["difference", "low", "high"]].to_numpy(float)
    texts = [f"{value:+.3f} [{low:+.3f}, {high:+.3f}]" for value, low, high in numbers]
    fewer = table["n"] < table.groupby("score")["n"].transform("max")
    return [f"{t}, n = {n}" if few else t for t, n, few in zip(texts, table["n"], fewer)]


def resampled(profile: Profile) -> str:
    """What the intervals of methods are over, in words."""
    several = len(profile.data.rotations) > 1
    where = ", where a rotation of PTB-XL's folds has several," if several else ""
    return f"patients and{where} seeds"


def p_text(p: float) -> str:
    """A p-value in three digits, small ones with their power of ten."""
    return "–" if np.isnan(p) else f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def borders(score: Mapping[str, float]) -> dict[str, str]:
    """Border -> `F1 [error mean ± sd ms]` from the scores of task 2."""
    text, kinds = "{:.3f} [{:+.0f} ± {:.0f} ms]", ("f1", "error_mean_ms", "error_sd_ms")
    texts = {}
    for wave, border in itertools.product(WAVES, BORDERS):
        numbers = [score[f"event_{kind}_{wave}_{border}"] for kind in kinds]
        texts[f"{wave} {border}"] = text.format(*numbers)
    return texts


def titled(table: pd.DataFrame, corner: str) -> pd.DataFrame:
    """The name of the index in the corner, in one line with the headings."""
    return table.rename_axis(index=None, columns=corner)


def wide(
    table: pd.DataFrame, lines: list[str], column: str, corner: str, headings: Sequence[str] = ()
) -> pd.DataFrame:
    """The column `text` of a long table with a column for each value of `column` (those in
    `headings`; default all) and a line for each value of `lines`, the first of which becomes the
    index; in the order in which they first stand, gaps as dashes."""
    out = table[lines].drop_duplicates()
    for heading in headings or table[column].unique():
        part = table.loc[table[column] == heading, [*lines, "text"]]
        out = out.merge(part.rename(columns={"text": heading}), how="left", on=lines)
    out = out.astype(object).where(out.notna(), "–")
    return titled(out.set_index(lines[0]), corner)


def markdown(table: pd.DataFrame) -> str:
    """A table of texts as Markdown, the corner's name first."""
    lines = [[table.columns.name or "", *table.columns], *table.reset_index().to_numpy()]
    head, *rows = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rows])


# --- ours -----------------------------------------------------------------------------------------


def marked(table: pd.DataFrame) -> str:
    """A table of texts as HTML, in each column of scores the highest in bold; where there is a
    column `labels` (share of the labels), one for each of its values."""
    of = table["labels"] if "labels" in table else pd.Series("", table.index)
    made = {}
    for name in table:
        parts = table[name].astype(str).str.extract(r"^(\d?\.\d+)(.*)$")
        number = pd.to_numeric(parts[0])
        best = number.notna() & (number == number.groupby(of.to_numpy()).transform("max"))
        bold = "<strong>" + parts[0].fillna("") + "</strong>" + parts[1].fillna("")
        made[name] = table[name].mask(best, bold) if number.count() > 1 else table[name]
    return titled(pd.DataFrame(made), table.columns.name or "").to_html(escape=False)


def by_method(rows: pd.DataFrame) -> pd.DataFrame:
    """Combined rows (seed `all`) with their sd over seeds, number of seeds, of failed seeds, label
    and name, in the order of `rank`, frozen before fine-tuned; where every seed failed, a row
    without value. Runs that differ from a row by one setting (variants) are left out. The sd is
    that of seeds tested on the same records: with one seed a rotation of PTB-XL's folds there is
    none."""
    rows = rows[rows["variant"] == ""]
    same = [*METHOD, "task", "protocol", "label_fraction", "metric"]
    single = rows[rows["seed"] != "all"]
    value, of = single["value"], [single[name] for name in same]
    mean = value.groupby([*of, single["data"]], dropna=False).transform("mean")
    single = single.assign(square=(value - mean) ** 2, known=single["data"].where(value.notna()))
    spread = single.groupby(same, dropna=False).agg(
        square=("square", "sum"), seeds=("value", "count"), groups=("known", "nunique"),
        failed=("value", lambda v: v.isna().sum()),
    )  # fmt: skip
    free = spread["seeds"] - spread.pop("groups")
    spread["sd"] = np.sqrt(spread.pop("square") / free.where(free > 0))
    table = rows[rows["seed"] == "all"].merge(spread.reset_index(), how="outer", on=same)
    table["tuned"] = np.where(table["protocol"] == "finetune", " (fine-tuned)", "")
    table = in_order(table.sort_values("tuned", kind="stable"))
    return table.assign(label=table["label"] + table.pop("tuned"))


def by_fraction(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """`by_method` of one task as texts: one line a method and label fraction, a column a metric,
    with n and seeds."""
    return _by_metric(table, metrics, ["label", "labels", "n", "seeds"], "method")


def per_run(rows: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """One line a run, protocol and label fraction: n and value [interval] of each metric."""
    rows = rows.sort_values(["run_id", "protocol", "label_fraction"], kind="stable")
    return _by_metric(rows.assign(sd=np.nan), metrics, ["run_id", "protocol", "labels", "n"], "run")


def _by_metric(
    table: pd.DataFrame, metrics: Sequence[str], lines: list[str], corner: str
) -> pd.DataFrame:
    table = table[table["metric"].isin(metrics)]
    table = table.assign(text=cells(table), labels=table["label_fraction"].map("{:.0%}".format))
    return wide(table, lines, "metric", corner, metrics).rename(columns=_in_words)


def _in_words(metric: str) -> str:
    """`f1_MI` -> F1, MI; the macro mean has no addition, and other metrics keep their names."""
    score, _, of = metric.partition("_")
    words = {"auroc": "AUROC", "f1": "F1", "dice": "Dice"}.get(score)
    return metric if words is None else words + f", {of}" * (of not in ("", "macro"))


# --- the paper beside ours ------------------------------------------------------------------------


def table_1() -> pd.DataFrame:
    """The paper's Table 1, one line a row and score: columns `METHOD`, label, name, task, metric,
    score, paper (the number)."""
    printed = saved.paper().query("source == 'Table 1'").rename(columns={"value": "paper"})
    return in_order(printed).merge(SCORES, on=["task", "metric"])


def headlines(
    profile: Profile, every_row: bool = False, fraction: float = 1.0, folder: Path = saved.RESULTS
) -> pd.DataFrame:
    """The headline scores of `results/<profile>.csv` with the paper's number for the same row: the
    ablation and its references, not the compared methods; frozen encoders, and the supervised one.

    Args:
        every_row: also the rows of the paper's Table 1 that were not run here.
        fraction: of the labels of task 1.

    Returns:
        One line a method and score: label, name, score (AUROC, F1, LUDB F1, Dice), paper, value,
        sd, ci_low, ci_high, n, seeds, failed (seeds), data; NaN where there is none.
    """
    ours = by_method(saved.read(folder / f"{profile.name}.csv"))
    ours = ours[ours["method"].isin(ABLATION) & ours["protocol"].isin(["frozen", "scratch"])]
    ours = ours[(ours["task"] == SEGMENT) | np.isclose(ours["label_fraction"], fraction)]
    printed = table_1()
    methods = pd.concat([ours, printed] if every_row else [ours])[METHOD].drop_duplicates()
    key = [*METHOD, "task", "metric"]
    numbers = ["value", "sd", "ci_low", "ci_high", "n", "seeds", "failed", "data", "source"]
    grid = methods.merge(SCORES, how="cross").merge(printed[[*key, "paper"]], how="left", on=key)
    grid = in_order(grid.merge(ours[[*key, *numbers]], how="left", on=key))
    return grid[["label", "name", "score", "paper", *numbers]].reset_index(drop=True)


def _row_labels() -> dict[str, str]:
    """Row of Table 1, as claims name it -> its label without the words in brackets."""
    rows = table_1()[["name", "label"]].drop_duplicates().to_numpy()
    return {name.removeprefix("beatssl-"): text.split(" (")[0] for name, text in rows}


def claim_texts(claims: pd.DataFrame) -> pd.DataFrame:
    """`results.claims` as texts: a line a claim and pair, for each score the paper's effect, ours
    [95 % interval] and the verdict; with the number of test records.

    Args: claims: of one reading, or of several: then the reading stands in the second column."""
    label_of = _row_labels()
    label_of["w2v"], label_of["ts2vec"] = label("w2v"), label("ts2vec")
    lines, several = {}, claims["reading"].nunique() > 1
    for row in claims.itertuples():
        pair = f"{label_of[row.first]} over {label_of[row.second]}"
        reading = {"reading": row.reading or "as the profile"} if several else {}
        line = lines.setdefault(
            (row.claim, pair, row.reading), {"pair": pair, **reading, "test records": {}}
        )
        score, ratio, _ = row.score.partition(" / ")
        form = "{:.3f}" if ratio else "{:+.3f}"
        paper = f"(paper {'a ratio of ' * bool(ratio)}{form.format(row.paper)})"
        if np.isfinite(row.value):
            value, low, high = map(form.format, (row.value, row.ci_low, row.ci_high))
            text = f"{value} [{low}, {high}] {paper} **{row.verdict}**"
            line["test records"][row.n] = None
        else:
            text = f"{row.verdict} {paper}"
        line[score] = text
    for line in lines.values():
        line["test records"] = " / ".join(map(str, line["test records"])) or "–"
    table = pd.DataFrame(lines.values(), index=[claim for claim, *_ in lines])
    return titled(table.where(table.notna(), "–"), "claim of the paper")


def claim_effects(claims: pd.DataFrame) -> pd.DataFrame:
    """The differences among `results.claims`, without the ratios to other methods: columns label
    (claim and pair, a line each), score, paper, value, ci_low, ci_high."""
    of = _row_labels()
    own = claims[claims["first"].isin(of) & claims["second"].isin(of) & claims["value"].notna()]
    label = own["claim"] + "\n" + own["first"].map(of) + " over " + own["second"].map(of)
    label += own["reading"].map(lambda reading: f" ({reading})" if reading else "")
    return own.assign(label=label)[["label", "score", "paper", "value", "ci_low", "ci_high"]]


def in_short(claims: pd.DataFrame) -> str:
    """The first of `results.claims` with its numbers, and how often each verdict stands there."""
    of, row = _row_labels(), claims.iloc[0]
    main = claims[(claims["claim"] == row["claim"]) & claims["value"].notna()].itertuples()
    gains = [f"**{r.value:+.3f}** in {r.score} (paper {r.paper:+.3f}, {r.verdict})" for r in main]
    count = claims["verdict"].value_counts().reindex([*TOLD, OPPOSITE, "not measured"]).dropna()
    counted = ", ".join(f"{n:.0f} {verdict}" for verdict, n in count.items())
    pair, told = f"{of[row['first']]} over {of[row['second']]}", ", ".join(gains) or "not measured"
    text = f"**The paper's {row['claim']}** ({pair}): {told}. "
    return f"{text}Of all {len(claims)} lines of claim and score: {counted}."


def paper_and_ours(table: pd.DataFrame, scores: Sequence[str] = ()) -> pd.DataFrame:
    """`headlines` as texts: paper (where it has some) and ours of each score, number of test
    records and seeds.

    Where the two tasks differ in n or seeds, both stand there: PTB-XL / LUDB."""
    failed = table["failed"] > 0
    missing = np.select([failed, table["paper"].isna()], ["failed", "–"], "not run")
    lost = table["failed"].map(" ({:.0f} failed)".format).where(failed, "")
    count = table[["n", "seeds"]].astype(float).map("{:.0f}".format).replace("nan", "–")
    paper = table["paper"].map("{:.3f}".format).replace("nan", "–")
    ours = np.array(cells(table))
    ours = np.where(failed & table["value"].isna() | (ours == "–"), missing, ours)
    table = table.assign(paper=paper, ours=ours, n=count["n"], seeds=count["seeds"] + lost)
    out = pd.DataFrame(index=table["label"].unique())
    for score in scores or table["score"].unique():
        part = table[table["score"] == score].set_index("label")
        if (part["paper"] != "–").any():
            out[f"{score}, paper"] = part["paper"]
        out[f"{score}, ours"] = part["ours"]
    counts = table.groupby("label")[["n", "seeds"]].agg(lambda texts: " / ".join(texts.unique()))
    out[["test records", "seeds"]] = counts
    return titled(out, "rhythm / beat / exponent")
