"""Figures of the results, and the look of all figures of the book. Functions take arrays or tables
and return a matplotlib Figure; a figure of one teaching chapter (01-05) lives in its notebook."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from beatssl.data.records import WAVES
from beatssl.methods import UNTRAINED

WAVE_COLOURS = {"P": "#4c9f70", "QRS": "#c8553d", "T": "#4a6fa5"}
CLASS_COLOURS = {"N": "#4a6fa5", "S": "#e0a030", "V": "#c8553d", "other": "#8a6fa8"}

sns.set_theme(context="notebook", style="whitegrid", font_scale=0.85)
plt.rcParams.update({"figure.dpi": 90, "savefig.bbox": "tight", "axes.titlesize": "medium"})


def waves_on_lead(
    signal: np.ndarray,
    truth: np.ndarray,
    predictions: dict[str, np.ndarray],
    sampling_rate: int,
    title: str = "",
) -> Figure:
    """One lead with annotated waves shaded and predicted ones as bars below.

    Args: signal (time,) mV; truth (time,) -1 left out, 0 background, 1 P, 2 QRS, 3 T; predictions
        name -> (time,) with the same values."""
    fig, (top, low) = plt.subplots(
        2,
        1,
        figsize=(10, 1.9 + 0.28 * (len(predictions) + 1)),
        sharex=True,
        height_ratios=[1.7, 0.28 * (len(predictions) + 1)],
    )
    seconds = np.arange(len(signal)) / sampling_rate
    top.plot(seconds, signal, color="black", lw=0.8)
    top.set(ylabel="mV", title=title, xlim=(0, seconds[-1]))
    rows = {"annotated": truth, **predictions}
    for y, (name, labels) in enumerate(rows.items()):
        for value, wave in enumerate(WAVES, start=1):
            low.fill_between(
                seconds,
                y - 0.4,
                y + 0.4,
                where=labels == value,
                lw=0,
                color=WAVE_COLOURS[wave],
                label=wave if y == 0 else None,
                step="mid",
            )
    low.fill_between(
        seconds,
        -0.5,
        len(rows) - 0.5,
        where=truth < 0,
        color="#dddddd",
        lw=0,
        step="mid",
        label="left out",
        zorder=0,
    )
    low.set(yticks=range(len(rows)), xlabel="time (s)", ylim=(len(rows) - 0.5, -0.5))
    low.set_yticklabels(rows)
    low.grid(False)
    top.legend(
        *low.get_legend_handles_labels(),
        ncols=4,
        loc="lower right",
        fontsize=8,
        frameon=False,
        bbox_to_anchor=(1, 1),
    )
    fig.tight_layout()
    return fig


def paper_and_ours(table: pd.DataFrame, scores: tuple[str, ...]) -> Figure:
    """Dots with 95 % intervals for ours, crosses for the paper's numbers; a panel a score.

    Args: table: columns label, score, value, ci_low, ci_high, paper (NaN where there is none)."""
    labels = list(dict.fromkeys(table["label"]))
    columns = 2 if len(scores) % 2 == 0 else len(scores)
    rows = len(scores) // columns
    size = (2.2 + 2.6 * columns, rows * (0.9 + 0.32 * len(labels)))
    fig, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    for ax, score in zip(axes.flat, scores, strict=True):
        part = table[table["score"] == score].set_index("label").reindex(labels)
        y = np.arange(len(labels))
        ax.hlines(y, part["ci_low"], part["ci_high"], color="#4a6fa5", lw=2)
        ax.plot(part["value"], y, "o", color="#4a6fa5", label="ours, 95 % interval")
        ax.plot(part["paper"], y, "x", color="#c8553d", ms=7, mew=2, label="paper")
        ax.set(xlabel=score, yticks=y, ylim=(len(labels) - 0.5, -0.5))
        ax.set_yticklabels(labels)
    axes[0, -1].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    fig.tight_layout()
    return fig


def per_class(table: pd.DataFrame, value: str, xlabel: str) -> Figure:
    """Points with intervals by class and method.

    Args: table: columns label, class, value, ci_low, ci_high."""
    labels, classes = list(dict.fromkeys(table["label"])), list(dict.fromkeys(table["class"]))
    fig, ax = plt.subplots(figsize=(8, 0.6 + 0.55 * len(classes)))
    colours = sns.color_palette("deep", len(labels))
    for i, label in enumerate(labels):
        part = table[table["label"] == label].set_index("class").reindex(classes)
        y = np.arange(len(classes)) + (i - (len(labels) - 1) / 2) * 0.16
        ax.hlines(y, part["ci_low"], part["ci_high"], color=colours[i], lw=1.6)
        ax.plot(part[value], y, "o", ms=4.5, color=colours[i], label=label)
    ax.set(yticks=range(len(classes)), xlabel=xlabel, ylim=(len(classes) - 0.5, -0.5))
    ax.set_yticklabels(classes)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return fig


def rank_slopes(table: pd.DataFrame, marked: dict[str, str]) -> Figure:
    """Rank of each ablation row in the paper (left) and here (right), a panel a score.

    Args: table: columns label, score, paper, ours (ranks, 1 is best). marked: label -> colour of
        the lines to bring out."""
    scores = list(dict.fromkeys(table["score"]))
    rows = table["label"].nunique()
    size = (3.9 * len(scores), 1 + 0.27 * rows)
    fig, axes = plt.subplots(1, len(scores), figsize=size, squeeze=False)
    for ax, score in zip(axes[0], scores):
        for row in table[table["score"] == score].itertuples():
            colour = marked.get(row.label, "#9a9a9a")
            ax.plot(
                [0, 1],
                [row.paper, row.ours],
                color=colour,
                marker="o",
                ms=4,
                lw=2.2 if row.label in marked else 1,
                zorder=3 if row.label in marked else 2,
            )
            short = row.label.split(" (")[0]
            ax.text(-0.06, row.paper, short, ha="right", va="center", fontsize=7, color="#333333")
        ax.set(
            title=score,
            xlabel="source",
            xlim=(-1.25, 1.12),
            ylim=(rows + 0.6, 0.4),
            xticks=[0, 1],
            yticks=range(1, rows + 1),
        )
        ax.set_xticklabels(["paper", "ours"])
        ax.yaxis.tick_right()
        ax.grid(False)
        sns.despine(ax=ax, left=True, right=True)
    axes[0, -1].set_ylabel("rank (1 is best)")
    axes[0, -1].yaxis.set_label_position("right")
    fig.tight_layout()
    return fig


def sensitivity(table: pd.DataFrame, scores: tuple[str, ...]) -> Figure:
    """Effect of each changed setting with its interval, a panel a score, block by block; the grey
    band is what seeds do.

    Args: table: columns first (the change), block, score, difference, low, high, limit (half width
        of the band), effect."""
    of_block = table.drop_duplicates("first").groupby("block", sort=False)["first"]
    names = [name for block, of in of_block for name in (block, *of)]
    size = (3 + 2.4 * len(scores), 0.9 + 0.27 * len(names))
    fig, axes = plt.subplots(1, len(scores), figsize=size, sharey=True, squeeze=False)
    axes[0, 0].set_ylabel("changed setting")
    y = np.arange(len(names))
    for ax, score in zip(axes[0], scores):
        part = table[table["score"] == score].set_index("first").reindex(names)
        for at, limit in zip(y, part["limit"]):
            ax.fill_betweenx([at - 0.5, at + 0.5], -limit, limit, color="#dddddd", lw=0, zorder=0)
        colours = np.where(part["effect"].eq(True), "#c8553d", "#4a6fa5")
        ax.hlines(y, part["low"], part["high"], color=colours, lw=2)
        ax.scatter(part["difference"], y, color=colours, s=22, zorder=3)
        ax.axvline(0, color="#444444", lw=0.8)
        ax.set(xlabel=f"difference in {score}", yticks=y, ylim=(len(names) - 0.5, -0.5))
        ax.set_yticklabels(names)
        ax.locator_params(axis="x", nbins=4)
    for text in axes[0, 0].get_yticklabels():
        if text.get_text() in of_block.groups:
            text.set_fontweight("bold")
    fig.tight_layout()
    return fig


def layer_spread(encoders: dict[str, pd.DataFrame]) -> Figure:
    """Spread of the activations along the depth of encoders, and what their residual blocks add.

    Args: encoders: name -> columns layer, sd, branch (`tasks.embedding.layer_spread`)."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    for (name, table), colour in zip(encoders.items(), ("#222222", "#c8553d", "#4a6fa5")):
        left.plot(table["layer"], table["sd"], marker="o", ms=4, color=colour, label=name)
        blocks = table.dropna(subset=["branch"])
        right.plot(blocks["layer"], blocks["branch"], marker="o", ms=4, color=colour)
    left.set(yscale="log", title="size of the signal", ylabel="SD (units of the record's SD)")
    right.set(title="what a block adds to its input", ylabel="convolutions / shortcut (SD)")
    right.set_ylim(bottom=0)
    for ax in (left, right):
        ax.set_xlabel("layer")
        ax.tick_params(axis="x", rotation=60)
    fig.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(encoders), frameon=False)
    fig.tight_layout()
    return fig


