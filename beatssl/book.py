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
from html import escape as html_escape
from pathlib import Path

import nbformat
import yaml

from beatssl import freshness
from beatssl.config import ROOT, ConfigError, Profile, cores, load_profile
from beatssl.files import clear_leftovers, write_text
from beatssl.pages import Page, content_problems, plan, read_notebook, read_stages, scrub

MAX_PAGE_BYTES = 500_000
SHOWN = "subset"  # the profile whose executed pages are committed and always shown
HEARTBEAT_S = 60.0
ANSI = re.compile(r"\x1b\[[0-9;]*m")
CELL = re.compile(r"<td\b.*?</td>", re.S)
INTERVAL = re.compile(r"(\[[+−-]?\d*\.\d+,) (?=[+−-]?\d*\.\d+\])")
FOREIGN = re.compile(
    r"<script[^>]+src=[\"']?(?:https?:)?//[^\"'> ]+"
    r"|<link(?=[^>]+(?:stylesheet|preload|icon))[^>]+href=[\"']?(?:https?:)?//[^\"'> ]+"
    r"|<(?:img|iframe|video|audio|source)[^>]+src=[\"']?(?:https?:)?//[^\"'> ]+"
    r"|url\([\"']?(?:https?:)?//[^)]+|@import\s+[\"'](?:https?:)?//[^\"']+"
)


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


def page_problems(
    page: Page, profile: Profile, root: Path = ROOT, look: bool = False
) -> list[str]:
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
    done = subprocess.run(words, cwd=root, env=_environment(data), stdin=subprocess.DEVNULL,
                          capture_output=True, text=True)  # fmt: skip
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


# --- build ------------------------------------------------------------------------------------


def _shown_pages(profile: Profile, root: Path) -> list[Page]:
    """Pages that the book can show."""
    return [page for page in plan(profile, root) if not bad_page(page, profile, root)]


def _chapters(profile: Profile, root: Path) -> list[dict]:
    """Chapters of a profile; the pages of its pretraining runs are sections under one of them, and
    the sidebar names them by the run alone."""
    chapters: list[dict] = []
    sections: list[dict] = []
    for page in _shown_pages(profile, root):
        entry = {"file": f"runs/{profile.name}/{page.name}"}
        if not page.run:
            chapters.append(entry)
            continue
        if not sections:
            overview = f"_generated/pretraining_{profile.name}"
            chapters.append({"file": overview, "sections": sections})
        sections.append({**entry, "title": page.run.run_id.removeprefix("beatssl-")})
    return chapters


