"""The runner and the book: failures, freshness, equal bytes, no other host, phone width."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from beatssl import settings as config
from beatssl.__main__ import main
from beatssl.cache import HOST
from beatssl.methods import make_run
from beatssl.methods.encoder import StandardisedConfig
from beatssl.pages import build, fresh, run
from beatssl.pages import plan as pages
from beatssl.pages.scrub import scrub, smaller_png
from beatssl.profile import CompareConfig, load_profile
from beatssl.tasks.classify import ClassifyConfig
from beatssl.tasks.segment import SegmentConfig

ROOT = Path(__file__).resolve().parent.parent
PARAMETERS = 'profile: str = "tiny"'
RUN_PARAMETERS = PARAMETERS + '\nmethod: str = "random"\nseed: int = 0\nepochs: int = 20'


def write_notebook(root: Path, name: str, code: str, parameters: str = PARAMETERS) -> Path:
    cells = [
        new_markdown_cell(f"# Page {name}"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        new_code_cell(code),
    ]
    path = root / "notebooks" / f"{name}.ipynb"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def make_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project: two notebooks in two stages, a package of two modules."""
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path / "work"))
    monkeypatch.delenv("BEATSSL_DATA", raising=False)
    for folder in ("notebooks", "beatssl", "results"):
        (tmp_path / folder).mkdir()
    shutil.copytree(ROOT / "book" / "_templates", tmp_path / "book" / "_templates")
    (tmp_path / "beatssl" / "__init__.py").write_text("")
    (tmp_path / "beatssl" / "low.py").write_text('def two():\n    """Two."""\n    return 2\n')
    (tmp_path / "beatssl" / "high.py").write_text(
        "def four():\n    from beatssl.low import two\n\n    return 2 * two()\n"
    )
    (tmp_path / "runs.yml").write_text(
        "stages: [[01_data], [16_summary]]\n"
        "profiles:\n  tiny: {data: {synthetic: true}}\n  subset: {}\n"
    )
    write_notebook(tmp_path, "01_data", "from beatssl.high import four\nprint(profile, four())")
    write_notebook(tmp_path, "16_summary", "print('summary')")
    return tmp_path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_project(tmp_path, monkeypatch)


def fake_run(root: Path, profile_name: str = "tiny", cells=()) -> None:
    """Pages as if executed, without starting a kernel."""
    profile = load_profile(profile_name, root / "runs.yml")
    for page in pages.plan(profile, root):
        notebook = pages.read_notebook(root / "notebooks" / f"{page.notebook}.ipynb")
        notebook.cells += cells
        for number, cell in enumerate(c for c in notebook.cells if c.cell_type == "code"):
            cell.execution_count = number + 1
        text = scrub(notebook, page, {**fresh.stamp(page), "made": "2026-01-31"})
        page.path.parent.mkdir(parents=True, exist_ok=True)
        page.path.write_text(text)


# --- execution --------------------------------------------------------------------------------


def test_run_resume_and_failure(root: Path, capfd: pytest.CaptureFixture) -> None:
    """One real run: executed, then fresh, then a failure that leaves the good page alone."""
    rich = "class Rich:\n    def _repr_html_(self):\n        return '<b>rich</b>'\n\n\nRich()"
    write_notebook(
        root, "01_data", f"from beatssl.high import four\nprint(profile, four())\n{rich}"
    )
    assert run.run("tiny", root=root, jobs=2) == 0
    good = root / "book" / "runs" / "tiny" / "01_data.ipynb"
    first = good.read_bytes()
    text = first.decode()
    assert "tiny 4" in text and "(synthetic)" in text
    assert "<b>rich</b>" in text and "at 0x" not in text
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", nbformat.reads(text, 4).metadata["beatssl"]["made"])
    assert str(root) not in text and "papermill" not in text
    assert run.check("tiny", root) == 0
    assert run.run("tiny", root=root) == 0
    out = capfd.readouterr().out
    assert "0 of 2 pages to execute" in out
    assert "nothing to compute" in out and "run --profile tiny --force" in out

    write_notebook(root, "01_data", "print('before')\nraise ValueError('lead V2 is flat')")
    assert run.run("tiny", root=root) == 1
    out = capfd.readouterr().out
    assert "FAILED 01_data" in out and "ValueError: lead V2 is flat" in out
    assert good.read_bytes() == first
    assert (root / "work" / "tiny" / "failed" / "01_data.ipynb").is_file()
    assert run.check("tiny", root) == 1
    assert "01_data: stale: its notebook changed" in capfd.readouterr().out


