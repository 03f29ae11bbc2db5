"""From a profile to results: the whole chain on a few simulated records, and its figures."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from notebook_functions import page
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from beatssl import evaluate
from beatssl import profile as workspace
from beatssl.methods import make_run
from beatssl.methods.beatssl import BeatSSL
from beatssl.profile import Profile
from beatssl.report import figures as plots
from beatssl.report import tables
from beatssl.results import saved as results
from beatssl.settings import DataConfig, Rotation
from beatssl.tasks import TASKS
from beatssl.tasks.classify import ecg_features, probe_monitor, split
from beatssl.train import pretrain


def test_real_profiles_say_which_folder_they_want(monkeypatch):
    profile = Profile(name="p", data=DataConfig(ptbxl="ptb-xl", ludb="ludb"))
    for value in ("", "no/such/folder"):
        monkeypatch.setenv("BEATSSL_DATA", value)
        with pytest.raises(FileNotFoundError, match="ptb-xl, ludb.*DATA=.*BEATSSL_DATA"):
            workspace.data_root(profile)


def test_a_run_is_probed_frozen_and_the_untrained_one_gives_the_supervised_reference():
    untrained, trained = make_run(method="random"), make_run()
    protocols = TASKS["classification"].protocols
    for finetune in (False, True):
        assert protocols(untrained, finetune) == ["frozen", "scratch"]
        assert protocols(replace(untrained, variant="x"), finetune) == ["frozen"]
    assert protocols(trained) == ["frozen"]
    assert protocols(trained, finetune=True) == ["frozen", "finetune"]
    for task in ("embedding", "label draws"):  # of frozen encoders only
        assert TASKS[task].protocols(untrained) == ["frozen"]
        assert TASKS[task].protocols(trained, finetune=True) == ["frozen"]


def test_the_whole_chain_on_simulated_records(small, tmp_path, monkeypatch):
    """Pretrain, both tasks, all protocols; done again, nothing is computed twice."""
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    run = pretrain(
        small.profile.runs[0],
        small.profile,
        small.store,
        small.beats,
        monitor=probe_monitor(small.store, Rotation()),
    )
    assert run.curves["probe_auroc"].dropna().between(0.2, 1).all()
    random = pretrain(make_run(method="random"), small.profile, small.store, small.beats)
    for task in ("classification", "segmentation"):
        for one, protocols in ((run, {"frozen", "finetune"}), (random, {"frozen", "scratch"})):
            rows = evaluate.evaluate_run(small, one, task, finetune=True)
            assert set(rows["protocol"]) == protocols
            assert rows.query("metric == 'f1_macro'")["value"].between(0, 1).all()
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "small" / "predictions").iterdir()}
    evaluate.evaluate_run(small, run, "segmentation", finetune=True)
    assert {f: f.stat().st_mtime_ns for f in before} == before
    assert all(np.load(f, allow_pickle=False)["key"].size for f in before)
    assert results.evaluations(small.profile)


@pytest.mark.slow
def test_the_whole_chain_at_500_hz(small, tmp_path, monkeypatch):
    """`sampling_rate` is the one setting that changes; an encoder step stays as long. Not TS2Vec,
    whose steps are samples: its loss at 5,000 of them takes minutes."""
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    data = replace(small.profile.data, sampling_rate=500)
    steps = {"beatssl": 40, "cmsc": 40, "domain_ssl": 40, "w2v": 32}  # ms
    own = {method: small.profile.methods.get(method, {}) for method in steps}
    own["beatssl"] = {"beat": "hard"}
    runs = [make_run(m, **{**own[m], "epochs": 1, "batch_size": 16}) for m in steps]
    profile = replace(small.profile, name="fast", data=data, runs=tuple(runs))
    store = workspace.prepare(data, profile.work / "store", profile.work)
    beats = workspace.prepare_beats(store, profile.work / "beats")
    assert store.sampling_rate == 500 and store.signals.shape[2] == 5000
    both = np.intersect1d(store.table["record_id"], small.store.table["record_id"])
    assert len(both) > 150
    for run, step_ms in zip(runs, steps.values()):
        done = evaluate.train(workspace.Workspace(profile, store, beats), run)
        assert 1000 * done.encoder.stride / 500 == step_ms and len(done.curves) == 1
        for task in ("classification", "segmentation", "embedding"):
            rows = evaluate.evaluate_run(workspace.Workspace(profile, store, beats), done, task)
            assert set(rows["sampling_rate"]) == {500} and rows["value"].notna().any()


def test_a_run_that_diverges_is_reported_and_the_others_go_on(small, tmp_path, monkeypatch):
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    step = BeatSSL.training_step
    monkeypatch.setattr(
        BeatSSL, "training_step", lambda *a: {k: v * float("nan") for k, v in step(*a).items()}
    )
    rows = evaluate.evaluate_all(small, "classification")
    lost = rows[rows["source"].str.startswith("failed: ")]
    assert set(lost["method"]) == {"beatssl"} and lost["value"].isna().all()
    assert "the loss is nan" in lost["source"].iloc[0]
    assert rows.loc[rows["protocol"] == "frozen", "value"].notna().any()
    table = tables.by_method(results.with_combined(small.profile))
    assert table.loc[table["method"] == "beatssl", ["seeds", "failed"]].to_numpy().tolist() == [
        [0, 1],
        [0, 1],
    ]


def test_ecg_features_are_probed_without_an_encoder(small, tmp_path, monkeypatch):
    """A logistic regression of our own on the same rows, at the same C, ranks the test records
    alike."""
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    profile = replace(small.profile, runs=(make_run(method="features"),))
    w = replace(small, profile=profile)
    rows = evaluate.evaluate_all(w, "classification")
    assert set(rows["run_id"]) == {"features-s0"} and set(rows["protocol"]) == {"frozen"}
    what, _ = results.evaluations(profile)[0]
    saved = results.load_predictions(profile, what)
    x = ecg_features(w.store, w.beats, Rotation())
    assert np.isfinite(x).all() and x.shape == (len(w.store.table), 54)
    parts = split(w.store, Rotation())
    scaler = StandardScaler().fit(x[parts["train"].rows])
    model = LogisticRegression(C=float(saved["regularisation"]), max_iter=2000, tol=1e-8)
    model.fit(scaler.transform(x[parts["train"].rows]), parts["train"].labels[:, 0])
    own = model.predict_proba(scaler.transform(x[parts["test"].rows]))[:, 1]
    np.testing.assert_allclose(saved["score"][:, 0], own, atol=1e-3)


def test_figures_label_their_axes():
    ranked = pd.DataFrame({"label": ["a", "b"], "score": "AUROC", "paper": [1, 2], "ours": [2, 1]})
    changed = pd.DataFrame(
        {
            "first": ["a", "b"],
            "score": "AUROC",
            "difference": [0.1, -0.1],
            "low": -0.2,
            "high": 0.2,
            "limit": 0.1,
            "block": ["x", "y"],
            "effect": [True, False],
        }
    )
    healthy = pd.DataFrame(
        {
            "method": ["random", "cmsc", "beatssl"],
            "rhythm": ["", "", "hard"],
            "uniformity": [-1.0, -2, -3],
            "AUROC": [0.8, 0.85, 0.9],
        }
    )
    layers = pd.DataFrame(
        {
            "layer": ["input", "stem", "block 1", "block 2"],
            "sd": [1, 0.3, 0.1, 0.1],
            "branch": [np.nan, np.nan, 0.2, 0.3],
        }
    )
    figures = [
        page("10_health").draw_layers({"as initialised": layers, "statistics of data": layers}),
        page("08_ablation").draw_ranks(ranked, {"a": "red"}),
        page("09_sensitivity").draw_changes(changed, ("AUROC",)),
        page("10_health").draw_health(healthy, {"uniformity": "uniformity"}, ("AUROC",)),
    ]
    named = [text.get_text() for text in figures[-1].axes[-1].get_legend().get_texts()]
    assert named == ["untrained", "compared method", "hard"]
    for figure in figures:
        assert isinstance(figure, Figure)
        shown = [ax for ax in figure.axes if ax.get_visible()]
        assert any(ax.get_xlabel() for ax in shown) and any(ax.get_ylabel() for ax in shown)
        figure.canvas.draw()
        plots.plt.close(figure)
