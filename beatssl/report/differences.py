"""What can be said: differences with their intervals, claims, agreement of ranks, sensitivity.

Nothing is called a difference unless its interval excludes zero; every sentence is made from the
numbers, none is typed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from beatssl.methods.base import RunSettings
from beatssl.profile import Profile, differing
from beatssl.report import tables
from beatssl.results import saved as results
from beatssl.results import uncertainty as stats
from beatssl.results.saved import CLASSIFY, HEADLINES, SCORES, SEGMENT

DIFFERENCE = ["first", "second", "score", "difference", "low", "high", "zero", "n", "covers"]
VARIED = ("rhythm", "beat", "exponent")  # what the paper's Table 1 varies
BLOCKS = ("left open by the paper", "varied in Table 1")  # of changed settings
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


def table_1() -> dict[tuple[str, str], float]:
    """The paper's Table 1: (name of the row, score) -> value."""
    printed = results.paper().query("source == 'Table 1'")
    heading = {(task, metric): score for score, task, metric in HEADLINES}
    return {
        (tables.name_of(*row[:5]), heading[row[5], row[6]]): row[7]
        for row in printed[[*tables.METHOD, "task", "metric", "value"]].to_numpy()
    }


def agreement(
    profile: Profile, table: pd.DataFrame, *, label_fraction: float = 1.0
) -> pd.DataFrame:
    """Spearman correlation of our scores with the paper's over the ablation rows, a line a score.

    p permutes the rows (`stats.spearman`): is the order closer to the paper's, or to its reverse,
    than chance makes it? The interval resamples patients and seeds and keeps the rows as they are;
    it is there where the predictions of all rows are.

    Args:
        table: `tables.headlines` of this label fraction; with fewer than all labels the
            segmentation, which has no such fraction, is left out.

    Returns:
        Columns rows, Spearman, p, interval, as texts; scores with fewer than five rows are left
        out.
    """
    groups = _groups(profile, "frozen", label_fraction)
    lines = {}
    for score, task, metric in HEADLINES:
        both = table[(table["score"] == score) & table["paper"].notna() & table["value"].notna()]
        if len(both) < 5 or (label_fraction < 1 and task == SEGMENT):
            continue
        rho, p = stats.spearman(both["value"], both["paper"])
        interval = "–"
        if all((name, task) in groups for name in both["name"]):
            found = stats.rank_agreement(
                SCORES[task],
                [_load(profile, groups[name, task]) for name in both["name"]],
                metric,
                both["paper"],
                results.resamples_of(profile, task),
            )
            interval = f"[{found.low:+.2f}, {found.high:+.2f}]"
        lines[score] = {
            "rows": len(both),
            "Spearman": f"{rho:+.2f}",
            f"p ({stats.PERMUTATIONS:,} permutations of the rows)": tables.p_text(p),
            "95 % interval over patients and seeds": interval,
        }
    return tables.titled(pd.DataFrame(lines).T, "paper and ours")


def rank_findings(ranks: pd.DataFrame) -> str:
    """One sentence a score: where the paper's three best rows stand here.

    Args: ranks: `tables.ranks`."""
    lines = []
    for score, part in ranks.groupby("score", sort=False):
        best = part.sort_values("paper").head(3)
        said = [
            f"the {place} (*{row.label.split(' (')[0]}*) is number {row.ours}"
            for place, row in zip(("first", "second", "third"), best.itertuples())
        ]
        text = f"- **{score}**, {len(part)} rows: of the paper's rows, {', '.join(said)} here."
        lines.append(text)
    return "\n".join(lines) or "Nothing to rank yet."


# --- differences ----------------------------------------------------------------------------------


