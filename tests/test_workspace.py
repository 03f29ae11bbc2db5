"""From a profile to results: the whole chain on a few simulated records, and its figures."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from beatssl import evaluate, plots, results, workspace
from beatssl.config import DataConfig, PretrainConfig, Profile
from beatssl.pretrain import pretrain
from beatssl.targets import FeatureScale, record_targets
from beatssl.tasks.monitor import probe_monitor


def test_real_profiles_say_which_folder_they_want(monkeypatch):
    profile = Profile(name="p", data=DataConfig(ptbxl="ptb-xl", ludb="ludb"))
    for value in ("", "no/such/folder"):
        monkeypatch.setenv("BEATSSL_DATA", value)
        with pytest.raises(FileNotFoundError, match="ptb-xl, ludb.*DATA=.*BEATSSL_DATA"):
            workspace.data_root(profile)


def test_a_run_is_probed_frozen_and_the_untrained_one_gives_the_supervised_reference():
    assert evaluate.protocols("random") == ["frozen", "scratch"]
    assert evaluate.protocols("random", finetune=True) == ["frozen", "scratch"]
    assert evaluate.protocols("beatssl") == ["frozen"]
    assert evaluate.protocols("beatssl", finetune=True) == ["frozen", "finetune"]


def test_the_whole_chain_on_simulated_records(small, tmp_path, monkeypatch):
    """Pretrain, both tasks, all protocols; done again, nothing is computed twice."""
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    run = pretrain(small.profile.runs[0], small.profile, small.store, small.beats,
                   monitor=probe_monitor(small.store))
    assert run.curves["probe_auroc"].dropna().between(0.2, 1).all()
    random = pretrain(PretrainConfig(method="random"), small.profile, small.store, small.beats)
    for task in evaluate.TASKS:
        for one, protocols in ((run, {"frozen", "finetune"}), (random, {"frozen", "scratch"})):
            rows = evaluate.evaluate_run(small, one, task, finetune=True)
            assert set(rows["protocol"]) == protocols
            assert rows.query("metric == 'f1_macro'")["value"].between(0, 1).all()
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "small" / "predictions").iterdir()}
    evaluate.evaluate_run(small, run, "segmentation", finetune=True)
    assert {f: f.stat().st_mtime_ns for f in before} == before
    assert all(np.load(f, allow_pickle=False)["key"].size for f in before)
    assert results.evaluations(small.profile)


def test_figures_label_their_axes(small):
    store, beats = small.store, small.beats
    row = store.rows("ludb")[0]
    signal = store.millivolts([row])[0]
    found = beats.r_peak[row] >= 0
    truth = store.wave_targets([row])[0]
    import torch

    scale = FeatureScale.fit(torch.from_numpy(beats.record_features))
    matrix = record_targets("soft_1", torch.from_numpy(beats.record_features[:3]), scale, 50)
    rate = store.sampling_rate
    figures = [
        plots.ecg_paper(signal, rate, "record"),
        plots.beats_on_lead(signal[1], beats.r_peak[row][found], beats.rules[row][found], rate),
        plots.distributions({"a": np.linspace(0, 1, 50)}, "similarity of two records"),
        plots.target_matrices({"soft_1": matrix.numpy()}),
        plots.views_of_leads({"record": signal, "view": signal / 2}, rate),
        plots.vcg_loops({"record": signal[:3]}),
        plots.waves_on_lead(signal[1], truth, {"prediction": truth.clip(0)}, rate),
    ]
    for figure in figures:
        assert isinstance(figure, Figure)
        shown = [ax for ax in figure.axes if ax.get_visible()]
        assert any(ax.get_xlabel() for ax in shown) and any(ax.get_ylabel() for ax in shown)
        figure.canvas.draw()
        plots.plt.close(figure)