def test_failed_page_keeps_its_stage_but_stops_the_next(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    (root / "runs.yml").write_text(
        "stages: [[01_data, 02_beats], [16_summary]]\nprofiles: {tiny: {}}\n"
    )
    write_notebook(root, "02_beats", "1")
    executed = []

    def execute(page):
        executed.append(page.name)
        return "cell 2: ValueError" if page.name == "01_data" else ""

    monkeypatch.setattr(run, "execute", execute)
    assert run.run("tiny", root=root, jobs=1) == 1
    assert sorted(executed) == ["01_data", "02_beats"]
    assert "not started: 16_summary" in capfd.readouterr().out


def test_fresh_page_runs_again_when_its_products_are_needed(root: Path) -> None:
    """Committed pages on a fresh clone: the store is not there, so a stale later page needs it."""
    fake_run(root)
    profile = load_profile("tiny", root / "runs.yml")
    assert run._why(pages.plan(profile, root)) == {}
    write_notebook(root, "16_summary", "print('other')")
    why = run._why(pages.plan(profile, root))
    assert "its notebook changed" in why["16_summary"] and "not in work/" in why["01_data"]


def test_what_killed_runs_left_beside_pages_and_results_is_cleared(root: Path) -> None:
    fake_run(root)
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    for place in ("book/runs/tiny", "results", "work/tiny"):
        (root / place).mkdir(parents=True, exist_ok=True)
        (root / place / f".01_data.ipynb.{HOST}-{done.pid}.part").write_text("half")
    assert run.run("tiny", root=root) == 0
    assert not list(root.rglob(".*.part"))


def test_missing_data_folder_and_unknown_page(root: Path) -> None:
    with pytest.raises(config.ConfigError, match="no such folder"):
        run.use_data(str(root / "nowhere"))
    with pytest.raises(config.ConfigError, match="page='05_x' is not known; known: 01_data, "):
        run.run("tiny", only=["05_x"], root=root)


def test_command_line_prints_errors_without_traceback(capsys: pytest.CaptureFixture) -> None:
    assert main(["run", "--profile", "huge"]) == 1
    assert "error: profile 'huge'" in capsys.readouterr().err


def test_pages_that_left_runs_yml_are_set_aside(root: Path, capfd) -> None:
    fake_run(root)
    stray = root / "book" / "runs" / "tiny" / "05_pretraining--gone.ipynb"
    shutil.copy(root / "book" / "runs" / "tiny" / "01_data.ipynb", stray)
    assert run.check("tiny", root) == 1
    assert "not in runs.yml any more" in capfd.readouterr().out
    assert run.run("tiny", root=root) == 0 and not stray.exists()
    assert (root / "work" / "tiny" / "old" / stray.name).is_file()


# --- notebooks and parameters -----------------------------------------------------------------


def plan_tiny(root: Path) -> list[pages.Page]:
    return pages.plan(load_profile("tiny", root / "runs.yml"), root)


def test_one_page_for_each_run_with_declared_parameters(root: Path) -> None:
    write_notebook(root, "05_pretraining", "1", RUN_PARAMETERS)
    (root / "runs.yml").write_text(
        "stages: [[05_pretraining]]\nprofiles:\n  tiny:\n    pretrain: {epochs: 3}\n"
        "    runs: [{method: cmsc, seeds: [0, 7]}]\n"
    )
    planned = plan_tiny(root)
    assert [p.name for p in planned] == ["05_pretraining--cmsc-s0", "05_pretraining--cmsc-s7"]
    assert planned[1].parameters == {"profile": "tiny", "method": "cmsc", "seed": 7}
    assert planned[1].run.epochs == 3  # the notebook takes it from the profile
    words = run.command(planned[1], Path("out.ipynb"))
    assert words[words.index("-y") + 1] == "profile: tiny\nmethod: cmsc\nseed: 7\n"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ('name: str = "x"', "01_data: unknown key 'profile'; known: name"),
        ("profile: int = 1", "expected int, got 'tiny' (YAML reads 1e-3 as text: write 1.0e-3)"),
        ('profile: str = "tiny"\ntwice = profile * 2', "'twice' needs a type"),
    ],
)
def test_wrong_parameters_cell(root: Path, parameters: str, message: str) -> None:
    write_notebook(root, "01_data", "1", parameters)
    with pytest.raises(config.ConfigError, match=re.escape(message)):
        plan_tiny(root)


