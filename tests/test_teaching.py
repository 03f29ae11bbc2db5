"""Notebooks 01-05: what a reader sees, and that it runs as shown."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

from beatssl.settings import ROOT

CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("0[1-5]_*.ipynb"))
LONGEST_FIGURE = 40  # lines of a function in a folded cell
VISIBLE = {  # lines that a reader must see unfolded, in this order
    "01_data": [
        "open_workspace(profile)",
        "layout.read(",
        "clean(",
        "resample(",
        "beatssl.plot(beatssl.ECG(",
    ],
    "02_beats_and_features": [
        "nk.ecg_peaks(",
        "nk.ecg_delineate(",
        "beat_features(lead",
        "classify_beats(signal",
        "beats_on_lead(lead",
    ],
    "03_targets": [
        "similarity(",
        'record_targets("cosine"',
        "beat_targets(",
        "def pairs",
        "norm_shares(",
        "row_entropies(",
        "closest_triple(",
    ],
    "04_augmentation": [
        "random_rotations(1",
        "random_scales(1",
        "random_masks(1",
        "vcg(x)",
        "twelve_leads(turned)",
        "augment(x",
        "views_of_leads(shown",
    ],
    "05_pretraining": [
        "run_of(w.profile",
        "next(training.source.epoch(generator))",
        "heart = vcg(x)",
        "method.view(x, generator)",
        "method.encode(views)",
        "method.beat_vectors(e",
        "method.rhythm_targets(batch)",
        "method.beat_targets(batch)",
        "contrastive_loss(config.loss",
        "total + config.beat_weight * beat",
        "total.backward()",
        "training.optimizer.step()",
        "run = train(w, config)",
    ],
}
RUNS_YML = """
stages: [[01_data]]
profiles:
  tiny:
    data: {synthetic: true, synthetic_ptbxl: 160, synthetic_ludb: 6, synthetic_challenge: 4}
    encoder: {widths: [8, 16], strides: [1, 2], dilations: [1, 2], blocks: 1}
    classify: {label_fractions: [1.0], bootstrap: 50, finetune_epochs: 1,
               finetune_learning_rates: [1.0e-3]}
    segment: {folds: 2, epochs: 1, bootstrap: 50, finetune_learning_rates: [2.0e-3]}
    pretrain: {epochs: 2, batch_size: 16}
    runs: [{rhythm: soft_1, beat: hard, exponent: 50}, {method: cmsc}, {method: random}]
  no_records:
    data: {synthetic: true, synthetic_ludb: 6}
    encoder: {widths: [8, 16], strides: [1, 2], dilations: [1, 2], blocks: 1}
    segment: {folds: 2, epochs: 1, bootstrap: 50, finetune_learning_rates: [2.0e-3]}
"""


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def folded(cell: nbformat.NotebookNode) -> bool:
    return bool({"hide-input", "hide-cell", "remove-cell"} & set(cell.metadata.get("tags", [])))


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_chapter_names_what_a_reader_must_see() -> None:
    assert list(VISIBLE) == CHAPTERS


@pytest.mark.parametrize("name", CHAPTERS)
def test_code_fits_on_the_screen(name: str) -> None:
    for cell in code(read(name)):
        assert max(map(len, cell.source.splitlines())) <= 100
        assert folded(cell) or len(cell.source.splitlines()) <= 42


@pytest.mark.parametrize("name", CHAPTERS)
def test_teaching_code_is_visible_and_in_order(name: str) -> None:
    shown = "\n".join(cell.source for cell in code(read(name)) if not folded(cell))
    places = [shown.find(line) for line in VISIBLE[name]]
    assert -1 not in places and places == sorted(places)


def test_the_data_chapter_lists_no_data_sets() -> None:
    """Which data sets there are stands in runs.yml: the introduction names none."""
    text = read("01_data").cells[0].source
    assert not re.search("PTB-XL|LUDB|Challenge", text)


# --- figures ----------------------------------------------------------------------------------


def figures(name: str) -> dict:
    """The functions of a chapter's folded cells, made without running the chapter."""
    namespace: dict = {}
    for cell in code(read(name)):
        body = ast.parse(cell.source).body
        kinds = (ast.Import, ast.ImportFrom) + ((ast.FunctionDef,) if folded(cell) else ())
        wanted = [node for node in body if isinstance(node, kinds)]
        exec(compile(ast.Module(wanted, type_ignores=[]), name, "exec"), namespace)
    return namespace


