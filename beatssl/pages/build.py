"""`build` renders the executed pages into the book; nothing is computed."""

import os
import re
import shutil
import textwrap
import time
from html import escape
from pathlib import Path

import yaml

from beatssl.cache import clear_leftovers, replacing_folder, write_text
from beatssl.pages import fresh
from beatssl.pages.plan import Page, plan, read_notebook, read_stages, template
from beatssl.pages.run import SHOWN, executed_profiles, page_problems, profile_problems, python
from beatssl.profile import Profile, load_profile
from beatssl.report import comparison, tables
from beatssl.results import claims, saved
from beatssl.settings import ROOT, config_hash, read_yaml

PLACES = {"shown": "as main chapters", "run": "in the last part"}  # `pages` of a part of the book
JUPYTER_BOOK = "from jupyter_book.cli.main import main; main()"
RENDER = "build book --config _config.yml --all -W -n --keep-going -q"
OF_SYSTEM = re.compile(r"^\w+Error: \[Errno \d+\].*", re.M)  # no space left on device
CELL = re.compile(r"<td\b.*?</td>", re.S)
INTERVAL = re.compile(r"(\[[+−-]?\d*\.\d+,) (?=[+−-]?\d*\.\d+\])")
FOREIGN = re.compile(
    r"<(?!a\b)\w+[^>]+(?:src|href)=[\"']?(?:https?:)?//[^\"'> ]+"  # of a link: loads nothing
    r"|url\([\"']?(?:https?:)?//[^)]+|@import\s+[\"'](?:https?:)?//[^\"']+"
)

# --- sources ----------------------------------------------------------------------------------


def shown_profiles(name: str, root: Path = ROOT) -> list[Profile]:
    """The profile just run, and that of the committed pages where there are some."""
    names = dict.fromkeys([name, *({SHOWN} & {*executed_profiles(root)})])
    return [load_profile(name, root / "runs.yml") for name in names]


def write_sources(name: str, root: Path = ROOT) -> Path:
    """Write `_build/_toc.yml` and the included pages of `book/_generated/`.

    In `book/_toc.yml` a part with `pages: shown` becomes the committed pages of real recordings,
    one with `pages: run` the pages of the profile just run; a part without pages is left out, and
    so is a chapter that is not there (a page of a further profile that was not executed).
    """
    shown = {"shown" if p.name == SHOWN else "run": p for p in shown_profiles(name, root)}
    generated, target, notes = root / "book" / "_generated", root / "_build" / "_toc.yml", []
    toc = read_yaml(root / "book" / "_toc.yml")
    toc["parts"] = [part for part in toc["parts"] if part.get("pages") in [None, *shown]]
    for part in [part for part in toc["parts"] if "pages" not in part]:
        there = [c for c in part["chapters"] if (root / "book" / _source(c["file"])).is_file()]
        part["chapters"] = there  # a page of another profile may not be executed yet
    for part in [part for part in toc["parts"] if "pages" in part]:
        place = part.pop("pages")
        profile = shown[place]
        pages = [page for page in plan(profile, root) if not page_problems(page, stale=False)]
        kind, mark = ("synthetic", " (synthetic)") if profile.data.synthetic else ("real", "")
        notes.append(f"profile `{profile.name}` ({kind} recordings), {PLACES[place]}")
        caption = part["caption"].format(profile=f"{profile.name}{mark}")
        part |= {"caption": caption, "chapters": chapters(profile.name, pages)}
        rows = "\n".join(_overview_row(page) for page in pages if page.run)
        overview = template("pretraining", root, synthetic=mark, rows=rows)
        write_text(generated / f"pretraining_{profile.name}.md", overview)
    notes = "; ".join(notes)
    write_text(generated / "run_note.md", f"This build holds the executed pages of {notes}.\n")
    write_text(generated / "main_table.md", _main_table(root))
    write_text(target, yaml.safe_dump(toc, sort_keys=False, allow_unicode=True))
    return target


def _source(file: str) -> str:
    """The source of a chapter of `_toc.yml`: prose, or an executed page."""
    return f"{file}.{'ipynb' if file.startswith('runs/') else 'md'}"


def chapters(profile: str, pages: list[Page]) -> list[dict]:
    """Chapters of a profile; the pages of its pretraining runs are sections under one of them, and
    the sidebar names them by the run alone."""
    runs = [page for page in pages if page.run]
    sections = [{"file": p.file, "title": p.run.run_id.removeprefix("beatssl-")} for p in runs]
    overview = {"file": f"_generated/pretraining_{profile}", "sections": sections}
    return [overview if p.run else {"file": p.file} for p in pages if p not in runs[1:]]


