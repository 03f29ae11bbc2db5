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
from beatssl.pages import run
from beatssl.pages.fresh import source_of
from beatssl.profile import load_profile
from beatssl.results import saved
from beatssl.settings import config_hash, read_yaml, to_dict

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST_LINE, LONGEST_FUNCTION = 100, 60
TEACHING = ("compute", "data", "evaluate", "methods", "profile", "tasks", "train")  # rooms
NotebookNode = nbformat.NotebookNode


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_source_has_no_outputs(notebook: NotebookNode) -> None:
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None


def test_title_first_parameters_second(path: Path, notebook: NotebookNode) -> None:
    assert "profile" in pages.declared_parameters(path)
    assert "parameters" in notebook.cells[1].metadata.get("tags", [])
    for cell in notebook.cells[1:]:
        if cell.cell_type == "markdown":
            assert not cell.source.startswith("# "), "only the first cell holds the title"


def test_code_fits_on_the_screen_and_concepts_live_in_the_package(notebook: NotebookNode) -> None:
    for line in source_of(notebook).splitlines():
        assert len(line) <= LONGEST_LINE, line
    for node in ast.walk(ast.parse(source_of(notebook))):
        assert not isinstance(node, ast.ClassDef), f"class {node.name} belongs into the package"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{node.name} is too long"
    for cell in notebook.cells:
        found = re.search(r"(?<![\w.}>/])/(home|root|tmp|usr|work|Users)/", cell.source)
        assert not found, f"the path {found[0]} is that of one machine"


def test_cells_that_only_dress_are_hidden(path: Path, notebook: NotebookNode) -> None:
    """From the classification on, a cell that calls no room that teaches makes a table or a figure
    of what is there: a reader finds it in the notebook, which the page links."""
    if path.stem < "06" or path.stem == "19_own_ecg":
        pytest.skip("these pages teach by their code")
    teaching = set()
    for node in ast.walk(ast.parse(source_of(notebook))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("beatssl"):
            for alias in node.names:
                room = f"{node.module}.{alias.name}".split(".")[1]
                teaching |= {alias.asname or alias.name} if room in TEACHING else set()
    for cell in code_cells(notebook):
        nodes = ast.walk(ast.parse(source_of(NotebookNode(cells=[cell]))))
        named = {node.id for node in nodes if isinstance(node, ast.Name)}
        tags = cell.metadata.get("tags", [])
        if not named & teaching and "parameters" not in tags:
            assert "remove-input" in tags, cell.source


def test_functions_of_a_page_come_without_its_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beatssl.profile.load_profile", lambda *_: pytest.fail("opened"))
    found = page("09_sensitivity")
    assert callable(found.sensitivity) and found.BLOCKS[1] == "varied in Table 1"
    assert not hasattr(found, "settings") and not hasattr(found, "profile")


def test_metadata_is_small(notebook: NotebookNode) -> None:
    assert notebook.metadata.kernelspec.name == "python3"
    assert not {"papermill", "widgets"} & set(notebook.metadata)


def test_every_notebook_runs_in_a_stage() -> None:
    file = ROOT / "runs.yml"
    stages = [pages.read_stages(file, profile) for profile in read_yaml(file)["profiles"]]
    named = {name for of_profile in stages for stage in of_profile for name in stage}
    assert {path.stem for path in NOTEBOOKS} == named


def test_committed_pages_are_whole() -> None:
    """The results on real recordings that the book shows: executed, without an error, small; they
    may be older than the code, and then say so."""
    if run.SHOWN not in run.executed_profiles(ROOT):
        pytest.skip(f"no pages of profile {run.SHOWN} are committed yet")
    problems = run.profile_problems(run.SHOWN, ROOT, stale=False)
    assert [line for line in problems if not line.endswith(": missing")] == []


def test_committed_pages_show_the_committed_results() -> None:
    """Every AUROC and LUDB F1 of a run's page stands in the results file; a page of another split
    of the data says that it is older."""
    path = ROOT / "results" / f"{run.SHOWN}.csv"
    runs = sorted((ROOT / "book" / "runs" / run.SHOWN).glob("05_pretraining--*.ipynb"))
    if not runs or not path.is_file():
        pytest.skip("no committed results on real recordings")
    table, split = saved.read(path), config_hash(to_dict(load_profile(run.SHOWN))["data"])
    found, compared = 0, 0
    for executed in runs:
        run_id = executed.stem.partition("--")[2]
        stamp = nbformat.read(executed, as_version=4).metadata["beatssl"]
        if stamp["settings"]["data"] != split:
            continue
        compared += 1
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
    assert found >= compared > 0