@pytest.mark.parametrize("name", CHAPTERS)
def test_figure_functions_are_short_and_say_what_they_draw(name: str) -> None:
    for cell in code(read(name)):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef) and folded(cell) and node.name != "line":
                assert ast.get_docstring(node), node.name
                assert node.end_lineno - node.lineno < LONGEST_FIGURE, node.name


def labelled() -> Figure:
    """The figure of the moment, after a look at its axes: each has both labels, or shares them."""
    figure = plt.gcf()
    shown = [ax for ax in figure.axes if ax.get_visible() and ax.get_label() != "<colorbar>"]
    assert any(ax.get_xlabel() for ax in shown) and any(ax.get_ylabel() for ax in shown)
    figure.canvas.draw()
    plt.close(figure)
    return figure


def test_figures_label_their_axes() -> None:
    signal = np.sin(np.arange(12000).reshape(12, 1000) / 9).astype(np.float32)
    peaks, classes = np.array([100, 300]), np.array([0, 2])
    tensor = torch.from_numpy(signal)
    matrix = torch.eye(6).numpy()
    data, beats, targets = figures(CHAPTERS[0]), figures(CHAPTERS[1]), figures(CHAPTERS[2])
    data["waves_on_lead"](signal[1], np.arange(1000) % 5 - 1, 100, "record")
    labelled()
    data["raw_and_clean"](signal, 100, signal, 100)
    labelled()
    beats["beats_on_lead"](signal[1], peaks, classes, 100)
    legend = labelled().axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["N", "V"]
    targets["distributions"]({"a": np.linspace(0, 1, 50)}, "similarity of two records")
    labelled()
    targets["target_matrices"]({"soft_1": matrix})
    ticks = [text.get_text() for text in labelled().axes[0].get_xticklabels()]
    assert ticks == ["1a", "2a", "3a", "1b", "2b", "3b"]
    counted = {"target": ["hard", "soft_1"] * 20, "context": "records"}
    targets["target_shares"](pd.DataFrame(counted | {"share": np.linspace(0, 1, 40)}), "share")
    labelled()
    augmentation, pretraining = figures(CHAPTERS[3]), figures(CHAPTERS[4])
    augmentation["views_of_leads"]({"record": signal, "view": signal / 2}, 100)
    labelled()
    augmentation["vcg_loops"]({"record": signal[:3]})
    labelled()
    pretraining["traces"]({"a": ("XYZ", tensor[:3]), "b": ("XY", tensor[:2])}, 100, "axis")
    assert [t.get_text() for t in labelled().axes[0].get_yticklabels()] == ["X", "Y", "Z"]
    pretraining["heatmaps"]({"a": tensor}, "step", "channel")
    labelled()
    pretraining["windows_on_lead"](signal[1], peaks, 0.25, 0.5, np.eye(2, 8), 100)
    labelled()
    layer = torch.nn.Linear(3, 3)
    before = {name: value.detach() + 1 for name, value in layer.named_parameters()}
    pretraining["changes"](before, layer)
    labelled()
    points = np.eye(4)[:, :2], np.eye(4, 5), np.array([0.5, 0.2])
    of_beats = points[0], np.array([0, 1, 0, 1]), points[2]
    superclasses = ("NORM", "MI", "STTC", "CD", "HYP")
    pretraining["embedding_maps"](points, of_beats, superclasses, ("N", "S"))
    labelled()


