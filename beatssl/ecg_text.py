"""ECGs as text: what devices and viewers write as a table, and what stands above it.

Known, from public code that reads or writes such files: a header or none; comma, semicolon, tab or
blanks between columns; a decimal comma; units in the names of columns (`ecg [uV]`) or in a line
below them (PhysioNet's `rdsamp -c`); `Sample Rate,512 hertz`, `Lead,Lead I`, `Unit,µV` above a
single column (Apple Watch); times in seconds or less, or of a clock.
"""

import csv
import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from beatssl.data.records import MILLIVOLT, RecordError

LOOKED_AT = 200  # lines, in search of the first one of the table
ROUNDED = 2e-3  # s, over a whole recording: what times written in ms leave open
OF_SECOND = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e3, "msec": 1e3, "milliseconds": 1e3}
OF_SECOND |= {"us": 1e6, "µs": 1e6, "μs": 1e6, "ns": 1e9}
VALUE = re.compile(r"([-+]?(\d+[.,]?\d*|[.,]\d+)(e[-+]?\d+)?|nan)?", re.IGNORECASE)
CLOCK = re.compile(r"\[?(?:\S+[T ])?(?:(\d+):)?(\d+):(\d+(?:[.,]\d+)?)\s*(?:Z|[-+]\d\S*)?.*")
IN_NAME = re.compile(
    r"(.*?)\s*[\[(]\s*([^\[(]+?)\s*[\])]|(.+?)[\s_]+([a-zµμ]{2,}|s)", re.IGNORECASE
)
TIME = re.compile(r".*\btime\b.*|.*timestamp.*|date.*|t", re.IGNORECASE)
RATE = re.compile(r"(?:sampl\w*[ _]?(?:rate|freq\w*)|\bfs\b)\D*(\d+(?:[.,]\d+)?)", re.IGNORECASE)
KEYED = re.compile(r"\W*(lead|unit)s?\W+([^,;]+?)\W*", re.IGNORECASE)


