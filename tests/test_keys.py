"""Which products become stale by which edit of the code: mutations of a copy of the package."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from beatssl import fingerprint
from beatssl.data.beats import Beats, beats_fingerprint
from beatssl.data.store import store_code
from beatssl.evaluate import evaluate_all
from beatssl.methods import make_run
from beatssl.profile import Profile
from beatssl.restamp import restamp
from beatssl.results import saved as results
from beatssl.settings import ConfigError, Rotation
from beatssl.tasks import TASKS, task_of
from beatssl.train import Training, pretrain, run_key

PACKAGE = Path(fingerprint.__file__).parent
RUNS = {
    name: make_run(method=name)
    for name in ("random", "beatssl", "cmsc", "domain_ssl", "ts2vec", "w2v")
}
TRAINED = ("beatssl", "cmsc", "domain_ssl", "ts2vec", "w2v")
CLASSIFIED = (results.CLASSIFY, results.LABELS)
NAMES = tuple(task.name for task in TASKS.values())
PROFILE = Profile("keys")
EMPTY = np.zeros((0, 0), np.float32)
BEATS = Beats(EMPTY, EMPTY, EMPTY, EMPTY, EMPTY, pd.DataFrame())


class Store:
    content = fingerprint = "aa"


def keys(root: Path) -> dict[tuple, str]:
    """(kind, ..) -> key of every kind of product, by the code in this folder."""
    table = {("store",): store_code(root), ("beats",): beats_fingerprint(Store(), root)}
    for name, config in RUNS.items():
        key = run_key(config, PROFILE.encoder_of(config), Store(), BEATS, Rotation(), root)["key"]
        table["run", name] = key
        for task in TASKS.values():
            table[task.name, name] = results.code_of(config, PROFILE, task, root)
    for method in ("neurokit_dwt", "features"):
        config = make_run(method=method)
        table["no encoder", method] = results.code_of(config, PROFILE, TASKS["more folds"], root)
    return table


@pytest.fixture(scope="module")
def before() -> dict[tuple, str]:
    return keys(PACKAGE.parent)


def stale(tmp_path: Path, before: dict, *edits: tuple[str, str, str]) -> set[tuple]:
    """Products whose key changes. Args: edits: (file, text, its replacement)."""
    copy = tmp_path / "beatssl"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for file, old, new in edits:
        path = copy / file
        text = path.read_text() if path.is_file() else ""
        assert old in text
        path.write_text(text.replace(old, new, 1))
    after = keys(tmp_path)
    return {name for name in before if before[name] != after[name]}


def of(tasks, methods=tuple(RUNS)) -> set[tuple]:
    return {(task, method) for task in tasks for method in methods}


def test_nothing_is_stale_without_an_edit(tmp_path, before):
    assert stale(tmp_path, before) == set()


# every edit here changes numbers: exactly what depends on it is made again
MUTATIONS = {
    "what the store loads is doubled": (
        ("data/store.py", "return np.maximum(np.sqrt(", "return 2 * np.maximum(np.sqrt("),
        of(("run",), TRAINED)
        | of(NAMES)
        | {("beats",), ("no encoder", "neurokit_dwt"), ("no encoder", "features")},
    ),
    "thresholds of the classes": (
        ("tasks/scores.py", "cuts[np.argmax(", "cuts[np.argmin("),
        of((*CLASSIFIED, "ptbxl_from_probe")),
    ),
    "how a method is built": (
        ("train.py", ".build(setup).to(device)", ".build(setup).eval().to(device)"),
        of(("run",), TRAINED),
    ),
    "the augmentation, which health looks at too": (
        ("methods/views.py", "return view.masked_fill_(hidden, 0.0)", "return view"),
        of(("run",), ("beatssl",)) | of((results.EMBED,)),
    ),
    "the parts of PTB-XL": (
        ("tasks/classify.py", 'store.rows("ptbxl", folds)', 'store.rows("ptbxl", folds[:1])'),
        of((*CLASSIFIED, "ptbxl_plain_probe", "ptbxl_from_probe", results.EMBED)),
    ),
    "a constant of one method": (
        ("methods/ts2vec.py", "CHUNK_ELEMENTS = 2**24", "CHUNK_ELEMENTS = 2**22"),
        of(("run",), ("ts2vec",)),
    ),
    "the loop of training": (("train.py", "self.schedule.step()", "pass"), of(("run",), TRAINED)),
    "the network of one method": (
        (
            "methods/ts2vec.py",
            "class TS2VecEncoder(nn.Module):",
            "class TS2VecEncoder(nn.Module):\n    other = 1\n",
        ),
        {*of(("run", *NAMES), ("ts2vec",))},
    ),
    "how a record is filtered": (
        ("data/store.py", "FILTER_ORDER = ", "FILTER_ORDER = 1 + "),
        {("store",)},
    ),
    "how a layout is listed": (("data/records.py", 'f"ludb-{name', 'f"LUDB-{name'), {("store",)}),
    "how a layout is read": (
        ("data/records.py", "stored.d_signal * 1e-3", "stored.d_signal * 2e-3"),
        {("store",)},
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_an_edit_makes_exactly_what_depends_on_it_stale(tmp_path, before, name):
    edit, expected = MUTATIONS[name]
    assert stale(tmp_path, before, edit) == expected


# and these change none
HARMLESS = {
    "words": [
        ("tasks/scores.py", '"""Per class the threshold', '"""For each class the threshold'),
        (
            "methods/views.py",
            "    n, leads, time = signals.shape\n",
            "    # a comment\n    n, leads, time = (signals.shape)\n",
        ),
    ],
    "a new method": [
        (
            "methods/__init__.py",
            '    "w2v": w2v.ENTRY,',
            '    "w2v": w2v.ENTRY,\n    "new": new.ENTRY,',
        ),
        ("methods/__init__.py", "import beatssl, cmsc", "import new, beatssl, cmsc"),
        ("methods/new.py", "", "ENTRY = None\n"),
    ],
    "a new loss and a new measure": [
        ("methods/losses.py", '    "mse": mse,', '    "mse": mse,\n    "new": mse,'),
        ("methods/targets.py", "exp_distance, linear", "exp_distance, exp_distance, linear"),
    ],
    "a new setting of a method": [
        ("methods/ts2vec.py", "    alpha: float = 0.5", "    new: int = 0\n    alpha: float = 0.5")
    ],
    "a moved function": [
        ("tasks/scores.py", "def thresholds(", "def _gone("),
        (
            "tasks/scores.py",
            "from beatssl.data.records import",
            "from beatssl.moved import thresholds\nfrom beatssl.data.records import",
        ),
        ("moved.py", "", None),
    ],
}


@pytest.mark.parametrize("name", HARMLESS)
def test_an_edit_that_changes_no_number_changes_no_key(tmp_path, before, name):
    text = (PACKAGE / "tasks/scores.py").read_text()
    start = text.index("def thresholds(")
    moved = "import numpy as np\n\n\n" + text[start : text.index("\n\n\n", start)] + "\n"
    edits = [(f, old, moved if new is None else new) for f, old, new in HARMLESS[name]]
    assert stale(tmp_path, before, *edits) == set()


def test_settings_of_another_method_do_not_concern_a_run():
    own = make_run(method="ts2vec").own_settings()
    with pytest.raises(ConfigError, match="unknown key 'temperature'"):
        make_run(method="ts2vec", temperature=0.5)
    assert own != make_run(method="ts2vec", epochs=3).own_settings()
    ours = make_run().own_settings()
    assert ours != make_run(temperature=0.5).own_settings()
    assert ours == make_run(variant="named").own_settings()  # a name trains nothing


def test_a_root_that_is_not_there_is_named():
    with pytest.raises(fingerprint.UnknownCodeError, match="beatssl.tasks.scores.gone"):
        fingerprint.code_hash("beatssl.tasks.scores.gone")


def test_closure_follows_aliases_reexports_and_imports_inside_functions(tmp_path):
    (tmp_path / "beatssl").mkdir()
    files = {
        "__init__": "",
        "low": "ONE = 1\nTABLE = {}\nTABLE['a'] = 3\n\ndef two():\n    return 2 * ONE\n",
        "middle": "from beatssl.low import two as twice\nfrom .low import TABLE\n",
        "high": "from beatssl import middle as m\n\n"
        "def four():\n    from beatssl.low import TABLE\n"
        "    return 2 * m.twice(), TABLE\n\ndef unrelated():\n    return 9\n",
    }
    for name, text in files.items():
        (tmp_path / "beatssl" / f"{name}.py").write_text(text)
    found = fingerprint.closure("beatssl.high.four", root=tmp_path)
    assert set(found) == {f"beatssl.{n}" for n in ("high.four", "low.two", "low.ONE", "low.TABLE")}
    assert found["beatssl.low.TABLE"].count("Assign") == 2  # the line that changes it, too


# --- re-stamping ----------------------------------------------------------------------------------


@pytest.fixture
def trained(small, tmp_path, monkeypatch):
    """A workspace with one trained run and an untrained one, evaluated."""
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    runs = (make_run(epochs=1, batch_size=32), make_run(method="random"))
    profile = dataclasses.replace(small.profile, runs=runs)
    w = dataclasses.replace(small, profile=profile)
    for task in ("classification", "segmentation", "embedding", "label draws"):
        evaluate_all(w, task)
    return w


def products(w) -> dict[Path, bytes]:
    return {
        p.relative_to(w.profile.work): p.read_bytes()
        for p in sorted(w.profile.work.rglob("*"))
        if p.suffix in (".safetensors", ".csv")
    }


def edited(monkeypatch, real=fingerprint.code_hash):
    """As if an edit had changed the text of all code and nothing that it does."""
    changed = lambda *roots, **kw: real(*roots, **kw)[::-1]  # noqa: E731
    monkeypatch.setattr("beatssl.fingerprint.code_hash", changed)  # called by `code_of`


def test_an_edit_that_changes_nothing_is_restamped_and_nothing_is_made_again(trained, monkeypatch):
    before = results.with_combined(trained.profile)
    old = [p.name for p in (trained.profile.work / "runs").iterdir()]
    edited(monkeypatch)
    with pytest.raises(results.StaleResultsError, match="made by other code.*restamp"):
        results.evaluations(trained.profile)
    said = restamp(trained)
    assert any("beatssl-hard-none-1: re-stamped 1 runs" in line for line in said)
    assert any("re-stamped 2 evaluations" in line for line in said)
    left = [line for line in said if "left stale" in line]
    assert left and all("scratch" in line for line in left)  # training on labels is not replayed
    assert restamp(trained) == [*left, said[-1]] and "run --profile small" in said[-1]
    frozen = results.evaluations(trained.profile, results.EMBED)
    assert len(frozen) == 2
    monkeypatch.setattr("beatssl.train.Training.__init__", None)  # nothing may train again
    run = pretrain(trained.profile.runs[0], trained.profile, trained.store, trained.beats)
    assert run.encoder is not None
    new = [p.name for p in (trained.profile.work / "runs").iterdir()]
    assert len(new) >= len(old) and set(new) != set(old)
    table = before[before["task"] == results.EMBED]
    again = results.with_combined(trained.profile, results.EMBED)
    np.testing.assert_array_equal(again["value"], table["value"])


def test_an_edit_that_changes_the_training_or_the_task_is_left_stale(trained, monkeypatch):
    edited(monkeypatch)
    step = Training.step
    monkeypatch.setattr(
        "beatssl.train.Training.step",
        lambda self, batch: step(self, replace(batch, signals=1.01 * batch.signals)),
    )
    monkeypatch.setattr("beatssl.tasks.embedding.NEIGHBOURS", 3)
    monkeypatch.setattr("beatssl.train.Training.epoch", None)  # nothing is trained for it
    said = restamp(trained)
    assert any("beatssl-hard-none-1: trains differently now" in line for line in said)
    monkeypatch.setattr("beatssl.train.Training.step", step)
    said = restamp(trained)
    assert any(
        line.startswith("ptbxl_embedding") and "agreement differs now" in line for line in said
    )


# --- products of the older layout ---


def as_older_layout(w) -> None:
    """Rows files as they were written before: the key beside the evaluation, all settings of all
    methods in the run, the hash of other code."""
    for path in (w.profile.work / "results").glob("*.json"):
        entry = json.loads(path.read_text())
        run = {**dataclasses.asdict(make_run()), **entry["evaluation"]["run"]}
        task = task_of(entry["evaluation"]["task"])
        of_run = make_run(**entry["evaluation"]["run"])
        names = () if of_run.method == "beatssl" else ("method", "seed")
        fraction, data = (entry["evaluation"][n] for n in ("label_fraction", "fingerprint"))
        protocol = entry["evaluation"]["protocol"]
        digits = results.settings_hash(of_run, w.profile, task, protocol, fraction, data, names)
        described = entry["evaluation"] | {"run": run, "code": "0" * 12, "config_hash": digits}
        key = described.pop("key")
        path.write_text(json.dumps({"key": key, "evaluation": described, "rows": entry["rows"]}))


def test_evaluations_of_the_older_layout_are_taken_over_where_the_bits_are_the_same(trained):
    w = trained
    frozen = results.with_combined(w.profile, results.EMBED, results.LABELS)
    as_older_layout(w)
    with pytest.raises(
        results.StaleResultsError, match="other settings.*run --profile small.*restamp"
    ):
        results.evaluations(w.profile)
    said = restamp(w)
    assert any("ptbxl_label_draws, frozen, EncoderConfig: re-stamped 4" in line for line in said)
    again = results.with_combined(w.profile, results.EMBED, results.LABELS)
    pd.testing.assert_frame_equal(again, frozen)


def test_older_products_that_cannot_be_taken_over_are_named(trained):
    w = trained
    as_older_layout(w)
    folder = w.profile.work
    (folder / "results" / "x.json").write_text('{"evaluation": {"run": {"sort": 1}}, "rows": []}')
    for path in (folder / "predictions").glob("*ptbxl_embedding*"):
        path.write_bytes(b"")
    for path in (folder / "results").glob("*ludb*frozen*.json"):
        entry = json.loads(path.read_text())
        entry["evaluation"]["config_hash"] = "0" * 12
        path.write_text(json.dumps(entry))
    said = "\n".join(restamp(w))
    assert "x.json is not a results file" in said and "evaluate the run again" in said
    assert "ptbxl_embedding, frozen, EncoderConfig: predictions" in said
    assert "ludb_segmentation, frozen, EncoderConfig: made with other settings" in said
    assert "run --profile small` makes them again" in said
    with pytest.raises(results.ResultsError, match="x.json"):
        results.evaluations(w.profile)


def test_evaluations_of_an_encoder_that_is_trained_otherwise_now_are_left_stale(trained):
    """The keys of older layouts did not name a method's own settings: its weights tell."""
    w = trained
    as_older_layout(w)
    for path in (w.profile.work / "results").glob("random-s0*"):
        entry = json.loads(path.read_text())
        entry["evaluation"]["weights"] = "0" * 12
        path.write_text(json.dumps(entry))
    said = "\n".join(restamp(w))
    assert "ptbxl_embedding, frozen, EncoderConfig: the encoder differs now, left stale (1)" in said
    assert "ptbxl_embedding, frozen, EncoderConfig: re-stamped 1 evaluations" in said
