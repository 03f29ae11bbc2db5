"""Command line: `python -m beatssl run|collect|restamp|check|build` (the Makefile calls it)."""

from __future__ import annotations

import argparse
import os
import sys

from beatssl.pages import build
from beatssl.pages import run as book
from beatssl.profile import load_profile
from beatssl.settings import ConfigError


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    main = argparse.ArgumentParser(prog="python -m beatssl", description=__doc__)
    commands = main.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="execute the notebooks of a profile that are not fresh")
    run.add_argument("--profile", default="tiny", help="profile of runs.yml (default: tiny)")
    run.add_argument("--data", help="folder that holds the record folders (or BEATSSL_DATA)")
    run.add_argument("--only", nargs="+", metavar="PAGE", help="pages or notebooks to execute")
    run.add_argument("--jobs", type=int, help="pages at once (default: one for each core)")
    run.add_argument("--force", action="store_true", help="execute fresh pages too")
    check = commands.add_parser("check", help="name the pages that are stale, failed or missing")
    check.add_argument("--profile", help="default: every profile that has executed pages")
    collect = commands.add_parser("collect", help="write results/<profile>.csv")
    collect.add_argument("--profile", default="tiny", help="profile of runs.yml (default: tiny)")
    collect.add_argument(
        "--add",
        action="store_true",
        help="put methods that the file lacks into it, change no other line",
    )
    again = commands.add_parser(
        "restamp", help="keep products of older code that the code of today makes bit for bit"
    )
    again.add_argument("--profile", default="tiny", help="profile of runs.yml (default: tiny)")
    again.add_argument("--data", help="folder that holds the record folders (or BEATSSL_DATA)")
    build = commands.add_parser("build", help="render the book into _build/html")
    build.add_argument("--profile", default="tiny", help="the profile just run (default: tiny)")
    return main


def collect(profile: str, add: bool) -> int:
    """Write the results file, or say why it was left alone (then 1)."""
    from beatssl import compute
    from beatssl.results import collect as results

    settings = load_profile(profile)
    compute.use(settings.compute)
    found = results.collect(settings, add=add)
    name = found.path.name if found.path else "nothing"
    print(f"{name}: {len(found.table)} lines")
    if found.missing:
        print(f"{profile}.csv is left as it is, these are not there:")
        print("\n".join(f"  {line}" for line in found.missing[:20]))
        print(f"  ({len(found.missing)} in all)")
    return 1 if found.missing else 0


def restamp(profile: str, data: str | None) -> int:
    """Replay and re-stamp; says what was done."""
    from beatssl.profile import open_workspace
    from beatssl.restamp import restamp as replay  # late: the other commands need no torch

    if data:
        os.environ["BEATSSL_DATA"] = data
    lines = replay(open_workspace(profile))
    print("\n".join(lines) or f"{profile}: no product of older code")
    return 0


def main(words: list[str] | None = None) -> int:
    """Run a command; the exit status is 0, or 1 with the reason printed."""
    options = parser().parse_args(words)
    try:
        if options.command == "run":
            return book.run(
                options.profile, options.data, options.only, options.jobs, options.force
            )
        if options.command == "check":
            return book.check(options.profile)
        if options.command == "collect":
            return collect(options.profile, options.add)
        if options.command == "restamp":
            return restamp(options.profile, options.data)
        return build.build(options.profile)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; finished pages are kept, run again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
