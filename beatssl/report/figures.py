"""Every figure of the book. Functions take arrays or tables and return a matplotlib Figure."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from beatssl.data.beats import BEAT_CLASSES
from beatssl.data.records import LEADS, WAVES

WAVE_COLOURS = {"P": "#4c9f70", "QRS": "#c8553d", "T": "#4a6fa5"}
CLASS_COLOURS = {"N": "#4a6fa5", "S": "#e0a030", "V": "#c8553d", "other": "#8a6fa8"}

sns.set_theme(context="notebook", style="whitegrid", font_scale=0.85)
plt.rcParams.update({"figure.dpi": 90, "savefig.bbox": "tight", "axes.titlesize": "medium"})


def ecg_paper(signal: np.ndarray, sampling_rate: int, title: str = "") -> Figure:
    """Twelve leads in four columns of 2.5 s on ECG paper: 25 mm/s, 10 mm/mV, small square 1 mm.

    Args: signal (12, time) mV, at least 10 s."""
    fig, ax = plt.subplots(figsize=(10, 4.4))
    samples = int(2.5 * sampling_rate)
    for i, lead in enumerate(LEADS):
        column, row = divmod(i, 3)
        part = signal[i, column * samples : (column + 1) * samples]
        seconds = column * 2.5 + np.arange(len(part)) / sampling_rate
        ax.plot(seconds, part.clip(-1.6, 1.6) - 3 * row, color="black", lw=0.7)
        ax.text(column * 2.5 + 0.05, 1.05 - 3 * row, lead, fontsize=9, weight="bold")
    for step, width, colour in ((0.1, 0.3, "#f3c9c4"), (0.5, 0.6, "#e39b92")):
        ax.vlines(np.arange(0, 10 + 1e-9, step * 0.4), -7.6, 1.6, lw=width, color=colour, zorder=0)
        ax.hlines(np.arange(-7.5, 1.6, step), 0, 10, lw=width, color=colour, zorder=0)
    ax.set(
        xlim=(0, 10),
        ylim=(-7.6, 1.6),
        aspect=0.4,
        title=title,
        xlabel="time (s); a large square is 0.2 s",
        ylabel="a large square is 0.5 mV",
    )
    ax.set_yticks([])
    ax.grid(False)
    return fig


def beats_on_lead(
    signal: np.ndarray, r_peak: np.ndarray, classes: np.ndarray, sampling_rate: int, title: str = ""
) -> Figure:
    """One lead with its R peaks coloured by beat class.

    Args: signal (time,) mV; r_peak, classes (k,)."""
    fig, ax = plt.subplots(figsize=(10, 2.2))
    ax.plot(np.arange(len(signal)) / sampling_rate, signal, color="#444444", lw=0.8)
    for index, name in enumerate(BEAT_CLASSES):
        mine = r_peak[classes == index]
        if len(mine):
            ax.scatter(
                mine / sampling_rate,
                signal[mine],
                color=CLASS_COLOURS[name],
                s=28,
                label=name,
                zorder=3,
            )
    ax.set(xlabel="time (s)", ylabel="lead II (mV)", title=title)
    ax.set_xlim(0, len(signal) / sampling_rate)
    ax.legend(title="beat class", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return fig


def distributions(values: dict[str, np.ndarray], xlabel: str, bins: int = 60) -> Figure:
    """Small histograms side by side, one a name.

    Args: values: name -> (n,) numbers."""
    fig, axes = plt.subplots(1, len(values), figsize=(3.2 * len(values), 2.4), squeeze=False)
    for ax, (name, numbers) in zip(axes[0], values.items()):
        sns.histplot(numbers, bins=bins, stat="proportion", color="#4a6fa5", lw=0, ax=ax)
        ax.set(title=name, xlabel=xlabel, ylabel="proportion of pairs")
    fig.tight_layout()
    return fig


def target_matrices(matrices: dict[str, np.ndarray]) -> Figure:
    """Target matrices in the layout of the paper's figure: both views of all records, values in
    the cells.

    Args: matrices: name -> (2N, 2N), N small."""
    fig, axes = plt.subplots(1, len(matrices), figsize=(3.4 * len(matrices), 3.2), squeeze=False)
    for ax, (name, matrix) in zip(axes[0], matrices.items()):
        n = len(matrix) // 2
        ticks = [f"{i + 1}{view}" for view in "ab" for i in range(n)]
        sns.heatmap(
            matrix,
            vmin=0,
            vmax=1,
            cmap="crest",
            annot=True,
            fmt=".2f",
            square=True,
            cbar=False,
            annot_kws={"size": 7},
            xticklabels=ticks,
            yticklabels=ticks,
            ax=ax,
        )
        ax.set(title=name, xlabel="record and view", ylabel="record and view")
    fig.tight_layout()
    return fig


def views_of_leads(
    views: dict[str, np.ndarray], sampling_rate: int, leads: tuple[str, ...] = ("II", "V2", "V5")
) -> Figure:
    """The same record and its augmented views in a few leads.

    Args: views: name -> (12, time), in units of the record's SD."""
    fig, axes = plt.subplots(len(leads), 1, figsize=(10, 1.7 * len(leads)), sharex=True)
    for ax, lead in zip(axes, leads):
        for (name, signal), colour in zip(views.items(), ("#222222", "#c8553d", "#4a6fa5")):
            y = signal[LEADS.index(lead)]
            ax.plot(np.arange(len(y)) / sampling_rate, y, lw=0.8, color=colour, label=name)
        ax.set_ylabel(f"{lead} (SD)")
    axes[0].legend(ncols=len(views), loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    axes[-1].set_xlabel("time (s)")
    fig.tight_layout()
    return fig


def vcg_loops(loops: dict[str, np.ndarray]) -> Figure:
    """VCG loops in the frontal (X, Y) and horizontal (X, Z) planes.

    Args: loops: name -> (3, time), axes X left, Y down, Z back, in units of the record's SD."""
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.3))
    for ax, (a, b), plane in zip(axes, ((0, 1), (0, 2)), ("frontal plane", "horizontal plane")):
        for (name, heart), colour in zip(loops.items(), ("#222222", "#c8553d", "#4a6fa5")):
            ax.plot(heart[a], heart[b], lw=0.8, color=colour, label=name)
        down = "Y, down (SD)" if b == 1 else "Z, back (SD)"
        ax.set(title=plane, xlabel="X, left (SD)", ylabel=down, aspect="equal")
        ax.invert_yaxis()
    axes[0].legend(frameon=False, fontsize=8)
    fig.tight_layout()
    return fig


