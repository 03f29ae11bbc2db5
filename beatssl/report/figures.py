"""Figures of the results, and the look of all figures of the book. Functions take arrays or tables
and return a matplotlib Figure; a figure of one teaching chapter (01-05) lives in its notebook."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats

CLASS_COLOURS = {"N": "#0072b2", "S": "#e69f00", "V": "#d55e00", "other": "#cc79a7"}

sns.set_theme(context="notebook", style="whitegrid", font_scale=0.85, palette="colorblind")
plt.rcParams.update({"figure.dpi": 90, "savefig.bbox": "tight", "axes.titlesize": "medium"})
plt.rcParams.update({"svg.hashsalt": "beatssl", "svg.fonttype": "none"})  # the same bytes; text
if get_ipython():  # a page keeps the smaller of both, see `pages.scrub`
    set_matplotlib_formats("png", "svg", metadata={"Date": None})


def paper_and_ours(table: pd.DataFrame, scores: tuple[str, ...]) -> Figure:
    """Dots with 95 % intervals for ours, crosses for the paper's numbers; a panel a score.

    Args: table: columns label, score, value, ci_low, ci_high, paper (NaN where there is none)."""
    labels = list(table["label"].unique())
    columns = 2 if len(scores) % 2 == 0 else len(scores)
    rows, y = len(scores) // columns, np.arange(len(labels))
    line = 0.45 if any("\n" in label for label in labels) else 0.32  # inches
    size = (2.2 + 2.6 * columns, rows * (0.9 + line * len(labels)))
    fig, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    for ax, score in zip(axes.flat, scores, strict=True):
        part = table[table["score"] == score].set_index("label").reindex(labels)
        ax.hlines(y, part["ci_low"], part["ci_high"], color="#0072b2", lw=2)
        ax.plot(part["value"], y, "o", color="#0072b2", label="ours, 95 % interval")
        ax.plot(part["paper"], y, "x", color="#d55e00", ms=7, mew=2, label="paper")
        ax.set_yticks(y, labels)
        ax.set(xlabel=score, ylim=(len(labels) - 0.5, -0.5))
    axes[0, -1].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    fig.tight_layout()
    return fig


# --- the comparison -------------------------------------------------------------------------------


def claims(table: pd.DataFrame) -> Figure:
    """`paper_and_ours` of differences, with a line where there is none.

    Args: table: `tables.claim_effects`."""
    fig = paper_and_ours(table, tuple(table["score"].unique()))
    for ax in fig.axes:
        ax.axvline(0, color="#555555", lw=1, zorder=0)
        ax.set_xlabel(f"difference in {ax.get_xlabel()}")
    return fig


def violins(values: dict[str, pd.DataFrame], paper: dict[str, dict[str, float]]) -> Figure:
    """A violin a method in the paper's form, its draws or folds as dots, the paper's median as a
    red line; a panel a score.

    Args: values: heading -> (blocks, methods). paper: heading -> method -> median."""
    size = 4.6 * len(values), 1.2 + 0.42 * max(table.shape[1] for table in values.values())
    fig, axes = plt.subplots(1, len(values), figsize=size, sharey=True, layout="constrained")
    style = {"inner": "quart", "linewidth": 0.9, "cut": 0, "density_norm": "width"}
    for ax, (heading, table) in zip(np.atleast_1d(axes), values.items(), strict=True):
        data = {"data": table.melt(var_name="method"), "x": "value", "y": "method", "ax": ax}
        sns.violinplot(**data, color="#b9c8de", **style)
        sns.stripplot(**data, color="#2f4a73", size=3, jitter=0.12)
        median = table.columns.map(paper.get(heading, {})).to_numpy(float)
        y = np.flatnonzero(~np.isnan(median))
        lines = ax.vlines(median[y], y - 0.42, y + 0.42, color="#d55e00", lw=2.2)
        if len(y) and not fig.legends:
            place = {"loc": "outside lower center", "fontsize": 7, "frameon": False}
            fig.legend([lines], ["the paper's median"], **place)
        ax.set(xlabel=heading, ylabel="")
    return fig
