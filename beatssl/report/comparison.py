"""The comparison of methods: what each draw and fold scored, tests over them, label efficiency,
and delineation as cardiologists read it.

Draws and folds are the same for all methods. Where a method has several encoders (seeds), a draw's
value is their mean, and a fold's that of the encoder which takes its repeat (`Profile.repeats_of`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from beatssl.data.records import WAVES
from beatssl.evaluate import COMPARED, train
from beatssl.methods import DELINEATORS, UNTRAINED
from beatssl.profile import Profile, Workspace
from beatssl.report import tables
from beatssl.results import saved as results
from beatssl.results import uncertainty as stats
from beatssl.results.saved import FOLDS, LABELS, Evaluation
from beatssl.tasks import scores as metrics
from beatssl.tasks.compare import STACKED

BEST = "beatssl-soft_1-hard-50"  # the paper's best row
BEST_LABEL = tables.label("beatssl", "soft_1", "hard", 50)
FRACTION = 0.1  # of the labels, in the paper's "PTB-10"
REFERENCES = tuple(
    tables.NAMES[method] for method in (*UNTRAINED, "supervised", "features", *DELINEATORS)
)


@dataclass(frozen=True)
class Design:
    """A score of the comparison: heading, task and metric, and where the paper prints it."""

    heading: str
    task: str
    metric: str
    paper_task: str


DESIGNS = (
    Design("PTB-XL F1", LABELS, "f1_macro", results.CLASSIFY),
    Design("PTB-XL AUROC", LABELS, "auroc_macro", results.CLASSIFY),
    Design("LUDB F1", FOLDS, "f1_macro", results.SEGMENT),
    Design("LUDB Dice", FOLDS, "dice", results.SEGMENT),
)


def block_scores(task: str, predictions: Mapping[str, np.ndarray], metric: str) -> pd.Series:
    """The score of each draw (task `LABELS`, index its number) or of the records of each fold of
    each repeat (`FOLDS`, index repeat and fold), numbers from 1."""
    if task == LABELS:
        values = [
            metrics.classification_scores(
                {"truth": predictions["truth"], "score": score, "threshold": threshold}
            )[metric][0]
            for score, threshold in zip(predictions["score"], predictions["threshold"], strict=True)
        ]
        return pd.Series(values, index=range(1, len(values) + 1))
    found = {}
    repeats = (predictions[name] for name in ("repeat", "fold", "prediction"))
    for repeat, fold, prediction in zip(*repeats, strict=True):
        numbers = np.unique(fold)
        member = (fold == numbers[:, None]).astype(float)  # (folds, records)
        scores = metrics.segmentation_scores({**predictions, "prediction": prediction}, member)
        for number, value in zip(numbers, scores[metric], strict=True):
            found[int(repeat) + 1, int(number)] = value
    return pd.Series(found)


def _members(
    profile: Profile, task: str, protocol: str, fraction: float
) -> dict[str, list[Evaluation]]:
    """Evaluations by label, in the order of `tables.rank`; the supervised reference is there for
    both protocols, the delineators for `frozen` only."""
    groups: dict[str, list[Evaluation]] = {}
    place: dict[str, tuple] = {}
    for what, rows in results.evaluations(profile, task):
        fits = np.isclose(what.label_fraction, fraction) and what.weights
        if fits and what.protocol in (protocol, "scratch"):
            row = [rows[0][name] for name in results.METHOD]
            place[tables.label(*row)] = tables.rank(row)
            groups.setdefault(tables.label(*row), []).append(what)
    return {label: groups[label] for label in sorted(groups, key=place.get)}


def _in_shared_repeats(sides: Sequence[dict[int, Mapping]]) -> list[dict[int, Mapping]]:
    """Predictions of task `FOLDS` by seed, cut to the repeats that all sides have of each seed;
    seeds without any are left out."""
    out: list[dict[int, Mapping]] = [{} for _ in sides]
    for seed in sides[0]:
        numbers = functools.reduce(np.intersect1d, [side[seed]["repeat"] for side in sides])
        for side, cut in zip(sides, out, strict=True):
            if len(numbers):
                at = np.isin(side[seed]["repeat"], numbers)
                parts = {n: side[seed][n][at] for n in STACKED if n in side[seed]}
                cut[seed] = {**side[seed], **parts}
    return out


def _by_seed(profile: Profile, members: Iterable[Evaluation]) -> dict[int, Mapping]:
    """Predictions by seed, in the order of the seeds."""
    ordered = sorted(members, key=lambda what: what.run.seed)
    return {what.run.seed: results.load_predictions(profile, what) for what in ordered}


def blocks(
    profile: Profile, design: Design, *, protocol: str = "frozen", fraction: float = FRACTION
) -> pd.DataFrame:
    """Value of each draw or fold (rows) for each method (columns, labels of the tables); blocks
    that not all of the methods have are left out."""
    fraction = fraction if design.task == LABELS else 1.0
    columns = {}
    for label, members in _members(profile, design.task, protocol, fraction).items():
        each = [
            block_scores(design.task, results.load_predictions(profile, what), design.metric)
            for what in members
        ]
        joined = pd.concat(each)
        columns[label] = joined.groupby(level=list(range(joined.index.nlevels))).mean()
    table = pd.concat(columns, axis=1, join="inner") if columns else pd.DataFrame()
    return table.set_axis(range(1, len(table) + 1))


def paper_medians(design: Design) -> dict[str, float]:
    """Label of the tables -> median of the paper's violin; empty where it shows none."""
    printed = results.paper()
    part = printed[
        printed["source"].str.contains("violin")
        & (printed["task"] == design.paper_task)
        & (printed["metric"] == design.metric)
    ]
    return {
        BEST_LABEL if row.method == "beatssl" else tables.NAMES[row.method]: row.value
        for row in part.itertuples()
    }