@dataclass
class Table:
    """Columns as they are named, without those of times.

    Attributes:
        signal: (columns, time) float64; NaN where nothing stands, and in `texts`.
        names, units: of the columns; unit None where the file does not say.
        sampling_rate: Hz; None where the file does not say.
        texts: column that holds text -> the first of it.
        notes: what was made of it, in words.
    """

    signal: np.ndarray
    names: list[str]
    units: list[str | None]
    sampling_rate: float | None
    texts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_table(path: Path, leads: list[str], sampling_rate: float | None, longest: float) -> Table:
    """Read a table of numbers.

    Args:
        leads: names of the columns but for those of times; default those in the file.
        sampling_rate: Hz; default what the file says. Where times say it, a gap in them is one of
            missing samples.
        longest: s, that a recording may last.

    Raises:
        RecordError: it is no such table, its columns have no names, or its times do not rise.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = [line.rstrip("\r\n") for line in itertools.islice(file, LOOKED_AT)]
        start = _first_of_table(lines)
        above = [line for line in lines[:start] if line.strip()]
        said = {found[1].lower(): found[2] for line in above if (found := KEYED.fullmatch(line))}
        if not (above and KEYED.fullmatch(above[-1])):  # names of columns stand there
            said.pop("lead", None)
        separator = None if "lead" in said else _separator(lines[start])
        decimal = "," if separator != "," and any("," in line for line in lines[start:]) else "."
        table = pd.read_csv(
            path, sep=separator or (";" if "lead" in said else r"\s+"), decimal=decimal,
            header=None, skiprows=start, encoding="utf-8-sig", skipinitialspace=True,
            quotechar="'" if "'" in lines[start] else '"', low_memory=False,
        )  # fmt: skip
    except (ValueError, OSError) as error:  # pandas' and Unicode's errors are ValueErrors
        raise RecordError(f"{path.name}: not a readable table ({error})") from error
    names, units = _names(path.name, above, said, separator, table.shape[1], leads)
    if sampling_rate is None and (found := next(filter(None, map(RATE.search, above)), None)):
        sampling_rate = float(found[1].replace(",", "."))
    of_time = [k for k, n in enumerate(names) if TIME.fullmatch(n) or _second(units[k] or n)]
    out = Table(np.zeros((0, len(table))), [], [], sampling_rate)
    # behind a separator at the end of the lines stands nothing
    filled = [k for k in table if names[k] or table[k].notna().any()]
    kept = [k for k in filled if k not in of_time]
    if leads and len(leads) != len(kept):
        found = f"{len(leads)} lead names for the columns {', '.join(names[k] for k in kept)}"
        raise RecordError(f"{path.name}: {found}")
    for k, lead in zip(kept, leads):
        names[k] = lead
    columns = []
    for k in kept:
        values = pd.to_numeric(table[k], errors="coerce").to_numpy(float)
        if not pd.api.types.is_numeric_dtype(table[k]):
            out.texts[names[k]] = str(table[k][np.isnan(values)].dropna().iloc[0])
        columns.append(values)
        out.names.append(names[k] or f"column {k + 1}")
        out.units.append(units[k] or said.get("unit"))
    out.signal = np.array(columns).reshape(len(columns), len(table))
    numbers = [k for k in of_time if pd.api.types.is_numeric_dtype(table[k])]
    if of_time and sampling_rate is None:
        k = [*numbers, *of_time][0]
        seconds = _seconds(table[k]) / (_second(units[k] or names[k]) or 1.0)
        _on_times(path.name, out, names[k], seconds, longest)
    return out


def _separator(line: str) -> str | None:
    return next((separator for separator in ";\t," if separator in line), None)


def _fields(line: str, separator: str | None) -> list[str]:
    if separator is None:
        return line.split()
    own = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    return [text.strip(" '\t") for text in own]


def _first_of_table(lines: list[str]) -> int:
    """The first line that is all numbers and times, else the first with as many columns as the last
    and a number among them."""
    rows = [_fields(line, _separator(line)) for line in lines]
    clocks = [[bool(CLOCK.fullmatch(text)) for text in row] for row in rows]
    numbers = [[bool(text and VALUE.fullmatch(text)) for text in row] for row in rows]
    for k, row in enumerate(rows):
        known = all(map(max, clocks[k], numbers[k], [not text for text in row]))
        if known and any(own and not of_day for own, of_day in zip(numbers[k], clocks[k])):
            return k
    last = max((len(row) for row in rows[-1:]), default=0)
    some = (k for k, row in enumerate(rows) if len(row) == last and any(numbers[k]))
    if (k := next(some, None)) is None:
        raise ValueError("no line of numbers in it")
    return k


def _names(
    name: str, above: list[str], said: dict[str, str], separator: str | None, columns: int,
    leads: list[str],
) -> tuple[list[str], list[str | None]]:  # fmt: skip
    """Names of the columns and the units that stand with them."""
    if "lead" in said:
        return [said["lead"]], [None]
    rows = [own for line in above if len(own := _fields(line, separator)) == columns]
    units: list[str | None] = [None] * columns
    if len(rows) > 1 and any(map(millivolts, rows[-1])):
        units = [text if millivolts(text) else None for text in rows.pop()]
    if not rows:
        times = columns - len(leads)
        if not leads or times not in (0, 1):
            raise RecordError(f"{name}: {columns} columns without names: give leads=[...]")
        return ["time"] * times + leads, units
    names = rows[-1]
    for k, text in enumerate(names):
        if found := IN_NAME.fullmatch(text):
            plain, unit = found[1] or found[3] or "", found[2] or found[4]
            if millivolts(unit) or _second(unit):
                names[k], units[k] = plain, unit
    return names, units


def millivolts(unit: str) -> float | None:
    """How many mV a unit is, its mu the sign or the letter; None where it is no voltage."""
    return MILLIVOLT.get(unit.strip().lower().replace("μ", "µ"))


def _second(unit: str) -> float | None:
    """How many of a unit of time are a second; None where it is none."""
    return OF_SECOND.get(unit.strip().lower())


def _seconds(column: pd.Series) -> np.ndarray:
    """Times as numbers; those of a clock in seconds of their day."""
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(float)
    parts = column.astype(str).str.strip("' ").str.extract(CLOCK).fillna("0")
    parts = parts.apply(lambda part: part.str.replace(",", ".").astype(float))
    return parts.to_numpy() @ [3600.0, 60.0, 1.0]


def _on_times(name: str, table: Table, column: str, seconds: np.ndarray, longest: float) -> None:
    """Set the rate by the times, and put samples at their places where times are left out."""
    apart = np.diff(seconds)
    step = float(np.median(apart)) if len(apart) else 0.0
    if not step > 0:
        raise RecordError(f"{name}: column {column!r} does not rise")
    near = apart[(apart > 0.5 * step) & (apart < 1.5 * step)]
    rate = 1 / float(near.mean())
    if abs(1 / rate - 1 / round(max(rate, 1))) * len(near) < ROUNDED:
        rate = round(rate)
    table.sampling_rate = round(rate, 3)
    if len(near) == len(apart):
        return
    place = np.append(0, np.cumsum(np.maximum(np.rint(apart * rate), 1)))
    if place[-1] / rate > longest:
        raise RecordError(f"{name}: column {column!r} goes on for {place[-1] * step:.0f} s")
    whole = np.full((len(table.signal), int(place[-1]) + 1), np.nan)
    whole[:, place.astype(int)] = table.signal
    table.signal = whole
    if gaps := int((apart >= 1.5 * step).sum()):
        lost = whole.shape[1] - len(seconds)
        places = f"{gaps} place{'s' * (gaps > 1)}"
        table.notes.append(f"{column!r} leaves out {lost} samples in {places}: they are missing")
