"""The contract of the notebooks, and the committed pages made from them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from notebook_functions import page

from beatssl.pages import plan as pages
from beatssl.pages import run as book
from beatssl.pages.fresh import code_cells
from beatssl.results import saved as results

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST_DEF = 60  # lines
MOST_CODE_CELLS = 16


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


def test_source_has_no_outputs(notebook: nbformat.NotebookNode) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def test_title_first_parameters_second(notebook: nbformat.NotebookNode) -> None:
    assert pages.title(notebook, "notebook")
    assert "profile" in pages.declared_parameters(notebook, "notebook")
    assert "parameters" in notebook.cells[1].metadata.get("tags", [])
    for cell in notebook.cells[1:]:
        if cell.cell_type == "markdown":
            assert not cell.source.startswith("# "), "only the first cell holds the title"


def test_notebook_is_thin(notebook: nbformat.NotebookNode) -> None:
    """What several pages need lives in the package: no class, no long function, few cells, no
    absolute path."""
    sources = code_cells(notebook)
    assert len(sources) <= MOST_CODE_CELLS
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.ClassDef)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < LONGEST_DEF, f"{node.name} is too long"
    for cell in notebook.cells:
        assert "/home/" not in cell.source and "/work/" not in cell.source


def test_functions_of_a_page_come_without_its_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beatssl.profile.load_profile", lambda *_: pytest.fail("opened"))
    found = page("09_sensitivity")
    assert callable(found.sensitivity) and found.BLOCKS[1] == "varied in Table 1"
    assert not hasattr(found, "settings") and not hasattr(found, "profile")


@pytest.mark.parametrize("path", NOTEBOOKS[5:], ids=lambda path: path.stem)
def test_lines_of_code_are_not_longer_than_100_columns(path: Path) -> None:
    sources = code_cells(nbformat.read(path, as_version=4))
    long = [line for source in sources for line in source.splitlines() if len(line) > 100]
    assert sources and not long


def test_metadata_is_small(notebook: nbformat.NotebookNode) -> None:
    assert notebook.metadata.get("kernelspec", {}).get("name", "python3") == "python3"
    assert not {"papermill", "widgets"} & set(notebook.metadata)


def test_every_notebook_runs_in_a_stage() -> None:
    if not NOTEBOOKS:
        pytest.skip("no notebooks yet")
    named = {name for stage in pages.read_stages(ROOT / "runs.yml") for name in stage}
    assert {path.stem for path in NOTEBOOKS} == named


def test_committed_pages_are_whole() -> None:
    """The results on real recordings that the book shows: executed, without an error, small; they
    may be older than the code, and then say so."""
    if book.SHOWN not in book.executed_profiles(ROOT):
        pytest.skip(f"no pages of profile {book.SHOWN} are committed yet")
    problems = book.profile_problems(book.SHOWN, ROOT, stale=False)
    assert [line for line in problems if not line.endswith(": missing")] == []


def test_committed_pages_show_the_committed_results() -> None:
    """Every AUROC and LUDB F1 of a run's page stands in the results file."""
    path = ROOT / "results" / f"{book.SHOWN}.csv"
    runs = sorted((ROOT / "book" / "runs" / book.SHOWN).glob("05_pretraining--*.ipynb"))
    if not runs or not path.is_file():
        pytest.skip("no committed results on real recordings")
    table = results.read(path)
    found = 0
    for executed in runs:
        run_id = executed.stem.partition("--")[2]
        shown = " ".join(
            output.get("data", {}).get("text/html", "")
            for cell in nbformat.read(executed, as_version=4).cells
            for output in cell.get("outputs", [])
        )
        printed = np.array(re.findall(r"(\d\.\d{3}) \[(\d\.\d{3}), (\d\.\d{3})\]", shown), float)
        rows = table[(table["run_id"] == run_id) & (table["protocol"] == "frozen")]
        for row in rows.itertuples():
            whole = (row.task, row.metric) in {
                ("ptbxl_superdiagnostic", "auroc_macro"),
                ("ludb_segmentation", "f1_macro"),
            }
            if whole and not np.isnan(row.value):
                wanted = [row.value, row.ci_low, row.ci_high]
                near = np.abs(printed - wanted).max(axis=1).min()
                assert near < 0.00051, f"{executed.stem}: {row.task} {wanted}"
                found += 1
    assert found >= len(runs)