def medians(profile: Profile, designs: Sequence[Design] = DESIGNS, **which) -> pd.DataFrame:
    """A line a method: the paper's median and ours [quartiles] over draws or folds, as texts.

    Args: which: protocol, fraction, as in `blocks`."""
    ours, repeated = {}, {}
    for design in designs:
        values = blocks(profile, design, **which)
        if values.empty:
            continue
        repeated[f"{len(values)} {'draws' if design.task == LABELS else 'folds'}"] = None
        quartiles = values.quantile([0.25, 0.5, 0.75]).T.to_numpy()
        ours[design] = {
            name: f"{mid:.3f} [{low:.3f}, {high:.3f}]"
            for name, (low, mid, high) in zip(values, quartiles, strict=True)
        }
    corner = f"median [quartiles] over {' / '.join(repeated)}"
    return tables.titled(_with_paper(ours), corner)


def beside_paper(rows: pd.DataFrame) -> pd.DataFrame:
    """The comparison as a table of texts, a line a method: the paper's median beside our mean over
    draws or folds and seeds (sd over seeds) [95 % interval over patients and seeds], frozen
    encoders.

    Args: rows: of the methods of the comparison, as in `results/<profile>.csv`."""
    table = tables.by_method(rows)
    table = table[table["protocol"].isin(["frozen", "scratch"])]
    compared = table[table["task"].isin([LABELS, FOLDS])]
    ours = {}
    for design in DESIGNS:
        fraction = FRACTION if design.task == LABELS else 1.0
        part = compared[
            (compared["task"] == design.task)
            & (compared["metric"] == design.metric)
            & np.isclose(compared["label_fraction"], fraction)
        ]
        ours[design] = dict(zip(part["label"], tables.cells(part), strict=True))
    wide = _with_paper(ours, compared["label"])
    seeds = compared.groupby("label")["seeds"].max().map("{:.0f}".format)
    return tables.titled(wide.assign(seeds=seeds.reindex(wide.index).fillna("–")), "method")


def _with_paper(
    ours: Mapping[Design, Mapping[str, str]], first: Iterable[str] = ()
) -> pd.DataFrame:
    """Texts by score and method as a table, the paper's medians before ours where it shows any.

    Args: first: methods in the order of the lines; those that are not named follow."""
    columns: dict[str, Mapping[str, str]] = {}
    for design, texts in ours.items():
        if paper := paper_medians(design):
            columns[f"{design.heading}, paper"] = {n: f"{v:.3f}" for n, v in paper.items()}
        columns[f"{design.heading}, ours"] = texts
    found = [n for texts in ours.values() for n in texts]
    order = dict.fromkeys([*first, *found, *(n for c in columns.values() for n in c)])
    return pd.DataFrame(columns).reindex(list(order)).fillna("–")


