"""Command line: `python -m beatssl run|check|build` (the Makefile calls it)."""

from __future__ import annotations

import argparse
import sys

from beatssl import book
from beatssl.config import ConfigError


def parser() -> argparse.ArgumentParser:
    """The three commands and their options."""
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
    build = commands.add_parser("build", help="render the book into _build/html")
    build.add_argument("--profile", default="tiny", help="the profile just run (default: tiny)")
    return main


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
        return book.build(options.profile)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; finished pages are kept, run again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