def differences(
    profile: Profile,
    pairs: Sequence[tuple[str, str]],
    *,
    scores: Sequence[str] = tuple(score for score, _, _ in HEADLINES),
    protocol: str = "frozen",
    label_fraction: float = 1.0,
) -> tuple[pd.DataFrame, list[str]]:
    """First minus second for the headline scores, paired bootstrap (`stats.difference`).

    Args:
        pairs: names of methods: a run id without its seed ("random", "supervised",
            "beatssl-soft_1-hard-50").
        scores: headings of `results.HEADLINES`; default all.
        protocol, label_fraction: as in `tables.headlines`.

    Returns:
        Columns first, second, score, difference, low, high, zero ("excludes zero" | "includes
        zero" | "no interval"), n, covers (what was resampled for the interval: patients, and seeds
        where a side has several); and the pairs and tasks that were not evaluated.
    """
    groups = _groups(profile, protocol, label_fraction)
    lines, absent = [], []
    for first, second in pairs:
        for task in dict.fromkeys(task for score, task, _ in HEADLINES if score in scores):
            if (first, task) not in groups or (second, task) not in groups:
                absent.append(f"{first} and {second} on {task}")
                continue
            sides = [_load(profile, groups[name, task]) for name in (first, second)]
            found = stats.difference(SCORES[task], *sides, results.resamples_of(profile, task))
            words = [_label_of(groups[name, task][0]) for name in (first, second)]
            for heading, of_task, metric in HEADLINES:
                if of_task == task and heading in scores:
                    lines.append(_difference(*words, heading, found[metric], _covers(*sides)))
    return pd.DataFrame(lines, columns=DIFFERENCE), absent


def _groups(
    profile: Profile, protocol: str, label_fraction: float
) -> dict[tuple[str, str], list[results.Evaluation]]:
    """Saved evaluations of the two tasks that did not fail, by name and task, in the order of the
    seeds."""
    groups: dict[tuple[str, str], list[results.Evaluation]] = {}
    for what, _ in results.evaluations(profile, CLASSIFY, SEGMENT):
        fits = what.task == SEGMENT or np.isclose(what.label_fraction, label_fraction)
        if what.weights and fits and what.protocol in (protocol, "scratch"):
            groups.setdefault((what.name, what.task), []).append(what)
    return {k: sorted(g, key=lambda what: what.run.seed) for k, g in groups.items()}


def _load(profile: Profile, group: Sequence[results.Evaluation]) -> dict[int, Mapping]:
    """Predictions by seed."""
    return {what.run.seed: results.load_predictions(profile, what) for what in group}


def _label_of(what: results.Evaluation) -> str:
    run = what.run
    method = "supervised" if what.protocol == "scratch" else run.method
    return tables.label(method, run.rhythm, run.beat, run.exponent, run.variant)


def _row_label(name: str) -> str:
    """The label of a row of Table 1 from its name, `beatssl-soft_1-hard-50`."""
    method, rhythm, beat, exponent = name.split("-")
    return tables.label(method, rhythm, beat, float(exponent))


def claims(
    profile: Profile, *, scores: Sequence[str] = tables.TABLE_1, label_fraction: float = 1.0
) -> pd.DataFrame:
    """Every claim of Table 1 as differences of two rows, with the paper's own difference.

    Returns:
        `differences` of the scores of Table 1, with columns claim, paper (its difference) and
        verdict: as in the paper | the reverse | not shown.
    """
    pairs = [(f"beatssl-{first}", f"beatssl-{second}") for _, first, second in CLAIMS]
    table, _ = differences(profile, pairs, scores=scores, label_fraction=label_fraction)
    names = {_row_label(name): name for pair in pairs for name in pair}
    of = {pair: claim for (claim, _, _), pair in zip(CLAIMS, pairs, strict=True)}
    rows = [(names[a], names[b]) for a, b in table[["first", "second"]].to_numpy()]
    value = table_1()
    table["claim"] = [of[pair] for pair in rows]
    table["paper"] = [
        value[first, score] - value[second, score]
        for (first, second), score in zip(rows, table["score"], strict=True)
    ]
    same = np.sign(table["difference"]) == np.sign(table["paper"])
    said = np.where(same, "as in the paper", "the reverse")
    return table.assign(verdict=np.where(table["zero"] == "excludes zero", said, "not shown"))