def sizes(w: Workspace) -> pd.DataFrame:
    """A line a method of the comparison: its encoder, and what its training took (first seed)."""
    lines, seen = {}, set()
    for config in w.profile.runs:
        if config.name not in COMPARED or config.name in seen or not config.has_encoder:
            continue
        seen.add(config.name)
        run = train(w, config)
        label = tables.label(config.method, config.rhythm, config.beat, config.exponent)
        if run.failure:
            lines[label] = {"weights": run.failure}
            continue
        curves, encoder = run.curves, run.encoder
        trained = len(curves) > 0
        lines[label] = {
            "weights": f"{sum(p.numel() for p in encoder.parameters()):,}",
            "channels": encoder.channels,
            "ms a step": f"{1000 * encoder.stride / w.store.sampling_rate:g}",
            "steps": int(curves["steps"].sum()) if trained else "untrained",
            "records a step": config.batch_size if trained else "–",
            "minutes": f"{curves['seconds'].sum() / 60:.1f}" if trained else "–",
        }
    table = pd.DataFrame(lines).T
    return tables.titled(table.where(table.notna(), "–"), "method")


def scores(profile: Profile, task: str) -> pd.DataFrame:
    """`tables.by_method` of one task for the methods of the comparison."""
    table = tables.by_method(results.with_combined(profile, task))
    names = [tables.name_of(*row) for row in table[tables.METHOD].to_numpy()]
    return table[np.isin(names, [*COMPARED, "supervised"])]


def headline_claims(values: Mapping[str, pd.DataFrame]) -> str:
    """The paper's two claims about the comparison, judged as far as what was run allows: its 93 %
    is the ratio of the mean F1, its 4 % the relative gain in mean LUDB F1 (paper.md 7).

    Args: values: heading of `DESIGNS` -> `blocks`."""
    ours, released, small = BEST_LABEL, tables.NAMES["ecg_fm"], tables.NAMES["w2v"]
    mean = values["PTB-XL F1"].mean()
    lines = []
    if ours not in mean or ours not in values["LUDB F1"]:
        return "The paper's best row has not been evaluated on both tasks."
    if released in mean:
        lines.append(
            f"- *93 % of ECG-FM in classification*: here {mean[ours] / mean[released]:.0%} "
            "(ratio of the mean F1 over draws)."
        )
    else:
        text = "- *93 % of ECG-FM in classification*: cannot be judged without the released file."
        if small in mean:
            text += (
                f" Of its recipe in small, which has seen no more than our rows, ours has "
                f"{mean[ours] / mean[small]:.0%}; this says nothing of ECG-FM."
            )
        lines.append(text)
    table = values["LUDB F1"]
    compared = [tables.NAMES[m] for m in ("ts2vec", "domain_ssl", "ecg_fm")]
    rivals = [name for name in compared if name in table]
    if rivals:
        second = max(rivals, key=lambda name: table[name].mean())
        pair = pairs(table, ours).set_index("second").loc[second]
        gain = table[ours].mean() / table[second].mean() - 1
        lines.append(
            f"- *4 % above the others in segmentation*: here {gain:+.1%} against {second}, the "
            "best of those that the paper compares and that were run (relative gain of the mean "
            f"LUDB F1 over {pair['blocks']} folds; p = {tables.p_text(pair['p_nemenyi'])} by "
            f"Nemenyi among {table.shape[1]} methods, {tables.p_text(pair['p_holm'])} by Wilcoxon "
            "after Holm; the folds share records, so both are too small)."
        )
    else:
        lines.append(
            "- *4 % above the others in segmentation*: none of the paper's methods has been run."
        )
    return "\n".join(lines)


# --- tests ----------------------------------------------------------------------------------------