def test_a_run_without_a_setting_has_a_page_without_that_parameter(root: Path) -> None:
    write_notebook(root, "05_pretraining", "1", RUN_PARAMETERS + "\nrhythm: str = 'hard'")
    (root / "runs.yml").write_text("stages: [[05_pretraining]]\nprofiles: {tiny: {}}\n")
    bare = SimpleNamespace(method="cmsc", seed=3, run_id="cmsc-s3", has_encoder=True)
    profile = SimpleNamespace(name="tiny", runs=(bare,))
    (page,) = pages.plan(profile, root)
    assert page.parameters == {"profile": "tiny", "method": "cmsc", "seed": 3}


def test_int_is_taken_for_float_but_not_text_or_bool() -> None:
    kinds = {"exponent": float, "seed": int, "unused": str}
    checked = pages.checked_parameters({"exponent": 50}, kinds, "n")
    assert checked == {"exponent": 50.0} and isinstance(checked["exponent"], float)
    for wrong in ({"exponent": "1e-3"}, {"seed": True}, {"seed": 1.0}):
        with pytest.raises(config.ConfigError):
            pages.checked_parameters(wrong, kinds, "n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cells: cells.pop(1), "0 cells are tagged"),
        (lambda cells: cells.append(cells[1]), "2 cells are tagged"),
        (lambda cells: cells.pop(0), "first cell must be markdown"),
        (lambda cells: cells[0].update(source="# A\n\n# B"), "exactly one '# Title'"),
    ],
)
def test_malformed_notebook(root: Path, change, message: str) -> None:
    path = root / "notebooks" / "01_data.ipynb"
    notebook = nbformat.read(path, 4)
    change(notebook.cells)
    nbformat.write(notebook, path)
    with pytest.raises(config.ConfigError, match=message):
        plan_tiny(root)


def test_results_are_collected_in_a_stage_of_their_own(root: Path, monkeypatch) -> None:
    (root / "runs.yml").write_text(
        "stages: [[01_data], collect, [16_summary]]\nprofiles: {tiny: {}}\n"
    )
    order = []
    monkeypatch.setattr(run, "execute", lambda page: order.append(page.name) or "")
    monkeypatch.setattr(run, "python", lambda words, _: (order.append(words[2]), "written"))
    assert run.run("tiny", root=root) == 0 and order == ["01_data", "collect", "16_summary"]
    order.clear()
    assert run.run("tiny", only=["01_data"], root=root) == 0 and order == ["01_data"]


@pytest.mark.parametrize("stages", ["[01_data]", "[[01_data], [01_data]]", "[[absent]]"])
def test_wrong_stages(root: Path, stages: str) -> None:
    (root / "runs.yml").write_text(f"stages: {stages}\nprofiles: {{tiny: {{}}}}\n")
    with pytest.raises(config.ConfigError):
        plan_tiny(root)


# --- freshness --------------------------------------------------------------------------------


