"""Figures of the results, and the look of all figures of the book. Functions take arrays or tables
and return a matplotlib Figure; a figure of one teaching chapter (01-05) lives in its notebook."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats

from beatssl.data.records import WAVES
from beatssl.paper import COLOURS


WAVE_COLOURS = COLOURS
CLASS_COLOURS = {"N": "#0072b2", "S": "#e69f00", "V": "#d55e00", "other": "#cc79a7"}

sns.set_theme(context="notebook", style="whitegrid", font_scale=0.85, palette="colorblind")
plt.rcParams.update({"figure.dpi": 90, "savefig.bbox": "tight", "axes.titlesize": "medium"})
plt.rcParams.update({"svg.hashsalt": "beatssl", "svg.fonttype": "none"})  # the same bytes; text
if get_ipython():  # a page keeps the smaller of both, see `pages.scrub`
    set_matplotlib_formats("png", "svg", metadata={"Date": None})


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
    bars = 0.28 * (len(predictions) + 1)
    style = {"figsize": (10, 1.9 + bars), "sharex": True, "height_ratios": [1.7, bars]}
    fig, (top, low) = plt.subplots(2, 1, **style)
    seconds = np.arange(len(signal)) / sampling_rate
    top.plot(seconds, signal, color="black", lw=0.8)
    top.set(ylabel="mV", title=title, xlim=(0, seconds[-1]))
    rows = {"annotated": truth, **predictions}
    span = {"lw": 0, "step": "mid"}
    for y, labels in enumerate(rows.values()):
        for value, wave in enumerate(WAVES, start=1):
            shown = span | {"color": WAVE_COLOURS[wave], "label": None if y else wave}
            low.fill_between(seconds, y - 0.4, y + 0.4, where=labels == value, **shown)
    span |= {"color": "#dddddd", "label": "left out", "zorder": 0}
    low.fill_between(seconds, -0.5, len(rows) - 0.5, where=truth < 0, **span)
    low.set(yticks=range(len(rows)), xlabel="time (s)", ylim=(len(rows) - 0.5, -0.5))
    low.set_yticklabels(rows)
    low.grid(False)
    style = {"ncols": 4, "fontsize": 8, "frameon": False, "bbox_to_anchor": (1, 1)}
    top.legend(*low.get_legend_handles_labels(), loc="lower right", **style)
    fig.tight_layout()
    return fig


def paper_and_ours(table: pd.DataFrame, scores: tuple[str, ...]) -> Figure:
    """Dots with 95 % intervals for ours, crosses for the paper's numbers; a panel a score.

    Args: table: columns label, score, value, ci_low, ci_high, paper (NaN where there is none)."""
    labels = list(table["label"].unique())
    columns = 2 if len(scores) % 2 == 0 else len(scores)
    rows, y = len(scores) // columns, np.arange(len(labels))
    size = (2.2 + 2.6 * columns, rows * (0.9 + 0.32 * len(labels)))
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