def friedman_texts(values: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Friedman's test of each score, with the smallest p that its design can give.

    Args: values: heading -> `blocks`; those with fewer than three methods are left out."""
    lines = {}
    for heading, table in values.items():
        if table.shape[1] < 3 or len(table) < 2:
            continue
        found = stats.friedman(table.to_numpy())
        order = np.argsort(found.mean_rank, kind="stable")
        lines[heading] = {
            "blocks": found.blocks,
            "methods": table.shape[1],
            "chi-square": f"{found.statistic:.1f}",
            "p": tables.p_text(found.p),
            "smallest p of this design": tables.p_text(found.smallest_p),
            "Kendall's W": f"{found.kendall_w:.2f}",
            "critical difference of ranks": f"{found.critical_difference:.2f}",
            "best by mean rank": f"{table.columns[order[0]]} ({found.mean_rank[order[0]]:.1f})",
        }
    return tables.titled(pd.DataFrame(lines).T, "Friedman")


def pairs(table: pd.DataFrame, first: str) -> pd.DataFrame:
    """`first` against every other method, read twice. First as the paper's figures say: the mean
    ranks after Friedman's test, by Nemenyi, among all methods of the table. Then by Wilcoxon's
    signed-rank test, corrected by Holm within two families: the compared methods, which are the
    paper's question, and the references.

    Args: table: `blocks`.

    Returns:
        Empty where `first` was not run, else columns second, family (compared | reference), blocks;
        rank_difference (mean rank of the second minus that of the first: positive where the first
        is better), p_nemenyi, smallest_p_nemenyi, verdict; median (of the differences),
        rank_biserial, p, p_holm, smallest_p, smallest_p_holm, second_reading. A verdict is higher |
        lower | no difference shown | cannot be shown, where no values could give a p of 5 %.
    """
    if first not in table:
        return pd.DataFrame(columns=["second"])
    names, values = list(table), table.to_numpy()
    families = {
        "compared": [n for n in names if n != first and n not in REFERENCES],
        "reference": [n for n in names if n != first and n in REFERENCES],
    }
    methods, rank = len(names), dict(zip(names, stats.mean_ranks(values), strict=True))
    floor = float(stats.nemenyi(methods - 1, methods, len(table)))
    lines = []
    for family, others in families.items():
        columns = [(names.index(first), names.index(other)) for other in others]
        for other, pair in zip(others, stats.wilcoxon_holm(values, columns), strict=True):
            ranks = rank[other] - rank[first]
            p = float(stats.nemenyi(ranks, methods, len(table)))
            lines.append(
                {
                    "second": other,
                    "family": family,
                    "blocks": pair.blocks,
                    "rank_difference": ranks,
                    "p_nemenyi": p,
                    "smallest_p_nemenyi": floor,
                    "verdict": _verdict(ranks, p, floor),
                    "median": pair.median,
                    "rank_biserial": pair.rank_biserial,
                    "p": pair.p,
                    "p_holm": pair.p_holm,
                    "smallest_p": pair.smallest_p,
                    "smallest_p_holm": pair.smallest_p_holm,
                    "second_reading": _verdict(pair.median, pair.p_holm, pair.smallest_p_holm),
                }
            )
    return pd.DataFrame(lines)


def _verdict(difference: float, p: float, smallest_p: float) -> str:
    if smallest_p > 0.05:
        return "cannot be shown"
    if not p <= 0.05:
        return "no difference shown"
    return "higher" if difference > 0 else "lower"


def pair_texts(table: pd.DataFrame) -> pd.DataFrame:
    """`pairs` as texts, a line a method: Nemenyi first, then Wilcoxon."""
    lines = {
        row.second: {
            "family": row.family,
            "difference of mean ranks": f"{row.rank_difference:+.2f}",
            "p, Nemenyi": tables.p_text(row.p_nemenyi),
            "verdict": row.verdict,
            "median difference": f"{row.median:+.3f}",
            "rank-biserial": f"{row.rank_biserial:+.2f}",
            "p, Wilcoxon": tables.p_text(row.p),
            "p, Holm": tables.p_text(row.p_holm),
            "smallest p": tables.p_text(row.smallest_p),
            "smallest p, Holm": tables.p_text(row.smallest_p_holm),
            "second reading": row.second_reading,
        }
        for row in table.itertuples()
    }
    return tables.titled(pd.DataFrame(lines).T, "against")


# --- label efficiency -----------------------------------------------------------------------------


def label_efficiency(profile: Profile, metric: str) -> pd.DataFrame:
    """Columns label, label_fraction, value, ci_low, ci_high, seeds of a score over the fraction of
    the labels; mean over draws and encoder seeds, interval over patients and seeds."""
    rows = results.with_combined(profile, LABELS)
    table = tables.by_method(rows)
    table = table[table["metric"] == metric]
    return table[["label", "label_fraction", "value", "ci_low", "ci_high", "seeds"]]


def label_texts(table: pd.DataFrame) -> pd.DataFrame:
    """`label_efficiency` as texts, a column a fraction."""
    text = [f"{r.value:.3f} [{r.ci_low:.3f}, {r.ci_high:.3f}]" for r in table.itertuples()]
    wide = table.assign(text=text).pivot(index="label", columns="label_fraction", values="text")
    wide = wide.reindex(list(dict.fromkeys(table["label"])))
    return tables.titled(wide.rename(columns="{:.0%}".format), "labels")


def own_untrained(method: str) -> list[str]:
    """Names of the untrained encoders with this method's network; of the ResNets where it has no
    network of its own."""
    own = [name for name, methods in UNTRAINED.items() if method in methods]
    return own or ["random", "random_data"]


def label_gains(profile: Profile, metric: str) -> pd.DataFrame:
    """What each method gains at each fraction of the labels over its own network untrained, as
    texts: paired difference [95 % interval], mean over draws and seeds; a column a fraction. The
    ResNet stands there twice, as initialised and with data statistics."""
    columns: dict[str, dict[str, str]] = {}
    for fraction in profile.compare.label_fractions:
        groups = _members(profile, LABELS, "frozen", fraction)
        loaded = {label: _by_seed(profile, members) for label, members in groups.items()}
        column = columns.setdefault(f"{fraction:.0%}", {})
        for name in UNTRAINED:
            base = tables.NAMES[name]
            others = [
                label
                for label, members in groups.items()
                if name in own_untrained(members[0].run.method)
                and members[0].run.method not in UNTRAINED
            ]
            if base not in loaded or not others:
                continue
            found = stats.against(
                metrics.draw_scores,
                loaded[base],
                [loaded[label] for label in others],
                profile.classify.bootstrap,
            )
            for label, scores in zip(others, found, strict=True):
                one = scores[metric]
                column[f"{label} − {base}"] = tables.difference(one.value, one.low, one.high)
    return tables.titled(pd.DataFrame(columns).fillna("–"), "labels")


def labels_to_reach(table: pd.DataFrame, reference: str) -> str:
    """One sentence a method: the smallest fraction at which it reaches the reference at 10 %."""
    value = table.pivot(index="label", columns="label_fraction", values="value")
    if reference not in value.index or FRACTION not in value:
        return "The reference has not been run."
    wanted = value.loc[reference, FRACTION]
    lines = []
    for name in dict.fromkeys(table["label"]):
        if name == reference:
            continue
        enough = value.columns[value.loc[name] >= wanted]
        said = f"with {enough[0]:.0%} of the labels" if len(enough) else "with no fraction"
        lines.append(f"- *{name}* reaches it {said}.")
    return f"*{reference}* with {FRACTION:.0%} of the labels: {wanted:.3f}.\n\n" + "\n".join(lines)


# --- fine-tuning ----------------------------------------------------------------------------------


def finetuning_gains(profile: Profile, task: str, base: str) -> pd.DataFrame:
    """Fine-tuned encoders minus `base`, as texts: paired difference [95 % interval over patients
    and, with several, seeds] of the same seeds, which have the same labels and folds; a line a
    method, a column a headline score and fraction of the labels.

    Args:
        task: CLASSIFY or FOLDS.
        base: "supervised": the untrained ResNet trained on the same labels; "frozen": the same
            encoder with a probe or decoder on top.
    """
    fractions = profile.classify.label_fractions if task == results.CLASSIFY else (1.0,)
    of = results.SEGMENT if task == FOLDS else task
    scores = {metric: score for score, of_task, metric in results.HEADLINES if of_task == of}
    columns: dict[str, dict[str, str]] = {}
    for fraction in fractions:
        tuned = _members(profile, task, "finetune", fraction)
        supervised = tuned.pop(tables.NAMES["supervised"], [])
        others = _members(profile, task, "frozen", fraction)
        for label, members in tuned.items():
            second = supervised if base == "supervised" else others.get(label, [])
            seeds = {what.run.seed for what in members} & {what.run.seed for what in second}
            if not seeds:
                continue
            sides = [
                _by_seed(profile, [what for what in side if what.run.seed in seeds])
                for side in (members, second)
            ]
            if task == FOLDS:
                sides = _in_shared_repeats(sides)
                if not sides[0]:
                    continue
            found = stats.difference(
                results.SCORES[task], *sides, results.resamples_of(profile, task)
            )
            for metric, score in scores.items():
                heading = f"{score}, {fraction:.0%} of labels" if len(fractions) > 1 else score
                one = found[metric]
                text = tables.difference(one.value, one.low, one.high)
                columns.setdefault(heading, {})[label] = text
    corner = f"fine-tuned − {'supervised from scratch' if base == 'supervised' else 'frozen'}"
    return tables.titled(pd.DataFrame(columns), corner)


# --- delineation ----------------------------------------------------------------------------------


def delineation(profile: Profile, tolerance_ms: float, protocol: str = "frozen") -> pd.DataFrame:
    """Sensitivity / precision and error (mean ± sd, ms) of each border within a tolerance, a line
    a method; mean over encoder seeds."""
    lines = {}
    for label, members in _members(profile, FOLDS, protocol, 1.0).items():
        each = [_scores_within(profile, what, tolerance_ms) for what in members]
        score = {name: np.mean([s[name][0] for s in each]) for name in each[0]}
        lines[label] = tables.borders(score)
    corner = f"within {tolerance_ms:g} ms: sensitivity / precision, error in ms"
    return tables.titled(pd.DataFrame(lines).T, corner)


def borders_f1(profile: Profile, tolerance_ms: float) -> pd.DataFrame:
    """F1 of each border within a tolerance: published figures first, then our methods."""
    published = pd.read_csv(results.RESULTS / "delineation_literature.csv").set_index("system")
    lines = {f"{name} (published)": row for name, row in published.iterrows()}
    names = [f"{wave}_{border}" for wave in WAVES for border in metrics.BORDERS]
    for label, members in _members(profile, FOLDS, "frozen", 1.0).items():
        each = [_scores_within(profile, what, tolerance_ms) for what in members]
        lines[label] = {n: np.mean([s[f"event_f1_{n}"][0] for s in each]) for n in names}
    texts = {
        label: {n.replace("_", " "): "–" if pd.isna(row[n]) else f"{row[n]:.3f}" for n in names}
        for label, row in lines.items()
    }
    return tables.titled(pd.DataFrame(texts).T, f"F1 within {tolerance_ms:g} ms")


def delineator_failures(profile: Profile) -> str:
    """One sentence a delineator: on how many records it failed, and which; they count as drawn
    without any wave."""
    lines = []
    for what, _ in results.evaluations(profile, FOLDS):
        if what.run.method in DELINEATORS:
            saved = results.load_predictions(profile, what)
            text = f"- {tables.NAMES[what.run.method]}: failed on {len(saved['failed'])} of "
            text += f"{len(saved['truth'])} records"
            lines.append(text + "".join(f"; {reason}" for reason in saved["failed"]) + ".")
    return "\n".join(lines) or "No delineator was run."


def _scores_within(profile: Profile, what: Evaluation, tolerance_ms: float) -> dict:
    loaded = results.load_predictions(profile, what)
    return metrics.fold_scores({**loaded, "tolerance_ms": np.array(tolerance_ms)})


def examples(profile: Profile, name: str, seed: int = 0) -> dict[str, dict]:
    """Best, median and worst record of a method by Dice, in the seed's first repeat: "best" |
    "median" | "worst" -> record_id, dice, truth and prediction (time,). Empty where the method was
    not run, or failed."""
    found = next(
        (
            what
            for what, _ in results.evaluations(profile, FOLDS)
            if what.name == name
            and what.run.seed == seed
            and what.protocol == "frozen"
            and what.weights
        ),
        None,
    )
    if found is None:
        return {}
    loaded = results.load_predictions(profile, found)
    prediction = loaded["prediction"][0]
    dice = metrics.record_dice(metrics.wave_counts(loaded["truth"], prediction))
    order = [i for i in np.argsort(dice, kind="stable") if not np.isnan(dice[i])]
    places = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    return {
        word: {
            "record_id": str(loaded["record_id"][i]),
            "dice": float(dice[i]),
            "truth": loaded["truth"][i],
            "prediction": prediction[i],
        }
        for word, i in places.items()
    }
