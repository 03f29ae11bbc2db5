"""Draw `results/bench.csv`: two pictures and the measured part of `book/bench.md`.

`make bench` does it after measuring; `python tests/bench_page.py` draws the file that is there.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from bench import GROWTH, RESULTS

from beatssl.cache import replacing, write_text
from beatssl.report.figures import plt
from beatssl.report.tables import markdown
from beatssl.settings import ROOT

PAGE, PICTURES = ROOT / "book" / "bench.md", ROOT / "book" / "_static"
START, END = "<!-- measured: results/bench.csv; a test compares -->", "<!-- end of measured -->"
COLOUR = "#4a6fa5"


def number(value: float) -> str:
    """Three digits, and a unit's zeros in full: 0.0123, 4.56, 1,230."""
    if np.isnan(value):
        return "–"
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def range_text(line: pd.Series, name: str) -> str:
    low, high = line[f"{name}_q1"], line[f"{name}_q3"]
    return f"{number(line[name])} [{number(low)}, {number(high)}]"


def comparisons(table: pd.DataFrame) -> pd.DataFrame:
    """A line for each of ours that has a reference, the reference's columns with `_reference`."""
    table = table[~table["measure"].str.startswith(GROWTH)]
    sides = [table[table["side"] == side] for side in ("ours", "reference")]
    return sides[0].merge(sides[1], on=["measure", "size"], suffixes=("", "_reference"))


def comparison_texts(table: pd.DataFrame) -> pd.DataFrame:
    lines = []
    for _, line in comparisons(table).iterrows():
        reference = line.filter(like="_reference").rename(lambda n: n.removesuffix("_reference"))
        sides = line, reference
        memory = [side["extra_mb"] for side in sides]
        lines.append({
            "measure": f"{line['measure']}, {line['size']}",
            "ours": line["what"],
            "reference": reference["what"],
            "rounds": line["repeats"],
            "ours (s)": range_text(line, "seconds"),
            "reference (s)": range_text(reference, "seconds"),
            "ours / reference": range_text(line, "ratio"),
            "records/s": " / ".join(number(side["records"] / side["seconds"]) for side in sides),
            "extra memory (MB)": " / ".join(map(number, memory)) if memory[0] > 0 else "–",
            "largest difference": f"{line['difference']:.0e}".replace("nan", "–"),
        })  # fmt: skip
    return pd.DataFrame(lines).set_index("measure").rename_axis(columns="measure")


def growing(table: pd.DataFrame) -> pd.DataFrame:
    """Lines of the growth, with milliseconds a record."""
    table = table[table["measure"].str.startswith(GROWTH)]
    each = {
        name: 1000 * table[name] / table["records"] for name in table if name.startswith("seconds")
    }
    return table.assign(measure=table["measure"].str.removeprefix(GROWTH), **each)


def growth_texts(table: pd.DataFrame) -> pd.DataFrame:
    lines = {}
    for measure, part in growing(table).groupby("measure", sort=False):
        lines[measure] = {line["size"]: range_text(line, "seconds") for _, line in part.iterrows()}
        lines[measure]["last / first"] = range_text(part.iloc[-1], "ratio")
    return pd.DataFrame(lines).T.rename_axis(columns="ms a record")


def ratios(table: pd.DataFrame) -> plt.Figure:
    """Time of ours over that of the reference: medians over rounds with quartiles."""
    table = comparisons(table)
    y, x = np.arange(len(table)), table["ratio"]
    fig, ax = plt.subplots(figsize=(7, 1 + 0.36 * len(table)), layout="constrained")
    ax.axvline(1, color="#c8553d", lw=1)
    ax.hlines(y, table["ratio_q1"], table["ratio_q3"], color=COLOUR, lw=2)
    ax.plot(x, y, "o", color=COLOUR)
    names = table["measure"] + ", " + table["size"]
    processes = ", " + table["what"].str.rpartition(", ")[2]
    ax.set_yticks(y, names.where(~names.duplicated(keep=False), names + processes))
    ax.set(xscale="log", ylim=(len(table) - 0.5, -0.5))
    ax.set_xlabel("time of ours / of the reference (logarithmic; left of 1: faster)")
    plain_ticks(ax.xaxis, [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50])
    low, high = min(0.5, table["ratio_q1"].min()), max(2, table["ratio_q3"].max())
    ax.set_xlim(low / 1.2, high * 1.2)
    return fig


def growth(table: pd.DataFrame) -> plt.Figure:
    """Milliseconds a record against the number of records: flat is linear growth."""
    fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    for measure, part in growing(table).groupby("measure", sort=False):
        low, middle, high = (part[f"seconds{q}"] for q in ("_q1", "", "_q3"))
        error = (middle - low, high - middle)
        ax.errorbar(part["records"], middle, error, marker="o", capsize=3, label=measure)
    ax.set(xscale="log", yscale="log", xlabel="records (logarithmic)")
    ax.set_ylabel("time a record (ms, logarithmic)")
    plain_ticks(ax.xaxis, sorted(set(growing(table)["records"])))
    fig.legend(loc="outside lower center", ncols=2, frameon=False)
    return fig


def plain_ticks(axis: matplotlib.axis.Axis, values: list[float]) -> None:
    axis.set_ticks(values, [f"{value:,g}" for value in values])
    axis.set_minor_locator(matplotlib.ticker.NullLocator())


def digest(results: Path) -> str:
    """What a picture says of the file that it was drawn from."""
    return f"results/bench.csv {hashlib.sha256(results.read_bytes()).hexdigest()[:12]}"


def measured(table: pd.DataFrame) -> str:
    """The part of the page that is made from the file."""
    line, many = table.iloc[0], "one thread" if table["threads"][0] == 1 else "several threads"
    text = f"Measured on {line['date']}: {line['machine']}, {line['cores']} cores, "
    text += f"{line['memory_gb']} GB, {line['system']}, Python {line['python']}, torch "
    share = (table["cpu_seconds"] / table["seconds"]).median()
    text += f"{line['torch']}; {many}, {line['precision']}. The measured process had a core for "
    text += f"{100 * min(share, 1):.0f} % of the time: near 100 % says that nothing else ran."
    tables = comparison_texts(table), growth_texts(table)
    return "\n\n".join([text, *map(markdown, tables)])


def draw(results: Path = RESULTS, page: Path = PAGE, pictures: Path = PICTURES) -> None:
    """Write both pictures and replace the measured part of the page."""
    table = pd.read_csv(results)
    style = {"svg.fonttype": "none", "svg.hashsalt": "bench", "font.family": "sans-serif"}
    about = {"Date": None, "Creator": None, "Description": digest(results)}
    with plt.rc_context(style):
        for name, figure in (("bench_ratios", ratios), ("bench_growth", growth)):
            with replacing(pictures / f"{name}.svg") as part:
                figure(table).savefig(part, format="svg", metadata=about)
    between = re.compile(re.escape(START) + ".*" + re.escape(END), re.S)
    text = f"{START}\n{measured(table)}\n{END}"
    write_text(page, between.sub(lambda _: text, page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    draw()
