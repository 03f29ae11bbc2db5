"""`run` executes the notebooks of a profile, `check` names what is wrong with their pages.

papermill executes, jupyter-book only renders what was executed. A page that failed never replaces
a good one; a page that is still fresh is not executed again.
"""

import fcntl
import importlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
import yaml

from beatssl.cache import HOST, clear_leftovers, write_text
from beatssl.pages import fresh
from beatssl.pages.plan import PER_RUN, Page, plan, read_notebook, read_stages
from beatssl.pages.scrub import content_problems, scrub
from beatssl.profile import load_profile
from beatssl.results import saved
from beatssl.settings import ROOT, ConfigError, config_hash, cores, one_of, work_dir

MAX_PAGE_BYTES = 500_000
SHOWN = "subset"  # the profile whose executed pages are committed and always shown
HEARTBEAT_S = 60.0
ANSI = re.compile(r"\x1b\[[0-9;]*m")
HINT = "\n    (scheduler and workers need this folder and its .venv; see their logs)"
QUIET = {"TQDM_DISABLE": "1", "PYTHONHASHSEED": "0", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


_thread = threading.local()  # environment variables for what a thread starts: its GPU


def python(words: list[str], root: Path, *fds: int, **environment: str) -> tuple[int, str]:
    """Run `python` with these words in the root folder, with one thread unless OMP_NUM_THREADS says
    otherwise; it inherits these file descriptors. Returns: exit status, what it printed."""
    env = {"OMP_NUM_THREADS": "1", **os.environ, **QUIET, **vars(_thread), **environment}
    done = subprocess.run(
        [sys.executable, *words], cwd=root, env=env, input="", capture_output=True, text=True,
        pass_fds=fds,
    )  # fmt: skip
    return done.returncode, ANSI.sub("", done.stdout + done.stderr).strip()


# --- check ------------------------------------------------------------------------------------


def page_problems(page: Page, stale: bool = True, look: bool = False) -> list[str]:
    """Why the executed page must not be shown (missing, unreadable, failed, not executed, too
    large) and, with `stale`, why it is not what the notebook, settings and code of today would
    give. With `look`, figures drawn by older code count too (`fresh.LOOK`)."""
    if not page.path.is_file():
        return ["missing"]
    try:
        notebook = read_notebook(page.path)
    except ConfigError as error:
        return [str(error)]
    problems = content_problems(notebook)
    size = page.path.stat().st_size
    if size > MAX_PAGE_BYTES:
        problems.append(f"{size / 1000:.0f} kB, at most {MAX_PAGE_BYTES // 1000} kB")
    if stale:
        old, data = notebook.metadata.get("beatssl", {}), fresh.data_fingerprint(page.profile)
        problems += fresh.stale(old, fresh.stamp(page), data, look)
    return problems


def profile_problems(name: str, root: Path = ROOT, stale: bool = True) -> list[str]:
    """One line for each problem of a page of the profile (see `page_problems`), and for each page
    that runs.yml does not name."""
    pages = plan(load_profile(name, root / "runs.yml"), root)
    lines = [f"{page.name}: {line}" for page in pages for line in page_problems(page, stale)]
    lines += [f"{p.stem}: not in runs.yml any more: delete this page" for p in _strays(pages)]
    return [f"{name}/{line}" for line in lines]


def _strays(pages: list[Page]) -> list[Path]:
    """Executed pages that runs.yml does not name any more."""
    files = {path for page in pages[:1] for path in page.path.parent.glob("*.ipynb")}
    return sorted(files - {page.path for page in pages})


def executed_profiles(root: Path = ROOT) -> list[str]:
    """Profiles that have at least one executed page."""
    return sorted({path.parent.name for path in (root / "book" / "runs").glob("*/*.ipynb")})


def check(name: str | None = None, root: Path = ROOT) -> int:
    """Print every problem of the executed pages; 1 if there is one, else 0."""
    problems = {p: profile_problems(p, root) for p in ([name] if name else executed_profiles(root))}
    if not problems:
        print("no executed pages yet: run `make run`")
    for name, lines in problems.items():
        print("\n".join(lines) or f"{name}: all pages are executed and fresh")
    return 1 if any(problems.values()) else 0


# --- run --------------------------------------------------------------------------------------


def use_data(folder: str | None) -> None:
    """Make this the folder of record folders, for this process and those that it starts.

    Raises:
        ConfigError: there is no such folder, or the one that BEATSSL_DATA names is not there.
    """
    if folder := folder or os.environ.get("BEATSSL_DATA"):
        if not Path(folder).is_dir():
            raise ConfigError(f"DATA={folder}: there is no such folder")
        os.environ["BEATSSL_DATA"] = str(Path(folder).resolve())


def command(page: Page, output: Path) -> list[str]:
    """What executes a page: the words for `python`, by hand too, from the repository root."""
    parameters = yaml.safe_dump(page.parameters, sort_keys=False)
    words = ["-m", "papermill", f"notebooks/{page.notebook}.ipynb", str(output), "-y", parameters]
    return [*words, "-k", "python3", "-l", "python", "--cwd", ".", "--no-progress-bar"]


def execute(page: Page) -> str:
    """Execute one page; returns an empty text, or what went wrong.

    A good page is scrubbed and replaces the old one; a failed one stays in work/<profile>/failed/.
    It waits while another process executes the page. papermill holds the lock too: where only the
    process that started it is killed, there is still one writer of what the page makes.
    """
    raw = page.profile.work / "failed" / f"{page.name}.ipynb"
    raw.parent.mkdir(parents=True, exist_ok=True)
    with raw.with_name(f".{page.name}.lock").open("a") as lock:
        with suppress(OSError):  # a file system without locks: see the book's page on the build
            fcntl.flock(lock, fcntl.LOCK_EX)
        return _executed(page, raw, lock.fileno())


def _executed(page: Page, raw: Path, lock: int) -> str:
    stamp = fresh.stamp(page)  # before: an edit meanwhile makes it stale
    raw.unlink(missing_ok=True)
    status, said = python(command(page, raw), page.root, lock)
    if not raw.is_file():
        return "\n    ".join(["the kernel did not start", *said.splitlines()[-12:]])
    try:
        notebook = read_notebook(raw)
    except ConfigError:  # the disk is full, and papermill's last line says so
        return "\n    ".join(["what it shows could not be kept", *said.splitlines()[-1:]])
    made = {"made": date.today().isoformat(), "data": fresh.data_fingerprint(page.profile)}
    text = "" if status else scrub(notebook, page, {**stamp, **made})
    problems = content_problems(notebook)
    if status:
        cells = [line for line in problems if " failed: " in line]
        problems = [*(cells or ["the kernel did not finish"]), *said.splitlines()[-12:]]
    if problems:
        return "\n    ".join([*problems, f"kept as {os.path.relpath(raw, page.root)}"])
    write_text(page.path, text)
    write_text(_done(page, stamp), "")
    raw.unlink()
    return ""


def _done(page: Page, stamp: dict) -> Path:
    """Says that this page was executed on this machine, so that its products are in work/."""
    return page.profile.work / "done" / f"{page.name}-{config_hash(stamp)}"


def _why(pages: list[Page], force: bool = False) -> dict[str, str]:
    """Name of each page to execute -> the reason.

    A fresh page is executed again when a later one must run and its products are not in work/
    (a fresh clone has the committed pages but no store and no encoders), unless the run that it
    shows was evaluated and its predictions are kept.
    """
    why: dict[str, str] = {}
    last = -1  # the latest stage in which something must run
    for page in reversed(pages):
        reasons = [p for p in page_problems(page, look=True) if " kB" not in p]
        done = _done(page, fresh.stamp(page)).is_file()
        if page.stage < last and not (done or page.run and saved.is_kept(page.profile, page.run)):
            reasons.append("its products are not in work/")
        if force or reasons:
            why[page.name] = "forced" if force else reasons[0]
            last = max(last, page.stage)
    return why


@contextmanager
def _executors(jobs: int, scheduler: str, work: Path) -> Iterator[tuple]:
    """Executors of the pages that train and of the others, how many at once, what `_agree` asks.

    A thread for each core and one for each GPU, which shows its pages no other GPU; or the workers
    of a Dask cluster, which hands the page of a lost worker to another one."""
    if scheduler:
        with _connect(scheduler) as client, NamedTemporaryFile(dir=work, prefix=".seen-") as token:
            variables = {k: v for k, v in os.environ.items() if k.startswith("BEATSSL_")}
            variables["BEATSSL_WORK"] = str(work_dir().resolve())
            pool = client.get_executor(pure=False)  # never the result of an earlier run
            at_once = f"{sum(client.nthreads().values())} at once by the workers of now"
            yield pool, pool, at_once, (variables, Path(token.name).resolve())
        return
    count, most = torch.cuda.device_count(), jobs or cores()
    names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    gpus = names.split(",")[:count][: jobs or None]
    trainers = ThreadPoolExecutor(len(gpus) or 1, initializer=_own_gpu, initargs=(iter(gpus),))
    with trainers, ThreadPoolExecutor(most) as others:
        told = f", those that train one on each of {len(gpus)} GPUs" if gpus else ""
        yield trainers if gpus else others, others, f"{most} at once{told}", ()


def _own_gpu(gpus: Iterator[str]) -> None:
    _thread.CUDA_VISIBLE_DEVICES = next(gpus)


def _connect(address: str):
    try:
        return importlib.import_module("distributed").Client(address, timeout="10s")
    except ImportError:
        raise ConfigError("--scheduler needs Dask: pip install -e .[cluster]") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Dask scheduler answers at {address}: start one there") from error


def _agree(page: Page, stamp: dict, variables: dict[str, str], token: Path) -> None:
    """Take over the variables of `run`, and refuse the page where this worker does not see the
    files, or the code and settings, that `run` sees."""
    for name in [name for name in os.environ if name.startswith("BEATSSL_")]:
        del os.environ[name]
    os.environ.update(variables)
    for folder, sign in ((page.root, page.root), (token.parent, token)):
        if not sign.exists():
            raise ConfigError(f"the worker on {HOST} does not see {folder}: it needs a shared one")
    if fresh.stamp(page) != stamp:
        told = f"the worker on {HOST} has other code, settings or notebooks in {page.root}"
        raise ConfigError(f"{told}: make them the same and start the workers anew")


def _say(start: float, text: str) -> None:
    """Print with the time since the start; a worker of a cluster prints where `run` does, too."""
    say = getattr(sys.modules.get("distributed"), "print", print)
    say(f"[{time.time() - start:7.1f} s] {text}", flush=True)


def _work(page: Page, why: str, start: float, *seen) -> tuple[str, float]:
    """Execute a page: what went wrong, and how many seconds it took."""
    began = time.monotonic()
    if seen:
        _agree(page, *seen)
    _say(start, f"start  {page.name} ({why})")
    return execute(page), time.monotonic() - began


def _result(future: Future, scheduler: str) -> tuple[str, float]:
    """What `_work` returned; where it could not (its workers were lost, say), the error."""
    try:
        return future.result()
    except Exception as error:
        return f"{type(error).__name__}: {error}{HINT if scheduler else ''}", 0.0


def run(
    name: str, only: Sequence[str] = (), jobs: int = 0, force: bool = False, scheduler: str = "",
    root: Path = ROOT,
) -> int:  # fmt: skip
    """Execute the pages of a profile that are not fresh, stage by stage; 1 if one failed.

    The pages of a stage run side by side: on this machine, `jobs` at once (default one for each
    core, or for each GPU where they train), or on the Dask cluster whose `scheduler` has this
    address. A failed page does not stop its stage, but the stages after it do not start.

    Raises:
        ConfigError: anything wrong with runs.yml or a notebook, or no such scheduler; found before
            the first execution.
    """
    start = time.time()
    say = partial(_say, start)
    profile = load_profile(name, root / "runs.yml")
    pages = plan(profile, root)
    for word in only:
        one_of("page", word, sorted({known for p in pages for known in (p.name, p.notebook)}))
    for folder in (profile.work, root / "book", root / "results"):
        clear_leftovers(folder)
    for path in _strays(pages):
        old = profile.work / "old" / path.name
        old.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, old)
        say(f"{path.stem} is not in runs.yml any more: moved to work/{name}/old/")
    asked = [page for page in pages if not only or {page.name, page.notebook} & set(only)]
    why = _why(asked, force)
    todo = [page for page in asked if page.name in why]
    print("".join(f"fresh: {page.name}\n" for page in asked if page not in todo), end="")
    if not todo:
        say(f"profile {name}: 0 of {len(pages)} pages to execute")
        say(f"nothing to compute; all of it again: python -m beatssl run --profile {name} --force")
        return 0
    profile.work.mkdir(parents=True, exist_ok=True)
    with _executors(jobs, scheduler, profile.work) as (trainers, others, at_once, seen):
        say(f"profile {name}: {len(todo)} of {len(pages)} pages to execute, {at_once}")
        finished = 0
        for stage, notebooks in enumerate(read_stages(root / "runs.yml", name)):
            if not notebooks and (not only or stage < todo[-1].stage):
                say(python(["-m", "beatssl", "collect", "--profile", name], root)[1])
            pending = {}
            for page in (page for page in todo if page.stage == stage):
                pool = trainers if page.notebook == PER_RUN else others
                compared = (fresh.stamp(page), *seen) if seen else ()
                pending[pool.submit(_work, page, why[page.name], start, *compared)] = page
            left, failed = set(pending), 0
            while left:
                done, left = wait(left, HEARTBEAT_S, FIRST_COMPLETED)
                for future in done:
                    page, (problem, took) = pending[future], _result(future, scheduler)
                    failed, finished = failed + bool(problem), finished + 1
                    good = f"done   {page.name} in {took:.1f} s ({finished}/{len(todo)})"
                    say(f"FAILED {page.name}, {problem}" if problem else good)
                if not done:
                    names = sorted(pending[future].name for future in left if future.running())
                    say(f"...    {', '.join(names) or f'{len(left)} pages'}")
            if failed:
                rest = ", ".join(page.name for page in todo if page.stage > stage)
                say(f"{failed} page(s) failed" + (f"; not started: {rest}" if rest else ""))
                return 1
    say(f"all pages of profile {name} are executed")
    return 0