def health_against_scores(
    table: pd.DataFrame, measures: dict[str, str], scores: tuple[str, ...]
) -> Figure:
    """Each encoder as a point: a health measure against a score, coloured by rhythm target, or as
    untrained or one of the compared methods.

    Args: table: `tables.health_and_scores`. measures: column -> axis label. scores: columns."""
    palette = {
        "untrained": "#222222",
        "hard": "#4a6fa5",
        "soft_1": "#c8553d",
        "soft_2": "#e0a030",
        "compared method": "#9aa0a6",
    }
    bare = np.where(table["method"].isin(UNTRAINED), "untrained", "compared method")
    shown = table.assign(rhythm=table["rhythm"].where(table["rhythm"] != "", bare))
    size = (3.4 * len(measures) + 1, 2.8 * len(scores))
    fig, axes = plt.subplots(
        len(scores), len(measures), figsize=size, squeeze=False, sharex="col", sharey="row"
    )
    for i, score in enumerate(scores):
        for j, (measure, words) in enumerate(measures.items()):
            ax = axes[i, j]
            last = (i, j) == (0, len(measures) - 1)
            sns.scatterplot(
                shown, x=measure, y=score, hue="rhythm", palette=palette, ax=ax, legend=last
            )
            ax.set(xlabel=words, ylabel=score)
            if last:
                ax.legend(
                    title="rhythm target", frameon=False, loc="upper left", bbox_to_anchor=(1, 1)
                )
    fig.tight_layout()
    return fig