def _pretraining_page(profile: Profile, pages: list[Page]) -> str:
    """Overview of the pretraining runs, one row a run; the variants of a row below the rows."""
    suffix = " (synthetic)" if profile.data.synthetic else ""
    rows = [
        f"| [{p.run.run_id}](../runs/{profile.name}/{p.name}.ipynb) | {p.run.method} | "
        + (
            f"{p.run.rhythm} | {p.run.beat} | {p.run.exponent:g} | "
            if p.run.method == "beatssl"
            else "– | – | – | "
        )
        + f"{p.run.variant or '–'} | {p.run.seed} | "
        + f"{'–' if p.run.untrained else p.run.epochs} |"
        for p in pages
        if p.run
    ]
    return "\n".join(
        [
            f"# Pretraining runs{suffix}\n",
            "One page for each run: its loss curves, the spread of its targets, how its "
            "embedding develops. A run is named by its rhythm target, beat target, exponent and "
            "seed; a variant differs from a row by the setting it is named after.\n",
            "| run | method | rhythm | beat | Exp. | variant | seed | epochs |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _main_table(root: Path) -> str:
    """The front page's table, from results/subset.csv; says so when there is none yet."""
    if not (root / "results" / f"{SHOWN}.csv").is_file():
        return (
            ":::{note}\nNot run yet: this copy of the book holds no results on real recordings. "
            "`make book PROFILE=subset DATA=<folder of recordings>` makes them.\n:::\n"
        )
    from beatssl import comparison, results, tables  # late: the runner does not need torch

    shown = load_profile(SHOWN, root / "runs.yml")
    found = tables.headlines(shown, folder=root / "results")
    data = ", ".join(sorted(set(found["data"].dropna())))
    note = (
        f"Ours: profile `{SHOWN}`, {data}, {shown.data.sampling_rate} Hz, frozen encoders, all "
        "labels: mean over seeds (sd over seeds) [95 % interval]; where two numbers of test "
        "records stand, they are PTB-XL / LUDB. The paper: PTB-XL and LUDB, Table 1."
    )
    compared = (
        "The compared methods, by the paper's other protocol: PTB-XL with a tenth of the labels, "
        f"mean over {shown.compare.draws} draws; LUDB in cross-validation. The paper: "
        "medians read off its violin plots."
    )
    rows = results.read(root / "results" / f"{SHOWN}.csv")
    summary = read_stages(root / "runs.yml")[-1][-1]
    more = f"[What came out](runs/{SHOWN}/{summary}.ipynb)"  # included by index.md
    return "\n\n".join([
        note, tables.markdown(tables.paper_and_ours(found, tables.TABLE_1)),
        compared, tables.markdown(comparison.beside_paper(rows)),
        f"The differences with their intervals, and what can be said: {more}.\n",
    ])  # fmt: skip


def _run_note(shown: list[Profile]) -> str:
    """Tells the reader of the front page which runs this build holds."""
    notes = []
    for profile in shown:
        kind = "synthetic recordings" if profile.data.synthetic else "real recordings"
        where = "as main chapters" if profile.name == SHOWN else "in the last part"
        notes.append(f"profile `{profile.name}` ({kind}), {where}")
    return "This build holds the executed pages of " + "; ".join(notes) + ".\n"


def write_sources(profile_name: str, root: Path = ROOT) -> Path:
    """Write `_build/_toc.yml` and the included pages of `book/_generated/`.

    In `book/_toc.yml` a part with `pages: shown` becomes the committed pages of real recordings,
    one with `pages: run` the pages of the profile just run; a part without pages is left out.
    """
    profile = load_profile(profile_name, root / "runs.yml")
    shown = {"run": profile} if profile_name != SHOWN else {}
    if profile_name == SHOWN or SHOWN in executed_profiles(root):
        shown["shown"] = load_profile(SHOWN, root / "runs.yml")
    generated = root / "book" / "_generated"
    write_text(generated / "main_table.md", _main_table(root))
    write_text(generated / "run_note.md", _run_note([shown[k] for k in sorted(shown)[::-1]]))
    toc = yaml.safe_load((root / "book" / "_toc.yml").read_text())
    parts = []
    for part in toc["parts"]:
        which = part.pop("pages", None)
        if which and which not in shown:
            continue
        if which:
            chosen = shown[which]
            kind = " (synthetic)" if chosen.data.synthetic else ""
            part["caption"] = part["caption"].format(profile=f"{chosen.name}{kind}")
            part["chapters"] = _chapters(chosen, root)
            overview = _pretraining_page(chosen, _shown_pages(chosen, root))
            write_text(generated / f"pretraining_{chosen.name}.md", overview)
        parts.append(part)
    target = root / "_build" / "_toc.yml"
    text = yaml.safe_dump({**toc, "parts": parts}, sort_keys=False, allow_unicode=True)
    write_text(target, text)
    return target


def foreign_hosts(html: Path) -> list[str]:
    """Scripts, styles, fonts and pictures that a built page would load from another host."""
    found = []
    for path in sorted([*html.rglob("*.html"), *html.rglob("*.css")]):
        hits = FOREIGN.findall(path.read_text(encoding="utf-8", errors="replace"))
        found += [f"{path.relative_to(html)}: {hit[:120]}" for hit in hits]
    return found


def keep_intervals_whole(html: Path) -> None:
    """In the cells of all tables, no line break inside `[0.853, 0.903]`."""
    for path in html.rglob("*.html"):
        before = path.read_text(encoding="utf-8")
        after = CELL.sub(lambda cell: INTERVAL.sub(r"\1&nbsp;", cell[0]), before)
        if after != before:
            write_text(path, after)


def say_how_old(profile: Profile, html: Path, root: Path = ROOT) -> int:
    """Put under the title of each built page when and by which code it was made, and whether the
    code has changed since. Returns: how many pages are older than the code."""
    older = 0
    for page in plan(profile, root):
        path = html / "runs" / profile.name / f"{page.name}.html"
        if not path.is_file():
            continue
        stamp = _stamp_of(page_path(page, profile, root))
        made = f"Made {'on ' + stamp['made'] + ' ' if 'made' in stamp else ''}by code "
        line = f'<p class="made">{made}<code>{freshness.code_name(stamp)}</code>.</p>'
        reasons = freshness.stale(stamp, freshness.stamp(page, profile, root), None)
        if reasons:
            older += 1
            up = "../" * 2
            what = "; ".join(map(_short, reasons))
            line += (
                f'<p class="made older">The code has changed since '
                f'(<a href="{up}changes.html">what is different</a>): {html_escape(what)}.</p>'
            )
        head, article, text = path.read_text(encoding="utf-8").partition("<article")
        write_text(path, head + article + text.replace("</h1>", "</h1>" + line, 1))
    return older


def _short(reason: str) -> str:
    """A reason of `freshness.stale` with at most five names."""
    kind, colon, names = reason.removeprefix("stale: ").partition(": ")
    parts = names.replace("beatssl.", "").split(", ")
    more = f" and {len(parts) - 5} more" if len(parts) > 5 else ""
    return kind + colon + ", ".join(parts[:5]) + more


def build(profile_name: str = "tiny", root: Path = ROOT) -> int:
    """Render the book offline; 1 if a page of `profile_name` is unfit to be shown or Sphinx warns.

    The book shows the committed pages of real recordings and, apart from them, those of
    `profile_name`. A page that is older than the code is shown, and says so; a committed page that
    is bad or not executed yet is left out and named.
    """
    names = [profile_name]
    if profile_name != SHOWN and SHOWN in executed_profiles(root):
        names.append(SHOWN)
    problems = []
    for name in names:
        found = profile_problems(name, root, stale=False)
        if name == SHOWN:
            print("".join(f"left out: {line}\n" for line in found), end="")
        else:
            problems += found
    if problems:
        print("\n".join(problems))
        print("the book is not built: `python -m beatssl run --profile …` makes these pages again")
        return 1
    toc = write_sources(profile_name, root)
    html = root / "_build" / "html"
    shutil.rmtree(html, ignore_errors=True)
    words = ["build", "book", "--config", "_config.yml", "--toc", str(toc.resolve())]
    words += ["--path-output", ".", "--all", "-W", "-n", "--keep-going", "-q"]
    start = time.monotonic()
    print("building the book ...", flush=True)
    python = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", python, *words],
        cwd=root,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode or not (html / "index.html").is_file():
        print(ANSI.sub("", done.stdout + done.stderr)[-6000:])
        print("the book is not built: jupyter-book failed (warnings are errors)")
        return 1
    keep_intervals_whole(html)
    for name in names:
        older = say_how_old(load_profile(name, root / "runs.yml"), html, root)
        if older:
            print(f"{name}: {older} pages are older than the code, and say so "
                  f"(`python -m beatssl check --profile {name}`)")
    foreign = foreign_hosts(html)
    if foreign:
        print("\n".join(foreign[:20]))
        print("the book loads something from another host (see above)")
        return 1
    print(f"the book is built in {time.monotonic() - start:.1f} s; open")
    print(f"  {(html / 'index.html').as_uri()}")
    return 0
