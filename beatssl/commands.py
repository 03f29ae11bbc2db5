"""The commands of the book: execute, check, keep, verify, build."""

import argparse
import sys
from pathlib import Path

from beatssl import compute, own
from beatssl import estimate as estimates
from beatssl import restamp as replay
from beatssl.data import download
from beatssl.data.download import HOST, PUBLISHED
from beatssl.evaluate import keep_runs
from beatssl.pages import build, pdf
from beatssl.pages import run as pages
from beatssl.profile import load_profile, open_workspace
from beatssl.results import claims, saved
from beatssl.results import collect as results
from beatssl.results import verify as recomputed
from beatssl.settings import ConfigError


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    main = argparse.ArgumentParser(prog="python -m beatssl")
    commands = main.add_subparsers(required=True)
    profile, folder = (argparse.ArgumentParser(add_help=False) for _ in range(2))
    profile.add_argument("--profile", dest="name", default="tiny", help="in runs.yml; else tiny")
    folder.add_argument("--data", help="folder that holds the record folders (or BEATSSL_DATA)")

    def command(function, text, *options):
        added = commands.add_parser(function.__name__, help=text, parents=options)
        added.set_defaults(function=function)
        return added.add_argument

    option = command(run, "execute the notebooks that are not fresh", profile, folder)
    option("--only", nargs="+", default=(), metavar="PAGE", help="pages or notebooks to execute")
    option("--jobs", type=int, default=0, help="at once (default: one a core; training: one a GPU)")
    option("--scheduler", default="", help="tcp://host:port of a Dask cluster that executes them")
    option("--force", action="store_true", help="execute fresh pages too")
    option("--estimate", action="store_true", help="only say what it would take on this machine")
    option = command(pages.check, "name the pages that are stale, failed or missing")
    option("--profile", dest="name", help="default: every profile that has executed pages")
    option = command(collect, "write results/<profile>.csv", profile)
    option("--add", action="store_true", help="only put methods into it that the file lacks")
    command(keep, "put predictions, curves and encoders into results/<profile>", profile, folder)
    command(verify, "compute results/<profile>.csv again from the kept predictions", profile)
    command(restamp, "keep products of older code that today's makes bit for bit", profile, folder)
    option = command(data, "fetch the data sets from PhysioNet, or check those that are there")
    option("--into", required=True, help="folder for the record folders")
    option("--sets", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED))
    option("--mirror", default=HOST, help=f"another address than {HOST}, with the same paths")
    option("--verify", action="store_true", help="only check the files that are there")
    option("--dry-run", action="store_true", help="only print size, licence and citation")
    command(build.build, "render the book into _build/html", profile)
    command(pdf.pdf, "the book as _build/beatssl.pdf, without the pages of single runs", profile)
    own.add_commands(commands)
    return main


def collect(name: str, add: bool) -> int:
    """Write the results file, or say why it was left alone (then 1)."""
    profile = load_profile(name)
    compute.use(profile.compute)
    found = results.collect(profile, add=add)
    if not found.missing:
        claims.write(profile)
    print(f"{found.path.name if found.path else 'nothing'}: {len(found.table)} lines")
    if found.missing:
        print(f"{name}.csv is left as it is, these {len(found.missing)} are not there:")
        print(*(f"  {line}" for line in found.missing[:20]), sep="\n")
    return 1 if found.missing else 0


def keep(name: str) -> int:
    """Keep the predictions of a profile, and encoders that are at hand, in the repository."""
    w = open_workspace(name, needs_data=False)
    print(f"{name}: predictions of {results.keep(w.profile)} evaluations are kept")
    if w.has_data:
        results.keep_folds(w.profile, w.store)
        print(f"and what {keep_runs(w)} runs left")
    return 0


def verify(name: str) -> int:
    """Say what of a results file the kept predictions do not give; 1 where there is anything."""
    profile = load_profile(name)
    compute.use(profile.compute)
    lines, differing = recomputed.verify(profile)
    print(
        *(differing or [f"{name}.csv: all {lines} lines are what the predictions give"]), sep="\n"
    )
    return int(bool(differing))


def data(into: str, sets: list[str], mirror: str, verify: bool, dry_run: bool) -> int:
    """Fetch or check published data sets; 1 where one is not whole, after trying the others."""
    root, bad = Path(into).resolve(), 0
    for published in map(PUBLISHED.get, sets):
        print(download.about(published, root, mirror))
        try:
            if not (verify or dry_run):
                print(f"{download.fetch(published, root, mirror)} files, all as published")
            elif verify:
                n, lost = download.check(published, root)
                lines = [f"{n - len(lost)} of {n} files are as published; not these:", *lost[:20]]
                print(*lines if lost else [f"{n} files, all as published"], sep="\n  ")
                bad += bool(lost)
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            bad += 1
    return int(bad > 0)


def run(name: str, estimate: bool, **options) -> int:
    """Execute pages, or print what all of them would take."""
    if not estimate:
        return pages.run(name, **options)
    table, told = estimates.estimate(load_profile(name))
    print(table.round(2).to_string(), told, sep="\n")
    return 0


def restamp(name: str) -> int:
    """Replay and re-stamp; says what was done."""
    print("\n".join(replay.restamp(open_workspace(name))) or f"{name}: no product of older code")
    return 0


def main(words: list[str] | None = None) -> int:
    """Run a command; the exit status is 0, or 1 with the reason printed."""
    options = vars(parser().parse_args(words))
    try:
        if "data" in options:
            pages.use_data(options.pop("data"))
        return options.pop("function")(**options)
    except (ConfigError, saved.ResultsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; finished pages are kept, run again to go on", file=sys.stderr)
        return 130
