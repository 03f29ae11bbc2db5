"""`build` renders the executed pages into the book; nothing is computed."""

import os
import re
import shutil
import textwrap
import time
from collections.abc import Mapping
from html import escape
from pathlib import Path

import nbformat
import yaml
from nbconvert.preprocessors import ClearOutputPreprocessor
from PIL import Image

from beatssl.cache import clear_leftovers, replacing_folder, write_text
from beatssl.methods import METHODS
from beatssl.methods.base import RunSettings
from beatssl.pages import fresh
from beatssl.pages.plan import Page, plan, read_notebook, read_stages, template
from beatssl.pages.run import SHOWN, executed_profiles, page_problems, profile_problems, python
from beatssl.profile import Profile, load_profile
from beatssl.report import figures, tables
from beatssl.results import claims, saved
from beatssl.settings import ROOT, config_hash, read_yaml

GROUPS = {  # of runs: title, and what is common to them
    "table_1": (
        "Runs: the rows of Table 1",
        "Beat-SSL in the paper's 14 rows, each with its rhythm target, beat target and exponent.",
    ),
    "changed": (
        "Runs: changed settings",
        "One setting at a time changed from a row; a variant is named after it.",
    ),
    "compared": ("Runs: the compared methods", "Other ways to pretrain, on the same records."),
    "references": ("Runs: the references", "Networks with random weights: nothing was pretrained."),
}
OVERVIEW = ("AUROC", "LUDB F1")  # columns of scores
LARGEST_PNG, LARGEST_LOSSLESS = 8_000, 22_000  # bytes of a picture
PLACES = {"shown": "as main chapters", "run": "in the last part"}  # `pages` of a part of the book
JUPYTER_BOOK = "from jupyter_book.cli.main import main; main()"
RENDER = "build book --config _config.yml --all -W -n --keep-going -q"
OF_SYSTEM = re.compile(r"^\w+Error: \[Errno \d+\].*", re.M)  # no space left on device
CELL = re.compile(r"<td\b.*?</td>", re.S)
INTERVAL = re.compile(r"(\[[+−-]?\d*\.\d+,) (?=[+−-]?\d*\.\d+\])")
SPREAD = re.compile(  # sd, interval and the paper's number behind a number
    r"(?<=[\d>]) ((?:\([\d.]+\) )?\[[^\]<]*\](?: \(paper [^)<]*\))?|\(\d*\.\d+\)(?=</))"
)
THEBE = re.compile(
    r"<script>const THEBE_JS_URL.*?</script>|<script[^>]*sphinx-thebe\.js.*?</script>", re.S
)
NO_LIST = 'role="list" class="citation-list"'  # its children are no list items
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

    In `book/_toc.yml` a chapter with `page:` becomes the committed page of real recordings made of
    that notebook, and a part with `pages: run` the pages of the profile just run. A chapter that is
    not there (not executed yet) is left out, and so is a part without chapters.
    """
    shown = {"shown" if p.name == SHOWN else "run": p for p in shown_profiles(name, root)}
    generated, target, notes = root / "book" / "_generated", root / "_build" / "_toc.yml", []
    made: dict[str, dict[str, list[dict]]] = {}
    for place, profile in shown.items():
        kind, mark = ("synthetic", " (synthetic)") if profile.data.synthetic else ("real", "")
        made[place] = chapters(profile, root, mark)
        notes.append(f"profile `{profile.name}` ({kind} recordings), {PLACES[place]}")
        if place == "run":  # a small book of its own behind one entry of the sidebar
            words = {"profile": f"{profile.name}{mark}", "kind": kind}
            file = f"_generated/run_{profile.name}"
            write_text(root / "book" / f"{file}.md", template("run", root, **words))
            made["run"] = {"": [{"file": file, "sections": sum(made["run"].values(), [])}]}
    toc, committed = read_yaml(root / "book" / "_toc.yml"), made.get("shown", {})
    for part in toc["parts"]:
        if place := part.pop("pages", ""):
            part["chapters"] = made.get(place, {}).get("", [])
            part["caption"] = part["caption"].format(profile=name)
        found = [committed.get(c["page"], []) if "page" in c else [c] for c in part["chapters"]]
        there = [c for c in sum(found, []) if (root / "book" / _source(c["file"])).is_file()]
        part["chapters"] = there
    toc["parts"] = [part for part in toc["parts"] if part["chapters"]]
    notes = "; ".join(notes)
    write_text(generated / "run_note.md", f"This build holds the executed pages of {notes}.\n")
    write_text(generated / "claims.md", _claims(root))
    write_text(target, yaml.safe_dump(toc, sort_keys=False, allow_unicode=True))
    return target


def _source(file: str) -> str:
    """The source of a chapter of `_toc.yml`: prose, or an executed page."""
    return f"{file}.{'ipynb' if file.startswith('runs/') else 'md'}"


def chapters(profile: Profile, root: Path = ROOT, mark: str = "") -> dict[str, list[dict]]:
    """Notebook -> chapters of a profile's good pages. Those of its runs are sections of one chapter
    a group; the sidebar shows chapters alone (`max_navbar_depth`), and a group's page lists its
    runs."""
    pages = [page for page in plan(profile, root) if not page_problems(page, stale=False)]
    found: dict[str, list[dict]] = {page.notebook: [] for page in pages}
    for page in [page for page in pages if not page.run]:
        found[page.notebook] = [{"file": page.file}]
    runs = [page for page in pages if page.run]
    scores = _scores(root, profile) if runs else {}
    for name, (title, intro) in GROUPS.items():
        own = [page for page in runs if group_of(page.run) == name]
        if own:
            file = f"_generated/{name}_{profile.name}"
            rows = "\n".join(_overview_row(page, scores) for page in own)
            words = {"title": f"{title}{mark}", "intro": intro, "rows": rows}
            write_text(root / "book" / f"{file}.md", template("runs", root, **words))
            sections = [{"file": page.file, "title": page.run.run_id} for page in own]
            found[own[0].notebook].append({"file": file, "sections": sections})
    return found


def group_of(run: RunSettings) -> str:
    """Which of `GROUPS` a run belongs to."""
    if run.variant:
        return "changed"
    if run.name.startswith("beatssl-"):
        return "table_1"
    return "references" if METHODS[run.method].build is None else "compared"


def _scores(root: Path, profile: Profile) -> dict[tuple[str, str], float]:
    """(run, heading) -> score of its frozen encoder, of those in the results file."""
    path = root / "results" / f"{profile.name}.csv"
    if not path.is_file():
        return {}
    table = saved.read(path).query("protocol == 'frozen' and label_fraction == 1 and seed != 'all'")
    found = {}
    for heading, task, metric in saved.HEADLINES:
        own = table[(table["task"] == task) & (table["metric"] == metric)]
        found |= {(run, heading): value for run, value in zip(own["run_id"], own["value"])}
    return found


def _overview_row(page: Page, scores: Mapping[tuple[str, str], float]) -> str:
    """A run in the table of its group."""
    run = page.run
    row = [run.rhythm, run.beat, f"{run.exponent:g}"] if run.name.startswith("beatssl-") else "–––"
    known = [scores.get((run.run_id, heading)) for heading in OVERVIEW]
    cells = [*row, run.variant or "–", run.seed]
    cells += ["–" if value is None else f"{value:.3f}" for value in known]
    name = run.run_id.removeprefix("beatssl-")
    return f"| [{name}](../{page.file}.ipynb) | {' | '.join(map(str, cells))} |"


def _claims(root: Path) -> str:
    """The front page's claims, from the results of the committed pages; says so where there are
    none yet."""
    results = root / "results" / f"{SHOWN}.csv"
    if not results.is_file():
        return template("not_run", root)
    profile = load_profile(SHOWN, root / "runs.yml")
    rows, told = saved.read(results), claims.read(profile).query("reading == ''")
    text, short, figure = "*Not all rows were run.*", "", ""
    if len(told):
        text, short = tables.markdown(tables.claim_texts(told)), tables.in_short(told)
        path = root / "book" / "_generated" / "claims.svg"
        figures.claims(tables.claim_effects(told)).savefig(path, metadata={"Date": None})
        figure = template("claims_figure", root)
    data = ", ".join(sorted(set(rows.loc[rows["seed"] == "all", "data"])))
    summary = read_stages(root / "runs.yml", SHOWN)[-1][-1]
    parts = {"data": data, "profile": profile, "claims": text, "short": short, "figure": figure}
    return template("claims", root, **parts, summary=summary)


# --- the built book ---------------------------------------------------------------------------


def foreign_hosts(html: Path) -> list[str]:
    """Scripts, styles, fonts and pictures that a built page would load from another host."""
    files = sorted([*html.rglob("*.html"), *html.rglob("*.css")])
    hits = [(f, hit) for f in files for hit in FOREIGN.findall(f.read_text("utf-8", "replace"))]
    return [f"{file.relative_to(html)}: {hit[:120]}" for file, hit in hits]


def _small_spread(cell: re.Match) -> str:
    """A cell of a table with its sd and interval small under the number, the interval whole."""
    whole = INTERVAL.sub(r"\1&nbsp;", cell[0])
    small = SPREAD.sub(r' <small class="spread">\1</small>', whole)
    return small.replace("] (paper", "]<br>(paper")


def tidy(html: Path) -> None:
    """In the cells of all tables, sd and interval small under the number; large pictures as WebP;
    out with what runs cells in the browser (declared twice, and from another host), and a role that
    needs list items; the notebooks to download without outputs, which the pages show."""
    made = "|".join(map(re.escape, _light_pictures(html / "_images")))
    pictures = re.compile(rf"({made})\.png") if made else None
    for path in html.rglob("*.html"):
        before = path.read_text(encoding="utf-8")
        after = CELL.sub(_small_spread, before)
        after = THEBE.sub("", after).replace(NO_LIST, 'class="citation-list"')
        after = pictures.sub(r"\1.webp", after) if pictures else after
        if after != before:
            write_text(path, after)
    for path in (html / "_sources").rglob("*.ipynb"):
        bare, _ = ClearOutputPreprocessor().preprocess(read_notebook(path), {})
        write_text(path, nbformat.writes(bare))


def _light_pictures(folder: Path) -> list[str]:
    """Replace large pictures by WebP: bit for bit, or nearly where that stays large (heat maps).

    Returns: their names without the ending."""
    made = []
    for path in [path for path in folder.glob("*.png") if path.stat().st_size > LARGEST_PNG]:
        light, picture = path.with_suffix(".webp"), Image.open(path).convert("RGB")
        picture.save(light, lossless=True)
        if light.stat().st_size > LARGEST_LOSSLESS:
            picture.save(light, quality=20, method=4)
        smaller = light.stat().st_size < path.stat().st_size
        (path if smaller else light).unlink()
        made += [path.stem] * smaller
    return made


def say_how_old(profile: Profile, html: Path, root: Path = ROOT) -> int:
    """Put under the title of each built page when, by which code and by which command it was made,
    where its notebook is, and whether the code has changed since. Returns: how many pages are older
    than the code."""
    older = 0
    for page in plan(profile, root):
        path = html / f"{page.file}.html"
        if not path.is_file():
            continue
        stamp = read_notebook(page.path).metadata.get("beatssl", {})
        made, code = stamp.get("made", "an unknown day"), config_hash(stamp.get("code"))[:8]
        command = f"python -m beatssl run --profile {profile.name} --only {page.name}"
        words = {"source": f"../../_sources/{page.file}.ipynb", "command": command}
        line = template("made", root, made=made, code=code, **words)
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
    tidy(html)
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