def claim_texts(table: pd.DataFrame) -> pd.DataFrame:
    """`claims` as texts: a line a pair, ours and the paper's difference for each score."""
    text = [tables.difference(r.difference, r.low, r.high) for r in table.itertuples()]
    paper = table["paper"].map("{:+.3f}".format)
    pair = table["first"] + " − " + table["second"]
    pair = pair.str.replace(r" \([^)]*\)", "", regex=True)
    long = table.assign(pair=pair, ours=text, paper=paper)
    wide = long.pivot(index=["claim", "pair"], columns="score", values=["paper", "ours"])
    order = pd.MultiIndex.from_frame(long[["claim", "pair"]].drop_duplicates())
    columns = [(who, score) for score in tables.TABLE_1 for who in ("paper", "ours")]
    wide = wide.reindex(order)[[c for c in columns if c in wide]]
    wide.columns = [f"{score}, {who}" for who, score in wide.columns]
    return tables.titled(wide.reset_index("pair"), "claim").fillna("–")


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


def _covers(first: Mapping[int, Mapping], second: Mapping[int, Mapping]) -> str:
    """What an interval of the difference of two methods, given by seed, was resampled over."""
    several = [len(side) > 1 for side in (first, second)]
    if all(several):
        return "patients and seeds"
    return "patients and the seeds of one side" if any(several) else "patients"


def _difference(first: str, second: str, heading: str, found: stats.Estimate, covers: str) -> tuple:
    zero = "includes zero" if found.low <= 0 <= found.high else "excludes zero"
    if np.isnan(found.low):
        zero = "no interval"
    return first, second, heading, found.value, found.low, found.high, zero, found.n, covers


def difference_texts(table: pd.DataFrame) -> pd.DataFrame:
    """`differences` as texts, a line a pair, a column a score; the corner says what the intervals
    cover."""
    text = [tables.difference(r.difference, r.low, r.high) for r in table.itertuples()]
    pair = table["first"] + " − " + table["second"]
    wide = table.assign(text=text, pair=pair).pivot(index="pair", columns="score", values="text")
    order = [score for score, _, _ in HEADLINES if score in wide]
    covers = " or ".join(dict.fromkeys(table["covers"])) or "patients"
    corner = f"difference [95 % interval over {covers}]"
    return tables.titled(wide.loc[list(dict.fromkeys(pair)), order].fillna("–"), corner)


def in_words(table: pd.DataFrame) -> str:
    """One plain sentence a pair of `differences`, as Markdown, with what its intervals cover."""
    lines = []
    for (first, second), part in table.groupby(["first", "second"], sort=False):
        words = {"higher": [], "lower": [], "no difference shown": []}
        for row in part.itertuples():
            sign = "higher" if row.difference > 0 else "lower"
            words[sign if row.zero == "excludes zero" else "no difference shown"].append(row.score)
        said = [f"**{word}** in {', '.join(scores)}" for word, scores in words.items() if scores]
        covered = [
            f"{covers}{'' if len(of) == len(part) else ' in ' + ', '.join(of['score'])}"
            for covers, of in part.groupby("covers", sort=False)
        ]
        over = f"(intervals over {'; '.join(covered)})"
        lines.append(f"- *{first}* against *{second}*: {'; '.join(said)} {over}.")
    return "\n".join(lines) or "Nothing to compare yet."


# --- what the choices do, and the health of the encoders ------------------------------------------


def changes(run: RunSettings, base: RunSettings) -> str:
    """The settings in which a variant differs from its base: `loss = mse`."""
    values = {name: getattr(run, name) for name in differing(run, base)}
    texts = {name: f"{v:g}" if isinstance(v, float) else str(v) for name, v in values.items()}
    return ", ".join(f"{name} = {text}" for name, text in texts.items())


