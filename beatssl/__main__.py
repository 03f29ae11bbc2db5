"""Command line: `python -m beatssl` and a command (the Makefile calls it)."""

import importlib
import sys

from beatssl import own


def main(words: list[str] | None = None) -> int:
    """Run a command; the exit status is 0, or 1 with the reason printed. Those for one's own ECGs
    work without the extra `book`."""
    words = sys.argv[1:] if words is None else words
    if words[:1] and words[0] in own.COMMANDS:
        return own.main(words)
    try:
        commands = importlib.import_module("beatssl.commands")
    except ModuleNotFoundError as error:
        usable = " and ".join(own.COMMANDS)
        print(f"error: {error}: without the extra `book` there are {usable}", file=sys.stderr)
        return 1
    return commands.main(words)


if __name__ == "__main__":
    sys.exit(main())