def lines(root: Path) -> list[str]:
    return run.profile_problems("tiny", root)


def test_an_edit_of_a_function_makes_stale_only_the_pages_that_reach_it(root: Path) -> None:
    """Symbol by symbol, through a module that is named (`high.four`) and through registries."""
    low = root / "beatssl" / "low.py"
    low.write_text(low.read_text() + "\n\ndef five():\n    return 5\n\n\nTASKS = {5: five}\n")
    write_notebook(root, "01_data", "from beatssl import high\nhigh.four()")
    write_notebook(root, "16_summary", "from beatssl.low import TASKS\nTASKS[5]()")
    fake_run(root)
    low.write_text(low.read_text().replace("return 5", "return 6"))
    assert lines(root) == ["tiny/16_summary: stale: code changed: beatssl.low"]
    low.write_text(low.read_text().replace("return 2", "return 3"))
    assert "tiny/01_data: stale: code changed: beatssl.low" in lines(root)


def test_code_change_is_stale_but_a_docstring_is_not(root: Path) -> None:
    fake_run(root)
    low = root / "beatssl" / "low.py"
    low.write_text('def two():\n    """A pair."""  # comment\n\n    return 2\n')
    assert lines(root) == []
    low.write_text("def two():\n    return 3\n")
    assert lines(root) == [
        "tiny/01_data: stale: code changed: beatssl.low",
        "tiny/16_summary: stale: code changed: beatssl.low",  # reads what stage 1 made
    ]


def test_code_of_figures_is_no_reason_to_refuse_a_page_but_one_to_run_it_again(root: Path) -> None:
    (root / "beatssl" / "report").mkdir()
    (root / "beatssl" / "report" / "__init__.py").write_text("")
    (root / "beatssl" / "report" / "figures.py").write_text("def draw():\n    return 1\n")
    path = root / "notebooks" / "16_summary.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells[2].source = "from beatssl.report import figures as plots\nplots.draw()"
    nbformat.write(notebook, path)
    fake_run(root)
    (root / "beatssl" / "report" / "figures.py").write_text("def draw():\n    return 2\n")
    assert lines(root) == []
    profile = load_profile("tiny", root / "runs.yml")
    page = next(p for p in pages.plan(profile, root) if p.name == "16_summary")
    assert run.page_problems(page, look=True) == ["stale: look changed: beatssl.report.figures"]


def test_settings_and_notebook_changes_are_stale(root: Path) -> None:
    fake_run(root)
    runs = root / "runs.yml"
    old = runs.read_text()
    runs.write_text(old.replace("synthetic: true", "synthetic: true, seconds: 5.0"))
    assert "tiny/01_data: stale: settings changed: data" in lines(root)
    runs.write_text(old)
    path = root / "notebooks" / "16_summary.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells[0].source += "\n\nMore words."
    nbformat.write(notebook, path)
    assert lines(root) == ["tiny/16_summary: stale: its notebook changed"]


def test_data_counts_only_where_a_store_is(root: Path) -> None:
    new = {"source": 1, "notebook": "n", "parameters": {}, "settings": {}, "code": {}}
    old = {**new, "data": "aaaa"}
    assert fresh.stale(old, new, None) == []
    assert fresh.stale(old, new, "aaaa") == []
    assert fresh.stale(old, new, "bbbb") == ["stale: the prepared store holds other data"]