def _overview_row(page: Page) -> str:
    """A run in the table of the pretraining runs."""
    run = page.run
    row = [run.rhythm, run.beat, f"{run.exponent:g}"] if run.method == "beatssl" else ["–"] * 3
    cells = [run.method, *row, run.variant or "–", run.seed, "–" if run.untrained else run.epochs]
    return f"| [{run.run_id}](../{page.file}.ipynb) | {' | '.join(map(str, cells))} |"


def _main_table(root: Path) -> str:
    """The front page's table, from results/subset.csv; says so when there is none yet."""
    results = root / "results" / f"{SHOWN}.csv"
    if not results.is_file():
        return template("not_run", root)
    profile = load_profile(SHOWN, root / "runs.yml")
    rows = tables.headlines(profile, folder=results.parent)
    data = ", ".join(sorted(set(rows["data"].dropna())))
    ours = tables.markdown(tables.paper_and_ours(rows, tables.TABLE_1))
    compared = tables.markdown(comparison.beside_paper(saved.read(results)))
    told = claims.read(profile)
    told = tables.markdown(tables.claim_texts(told)) if len(told) else ""
    parts = {"data": data, "ours": ours, "compared": compared, "profile": profile, "claims": told}
    return template(
        "main_table", root, **parts, summary=read_stages(root / "runs.yml", SHOWN)[-1][-1]
    )


# --- the built book ---------------------------------------------------------------------------


def foreign_hosts(html: Path) -> list[str]:
    """Scripts, styles, fonts and pictures that a built page would load from another host."""
    files = sorted([*html.rglob("*.html"), *html.rglob("*.css")])
    hits = [(f, hit) for f in files for hit in FOREIGN.findall(f.read_text("utf-8", "replace"))]
    return [f"{file.relative_to(html)}: {hit[:120]}" for file, hit in hits]


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
        path = html / f"{page.file}.html"
        if not path.is_file():
            continue
        stamp = read_notebook(page.path).metadata.get("beatssl", {})
        made, code = stamp.get("made", "an unknown day"), config_hash(stamp.get("code"))[:8]
        line = template("made", root, made=made, code=code)
        if reasons := "; ".join(fresh.stale(stamp, fresh.stamp(page), data=None)):
            older += 1
            short = reasons.replace("stale: ", "").replace("beatssl.", "")
            line += template("older", root, reasons=escape(textwrap.shorten(short, 150)))
        head, article, text = path.read_text(encoding="utf-8").partition("<article")
        write_text(path, head + article + text.replace("</h1>", "</h1>" + line, 1))
    return older


def build(name: str = "tiny", root: Path = ROOT) -> int:
    """Render the book offline; 1 if a page of the profile is unfit to be shown or Sphinx warns.

    The book shows the committed pages of real recordings and, apart from them, those of the
    profile. A page that is older than the code is shown, and says so; a committed page that is bad
    or not executed yet is left out and named.
    """
    start, profiles = time.monotonic(), shown_profiles(name, root)
    book, new = root / "_build" / "html", root / "_build" / "new"
    html = new / "_build" / "html"  # takes the place of `book` when it is good
    problems = {p.name: profile_problems(p.name, root, stale=False) for p in profiles}
    print("".join(f"left out: {line}\n" for line in problems.pop(SHOWN, [])), end="")
    again = f"`python -m beatssl run --profile {name}` makes them again"
    if problems.get(name):
        return _not_built(problems[name], again)
    toc = write_sources(name, root)
    shutil.rmtree(new, ignore_errors=True)
    clear_leftovers(book.parent)
    print("building the book ...", flush=True)
    words = [*RENDER.split(), "--toc", str(toc.resolve()), "--path-output", str(new)]
    status, said = python(["-c", JUPYTER_BOOK, *words], root, PYTHONWARNINGS="ignore")
    if status or not (html / "index.html").is_file():
        lines = OF_SYSTEM.findall(said)[-1:] or [said[-6000:]]
        return _not_built(lines, "jupyter-book failed (warnings are errors)")
    keep_intervals_whole(html)
    for built in sorted({path.parent.name for path in html.glob("runs/*/*.html")}):
        older = say_how_old(load_profile(built, root / "runs.yml"), html, root)
        if older:
            print(f"{built}: {older} pages are older than the code and say so (see `check`)")
    foreign = foreign_hosts(html)
    if foreign:
        return _not_built(foreign[:20], "it loads something from another host")
    with replacing_folder(book) as part:
        os.replace(html, part)
    shutil.rmtree(new)
    print(f"built in {time.monotonic() - start:.1f} s; open\n  {(book / 'index.html').as_uri()}")
    return 0


def _not_built(lines: list[str], why: str) -> int:
    print("\n".join([*lines, f"the book is not built: {why}"]))
    return 1