def training_curves(curves: pd.DataFrame) -> Figure:
    """Losses and, where the method has them, what is left of them to learn (KL), alignment and
    uniformity, entropy of the targets and the probe, over epochs."""
    losses = ("total", "rhythm", "beat", "instance", "temporal", "prototype", "info_nce", "cmsc")
    panels = {
        "loss (nats)": losses,
        "KL: loss minus entropy (nats)": ("rhythm_kl", "beat_kl"),
        "alignment (0: views agree)": ("alignment",),
        "uniformity (0: collapse)": ("uniformity",),
        "target entropy (nats)": ("row_entropy", "beat_row_entropy"),
        "perplexity of the codes": ("perplexity",),
        "probe AUROC, fold 9": ("probe_auroc",),
    }
    there = {label: [c for c in names if c in curves] for label, names in panels.items()}
    panels = [(label, names) for label, names in there.items() if names]
    fig, axes = plt.subplots(2, 3, figsize=(9, 4.6))
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, (label, names) in zip(axes.flat, panels, strict=False):
        for name in names:
            known = curves[["epoch", name]].dropna()
            ax.plot(known["epoch"], known[name], marker=".", ms=4, label=name)
        ax.set(xlabel="epoch", ylabel=label)
        if len(names) > 1:
            ax.legend(fontsize=7, frameon=False)
    fig.tight_layout()
    return fig


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
    labels = list(table["label"].unique())
    columns = 2 if len(scores) % 2 == 0 else len(scores)
    rows, y = len(scores) // columns, np.arange(len(labels))
    size = (2.2 + 2.6 * columns, rows * (0.9 + 0.32 * len(labels)))
    fig, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    for ax, score in zip(axes.flat, scores, strict=True):
        part = table[table["score"] == score].set_index("label").reindex(labels)
        ax.hlines(y, part["ci_low"], part["ci_high"], color="#4a6fa5", lw=2)
        ax.plot(part["value"], y, "o", color="#4a6fa5", label="ours, 95 % interval")
        ax.plot(part["paper"], y, "x", color="#c8553d", ms=7, mew=2, label="paper")
        ax.set_yticks(y, labels)
        ax.set(xlabel=score, ylim=(len(labels) - 0.5, -0.5))
    axes[0, -1].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    fig.tight_layout()
    return fig