def test_check_names_bad_pages(root: Path) -> None:
    fake_run(root)
    path = root / "book" / "runs" / "tiny" / "01_data.ipynb"
    good = nbformat.read(path, 4)

    def problems(change) -> str:
        notebook = nbformat.reads(nbformat.writes(good), 4)
        change(notebook)
        nbformat.write(notebook, path)
        return "\n".join(lines(root))

    cell = 2
    error = new_output("error", ename="KeyError", evalue="'V7'", traceback=[])
    assert "not executed" in problems(lambda n: n.cells[cell].update(execution_count=None))
    assert "KeyError" in problems(lambda n: n.cells[cell].outputs.append(error))
    assert "exception" in problems(lambda n: n.metadata.update(papermill={"exception": True}))
    wide = new_output("stream", text="x" * 600_000)
    assert "at most 500 kB" in problems(lambda n: n.cells[cell].outputs.append(wide))
    address = new_output("execute_result", data={"text/plain": "<Axes at 0x7f12ab34cd56>"})
    assert "memory address" in problems(lambda n: n.cells[cell].outputs.append(address))
    path.write_text("{")
    assert "not a readable notebook" in "\n".join(lines(root))
    path.unlink()
    assert "tiny/01_data: missing" in lines(root)


def test_pictures_become_smaller_and_keep_their_colours() -> None:
    wave = np.sin(np.arange(1000) / 9)
    fig, axes = plt.subplots(figsize=(10, 4))
    axes.plot(wave)
    axes.scatter(np.arange(1000), wave, c=np.digitize(wave, [-0.5, 0, 0.5]))
    file = io.BytesIO()
    fig.savefig(file, format="png")
    plt.close(fig)
    before = base64.b64encode(file.getvalue()).decode()
    after = smaller_png(before)
    assert len(after) < 0.6 * len(before) and smaller_png(before) == after
    old, new = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(x))).convert("RGB"), float)
        for x in (before, after)
    )
    assert old.shape == new.shape and np.abs(old - new).mean() < 2  # of 255


def test_a_figure_is_kept_as_drawing_where_that_is_small(root: Path) -> None:
    page = plan_tiny(root)[0]
    kinds = []
    for points in (10, 5000):
        fig, axes = plt.subplots()
        axes.plot(np.sin(np.arange(points)))
        files = {kind: io.BytesIO() for kind in ("png", "svg")}
        for kind, file in files.items():
            fig.savefig(file, format=kind)
        plt.close(fig)
        png = base64.b64encode(files["png"].getvalue()).decode()
        data = {"image/png": png, "image/svg+xml": files["svg"].getvalue().decode()}
        notebook = pages.read_notebook(root / "notebooks" / "01_data.ipynb")
        notebook.cells.append(new_code_cell("", outputs=[new_output("display_data", data=data)]))
        made = nbformat.reads(scrub(notebook, page, {}), as_version=4)
        kinds += [*made.cells[-1].outputs[0].data]
    assert kinds == ["image/svg+xml", "image/png"]


def test_scrub_gives_equal_bytes(root: Path) -> None:
    """Two runs that differ in ids, times, stderr and folders give the same page."""
    profile = load_profile("tiny", root / "runs.yml")
    page = pages.plan(profile, root)[0]
    flushed = {1: [f"read {root}/notebooks\n", "done"], 2: [f"read {root}/notebooks\ndone"]}

    def executed(n: int) -> str:
        style = f'<style>#T_{n}abcd_row0 {{}}</style><table id="T_{n}abcd"></table>'
        outputs = [
            new_output("stream", name="stderr", text=f"stderr line {n}"),
            *(new_output("stream", text=part) for part in flushed[n]),
            new_output("display_data", {"text/html": style, "text/plain": f"S at 0x7f0000{n}0"}),
        ]
        cell = new_code_cell("print(1)", execution_count=1, outputs=outputs, id=f"random{n}")
        times = {"iopub.execute_input": f"time {n}"}
        cell.metadata = {"papermill": {"duration": n}, "execution": times, "tags": ["t"]}
        notebook = new_notebook(cells=[new_markdown_cell("# T\n\nText.", id=f"a{n}"), cell])
        notebook.metadata["papermill"] = {"start_time": n}
        return scrub(nbformat.from_dict(notebook), page, {"a": 1})

    assert executed(1) == executed(2)
    assert "read ./notebooks" in executed(1) and "stderr line" not in executed(1)
    first = nbformat.reads(executed(1), 4).cells[0].source
    assert first.startswith("# T (synthetic)\n\n:::{warning}") and first.endswith("Text.")