def seed_spread(profile: Profile) -> pd.DataFrame:
    """What another seed does to each headline score: the standard deviation within the rows of the
    ablation (frozen encoders, all labels), pooled over those that have two seeds or more.

    Returns:
        index score; columns sd, df (degrees of freedom), rows (pooled), epochs (text).
    """
    values: dict[tuple, list[float]] = {}
    epochs: dict[str, int] = {}
    for what, rows in results.evaluations(profile, CLASSIFY, SEGMENT):
        of_table = what.run.method == "beatssl" and not what.run.variant and what.weights
        if of_table and what.protocol == "frozen" and what.label_fraction == 1:
            epochs[what.name] = what.run.epochs
            for row in rows:
                values.setdefault((what.name, what.task, row["metric"]), []).append(row["value"])
    lines = {}
    for heading, *score in HEADLINES:
        groups = {name: v for (name, *of), v in values.items() if of == score and len(v) > 1}
        sd, df = stats.pooled_sd(groups.values())
        steps = " or ".join(str(e) for e in sorted({epochs[name] for name in groups}))
        lines[heading] = {"sd": sd, "df": df, "rows": len(groups), "epochs": steps}
    return pd.DataFrame(lines).T.astype({"sd": float, "df": int, "rows": int})


def sensitivity(profile: Profile, rows: Sequence[str] = ()) -> tuple[pd.DataFrame, list[str]]:
    """Every variant of the profile minus the variant `base`, paired bootstrap; variants of the
    untrained encoder are compared with the profile's untrained encoder.

    A change is an effect where its interval excludes zero and it is larger than seeds explain: a
    t-test with the spread of a seed within the rows of the ablation (`seed_spread`), p corrected by
    Holm over all changes of a score.

    Args:
        rows: names of rows of the ablation that differ from the base by one setting too.

    Returns:
        `differences` with the changed settings in `first`, and columns name, block (one of
        `BLOCKS`: a change of what Table 1 varies, alone or with another, or one of nothing but what
        the paper leaves open), seeds (of the variant), limit (p = 5 % before the correction), p,
        p_holm, effect; and the variants that have no scores, with the reason.
    """
    groups = _groups(profile, "frozen", 1.0)
    spread = seed_spread(profile)
    first = {run.name: run for run in reversed(profile.runs)}
    base = next((name for name, run in first.items() if run.variant == "base"), "")
    against: dict[str, list[RunSettings]] = {}
    for run in first.values():
        if run.name != base and (run.variant or run.name in rows):
            against.setdefault("random" if run.method == "random" else base, []).append(run)
    lines, absent = [], []
    for task in dict.fromkeys(task for _, task, _ in HEADLINES):
        for of, runs in sorted(against.items(), key=lambda item: item[0] == "random"):
            there = [run for run in reversed(runs) if (run.name, task) in groups]
            absent += [f"{run.name} on {task}" for run in runs if (run.name, task) not in groups]
            if (of, task) not in groups or not there:
                continue
            second = _load(profile, groups[of, task])
            others = [_load(profile, groups[run.name, task]) for run in there]
            found = stats.against(SCORES[task], second, others, results.resamples_of(profile, task))
            for run, own, scores in zip(there, others, found, strict=True):
                text = changes(run, first[of])
                if not text:  # a row with the same settings as the base
                    continue
                text = f"untrained: {text}" if of == "random" else text
                block = BLOCKS[bool(set(differing(run, first[of])) & set(VARIED))]
                for heading, of_task, metric in HEADLINES:
                    if of_task == task:
                        line = _difference(
                            text,
                            _label_of(groups[of, task][0]),
                            heading,
                            scores[metric],
                            _covers(own, second),
                        )
                        sd, df = spread.loc[heading, ["sd", "df"]]
                        of_seeds = stats.seed_test(
                            scores[metric].value, sd, df, len(own), len(second)
                        )
                        lines.append((*line, run.name, block, len(own), *of_seeds))
    columns = [*DIFFERENCE, "name", "block", "seeds", "limit", "p"]
    table = pd.DataFrame(lines, columns=columns)
    table = table.sort_values("block", key=lambda b: b.map(BLOCKS.index), kind="stable")
    table = table.reset_index(drop=True)
    table["p_holm"] = table.groupby("score")["p"].transform(stats.holm)
    clear = (table["zero"] == "excludes zero") & (table["p_holm"] < 0.05)
    return table.assign(effect=clear), absent


