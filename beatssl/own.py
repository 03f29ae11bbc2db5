"""Commands for one's own ECGs: files and folders in, tables and pictures out."""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from beatssl.cache import replacing
from beatssl.data.records import RecordError
from beatssl.delineator import delineate, read_delineator
from beatssl.ecg import ECG, read_ecg
from beatssl.embedder import embed, read_encoder
from beatssl.progress import progress
from beatssl.settings import ConfigError
from beatssl.weights import WeightsError

COMMANDS = ("delineate", "embed")
SUFFIXES = (".hea", ".edf", ".bdf", ".dcm", ".csv")  # of the files that a folder is searched for
KNOWN = {".csv": "to_csv", ".parquet": "to_parquet"}


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Put `delineate` and `embed` among the commands."""
    for function, text in (
        (waves, "onset, peak and offset of P, QRS and T in ECG files"),
        (vectors, "a vector of each ECG file"),
    ):
        added = commands.add_parser(COMMANDS[function is vectors], help=text)
        added.set_defaults(function=function)
        option = added.add_argument
        option("paths", nargs="+", type=Path, metavar="PATH", help="files, or folders of them")
        option("--sampling-rate", type=float, help="Hz, of CSV files without a column of times")
        option("--leads", nargs="+", help="names, of CSV files without a header")
        if function is waves:
            option("--csv", type=Path, help="file for the table; default: print it")
            option("--plot", type=Path, help="picture of one file, or a folder for several")
            option("--weights", type=Path, help="another delineator than the one that comes along")
        else:
            option("--out", type=Path, required=True, help="file for the table, .csv or .parquet")
            option("--weights", type=Path, help="another encoder: a run's folder, or a file")


def waves(paths: list[Path], csv: Path | None, plot: Path | None, weights: Path | None,
          **reading) -> int:  # fmt: skip
    """Write or print the waves of all files; 1 where one could not be read."""
    network, files = read_delineator(weights), found(paths)

    def table(path: Path, ecg: ECG) -> pd.DataFrame:
        own = delineate(ecg, network)
        if plot is not None:
            picture = plot if len(files) == 1 and plot.suffix else plot / f"{path.stem}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            draw(ecg, own, picture)
        return own

    return _of_all(files, table, csv, reading)


def vectors(paths: list[Path], out: Path, weights: Path | None, **reading) -> int:
    """Write a line of numbers for each file; 1 where one could not be read."""
    if out.suffix not in KNOWN:
        raise ConfigError(f"--out {out.name}: must end with {' or '.join(KNOWN)}")
    if out.suffix == ".parquet":
        _module("pyarrow", "--out with .parquet")  # before hours of work
    encoder = read_encoder(weights)

    def table(path: Path, ecg: ECG) -> pd.DataFrame:
        vector = embed(ecg, encoder=encoder)
        return pd.DataFrame(vector[None], columns=[f"z{k}" for k in range(len(vector))])

    return _of_all(found(paths), table, out, reading)


def draw(ecg: ECG, table: pd.DataFrame, path: Path) -> None:
    """A picture of the first 10 s.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    plt = _module("matplotlib.pyplot", "--plot")
    plt.close(importlib.import_module("beatssl.paper").plot(ecg, table, path))


def _module(name: str, option: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        raise ConfigError(f"{option} needs {package}: pip install {package} ({error})") from error


def found(paths: list[Path]) -> list[Path]:
    """The files named, and those of `SUFFIXES` in the folders named.

    Raises:
        ConfigError: a folder without any.
    """
    files: list[Path] = []
    for path in paths:
        own = [path]
        if path.is_dir():
            own = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not own:
            raise ConfigError(f"{path}: no file that ends with {', '.join(SUFFIXES)} in it")
        files += own
    return files


def _of_all(files: list[Path], make: Callable, out: Path | None, reading: dict) -> int:
    """One table of what `make` makes of each file, with the file first; a bad file is named and
    passed over."""
    tables, bad = [], 0
    for path in progress(files, "ECGs", delay=2):
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", UserWarning)
                ecg = read_ecg(path, **reading)
                own = make(path, ecg)
        except (RecordError, WeightsError) as error:
            bad += 1
            print(f"passed over: {path}: {error}", file=sys.stderr)
            continue
        for note in (*own.attrs.get("notes", ecg.notes), *(warning.message for warning in said)):
            print(f"{path}: {note}", file=sys.stderr)
        tables.append(own.assign(file=str(path))[["file", *own.columns]])
    if tables:
        table = pd.concat(tables, ignore_index=True)
        if out is None:
            print(table.to_string(index=False, float_format="{:.3f}".format))
        else:
            with replacing(out) as part:
                getattr(table, KNOWN.get(out.suffix, "to_csv"))(part, index=False)
    if len(files) > 1:
        print(f"{len(files) - bad} of {len(files)} files", file=sys.stderr)
    return int(bad > 0)


def main(words: list[str]) -> int:
    """Run one of `COMMANDS`; the exit status is 0, or 1 with the reason printed."""
    parser = argparse.ArgumentParser(prog="python -m beatssl")
    add_commands(parser.add_subparsers(required=True))
    options = vars(parser.parse_args(words))
    try:
        return options.pop("function")(**options)
    except (ConfigError, RecordError, WeightsError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
