"""Predictions in the repository: all numbers from them alone, and no training where they do."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from beatssl import evaluate
from beatssl.methods import make_run
from beatssl.methods.encoder import load_encoder
from beatssl.profile import Workspace, load_profile, open_workspace
from beatssl.results import kept, saved
from beatssl.results.collect import collect, keep
from beatssl.results.verify import verify
from beatssl.tasks import TASKS
from beatssl.tasks.base import of_logits, to_logits
from beatssl.train import Run

RUNS = tuple(make_run(beat="none", rhythm="hard", epochs=1, seed=seed) for seed in range(2))
UNTRAINED = tuple(make_run(method="random", variant="bare", seed=seed) for seed in range(2))


@pytest.fixture(scope="module")
def made(small: Workspace, tmp_path_factory: pytest.TempPathFactory):
    """A profile evaluated, collected and kept; its workspace and the folder of results."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("results")
        patch.setenv("BEATSSL_WORK", str(tmp_path_factory.mktemp("kept")))
        patch.setattr(saved, "RESULTS", folder)
        runs = (*RUNS, *UNTRAINED)
        w = dataclasses.replace(small, profile=dataclasses.replace(small.profile, runs=runs))
        for task in ("classification", "segmentation", "embedding", "label draws"):
            evaluate.evaluate_all(w, task)
        assert not collect(w.profile, folder).missing
        assert keep(w.profile) == sum(len(t.fractions(t.settings(w.profile), (0,)))
                                      for t in list(TASKS.values())[:4]) * len(runs)  # fmt: skip
        yield w, folder