def test_training_curves_draw_what_a_method_has() -> None:
    columns = {
        "epoch": [1, 2],
        "total": [5.0, 4],
        "row_entropy": 3.9,
        "rhythm_kl": [1.1, 0.1],
        "beat_kl": 0.5,
    }
    curves = pd.DataFrame(columns)
    figures("05_pretraining")["training_curves"](curves, ("total", "rhythm"))
    axes = [ax for ax in labelled().axes if ax.get_visible()]
    lines = [[line.get_label() for line in ax.lines] for ax in axes]
    assert lines == [["total"], ["rhythm_kl", "beat_kl"], ["row_entropy"]]


# --- run as a reader would ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of package and notebooks with a small simulated profile in place of the default."""
    root = tmp_path_factory.mktemp("laboratory")
    for folder in ("beatssl", "notebooks"):
        shutil.copytree(ROOT / folder, root / folder)
    (root / "runs.yml").write_text(RUNS_YML)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root))
        patch.setenv("TQDM_DISABLE", "1")
        patch.delenv("BEATSSL_DATA", raising=False)
        patch.setenv("BEATSSL_WORK", str(root / "work"))
        yield root


def run(
    root: Path, name: str, probe: str = "None", until: str = "", given: dict | None = None
) -> tuple[str, object]:
    """Run a notebook in a kernel of its own, as JupyterLab would.

    Args: probe: an expression to evaluate at the end. until: leave out what comes after the cell
        that holds this. given: parameters to change, and other names to set after the next cell.

    Returns: what it shows as text, and the value of `probe`."""
    notebook = nbformat.read(root / "notebooks" / f"{name}.ipynb", as_version=4)
    for number, cell in enumerate(notebook.cells):
        if until and cell.cell_type == "code" and until in cell.source:
            notebook.cells = notebook.cells[: number + 1]
            break
    given = given or {}
    later = {"walk"} & given.keys()
    for position, names in ((3, later), (2, given.keys() - later)):
        lines = "\n".join(f"{key} = {given[key]!r}" for key in names)
        notebook.cells.insert(position, new_code_cell(lines))
    notebook.cells.append(new_code_cell(f"import json\nprint(json.dumps({probe}))"))
    folder = {"metadata": {"path": str(root / "notebooks")}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=folder).execute()
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    printed = [o.text for o in outputs if o.output_type == "stream" and o.name == "stdout"]
    shown = [o.data.get("text/markdown", "") for o in outputs if "data" in o]
    return "".join(printed) + "\n".join(shown), json.loads(printed[-1].splitlines()[-1])


def folder_of(root: Path, run_id: str) -> Path:
    (folder,) = (root / "work" / "tiny" / "runs").glob(f"{run_id}-*")
    return folder


@pytest.mark.slow
def test_data_chapter_reads_what_the_store_holds(laboratory: Path) -> None:
    shown, package = run(laboratory, "01_data", "__import__('beatssl').__file__")
    assert Path(package).is_relative_to(laboratory)
    assert "set aside? no" in shown
    (difference,) = re.findall(r"differs by at most ([\d.]+) µV", shown)
    assert float(difference) <= 0.5


@pytest.mark.slow
def test_beats_chapter_computes_what_is_stored(laboratory: Path) -> None:
    probe = "[list(features.shape), beats.count.tolist()]"
    shown, (shape, counts) = run(laboratory, "02_beats_and_features", probe)
    assert "as stored: True" in shown
    assert shape == [next(count for count in counts if count > 3), 28]


@pytest.mark.slow
def test_targets_chapter(laboratory: Path) -> None:
    probe = "[x.tolist() for x in (source.record_scale.impute(features), soft, hard, beat)]"
    features, soft, hard, beat = map(np.array, run(laboratory, "03_targets", probe)[1])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(soft[:3, 3:], (unit @ unit.T) ** 50, atol=1e-5)
    assert (np.diag(soft) == 0).all()
    np.testing.assert_array_equal(hard, np.roll(np.eye(6), 3, axis=1))
    assert beat.sum() == 4 * 3 + 2  # two N beats in two views, and the V beat with itself


@pytest.mark.slow
def test_augmentation_chapter_makes_the_view_of_the_package(laboratory: Path) -> None:
    probe = "[float(keep.float().mean()), float((view_1 == view_2).float().mean())]"
    shown, (kept, equal) = run(laboratory, "04_augmentation", probe)
    assert "by hand and by augment the same: True" in shown
    assert kept == 0.5 and equal < 0.5  # only where both are blank