def test_cells_of_one_method_are_hidden_on_pages_of_others(root: Path) -> None:
    notebook = nbformat.read(root / "notebooks" / "01_data.ipynb", as_version=4)
    tags = [["only-beatssl"], ["only-random", "hide-input"], []]
    notebook.cells += [new_markdown_cell("text", metadata={"tags": t} if t else {}) for t in tags]
    page = replace(plan_tiny(root)[0], run=make_run("random"))
    scrubbed = nbformat.reads(scrub(notebook, page, {}), 4).cells[-3:]
    hidden = ["remove-cell" in cell.metadata.get("tags", []) for cell in scrubbed]
    assert hidden == [True, False, False]


# --- the built book ---------------------------------------------------------------------------


def prepare_book(root: Path) -> None:
    """The real prose around the pages of the small project."""
    shutil.copytree(
        ROOT / "book",
        root / "book",
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("runs", "_generated"),
    )
    shutil.copy(ROOT / "_config.yml", root)


def test_build_gates_on_pages(root: Path, capsys: pytest.CaptureFixture) -> None:
    assert build.build("tiny", root) == 1
    assert "tiny/01_data: missing" in capsys.readouterr().out


def change_code(root: Path) -> None:
    (root / "beatssl" / "low.py").write_text("def two():\n    return 3\n")


def test_a_page_older_than_the_code_is_no_reason_not_to_build(root: Path) -> None:
    fake_run(root)
    change_code(root)
    assert lines(root) and run.profile_problems("tiny", root, stale=False) == []


def test_built_pages_say_how_old_they_are(root: Path) -> None:
    fake_run(root)
    profile = load_profile("tiny", root / "runs.yml")
    html = root / "_build" / "html"
    page = html / "runs" / "tiny" / "01_data.html"

    def shown() -> str:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("<h1>Printed</h1><article><h1>Data</h1><p>Text.</p></article>")
        older = build.say_how_old(profile, html, root)
        text = page.read_text()
        assert ("has changed since" in text) == bool(older)
        return text

    first = shown()
    assert re.search(r"Made on 2026-01-31 by code <code>[0-9a-f]{8}</code>", first)
    assert 'href="../../_sources/runs/tiny/01_data.ipynb" download' in first
    assert "<code>python -m beatssl run --profile tiny --only 01_data</code>" in first
    assert "changed" not in first
    change_code(root)
    assert shown().startswith(first.partition("<p>Text")[0])  # made by the same code as before
    assert "code changed: low" in shown() and "changes.html" in shown()


def test_toc_keeps_real_results_apart(root: Path) -> None:
    prepare_book(root)
    fake_run(root, "tiny")
    fake_run(root, "subset")
    parts = yaml.safe_load(build.write_sources("tiny", root).read_text())["parts"]
    files = [[chapter["file"] for chapter in part["chapters"]] for part in parts]
    assert ["runs/subset/01_data"] in files  # each in the part of its theme
    assert ["runs/subset/16_summary", "limits", "checklist", "changes"] in files
    assert files[-1] == ["_generated/run_tiny"]  # a small book of its own behind one entry
    (own,) = parts[-1]["chapters"]
    assert [s["file"] for s in own["sections"]] == ["runs/tiny/01_data", "runs/tiny/16_summary"]
    assert "tiny (synthetic)" in (root / "book" / "_generated" / "run_tiny.md").read_text()
    pages.plan(load_profile("subset", root / "runs.yml"), root)[0].path.unlink()
    only = yaml.safe_load(build.write_sources("subset", root).read_text())["parts"]
    files = [chapter["file"] for part in only for chapter in part["chapters"]]
    assert "runs/subset/16_summary" in files and "runs/subset/01_data" not in files
    assert len(only) == len(parts) - 2  # neither the part of the data page nor that of the run


def test_toc_names_every_notebook() -> None:
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    named = [
        c.get("page") or Path(c["file"]).name for p in toc["parts"] for c in p.get("chapters", [])
    ]
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} <= {*named}
    assert len({*named}) == len(named)