@pytest.fixture
def shelf(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A copy of the results, as in a fresh clone: nothing else is there."""
    w, folder = made
    shutil.copytree(folder, tmp_path / "results")
    monkeypatch.setattr(saved, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path / "empty"))
    return w, tmp_path / "results"


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of results is another one in this process only."""
    monkeypatch.setattr("beatssl.results.verify.cores", lambda: 1)


def test_log_odds_keep_order_and_are_what_they_were() -> None:
    p = np.random.default_rng(0).random((500, 5)) ** 3
    p[0] = [0, 1, 1e-12, 1 - 1e-12, 0.5]
    once = of_logits(to_logits(p))
    assert np.array_equal(of_logits(to_logits(once[1:])), once[1:])
    assert np.abs(once - p).max() < 1e-3 and once[0, [0, 1, 4]].tolist() == [0, 1, 0.5]
    assert (np.diff(once[np.argsort(p[:, 0]), 0]) >= 0).all()


def test_a_fresh_clone_gives_every_number_of_the_file(shelf) -> None:
    w, folder = shelf
    lines, differing = verify(w.profile)
    assert differing == [] and lines == len(pd.read_csv(folder / "small.csv"))


def test_whatever_is_changed_is_named(shelf) -> None:
    w, folder = shelf
    path = folder / "small.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    at = table.index[(table["metric"] == "auroc_macro") & (table["seed"] == "1")][0]
    other = table.copy()
    other.loc[at, "value"] = f"{float(table.loc[at, 'value']) + 1e-3:.6g}"
    other.drop(index=len(other) - 1).to_csv(path, index=False)
    _, differing = verify(w.profile)
    assert len(differing) == 2
    assert f"{table.loc[at, 'run_id']} {table.loc[at, 'task']}" in " ".join(differing)
    assert any("only in the predictions" in line for line in differing)

    table.to_csv(path, index=False)
    run = next((folder / "small").glob("beatssl-*-s0.npz"))
    with np.load(run) as file:
        arrays = dict(file)
    name = next(n for n in arrays if "superdiagnostic" in n and n.endswith("logits of score"))
    arrays[name] = -arrays[name]
    np.savez_compressed(run, **arrays)
    _, differing = verify(w.profile)
    assert differing and all("superdiagnostic" in line for line in differing)


def test_kept_results_of_older_code_stand_only_alone(shelf, monkeypatch) -> None:
    """Without anything evaluated here they are the results; beside numbers of today's code not."""
    w, _ = shelf
    whole = len(saved.evaluations(w.profile))
    code = saved.code_of
    monkeypatch.setattr(saved, "code_of", lambda run, profile, task: "later")
    assert len(saved.evaluations(w.profile)) == whole > 0 and verify(w.profile)[1] == []
    monkeypatch.setattr(saved, "code_of", code)
    embedded = saved.evaluations(w.profile, "embedding")[0][0]
    saved.score(embedded, w.profile, saved.load_predictions(w.profile, embedded))
    monkeypatch.setattr(
        saved,
        "code_of",
        lambda run, profile, task: code(run, profile, task) + "x" * (task.key != "embedding"),
    )
    assert {one.task for one, _ in saved.evaluations(w.profile)} == {embedded.task}


def test_what_was_evaluated_elsewhere_is_not_trained_again(shelf, monkeypatch) -> None:
    w, folder = shelf
    whole = pd.read_csv(folder / "small.csv")
    monkeypatch.setattr(evaluate, "pretrain", lambda *_, **__: pytest.fail("trained"))
    runs = [run for run in w.profile.runs if not run.untrained]
    trained = dataclasses.replace(w, profile=dataclasses.replace(w.profile, runs=tuple(runs)))
    rows = evaluate.evaluate_all(trained, "classification")
    assert set(rows["run_id"]) == {run.run_id for run in runs}
    for row in rows[rows["metric"] == "auroc_macro"].itertuples():
        same = whole.query("run_id == @row.run_id and task == @row.task and metric == @row.metric")
        assert row.value == pytest.approx(same["value"].item(), abs=1e-6)


@pytest.mark.parametrize("changed", ["settings", "task", "records"])
def test_another_recipe_is_trained(shelf, monkeypatch, changed: str) -> None:
    w, _ = shelf
    run, profile, store = RUNS[0], w.profile, w.store
    if changed == "settings":
        run = dataclasses.replace(run, temperature=0.3)
    elif changed == "task":
        task = dataclasses.replace(profile.classify, label_fractions=(0.7,))
        profile = dataclasses.replace(profile, classify=task)
    else:
        monkeypatch.setattr(store, "fingerprint", "of other folders")
    profile = dataclasses.replace(profile, runs=(run,))
    calls = []
    stop = RuntimeError("trains")

    def pretrain(*args, **named):
        calls.append(args[0].run_id)
        raise stop

    monkeypatch.setattr(evaluate, "pretrain", pretrain)
    with pytest.raises(RuntimeError, match="trains"):
        evaluate.evaluate_all(Workspace(profile, store, w.beats), "classification")
    assert calls == [run.run_id]


def test_pages_of_results_need_no_recordings(shelf, monkeypatch) -> None:
    w, folder = shelf
    monkeypatch.delenv("BEATSSL_DATA", raising=False)
    real = dataclasses.replace(w.profile.data, synthetic=False, ptbxl="ptbxl", ludb="ludb")
    listed = dataclasses.replace(w.profile, data=real)
    monkeypatch.setattr("beatssl.profile.load_profile", lambda name: listed)
    with pytest.raises(FileNotFoundError, match="reads real recordings"):
        open_workspace("small")
    bare = open_workspace("small", needs_data=False)
    assert not bare.has_data and bare.store is None
    bare = dataclasses.replace(bare, profile=w.profile)  # what data are called is in the key
    whole = pd.read_csv(folder / "small.csv").query("seed != 'all'")
    for task in ("classification", "embedding", "label draws"):
        assert evaluate.absent(bare, task) == ""
        rows = evaluate.evaluate_all(bare, task)
        same = whole[whole["task"] == TASKS[task].name]
        assert set(rows["run_id"]) == set(same["run_id"]) and len(rows) >= len(same) > 0
    one = evaluate.evaluate_all(bare, "classification", names=[RUNS[0].name])
    assert set(one["run_id"]) == {run.run_id for run in RUNS}
    assert "kept predictions" in evaluate.absent(bare, "plain decoder")


def test_encoders_of_the_claims_are_kept_small(shelf, made) -> None:
    w, folder = shelf
    baseline, *_ = w.profile.runs
    assert baseline.name == "beatssl-hard-none-1"
    assert evaluate.keep_runs(w) == 0  # none is at hand in a fresh clone
    run = evaluate.train(w, baseline)
    assert evaluate.keep_runs(w) == 1
    curves = evaluate.kept_curves(w.profile, baseline)
    assert curves["total"].to_numpy() == pytest.approx(run.curves["total"].to_numpy())
    path = folder / "small" / "encoders" / f"{baseline.run_id}.safetensors"
    found = load_encoder(path, w.profile.encoder_of(baseline), w.store.sampling_rate)
    for name, value in run.encoder.state_dict().items():
        kept_value = found.state_dict()[name]
        assert torch.allclose(kept_value, value, rtol=2**-8, atol=1e-30), name
    assert path.stat().st_size < 2.3 * sum(p.numel() for p in found.parameters()) + 20_000
    assert "torch==" in (made[1] / "small" / "packages.txt").read_text()


def test_a_page_of_a_run_that_is_kept_needs_no_products(shelf) -> None:
    w, _ = shelf
    assert all(saved.is_kept(w.profile, run) for run in w.profile.runs)
    longer = dataclasses.replace(RUNS[0], epochs=2)
    profile = dataclasses.replace(w.profile, runs=(longer, *w.profile.runs[1:]))
    assert not saved.is_kept(profile, longer) and saved.is_kept(profile, RUNS[1])


def test_a_listed_run_is_evaluated_everywhere_and_no_other(shelf, monkeypatch) -> None:
    w, _ = shelf
    asked = []
    monkeypatch.setattr(evaluate, "evaluate_run", lambda w, run, task: asked.append(task))
    evaluate.evaluate_everywhere(w, Run(RUNS[0], None, pd.DataFrame()))
    compared = {"label draws", "more folds"}
    assert {"classification", "segmentation", "embedding", "plain probe", *compared} == set(asked)
    asked.clear()
    evaluate.evaluate_everywhere(w, Run(UNTRAINED[0], None, pd.DataFrame()))
    assert asked and not compared & {*asked}  # a variant has no part in the comparison
    asked.clear()
    by_hand = dataclasses.replace(RUNS[0], variant="mine")
    evaluate.evaluate_everywhere(w, Run(by_hand, None, pd.DataFrame()))
    assert asked == []


def test_keeping_again_changes_no_byte_and_loses_no_evaluation(made, tmp_path, monkeypatch) -> None:
    w, folder = made
    before = {path.name: path.read_bytes() for path in (folder / "small").iterdir()}
    keep(w.profile)
    assert {path.name: path.read_bytes() for path in (folder / "small").iterdir()} == before
    run = f"{RUNS[0].run_id}"
    stems = {stem for stem in kept.entries(folder / "small") if stem.startswith(run)}
    one = sorted(stems)[0]
    entry = {k: v for k, v in kept.entries(folder / "small")[one].items() if k != "file"}
    found = kept.predictions(folder / "small", one)
    shutil.copytree(folder / "small", tmp_path / "copy")
    kept.write(tmp_path / "copy", run, {one: (entry, found)})
    after = kept.entries(tmp_path / "copy")
    assert {stem for stem in after if stem.startswith(run)} == stems
    for stem in stems:
        new, old = (kept.predictions(f, stem) for f in (tmp_path / "copy", folder / "small"))
        assert all(np.array_equal(new[name], old[name]) for name in old)


# --- what is committed ----------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent


def test_readme_says_what_the_file_of_the_search_holds() -> None:
    table = saved.read(ROOT / "results" / "search.csv")
    table = table[(table["seed"] != "all") & (table["label_fraction"] == 1)]
    value = table[table["method"] == "beatssl"].groupby(["task", "metric", "rhythm", "variant"])
    value = value["value"].mean()
    readings = sorted(set(table["variant"]) - {"as_initialised"})

    def both(task: str, metric: str, reading: str) -> tuple[float, float]:
        of = value[task, metric]
        alone = reading if ("hard", reading) in of.index else reading.rpartition(".")[0]
        return of["hard", alone], of["soft_1", reading]

    scores = (saved.CLASSIFY, "auroc_macro"), (saved.SEGMENT, "f1_macro")
    gain = {r: [np.subtract(*both(*score, r)[::-1]) for score in scores] for r in readings}
    d = {r: gain[r][0] / 0.032 + gain[r][1] / 0.109 for r in readings}
    assert len(readings) == 12 and sum(min(gains) > 0 for gains in gain.values()) == 8
    first = max((r for r in readings if min(gain[r]) > 0), key=d.get)
    assert first == "bce_0.5.step_160"
    text = " ".join((ROOT / "README.md").read_text().split())

    def short(x: float, sign: str = "") -> str:
        return f"{x:{sign}.3f}".replace("0.", ".").replace("-", "−")

    for (task, metric), name in zip(scores, ("AUROC", "LUDB F1"), strict=True):
        low, high = both(task, metric, first)
        assert f"{name} {short(high - low, '+')} ({short(low)} → {short(high)})" in text
        low, high = both(task, metric, "bce_0.5")
        assert f"{short(low)} → {short(high)}" in text
        low, high = both(task, metric, "")
        assert f"{name} {short(high - low)}" in text
    low, high = both("ptbxl_plain_probe", "auroc_macro", first)
    assert f"without standardisation gives {short(high - low)}" in text


@pytest.mark.slow
def test_the_committed_search_is_what_its_predictions_give(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    lines, differing = verify(load_profile("search"))
    assert differing == [] and lines > 1000