# --- the comparison -------------------------------------------------------------------------------


def violins(values: dict[str, pd.DataFrame], paper: dict[str, dict[str, float]]) -> Figure:
    """A violin a method in the paper's form, its draws or folds as dots, the paper's median as a
    red line; a panel a score.

    Args: values: heading -> (blocks, methods). paper: heading -> method -> median."""
    methods = max(table.shape[1] for table in values.values())
    fig, axes = plt.subplots(
        1,
        len(values),
        figsize=(4.6 * len(values), 1.2 + 0.42 * methods),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for ax, (heading, table) in zip(axes.flat, values.items(), strict=True):
        long = table.melt(var_name="method", value_name="value")
        sns.violinplot(
            long,
            x="value",
            y="method",
            ax=ax,
            color="#b9c8de",
            inner="quart",
            linewidth=0.9,
            cut=0,
            density_norm="width",
        )
        sns.stripplot(long, x="value", y="method", ax=ax, color="#2f4a73", size=3, jitter=0.12)
        drawn = [
            (y, paper[heading][name])
            for y, name in enumerate(table)
            if name in paper.get(heading, {})
        ]
        if drawn:
            y, median = np.transpose(drawn)
            lines = ax.vlines(median, y - 0.42, y + 0.42, color="#c8553d", lw=2.2)
            if not fig.legends:
                fig.legend(
                    [lines],
                    ["the paper's median"],
                    loc="outside lower center",
                    fontsize=7,
                    frameon=False,
                )
        ax.set(xlabel=heading, ylabel="")
    return fig


def critical_differences(
    names: list[str],
    mean_rank: np.ndarray,
    critical_difference: float,
    groups: list[tuple[int, ...]],
    title: str = "",
) -> Figure:
    """Mean ranks on a line, 1 is best; bars join methods that cannot be told apart at 5 %.

    Args: groups: from `stats.cliques`, columns of `mean_rank`."""
    order = np.argsort(mean_rank, kind="stable")
    k, half = len(names), (len(names) + 1) // 2
    height = 1.1 + 0.26 * half + 0.14 * len(groups)
    fig, ax = plt.subplots(figsize=(8.5, height))
    ax.hlines(0, 1, k, color="black", lw=1)
    ax.vlines(range(1, k + 1), 0, 0.12, color="black", lw=1)
    for tick in range(1, k + 1):
        ax.text(tick, 0.2, tick, ha="center", fontsize=8)
    ax.hlines(0.75, 1, 1 + critical_difference, color="#c8553d", lw=2)
    ax.text(
        1 + critical_difference / 2,
        0.85,
        f"critical difference {critical_difference:.2f}",
        ha="center",
        fontsize=8,
        color="#c8553d",
    )
    for i, group in enumerate(groups):
        ranks = mean_rank[list(group)]
        ax.hlines(-0.25 - 0.22 * i, ranks.min() - 0.04, ranks.max() + 0.04, color="black", lw=3.5)
    low = -0.35 - 0.22 * len(groups)
    for place, method in enumerate(order):
        left = place < half
        y = low - 0.42 * (place if left else k - 1 - place)
        edge = 0.6 if left else k + 0.4
        ax.plot([mean_rank[method], mean_rank[method], edge], [0, y, y], color="#666666", lw=0.8)
        text = f"{names[method]} ({mean_rank[method]:.1f})"
        ax.text(
            edge + (-0.05 if left else 0.05),
            y,
            text,
            va="center",
            fontsize=8,
            ha="right" if left else "left",
        )
    ax.set(ylim=(low - 0.42 * half, 1.2), xlim=(0.4, k + 0.6), title=title)
    ax.axis("off")
    return fig


def label_efficiency(table: pd.DataFrame, ylabel: str) -> Figure:
    """A line a method over the fraction of the labels, with 95 % intervals.

    Args: table: columns label, label_fraction, value, ci_low, ci_high."""
    fig, ax = plt.subplots(figsize=(8, 4.2))
    names = list(dict.fromkeys(table["label"]))
    for i, (name, colour) in enumerate(
        zip(names, sns.color_palette("deep", len(names)), strict=True)
    ):
        part = table[table["label"] == name].sort_values("label_fraction")
        at = 100 * part["label_fraction"] * 1.02 ** (i - (len(names) - 1) / 2)  # side by side
        ax.plot(at, part["value"], marker="o", ms=4, color=colour, label=name)
        ax.vlines(at, part["ci_low"], part["ci_high"], color=colour, lw=1)
    ticks = sorted(100 * table["label_fraction"].unique())
    ax.set(xscale="log", xlabel="share of the labels of folds 1-8 (%)", ylabel=ylabel, xticks=ticks)
    ax.set_xticklabels([f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return fig


def waves_on_paper(
    lead: np.ndarray, truth: np.ndarray, prediction: np.ndarray, sampling_rate: int, title: str
) -> Figure:
    """One lead on ECG paper (25 mm/s, 10 mm/mV; small square 1 mm) with the annotated waves above
    and the predicted ones below; grey: not annotated.

    Args: lead (time,) mV; truth, prediction (time,) -1 left out, 0 background, 1 P, 2 QRS, 3 T."""
    seconds = np.arange(len(lead)) / sampling_rate
    low, high = np.floor(lead.min() * 2) / 2 - 0.5, np.ceil(lead.max() * 2) / 2 + 0.5
    fig, ax = plt.subplots(figsize=(10, 0.6 + 10 * 0.4 * (high - low + 1) / seconds[-1]))
    for step, width, colour in ((0.1, 0.3, "#f3c9c4"), (0.5, 0.6, "#e39b92")):
        ax.vlines(np.arange(0, seconds[-1], step * 0.4), low, high, lw=width, color=colour)
        ax.hlines(np.arange(low, high + 1e-9, step), 0, seconds[-1], lw=width, color=colour)
    ax.plot(seconds, lead, color="black", lw=0.8)
    for labels, bottom in ((truth, high), (prediction, low - 0.3)):
        for value, wave in enumerate(WAVES, start=1):
            ax.fill_between(
                seconds,
                bottom,
                bottom + 0.3,
                where=labels == value,
                step="mid",
                lw=0,
                color=WAVE_COLOURS[wave],
                label=wave if labels is truth else None,
            )
    ax.fill_between(
        seconds,
        low - 0.3,
        high + 0.3,
        where=truth < 0,
        step="mid",
        lw=0,
        color="#999999",
        alpha=0.25,
        label="not annotated",
    )
    ax.set(
        xlim=(0, seconds[-1]),
        ylim=(low - 0.35, high + 0.35),
        aspect=0.4,
        title=title,
        xlabel="time (s); a large square is 0.2 s",
        ylabel="mV",
        yticks=[low - 0.15, 0, high + 0.15],
    )
    ax.set_yticklabels(["predicted", "0", "annotated"])
    ax.grid(False)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    return fig
