"""Profiles that lack a data set, variants or compared methods run to their end and say so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from notebook_functions import page

from beatssl import evaluate
from beatssl.data.beats import prepare_beats
from beatssl.data.store import prepare
from beatssl.methods import make_run
from beatssl.profile import Workspace
from beatssl.report import comparison, tables
from beatssl.results import saved as results
from beatssl.settings import DataConfig

ROOT = Path(__file__).resolve().parent.parent
RUNS = [
    {"method": "random"},
    {"method": "features"},
    {"method": "neurokit_prominence"},
    {"rhythm": "hard"},
    {"rhythm": "soft_1", "beat": "hard", "exponent": 50},
    {"method": "cmsc"},
]
VARIANTS = {
    "base": {"rhythm": "soft_1", "beat": "hard", "exponent": 50},
    "loss_mse": {"loss": "mse"},
}
SMALL = {
    "encoder": {"widths": [8, 8], "strides": [1, 2], "dilations": [1, 1], "blocks": 1},
    "classify": {
        "label_fractions": [0.5, 1.0],
        "bootstrap": 20,
        "finetune_epochs": 1,
        "finetune_learning_rates": [1.0e-3],
    },
    "segment": {
        "folds": 2,
        "epochs": 1,
        "bootstrap": 20,
        "decoder_width": 8,
        "finetune_learning_rates": [2.0e-3],
    },
    "compare": {"label_fractions": [0.1, 1.0], "draws": 2, "folds": 3},
    "pretrain": {"epochs": 1, "batch_size": 32},
}
FOUND = {  # records of PTB-XL, LUDB, Challenge; runs; what some page says
    "no_ptbxl": ((0, 6, 10), RUNS, "No PTB-XL records in this profile: task 1 is not evaluated."),
    "no_ludb": ((160, 0, 4), RUNS, "No LUDB records in this profile: task 2 is not evaluated."),
    "no_challenge": ((160, 6, 0), RUNS, ""),
    "no_variants": ((160, 6, 4), [RUNS[0], *RUNS[3:5]], "No variants in this profile"),
    "only_ludb": ((0, 6, 0), RUNS, "no records to pretrain on in this profile"),
    "only_untrained": ((0, 6, 0), RUNS[:1], "no row of Beat-SSL in this profile"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUND)
def test_every_notebook_runs_to_its_end(tmp_path, name):
    """In a copy of the repository, so that results and pages stay as they are."""
    counts, runs, words = FOUND[name]
    for folder in ("beatssl", "notebooks", "results"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copyfile(ROOT / "tests" / "run_notebooks.py", tmp_path / "run_notebooks.py")
    kinds = ("synthetic_ptbxl", "synthetic_ludb", "synthetic_challenge")
    data = {"synthetic": True, **dict(zip(kinds, counts, strict=True))}
    profile = {**SMALL, "data": data, "runs": runs}
    if len(runs) == len(RUNS):
        profile["variants"] = VARIANTS
    stages = yaml.safe_load((ROOT / "runs.yml").read_text())["stages"]
    (tmp_path / "runs.yml").write_text(
        yaml.safe_dump({"stages": stages, "profiles": {name: profile}}, sort_keys=False)
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BEATSSL_")}
    environment |= {"PYTHONPATH": str(tmp_path), "BEATSSL_WORK": str(tmp_path / "work")}
    done = subprocess.run(
        [sys.executable, "run_notebooks.py", name],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert done.returncode == 0, f"{failed}\n{done.stderr[-3000:]}"
    assert words in done.stdout and "== 16_summary" in done.stdout


# ------------------------------------------------------------ the functions that used to fail


@pytest.fixture(scope="module")
def ludb_only(small, tmp_path_factory):
    """A workspace with three LUDB-like records and nothing to pretrain on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEATSSL_WORK", str(tmp_path_factory.mktemp("ludb")))
        data = DataConfig(synthetic=True, synthetic_ludb=3)
        runs = (make_run(method="random"), make_run())
        profile = replace(small.profile, data=data, runs=runs)
        store = prepare(data, profile.work / "store", profile.work)
        yield Workspace(profile, store, prepare_beats(store, profile.work / "beats"))


