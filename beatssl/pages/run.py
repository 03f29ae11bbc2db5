"""The runner and the book: `run` executes notebooks, `check` gates their pages, `build` renders.

papermill executes, jupyter-book only renders what was executed. A page that failed never replaces
a good one; a page that is still fresh is not executed again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from datetime import date
from pathlib import Path

import nbformat

from beatssl.cache import clear_leftovers, write_text
from beatssl.pages import fresh as freshness
from beatssl.pages.plan import Page, content_problems, plan, read_notebook, read_stages, scrub
from beatssl.profile import Profile, load_profile
from beatssl.settings import ROOT, ConfigError, cores

MAX_PAGE_BYTES = 500_000
SHOWN = "subset"  # the profile whose executed pages are committed and always shown
HEARTBEAT_S = 60.0
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def page_path(page: Page, profile: Profile, root: Path = ROOT) -> Path:
    """Where the executed page stands."""
    return root / "book" / "runs" / profile.name / f"{page.name}.ipynb"


# --- check ------------------------------------------------------------------------------------


def _stamp_of(path: Path) -> dict:
    """The stamp in an executed page; empty where there is none."""
    return nbformat.read(path, as_version=4).metadata.get("beatssl", {})


def bad_page(page: Page, profile: Profile, root: Path = ROOT) -> list[str]:
    """Why the executed page must not be shown, whatever the code of the day: missing, unreadable,
    failed, not executed, too large."""
    path = page_path(page, profile, root)
    if not path.is_file():
        return ["missing"]
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises several unrelated types
        return [f"not a readable notebook: {error}"]
    problems = content_problems(notebook)
    if path.stat().st_size > MAX_PAGE_BYTES:
        problems.append(f"{path.stat().st_size / 1000:.0f} kB, at most {MAX_PAGE_BYTES // 1000} kB")
    return problems


def page_problems(page: Page, profile: Profile, root: Path = ROOT, look: bool = False) -> list[str]:
    """`bad_page`, and why the page is not what the notebook, settings and code of today would give.

    With `look`, figures drawn by older code count too (`freshness.LOOK`)."""
    problems = bad_page(page, profile, root)
    if problems and (problems[0] == "missing" or problems[0].startswith("not a readable")):
        return problems
    old, new = _stamp_of(page_path(page, profile, root)), freshness.stamp(page, profile, root)
    return problems + freshness.stale(old, new, freshness.data_fingerprint(profile), look)


def profile_problems(name: str, root: Path = ROOT, stale: bool = True) -> list[str]:
    """One line for each page of the profile that is missing, failed, too large or, with `stale`,
    older than the code."""
    profile = load_profile(name, root / "runs.yml")
    pages = plan(profile, root)
    lines = [
        f"{name}/{page.name}: {problem}"
        for page in pages
        for problem in (page_problems if stale else bad_page)(page, profile, root)
    ]
    known = {page.name for page in pages}
    for path in sorted((root / "book" / "runs" / name).glob("*.ipynb")):
        if path.stem not in known:
            lines.append(f"{name}/{path.stem}: not in runs.yml any more: delete this page")
    return lines


def executed_profiles(root: Path = ROOT) -> list[str]:
    """Profiles that have at least one executed page."""
    return sorted({path.parent.name for path in (root / "book" / "runs").glob("*/*.ipynb")})


def check(profile: str | None = None, root: Path = ROOT) -> int:
    """Print every problem of the executed pages; 1 if there is one, else 0."""
    names = [profile] if profile else executed_profiles(root)
    if not names:
        print("no executed pages yet: run `make run`")
    bad = 0
    for name in names:
        lines = profile_problems(name, root)
        print("\n".join(lines) or f"{name}: all pages are executed and fresh", flush=True)
        bad += len(lines)
    return 1 if bad else 0


# --- run --------------------------------------------------------------------------------------


def _stamp_file(page: Page, profile: Profile) -> Path:
    """Says that this page was executed on this machine, so that its products are in work/."""
    return profile.work / "done" / f"{page.name}.json"


def _to_run(
    pages: list[Page], profile: Profile, only: list[str] | None, force: bool, root: Path
) -> tuple[list[Page], dict[str, str]]:
    """Pages to execute, and for each why.

    A fresh page is executed again when a later one must run and its products are not in work/
    (a fresh clone has the committed pages but no store and no encoders).
    """
    if only:
        known = {page.name for page in pages} | {page.notebook for page in pages}
        unknown = sorted(set(only) - known)
        if unknown:
            raise ConfigError(f"no page {unknown[0]!r}; known: {', '.join(sorted(known))}")
    why: dict[str, str] = {}
    last = -1  # the latest stage in which something must run
    for page in reversed(pages):
        if only and not {page.name, page.notebook} & set(only):
            continue
        problems = [p for p in page_problems(page, profile, root, look=True) if " kB" not in p]
        done = _stamp_file(page, profile)
        stamp = json.dumps(freshness.stamp(page, profile, root), sort_keys=True)
        here = done.is_file() and done.read_text() == stamp
        if force or problems:
            why[page.name] = "forced" if force else problems[0]
        elif not only and page.stage < last and not here:
            why[page.name] = "its products are not in work/"
        if page.name in why:
            last = max(last, page.stage)
    return [page for page in pages if page.name in why], why


def command(page: Page, output: Path, root: Path = ROOT) -> list[str]:
    """The papermill command of a page, the same that works by hand from the repository root."""
    words = [sys.executable, "-m", "papermill", f"notebooks/{page.notebook}.ipynb", str(output)]
    words += ["-k", "python3", "-l", "python", "--cwd", ".", "--no-progress-bar"]
    for key, value in page.parameters.items():  # -r keeps text as text, -p parses
        words += ["-r" if isinstance(value, str) else "-p", key, str(value)]
    return words


def _environment(data: str | None) -> dict[str, str]:
    env = dict(os.environ)
    env.setdefault("OMP_NUM_THREADS", "1")
    env |= {"TQDM_DISABLE": "1", "PYTHONHASHSEED": "0", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    if data:
        env["BEATSSL_DATA"] = data
    return env


def _failure(path: Path, stderr: str) -> str:
    """Cell, error and last lines of a failed execution."""
    if path.is_file():
        for position, cell in enumerate(nbformat.read(path, as_version=4).cells):
            for output in cell.get("outputs", []):
                if output.output_type == "error" and cell.source.strip():
                    lines = ANSI.sub("", "\n".join(output.traceback)).splitlines()[-12:]
                    head = f"cell {position}: {output.ename}: {output.evalue}"
                    return "\n".join([head, *(f"    {line}" for line in lines)])
    return "\n".join(["the kernel did not finish", *stderr.strip().splitlines()[-12:]])


def execute(page: Page, profile: Profile, data: str | None = None, root: Path = ROOT) -> str:
    """Execute one page; returns an empty text, or what went wrong.

    A good page is scrubbed and replaces the old one; a failed one goes to work/<profile>/failed/.
    """
    stamp = freshness.stamp(page, profile, root)  # before: an edit meanwhile makes it stale
    raw = profile.work / "running" / f"{page.name}.ipynb"
    failed = profile.work / "failed" / f"{page.name}.ipynb"
    raw.parent.mkdir(parents=True, exist_ok=True)
    raw.unlink(missing_ok=True)
    done = subprocess.run(
        command(page, raw, root),
        cwd=root,
        env=_environment(data),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        message = _failure(raw, done.stderr)
        if raw.is_file():
            failed.parent.mkdir(parents=True, exist_ok=True)
            os.replace(raw, failed)
            message += f"\n    kept as {os.path.relpath(failed, root)}"
        return message
    fingerprint = freshness.data_fingerprint(profile)
    full = {**stamp, "made": date.today().isoformat()}
    full |= {"data": fingerprint} if fingerprint else {}
    notebook = read_notebook(raw)
    text = scrub(notebook, page, profile, full, root)
    problems = content_problems(notebook)
    if problems:
        write_text(failed, text)
        return f"{problems[0]}\n    kept as {os.path.relpath(failed, root)}"
    write_text(page_path(page, profile, root), text)
    raw.unlink()
    failed.unlink(missing_ok=True)
    write_text(_stamp_file(page, profile), json.dumps(stamp, sort_keys=True))
    return ""


def _collect(profile: Profile, data: str | None, root: Path) -> str:
    """Write results/<profile>.csv in a process of its own; returns its last words."""
    words = [sys.executable, "-m", "beatssl", "collect", "--profile", profile.name]
    done = subprocess.run(
        words,
        cwd=root,
        env=_environment(data),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return (done.stdout + done.stderr).strip()


def _set_orphans_aside(profile: Profile, pages: list[Page], root: Path) -> None:
    known = {page.name for page in pages}
    for path in sorted((root / "book" / "runs" / profile.name).glob("*.ipynb")):
        if path.stem not in known:
            target = profile.work / "old" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)
            print(f"{path.stem} is not in runs.yml any more: moved to work/{profile.name}/old/")


def run(
    profile_name: str = "tiny",
    data: str | None = None,
    only: list[str] | None = None,
    jobs: int | None = None,
    force: bool = False,
    root: Path = ROOT,
) -> int:
    """Execute the pages of a profile that are not fresh, stage by stage; 1 if one failed.

    The pages of a stage run side by side (`jobs` at once, default one for each core). A failed
    page does not stop its stage, but the stages after it do not start.

    Raises:
        ConfigError: anything wrong with runs.yml or a notebook; found before the first execution.
    """
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:7.1f} s] {text}", flush=True)

    profile = load_profile(profile_name, root / "runs.yml")
    data = data or os.environ.get("BEATSSL_DATA")
    if data:
        data = str(Path(data).resolve())
        if not Path(data).is_dir():
            raise ConfigError(f"DATA={data}: there is no such folder")
        os.environ["BEATSSL_DATA"] = data
    jobs = jobs or cores()
    pages = plan(profile, root)
    clear_leftovers(profile.work)
    _set_orphans_aside(profile, pages, root)
    todo, why = _to_run(pages, profile, only, force, root)
    for page in pages:
        if page not in todo and (not only or {page.name, page.notebook} & set(only)):
            say(f"fresh  {page.name}")
    say(f"profile {profile.name}: {len(todo)} of {len(pages)} pages to execute, {jobs} at once")
    if not todo and not only:
        say(
            f"nothing to compute: the {len(pages)} executed pages in book/runs/{profile.name}/ are "
            "what the code of today would give. All of it again: "
            f"`python -m beatssl run --profile {profile.name} --force`"
        )
    stages = read_stages(root / "runs.yml")
    collecting = next((i for i, names in enumerate(stages) if not names), None)
    last = max((page.stage for page in todo), default=-1)
    to_do = {page.stage for page in todo}
    if collecting is not None and todo and (not only or collecting < last):
        to_do.add(collecting)
    finished = failed = 0
    for stage in sorted(to_do):
        if stage == collecting:
            say(_collect(profile, data, root))
            continue
        with ThreadPoolExecutor(max_workers=jobs) as pool:
            began: dict[str, float] = {}

            def work(page: Page, began: dict = began) -> str:
                began[page.name] = time.monotonic()
                say(f"start  {page.name} ({why[page.name]})")
                return execute(page, profile, data, root)

            pending = {pool.submit(work, page): page for page in todo if page.stage == stage}
            while pending:
                done, _ = wait(pending, timeout=HEARTBEAT_S, return_when=FIRST_COMPLETED)
                if not done:
                    running = sorted(page.name for page in pending.values() if page.name in began)
                    say(f"...    {', '.join(running)}")
                for future in done:
                    page = pending.pop(future)
                    message = future.result()
                    took = time.monotonic() - began[page.name]
                    finished += 1
                    failed += bool(message)
                    say(
                        f"FAILED {page.name}, {message}"
                        if message
                        else f"done   {page.name} in {took:.1f} s ({finished}/{len(todo)})"
                    )
        if failed:
            rest = [page.name for page in todo if page.stage > stage]
            say(f"{failed} page(s) failed" + (f"; not started: {', '.join(rest)}" if rest else ""))
            return 1
    if todo:
        say(f"all pages of profile {profile.name} are executed")
    return 0