def embedding_maps(
    records: tuple[np.ndarray, np.ndarray, np.ndarray],
    beats: tuple[np.ndarray, np.ndarray, np.ndarray],
    classes: tuple[str, ...],
    beat_names: tuple[str, ...],
) -> Figure:
    """First two principal components of records, by superclass, and of beats, by beat class.

    Args: records: points (n, 2), labels (n, 5) 0 or 1, share of variance (2,). beats: points
        (m, 2), class (m,), share of variance (2,). classes, beat_names: names of the labels."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    points, labels, share = records
    single = np.where(labels.sum(axis=1) == 1, labels.argmax(axis=1), len(classes))
    names = [*classes, "several"]
    colours = [*sns.color_palette("deep", len(classes)), "#bbbbbb"]
    for value in (len(classes), *range(len(classes))):
        mine = single == value
        left.scatter(*points[mine].T, s=12, color=colours[value], label=names[value], lw=0)
    beat_points, beat_class, beat_share = beats
    beat_colours = sns.color_palette("deep", len(beat_names))
    for value in np.unique(beat_class):
        mine = beat_class == value
        name = beat_names[value]
        colour = CLASS_COLOURS.get(name, beat_colours[value])
        right.scatter(
            *beat_points[mine].T,
            s=4 if value == 0 else 9,
            color=colour,
            label=name,
            lw=0,
            zorder=2 + value,
        )
    for ax, title, of in ((left, "records", share), (right, "beats", beat_share)):
        ax.set(
            title=title,
            xlabel=f"1st component ({of[0]:.0%} of variance)",
            ylabel=f"2nd component ({of[1]:.0%})",
        )
        ax.legend(
            fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1), markerscale=1.5
        )
    fig.tight_layout()
    return fig


def target_shares(table: pd.DataFrame, xlabel: str) -> Figure:
    """Share of the other embeddings that count as positives in a row of targets, by target.

    Args: table: columns target, context, share (one line a row of a target matrix)."""
    contexts = list(dict.fromkeys(table["context"]))
    fig, axes = plt.subplots(1, len(contexts), figsize=(4.6 * len(contexts), 2.8), squeeze=False)
    for ax, context in zip(axes[0], contexts):
        part = table[table["context"] == context]
        sns.boxplot(part, x="share", y="target", color="#9db4d3", fliersize=2, ax=ax)
        ax.set(title=context, xlabel=xlabel, ylabel="target", xlim=(-0.02, 1.02))
    fig.tight_layout()
    return fig


# --- the comparison -------------------------------------------------------------------------------


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
        lines = ax.vlines(median[y], y - 0.42, y + 0.42, color="#c8553d", lw=2.2)
        if len(y) and not fig.legends:
            words = ["the paper's median"]
            fig.legend([lines], words, loc="outside lower center", fontsize=7, frameon=False)
        ax.set(xlabel=heading, ylabel="")
    return fig