def test_tasks_of_an_absent_data_set_give_no_rows_and_say_why(ludb_only, small, monkeypatch):
    for task in ("classification", "embedding", "label draws"):
        assert evaluate.absent(ludb_only, task).startswith("No PTB-XL records in this profile")
        assert evaluate.absent(small, task) == ""
        with monkeypatch.context() as patch:
            patch.setattr(evaluate, "train", lambda *_: 1 / 0)
            rows = evaluate.evaluate_all(ludb_only, task)
        assert list(rows) == list(results.COLUMNS) and len(rows) == 0
    for task in ("segmentation", "more folds"):
        assert evaluate.absent(ludb_only, task) == "" == evaluate.absent(small, task)
    without = replace(small, store=_without(small.store, "ludb"))
    assert evaluate.absent(without, "more folds").startswith("No LUDB records in this profile")
    assert len(evaluate.evaluate_all(without, "segmentation")) == 0
    assert len(evaluate.evaluate_all(small, "segmentation", names=["no such method"])) == 0


def _without(store, dataset):
    class Part:
        def __getattr__(self, name):
            return getattr(store, name)

        def rows(self, name, folds=None):
            return np.zeros(0, int) if name == dataset else store.rows(name, folds)

    return Part()


def test_a_run_without_records_to_learn_from_fails_in_words(ludb_only, monkeypatch, tmp_path):
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    run = evaluate.train(ludb_only, ludb_only.profile.runs[1])
    assert run.encoder is None and "no records to pretrain on" in run.failure
    assert evaluate.train(ludb_only, ludb_only.profile.runs[0]).encoder is not None
    assert len(evaluate.evaluate_run(ludb_only, run, "classification")) == 0
    rows = evaluate.evaluate_run(ludb_only, run, "segmentation")
    assert len(rows) and rows["source"].str.startswith("failed: no records").all()
    assert (
        len(page("07_segmentation").events(tables.by_method(rows))) == 0
    )  # such a run has no borders


def test_a_run_without_fold_9_to_watch_is_pretrained_all_the_same(small, monkeypatch, tmp_path):
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    w = replace(small, store=_without(small.store, "ptbxl"))
    run = evaluate.train(w, make_run(epochs=1, batch_size=4))
    assert run.failure == "" and "probe_auroc" not in run.curves and len(run.curves) == 1


def test_tables_of_nothing_are_empty(tmp_path, monkeypatch, small):
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    profile, nothing = small.profile, tables.by_method(results.frame([]))
    assert list(tables.by_fraction(nothing, ["f1_macro"])) == ["labels", "n", "seeds", "F1"]
    assert list(tables.per_run(results.frame([]), ["dice"])) == ["protocol", "labels", "n", "Dice"]
    health, borders, tests = map(page, ("10_health", "13_segmentation_comparison", "14_statistics"))
    assert len(page("07_segmentation").events(nothing)) == len(health.health_texts(nothing)) == 0
    labels = page("15_label_efficiency")
    assert len(labels.label_texts(labels.label_efficiency(profile, "f1_macro"))) == 0
    assert len(labels.label_gains(profile, "AUROC")) == 0
    assert borders.borders_f1(profile, 150).index.str.endswith("(published)").all()
    assert borders.delineator_failures(profile) == "No delineator was run."
    values = {heading: comparison.blocks(profile, heading) for heading in comparison.DESIGNS}
    assert comparison.medians(values).filter(like="ours").eq("–").all(None)
    assert len(comparison.finetuning_gains(profile, results.FOLDS, "supervised")) == 0
    untrained = pd.DataFrame({"Untrained encoder": [0.1, 0.2]})
    empty = tests.pairs_with(untrained, comparison.BEST_LABEL)
    assert len(empty) == 0 and len(tests.pair_texts(empty)) == 0
    claims = page("16_summary").headline_claims(values["PTB-XL F1"], values["LUDB F1"])
    assert claims.startswith("The paper's best row has not been")
    table, absent = page("09_sensitivity").sensitivity(profile)
    assert len(table) == 0 and absent == []


def test_health_beside_a_task_that_is_absent_is_nan(tmp_path, monkeypatch, small):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    results.write_table(tmp_path / "small.csv", results.frame([]))
    health = page("10_health")
    both = health.health_and_scores(small.profile)
    assert {"uniformity", "effective_rank", "AUROC", "LUDB F1"} <= set(both) and len(both) == 0
    assert health.health_findings(both).startswith("Fewer than five rows")
