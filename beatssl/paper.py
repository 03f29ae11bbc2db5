"""An ECG on ECG paper, at its true size: 25 mm/s and 10 mm/mV."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from beatssl.data.records import LEADS
from beatssl.ecg import ECG

MM_PER_S, MM_PER_MV, INCH = 25.0, 10.0, 25.4
SECONDS, ROW, MARGIN = 10.0, 30.0, 8.0  # of a page; mm: height of a row, around the paper
COLUMNS = [("I", "II", "III"), ("aVR", "aVL", "aVF"), ("V1", "V2", "V3"), ("V4", "V5", "V6")]
COLOURS = {"P": "#0072b2", "QRS": "#d55e00", "T": "#009e73"}  # told apart by colour-blind eyes, too
PAPER, LINES = "#fffafa", {1: ("#f6d5d5", 0.3), 5: ("#e8a0a0", 0.6)}  # mm: colour, width


def plot(
    ecg: ECG, waves: pd.DataFrame | None = None, path: str | Path | None = None, start: float = 0.0
):
    """Draw 10 s of an ECG: three rows of four leads of 2.5 s each and lead II below where all
    twelve are there, else one row a lead.

    Args:
        waves: columns lead, wave (P | QRS | T), onset, offset in s from the start of the record.
        path: of a file to save it in; its ending gives the format.
        start: s from the start of the record.

    Returns:
        The matplotlib figure; it needs the extra `book`.
    """
    strips = _strips(ecg, start)
    rows = 1 + max(row for row, *_ in strips)
    width, height = SECONDS * MM_PER_S, rows * ROW
    size = np.array([width, height]) + 2 * MARGIN
    figure = plt.figure(figsize=size / INCH)
    ax = figure.add_axes([*(MARGIN / size), width / size[0], height / size[1]])
    ax.set(xlim=(0, width), ylim=(-height, 0), xticks=[], yticks=[], facecolor=PAPER)
    for step, (colour, line) in LINES.items():
        across, down = np.arange(0, width + 1, step), np.arange(0, height + 1, step)
        ax.vlines(across, -height, 0, color=colour, lw=line, zorder=0)
        ax.hlines(-down, 0, width, color=colour, lw=line, zorder=0)
    for row, at, lead, first, last in strips:
        _strip(ax, ecg, waves, lead, (first, last), at * MM_PER_S, -(row + 0.5) * ROW)
    title = f"{ecg.name}: 25 mm/s, 10 mm/mV"
    ax.set_title(title, loc="left", fontsize=8, pad=3)
    for name, colour in COLOURS.items() if waves is not None else ():
        ax.plot([], [], color=colour, lw=3, label=name)
    if waves is not None:
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=8)
    if path is not None:
        whole = {"savefig.bbox": None}  # cut to its content it has another size
        with plt.rc_context(whole):
            figure.savefig(path, dpi=200)
    return figure


def _strips(ecg: ECG, start: float) -> list[tuple[int, float, str, float, float]]:
    """Row, place in it (s), lead, and the seconds of the record that stand there."""
    end = min(start + SECONDS, ecg.seconds)
    if ecg.leads != LEADS:
        return [(row, 0.0, lead, start, end) for row, lead in enumerate(ecg.leads)]
    each, strips = SECONDS / len(COLUMNS), [(3, 0.0, "II", start, end)]
    for column, leads in enumerate(COLUMNS):
        first = start + column * each
        strips += [
            (row, column * each, lead, first, min(first + each, end))
            for row, lead in enumerate(leads)
            if first < end
        ]
    return strips


def _strip(ax, ecg: ECG, waves, lead: str, seconds: tuple[float, float], x: float, y: float):
    """One stretch of a lead, its zero at (x, y) mm."""
    first, last = (round(t * ecg.sampling_rate) for t in seconds)
    signal = ecg.signal[ecg.leads.index(lead), first:last]
    middle = np.nanmedian(signal) if np.isfinite(signal).any() else 0.0
    at = x + np.arange(len(signal)) / ecg.sampling_rate * MM_PER_S
    height = y + (signal - middle) * MM_PER_MV
    ax.plot(at, height, color="#111111", lw=0.7, zorder=3)
    ax.text(x + 1, y + ROW / 2 - 2, lead, fontsize=7, va="top", zorder=4)
    own = waves[waves["lead"] == lead] if waves is not None else pd.DataFrame()
    for wave in own.itertuples():
        from_, to = (round(t * ecg.sampling_rate) - first for t in (wave.onset, wave.offset))
        inside = slice(max(0, from_), max(0, to + 1))
        colour = COLOURS.get(wave.wave, "#777777")
        ax.plot(at[inside], height[inside], color=colour, lw=1.6, zorder=4)
