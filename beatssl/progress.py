"""One kind of progress bar, and of working in several processes, for what takes long."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from joblib import Parallel, delayed
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


def in_processes(work: Callable, items: Sequence, jobs: int, desc: str) -> Iterator:
    """Results of `work` in the order of `items`, as they come; a script needs no `__main__` guard.

    Args:
        work: a function of a module (or a `partial` of one).
        jobs: processes; one works in this one.
        desc: what the progress bar calls it.
    """
    results = Parallel(jobs, return_as="generator")(delayed(work)(item) for item in items)
    return iter(progress(results, desc, len(items)))
