"""Who executes pages: threads of this machine, or the workers of a Dask cluster.

Either way a page is handed over with `submit` and gives a future; nothing else of `run` differs.
"""

import importlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from tempfile import NamedTemporaryFile

import torch

from beatssl.cache import HOST
from beatssl.pages import fresh
from beatssl.pages.plan import PER_RUN, Page
from beatssl.profile import Profile
from beatssl.settings import ConfigError, cores, work_dir

HINT = "; scheduler and workers need this folder and its .venv, and their logs say more"
own = threading.local()  # .environment: variables for what this thread starts


@dataclass(frozen=True)
class Workers:
    """`submit(function, page, *more)` is the future of `function(page, *more)`; `at_once` says how
    many pages are executed side by side, `hint` where to look when a future has an error."""

    submit: Callable[..., Future]
    at_once: str
    hint: str = ""


def gpus() -> list[str]:
    """The GPUs of this machine that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


@contextmanager
def threads(jobs: int = 0) -> Iterator[Workers]:
    """A thread for each core and, where there are GPUs, one for each of them, which executes the
    pages that train and shows them no other GPU. `jobs`: at most so many of either."""
    devices, queue = gpus()[: jobs or None], SimpleQueue()
    for device in devices:
        queue.put({"CUDA_VISIBLE_DEVICES": device})
    at_once = f"{jobs or cores()} at once"
    if devices:
        at_once += f", those that train one on each of {len(devices)} GPUs"
    with (
        ThreadPoolExecutor(jobs or cores()) as others,
        ThreadPoolExecutor(len(devices) or 1, initializer=lambda: _own(queue.get())) as trainers,
    ):

        def submit(function: Callable, page: Page, *more: object) -> Future:
            trains = devices and page.notebook == PER_RUN
            return (trainers if trains else others).submit(function, page, *more)

        yield Workers(submit, at_once)


def _own(environment: dict[str, str]) -> None:
    own.environment = environment


@contextmanager
def cluster(address: str, profile: Profile) -> Iterator[Workers]:
    """The workers of the Dask cluster whose scheduler has this address. Dask hands the page of a
    lost worker to another one.

    Raises:
        ConfigError: Dask is not installed, or no scheduler answers there.
    """
    try:
        client = importlib.import_module("distributed").Client(address, timeout="10s")
    except ImportError:
        raise ConfigError("--scheduler needs Dask: pip install -e .[cluster]") from None
    except (OSError, ValueError) as error:
        told = f"no Dask scheduler answers at {address} ({type(error).__name__})"
        raise ConfigError(f"{told}: start it, or correct the address") from error
    profile.work.mkdir(parents=True, exist_ok=True)
    with client, NamedTemporaryFile(dir=profile.work, prefix=".seen-") as token:
        variables = {k: v for k, v in os.environ.items() if k.startswith("BEATSSL_")}
        variables["BEATSSL_WORK"] = str(work_dir().resolve())
        pool = client.get_executor(pure=False)  # never the result of an earlier run

        def submit(function: Callable, page: Page, *more: object) -> Future:
            seen = (variables, Path(token.name).resolve(), fresh.stamp(page))
            return pool.submit(_elsewhere, seen, function, page, *more)

        at_once = f"{sum(client.nthreads().values())} at once on the workers of now at {address}"
        yield Workers(submit, at_once, HINT)


def _elsewhere(seen: tuple, function: Callable, page: Page, *more: object) -> object:
    """`function(page, *more)` on a worker, if it has the files and the code that `run` has."""
    variables, token, stamp = seen
    for name in [name for name in os.environ if name.startswith("BEATSSL_")]:
        del os.environ[name]
    os.environ.update(variables)
    for folder, sign in ((page.root, page.root), (token.parent, token)):
        if not sign.exists():
            raise ConfigError(f"the worker on {HOST} does not see {folder}: it needs a shared one")
    if fresh.stamp(page) != stamp:
        told = f"the worker on {HOST} has other code, settings or notebooks in {page.root}"
        raise ConfigError(f"{told}: make them the same and start the workers anew")
    return function(page, *more)