def test_runs_stand_on_the_page_of_their_group(root: Path) -> None:
    prepare_book(root)
    (root / "runs.yml").write_text(
        "stages: [[05_pretraining]]\n"
        "profiles: {tiny: {runs: [{method: random}, {rhythm: soft_1, exponent: 50}, "
        "{rhythm: soft_1, exponent: 50, variant: mse, loss: mse}, {method: cmsc}]}}\n"
    )
    write_notebook(
        root,
        "05_pretraining",
        "1",
        RUN_PARAMETERS + "\nrhythm: str = 'hard'\nexponent: float = 1.0",
    )
    fake_run(root)
    made = build.chapters(load_profile("tiny", root / "runs.yml"), root)["05_pretraining"]
    runs = {c["file"].split("/")[1]: [s["title"] for s in c["sections"]] for c in made}
    assert runs == {
        "table_1_tiny": ["beatssl-soft_1-none-50-s0"],
        "changed_tiny": ["beatssl-soft_1-none-50-mse-s0"],
        "compared_tiny": ["cmsc-s0"],
        "references_tiny": ["random-s0"],
    }
    page = (root / "book" / "_generated" / "changed_tiny.md").read_text()
    assert "| soft_1 | none | 50 | mse | 0 |" in page


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book of the real prose and two small pages, one with a wide table and a figure."""
    folder = tmp_path_factory.mktemp("book")
    with pytest.MonkeyPatch.context() as patch:
        project = make_project(folder, patch)
        prepare_book(project)
        row = "".join(f"<td>column {i} of a wide table</td>" for i in range(30))
        table = new_output("display_data", data={"text/html": f"<table><tr>{row}</tr></table>"})
        code = "a_rather_long_line_of_code = " + " + ".join(["1"] * 60)
        fake_run(project, cells=[new_code_cell(code, outputs=[table])])
        assert build.build("tiny", project) == 0
    return project / "_build" / "html"


def test_the_notebook_to_download_has_no_outputs(built: Path) -> None:
    (path, *_) = (built / "_sources" / "runs").rglob("*.ipynb")
    cells = [c for c in pages.read_notebook(path).cells if c.cell_type == "code"]
    assert cells and not any(cell.outputs for cell in cells)


def test_built_book_has_no_foreign_host(built: Path) -> None:
    assert build.foreign_hosts(built) == []
    html = (built / "method.html").read_text()
    assert "mathjax/tex-mml-chtml.js" in html
    assert (built / "mathjax" / "tex-mml-chtml.js").is_file()
    for hit in re.findall(r'src="(http[^"]*)|href="(http[^"]*css)', html):
        raise AssertionError(hit)


def test_foreign_hosts_are_found(tmp_path: Path) -> None:
    bad = [
        '<script defer src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/a.css">',
        "<style>@font-face{src:url(https://fonts.example/a.woff2)}</style>",
        '<img src="http://example.org/a.png">',
    ]
    (tmp_path / "a.html").write_text("\n".join(bad) + '<a href="https://arxiv.org">fine</a>')
    assert len(build.foreign_hosts(tmp_path)) == len(bad)


def test_intervals_in_tables_are_small_and_whole(tmp_path: Path) -> None:
    cell = "<td><p>0.879 (0.002) [0.853, 0.903]</p></td>\n<td>+.01 [−.02, +.03] of [1, 2]</td>"
    cell += "<td><strong>0.9</strong> [0.8, 1.0]</td><td>81.727 (0.655)</td>"
    text = f"<p>0.9 [0.853, 0.903]</p>{cell}"
    (tmp_path / "a.html").write_text(text, encoding="utf-8")
    build.tidy(tmp_path)
    found = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert found.startswith("<p>0.9 [0.853, 0.903]</p>")  # prose stays
    assert '0.879 <small class="spread">(0.002) [0.853,&nbsp;0.903]</small></p></td>' in found
    assert '+.01 <small class="spread">[−.02,&nbsp;+.03]</small> of [1, 2]' in found
    assert '</strong> <small class="spread">[0.8,&nbsp;1.0]</small></td>' in found
    assert '81.727 <small class="spread">(0.655)</small></td>' in found
    plain = found.replace("&nbsp;", " ").replace("</small>", "")
    assert plain.replace('<small class="spread">', "") == text


def test_large_pictures_become_light(tmp_path: Path) -> None:
    (tmp_path / "_images").mkdir()
    noise = np.random.default_rng(0).normal(128, 30, (200, 300, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "_images" / "heat.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "_images" / "small.png")
    size = (tmp_path / "_images" / "heat.png").stat().st_size
    (tmp_path / "a.html").write_text('<img src="_images/heat.png"><img src="_images/small.png">')
    build.tidy(tmp_path)
    made = tmp_path / "_images" / "heat.webp"
    assert made.stat().st_size < size / 2
    assert np.asarray(Image.open(made)).shape == noise.shape
    text = (tmp_path / "a.html").read_text()
    assert text == '<img src="_images/heat.webp"><img src="_images/small.png">'


def test_front_page_says_that_nothing_real_was_run(built: Path) -> None:
    html = (built / "index.html").read_text()
    assert "Not run yet" in html and 'class="pipeline"' in html


def test_default_parameters_are_hidden(built: Path) -> None:
    html = (built / "runs" / "tiny" / "01_data.html").read_text()
    assert "tag_parameters" not in html and "Page 01_data (synthetic)" in html


@pytest.mark.parametrize(
    "page", ["index", "method", "choices", "tasks", "build", "bench", "limits", "runs/tiny/01_data"]
)
def test_page_fits_a_phone(built: Path, tmp_path: Path, page: str) -> None:
    """In a frame of 390 pixels nothing is wider than the page (wide things scroll in their box)."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if not browser:
        pytest.skip("chromium is not installed")
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe id="f" src="{(built / f"{page}.html").as_uri()}" style="width:390px">'
        '</iframe><pre id="out"></pre><script>f.onload = () => setTimeout(() => {'
        "const d = f.contentDocument.documentElement;"
        "out.textContent = d.scrollWidth + ' of ' + d.clientWidth}, 1000)</script>"
    )
    words = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'chromium'}",
        "--virtual-time-budget=4000",
        "--dump-dom",
        frame.as_uri(),
    ]
    dom = subprocess.run([browser, *words], capture_output=True, text=True, timeout=60).stdout
    found = re.search(r'<pre id="out">(\d+) of (\d+)</pre>', dom)
    assert found, "the page did not load in chromium"
    assert int(found[1]) <= int(found[2])


# --- prose ------------------------------------------------------------------------------------


def test_every_default_is_listed_as_ours() -> None:
    """Each setting stands in 'What the paper does not say', with its default."""
    text = (ROOT / "book" / "choices.md").read_text()
    data, encoder = config.DataConfig(), StandardisedConfig()
    pretrain = make_run()
    others = ClassifyConfig(), SegmentConfig(), CompareConfig()
    for settings in (data, encoder, pretrain, config.ComputeConfig(), *others):
        for name, value in config.to_dict(settings).items():
            assert f"`{name}`" in text, f"{type(settings).__name__}.{name} is not listed"
            if value in ("", []) or value in (False, 0) and settings is data:
                continue
            if name == "rotations":  # said in words
                assert settings.rotations == (config.Rotation((10,), 9),)
                continue
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            assert re.search(rf"`{name}` = {re.escape(shown)} \|", text), f"{name} = {shown}"


def test_bibliography_is_cited_and_complete() -> None:
    keys = set(re.findall(r"@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text()))
    cited = set()
    for path in [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]:
        for group in re.findall(r"\{cite\}`([^`]+)`", path.read_text()):
            cited |= set(group.split(","))
    assert cited == keys