@pytest.fixture(scope="module")
def pretraining(laboratory: Path) -> tuple[str, object]:
    return run(laboratory, "05_pretraining", "config.run_id")


@pytest.mark.slow
def test_walk_shows_shapes_and_is_the_first_step_of_the_run(
    laboratory: Path, pretraining: tuple
) -> None:
    shown, run_id = pretraining
    (beats,) = re.findall(r"beats +(\d+) have their whole window", shown)
    twice = 2 * int(beats)
    for line in (
        "(16, 12, 1000) N, leads",
        "(16, 54) N, features",
        "(16, 3, 1000) N, axes",
        "(32, 12, 1000) 2N, leads",
        "(32, 16, 250) 2N, channels, steps",
        f"({twice}, 16) 2K, channels",
        "rhythm targets (32, 32)",
        f"beat targets ({twice}, {twice})",
        "(32, 128) 2N, dim",
        f"({twice}, 128) 2K, dim",
    ):
        assert line in shown, line
    rhythm, beat = (float(loss) for loss in re.findall(r"dim; loss ([\d.]+)", shown))
    (total,) = re.findall(r"weighted sum: ([\d.]+)", shown)
    assert float(total) == pytest.approx(rhythm + beat, abs=0.002)
    (digits,) = re.findall(r"after the step: (\w{12})", shown)
    note = json.loads((folder_of(laboratory, run_id) / "run.json").read_text())
    assert digits == note["first_step"]
    before, after = re.findall(r"([\d.]+) before, ([\d.]+) after", shown)[0]
    assert float(after) < float(before)


@pytest.mark.slow
def test_walk_does_not_change_the_run(
    laboratory: Path, pretraining: tuple, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, run_id = pretraining
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path / "work"))
    shown, _ = run(laboratory, "05_pretraining", until="run = train(", given={"walk": False})
    assert "signals" not in shown
    name = "encoder.safetensors"
    without = (folder_of(tmp_path, run_id) / name).read_bytes()
    assert without == (folder_of(laboratory, run_id) / name).read_bytes()


@pytest.mark.slow
def test_another_temperature_is_another_run(laboratory: Path, pretraining: tuple) -> None:
    _, run_id = pretraining

    def first_run() -> dict[str, tuple]:
        files = sorted(folder_of(laboratory, run_id).iterdir())
        return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}

    before = first_run()
    shown, changed = run(laboratory, "05_pretraining", "config.run_id", given={"temperature": 0.5})
    assert changed == "beatssl-soft_1-hard-50-temperature_0.5-s0" and f"**{changed}**" in shown
    assert first_run() == before and before
    assert (folder_of(laboratory, changed) / "encoder.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"beat": "none", "rhythm": "hard", "exponent": 1.0},
        {"beat_scope": "record", "beat_weight": 0.5},
        {"beat": "soft_2", "rhythm": "soft_2", "loss": "mse", "exponent": 1.0},
    ],
)
def test_walk_of_other_rows_is_the_first_step_too(laboratory: Path, given: dict) -> None:
    shown, run_id = run(laboratory, "05_pretraining", "config.run_id", "run = train(", given)
    (digits,) = re.findall(r"after the step: (\w{12})", shown)
    note = json.loads((folder_of(laboratory, run_id) / "run.json").read_text())
    assert digits == note["first_step"]
    assert ("beat targets" in shown) == (given.get("beat") != "none")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"method": "cmsc"}, "the method is not Beat-SSL"),
        ({"method": "random"}, "the method is not Beat-SSL"),
        ({"profile": "no_records"}, "there are no records to learn from"),
    ],
)
def test_without_a_walk_one_sentence_says_why(laboratory: Path, given: dict, why: str) -> None:
    shown, failure = run(laboratory, "05_pretraining", "run.failure", given=given)
    assert f"The walk of one batch through Beat-SSL is left out: {why}." in shown
    assert "after the step" not in shown
    assert bool(failure) == ("profile" in given)
