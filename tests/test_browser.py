"""The book of the committed pages in a real browser, as a reader opens it: from disk, at the width
of a desk and of a phone, light and dark."""

from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from beatssl.pages import build, pdf
from beatssl.settings import ROOT

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

WIDTHS = {"desk": 1280, "phone": 390}
OF_A_PAGE = 300_000  # bytes of HTML and of own images
OF_THE_BOOK = 40_000_000
PARTS = 2  # the pages are visited in so many tests, one a core
SERIOUS = ("serious", "critical")
BROKEN = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="session")
def book(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The book of the committed pages, built once for all processes."""
    if not (shutil.which("chromium") or shutil.which("chromium-browser")):
        pytest.skip("chromium is not installed")
    base = tmp_path_factory.getbasetemp()
    project = (base if worker_id == "master" else base.parent) / "committed"
    project.mkdir(exist_ok=True)
    with open(project / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        html = project / "_build" / "html"
        if not html.is_dir():
            for name in ("beatssl", "book", "notebooks", "results"):
                ignored = shutil.ignore_patterns("__pycache__", "_generated", "*.safetensors")
                shutil.copytree(ROOT / name, project / name, ignore=ignored)
            for name in ("_config.yml", "runs.yml"):
                shutil.copy(ROOT / name, project / name)
            for path in (project / "book" / "runs").glob("tiny"):  # of a run just made
                shutil.rmtree(path)
            assert build.build("subset", project) == 0
    return html


@pytest.fixture
def page(book: Path) -> Iterator:
    """A tab that notes what goes wrong: `page.wrong`."""
    with playwright.sync_playwright() as started:
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        context = browser.new_context(reduced_motion="reduce")
        tab = context.new_page()
        tab.wrong = wrong = []
        tab.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda error: wrong.append(str(error)))

        def asked(request) -> None:
            if not request.url.startswith(("file:", "data:", "blob:")):
                wrong.append(f"asks another host: {request.url}")

        tab.on("request", asked)
        yield tab
        browser.close()


def show(tab, path: Path, query: str = "") -> None:
    tab.set_viewport_size({"width": WIDTHS["desk"], "height": 900})
    tab.goto(path.as_uri() + query)
    tab.wait_for_load_state("load")


def paint(tab, theme: str) -> None:
    tab.evaluate(f"Object.assign(document.documentElement.dataset, {{theme: '{theme}'}})")
    tab.add_style_tag(content="*, *::before, *::after {transition: none !important}")


def pages_of(html: Path) -> list[Path]:
    return sorted(p for p in html.rglob("*.html") if "_static" not in p.parts)


def of_one_run(path: Path) -> bool:
    return path.stem.startswith("05_pretraining--")


@pytest.mark.parametrize("part", range(PARTS))
def test_every_page_as_a_reader_sees_it(book: Path, page, part: int) -> None:
    """No error, no other host, no sideways scroll, every image, and nothing that axe calls serious;
    axe looks at a few of the pages of single runs, which are alike."""
    problems, seen_by_axe = [], 0
    for number, path in enumerate(pages_of(book)[part::PARTS]):
        name, page.wrong[:] = path.relative_to(book), []
        show(page, path)
        for width, pixels in WIDTHS.items():
            page.set_viewport_size({"width": pixels, "height": 900})
            if page.evaluate(WIDER) > 0:
                problems.append(f"{name}: scrolls sideways, {width}")
        problems += [f"{name}: no image {src}" for src in page.evaluate(BROKEN)]
        problems += [f"{name}: {text[:150]}" for text in page.wrong]
        if of_one_run(path) and number % 20:
            continue
        page.set_viewport_size({"width": WIDTHS["desk"], "height": 900})
        seen_by_axe += 1
        for theme in ("light", "dark"):
            paint(page, theme)
            found = axe.Axe().run(page, options={"preload": False, "resultTypes": ["violations"]})
            for fault in found.response["violations"]:
                if fault["impact"] in SERIOUS:
                    node = fault["nodes"][0]["html"][:100]
                    problems.append(f"{name}, {theme}: {fault['id']}: {node}")
    assert not problems, "\n".join(problems)
    assert seen_by_axe > 10


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links, self.ids = [], set()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        found = dict(attrs)
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}


def test_internal_links_lead_somewhere(book: Path) -> None:
    read = {}
    for path in pages_of(book):
        read[path] = parser = _Links()
        parser.feed(path.read_text(encoding="utf-8"))
    dead = []
    for path, parser in read.items():
        for link in parser.links:
            file, _, anchor = unquote(link).partition("#")
            if re.match(r"\w+:|//", file) or link.startswith("javascript"):
                continue
            target = (path.parent / file.partition("?")[0]).resolve() if file else path
            known = read.get(target)
            if not target.exists() or (anchor and known and anchor not in known.ids):
                dead.append(f"{path.relative_to(book)}: {link}")
    assert not dead, "\n".join(dead[:20])


def test_figures_say_what_they_show(book: Path) -> None:
    """Without a text of its own a figure is called after its file."""
    nameless = []
    for path in pages_of(book):
        for tag in re.findall(r"<img[^>]+>", path.read_text(encoding="utf-8")):
            alt = re.search(r'alt="([^"]*)"', tag)
            if "_images/" in tag and not (alt and len(alt[1].split()) > 3):
                nameless.append(f"{path.relative_to(book)}: {tag[:120]}")
    assert not nameless, "\n".join(nameless)


def test_pages_and_the_book_are_light(book: Path) -> None:
    heavy = []
    for path in pages_of(book):
        text = path.read_text(encoding="utf-8")
        own = {m for m in re.findall(r'<img[^>]+src="([^"]+)"', text) if not m.startswith("data:")}
        size = len(text.encode()) + sum((path.parent / src).stat().st_size for src in own)
        if size > OF_A_PAGE:
            heavy.append(f"{path.relative_to(book)}: {size / 1000:.0f} kB")
    assert not heavy, "\n".join(heavy)
    assert sum(p.stat().st_size for p in book.rglob("*") if p.is_file()) < OF_THE_BOOK


def test_tables_are_tables(book: Path) -> None:
    """A table in the source's form, `|---|`, was not rendered; a dash is typeset from the three."""
    raw = [p for p in pages_of(book) if re.search(r"\|(?:—|-{3,})\|", p.read_text("utf-8"))]
    assert not raw


def test_search_finds_a_word_of_one_page(book: Path, page) -> None:
    show(page, book / "search.html", "?q=Nemenyi")
    page.wait_for_selector("#search-results li", timeout=10_000)
    assert "14_statistics" in page.inner_html("#search-results")


def test_runs_are_sorted_and_filtered(book: Path, page) -> None:
    show(page, book / "_generated" / "table_1_subset.html")
    rows = page.locator(".runs tbody tr")
    count = rows.count()
    page.locator(".runs-filter input").fill("soft_1-hard-50 s1")
    shown = page.locator(".runs tbody tr:visible")
    assert 0 < shown.count() < count
    names = shown.locator("td:first-child").all_inner_texts()
    assert names and all("soft_1-hard-50" in name and "s1" in name for name in names)
    page.locator(".runs-filter input").fill("")
    head = page.locator(".runs th button", has_text="AUROC")
    head.focus()
    page.keyboard.press("Enter")
    column = page.locator(".runs tbody td:nth-child(7)").all_inner_texts()
    numbers = [float(text) for text in column if text != "–"]
    assert numbers == sorted(numbers) and len(numbers) > 10
    page.keyboard.press("Enter")
    column = page.locator(".runs tbody td:nth-child(7)").all_inner_texts()
    assert [float(text) for text in column if text != "–"] == sorted(numbers, reverse=True)


def test_waves_follow_the_choice_of_record_and_method(book: Path, page) -> None:
    show(page, book / "runs" / "own" / "21_see.html")
    record, method = page.locator(".see-waves select").all()
    svg = page.locator(".see-waves svg")
    first = svg.get_attribute("aria-label"), svg.inner_html()
    record.focus()
    page.keyboard.press("ArrowDown")
    second = svg.get_attribute("aria-label"), svg.inner_html()
    assert first[0] != second[0] and first[1] != second[1]
    names = method.locator("option").all_inner_texts()
    assert len(names) > 1
    method.select_option(index=1)
    assert names[1] in svg.get_attribute("aria-label")
    assert svg.locator("polyline").count() > 20  # a line a wave, in both strips
    assert not page.wrong


def test_targets_follow_measure_and_exponent(book: Path, page) -> None:
    show(page, book / "runs" / "own" / "21_see.html")
    box = page.locator(".see-targets")

    def matrix() -> list[list[float]]:
        rows = box.locator("tbody tr").all()
        return [[float(x) for x in row.locator("td").all_inner_texts()] for row in rows]

    plain = matrix()
    box.locator("input").focus()
    page.keyboard.press("ArrowRight")
    assert box.locator("output").inner_text() == "2"
    for row, squared in zip(plain, matrix(), strict=True):
        assert all(abs(a * a - b) < 0.03 for a, b in zip(row, squared, strict=True))
    before = matrix()
    box.locator("select").select_option(label="inverse_distance")
    assert matrix() != before and all(row[k] == 1 for k, row in enumerate(matrix()))
    assert not page.wrong


@pytest.mark.slow
def test_the_book_in_one_file(book: Path) -> None:
    project = book.parent.parent
    assert pdf.pdf("subset", project) == 0
    content = (project / "_build" / "beatssl.pdf").read_bytes()
    assert content.startswith(b"%PDF") and 500_000 < len(content) < 20_000_000
    assert len(re.findall(rb"/Type\s*/Page\b", content)) > 40
    assert not (project / "_build" / "pdf").exists()
