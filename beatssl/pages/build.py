"""`build` renders the executed pages into the book; nothing is computed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from html import escape as html_escape
from pathlib import Path

import yaml

from beatssl.cache import write_text
from beatssl.pages import fresh as freshness
from beatssl.pages.plan import Page, plan, read_stages
from beatssl.pages.run import (
    ANSI, SHOWN, _stamp_of, bad_page, executed_profiles, page_path, profile_problems,
)  # fmt: skip
from beatssl.profile import Profile, load_profile
from beatssl.settings import ROOT

CELL = re.compile(r"<td\b.*?</td>", re.S)
INTERVAL = re.compile(r"(\[[+−-]?\d*\.\d+,) (?=[+−-]?\d*\.\d+\])")
FOREIGN = re.compile(
    r"<script[^>]+src=[\"']?(?:https?:)?//[^\"'> ]+"
    r"|<link(?=[^>]+(?:stylesheet|preload|icon))[^>]+href=[\"']?(?:https?:)?//[^\"'> ]+"
    r"|<(?:img|iframe|video|audio|source)[^>]+src=[\"']?(?:https?:)?//[^\"'> ]+"
    r"|url\([\"']?(?:https?:)?//[^)]+|@import\s+[\"'](?:https?:)?//[^\"']+"
)


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
    from beatssl.report import comparison, tables
    from beatssl.results import saved as results

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
    return "\n\n".join(
        [
            note,
            tables.markdown(tables.paper_and_ours(found, tables.TABLE_1)),
            compared,
            tables.markdown(comparison.beside_paper(rows)),
            f"The differences with their intervals, and what can be said: {more}.\n",
        ]
    )


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
            print(
                f"{name}: {older} pages are older than the code, and say so "
                f"(`python -m beatssl check --profile {name}`)"
            )
    foreign = foreign_hosts(html)
    if foreign:
        print("\n".join(foreign[:20]))
        print("the book loads something from another host (see above)")
        return 1
    print(f"the book is built in {time.monotonic() - start:.1f} s; open")
    print(f"  {(html / 'index.html').as_uri()}")
    return 0