def sensitivity_texts(table: pd.DataFrame) -> pd.DataFrame:
    """`sensitivity` as texts: a line a change, a column a score; * marks an effect."""
    text = [
        f"{tables.difference(r.difference, r.low, r.high)}, p {tables.p_text(r.p_holm)}"
        + (" *" if r.effect else "")
        for r in table.itertuples()
    ]
    lines = ["first", "block", "seeds"]
    wide = table.assign(text=text).pivot(index=lines, columns="score", values="text")
    order = pd.MultiIndex.from_frame(table[lines].drop_duplicates())
    wide = wide.reindex(order)[[score for score, _, _ in HEADLINES if score in wide]]
    corner = "change [95 % interval], p after Holm (* = effect)"
    return tables.titled(wide.reset_index(["block", "seeds"]), corner).fillna("–")


def seed_findings(spread: pd.DataFrame, base: RunSettings, seeds: int) -> str:
    """How large the spread of a seed is, from which rows, and what that leaves open.

    Args: spread: `seed_spread`. base: the variant that is changed. seeds: how many it has."""
    known = spread[spread["df"] > 0]
    if known.empty:
        return "No row of the ablation has two seeds: no change can be called an effect."
    said = [
        f"{score} {r.sd:.4f} ({r.df} degrees of freedom), so that one seed against {seeds} must "
        f"differ by {stats.seed_test(0, r.sd, r.df, 1, seeds)[0]:.3f} for p = .05 before the "
        "correction"
        for score, r in zip(known.index, known.itertuples(), strict=True)
    ]
    text = (
        f"Standard deviation over seeds, pooled over {known['rows'].max()} rows of the ablation: "
        f"{'; '.join(said)}."
    )
    epochs = " or ".join(dict.fromkeys(known["epochs"]))
    if epochs != str(base.epochs):
        text += (
            f" These rows have {epochs} epochs, the base and its variants {base.epochs} and the "
            "untrained encoders none: if a seed matters more or less after other steps, the limits "
            "are too low or too high."
        )
    return text


def sensitivity_findings(table: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Which changes move a score further than the rows of the paper's table lie apart, for what the
    paper leaves open and for what its table varies.

    Args: table: `sensitivity`. rows: `claims`; its first claim, the best row over the baseline, is
        what the changes are held against."""
    best = rows[rows["claim"] == CLAIMS[0][0]].set_index("score")
    table = table[~table["first"].str.startswith("untrained")]
    lines = []
    for heading in [score for score in tables.TABLE_1 if score in best.index]:
        of_score = table[table["score"] == heading]
        if of_score.empty:
            continue
        paper, ours = best.loc[heading, "paper"], best.loc[heading, "difference"]
        lines.append(
            f"- **{heading}**: the best row lies {paper:+.3f} from the baseline in the paper, "
            f"{ours:+.3f} here."
        )
        for block, part in of_score.groupby("block", sort=False):
            real = part[part["effect"]].sort_values("difference", key=abs, ascending=False)
            size = real["difference"].abs()
            text = (
                f"  - *{block}*: of {len(part)} changed settings, {len(real)} move the score "
                f"beyond what seeds do, after Holm's correction ({(real['difference'] > 0).sum()} "
                f"up, {(real['difference'] < 0).sum()} down); {(size > abs(paper)).sum()} further "
                f"than the paper's difference, {(size > abs(ours)).sum()} further than ours"
            )
            named = [f"`{r.first}` {r.difference:+.3f}" for r in real.itertuples()]
            lines.append(text + (". Largest first: " + ", ".join(named) if named else "") + ".")
    return "\n".join(lines) or "No variant has been run."


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
