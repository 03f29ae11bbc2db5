"""One kind of progress bar for everything that takes longer than a breath."""

import os
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(
    iterable: Iterable, desc: str, total: int | None = None, delay: float = 0.0, **units: Any
) -> tqdm:
    """A bar with the time left on stderr, a notebook's too; silent where TQDM_DISABLE=1. Bars
    inside one another share one line: a notebook cannot move its cursor up.

    Args:
        total: number of items where `iterable` does not tell.
        delay: s; a loop that is over by then shows no bar. For loops inside others.
        units: what is counted and from where, as for tqdm: `unit`, `initial`.
    """
    bar = {
        "mininterval": 5.0,
        "leave": False,
        "position": 0,
        "unit_scale": "unit" in units,
        "delay": delay,
        **units,
    }
    return tqdm(iterable, desc, total, disable=os.environ.get("TQDM_DISABLE") == "1", **bar)
