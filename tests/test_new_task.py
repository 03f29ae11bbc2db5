"""A task is added in one place: it stands in this file, and one line puts it in the registry."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import yaml

from beatssl.evaluate import absent, evaluate_all
from beatssl.methods import make_run
from beatssl.profile import load_profile
from beatssl.report import tables
from beatssl.results import saved
from beatssl.results.collect import collect
from beatssl.settings import ConfigError, Rotation
from beatssl.tasks import TASKS, base, classify


@dataclass(frozen=True)
class AmplitudeConfig:
    label_fractions: tuple[float, ...] = (1.0,)
    bootstrap: int = 50
    lead: int = 1


class Amplitude(base.Task):
    """How large the encoder's output is, and the records' mean size in one lead."""

    key, name = "amplitude", "ptbxl_amplitude"
    Settings = AmplitudeConfig
    by_fraction = True
    made_by = (classify.split,)
    calls = 0

    def predictor(self, case):
        test = classify.split(case.store, case.rotation)["test"]
        out = classify.embed(case.encoder, case.store, test.rows)

        def predict(fraction):
            Amplitude.calls += 1
            size = np.abs(case.store.load(test.rows)[:, case.settings.lead]).mean(axis=1)
            return {**test.ids, "output": np.abs(out).mean(axis=1) * fraction, "size": size}

        return predict

    def scores(self, predictions, weights=None):
        weights = np.ones((1, len(predictions["size"]))) if weights is None else weights
        return {
            name: weights @ predictions[name] / weights.sum(axis=1) for name in ("output", "size")
        }


@pytest.fixture
def amplitude(small, tmp_path, monkeypatch):
    """The small workspace with settings of the new task from the text of a runs.yml."""
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path / "work"))
    monkeypatch.setitem(TASKS, "amplitude", Amplitude())
    entry = {"tasks": {"amplitude": {"label_fractions": [0.5, 1.0], "lead": 2, "bootstrap": 20}}}
    (tmp_path / "runs.yml").write_text(yaml.safe_dump({"profiles": {"small": entry}}))
    tasks = load_profile("small", tmp_path / "runs.yml").tasks
    runs = (make_run(method="random"), make_run(method="random", seed=1))
    profile = dataclasses.replace(small.profile, tasks=tasks, runs=runs)
    return dataclasses.replace(small, profile=profile)


def test_a_new_task_is_evaluated_reused_collected_and_shown(amplitude, tmp_path):
    Amplitude.calls = 0
    rows = evaluate_all(amplitude, "amplitude")
    assert Amplitude.calls == 4  # two encoders, two fractions
    assert set(rows["metric"]) == {"output", "size"} and rows["ci_low"].notna().all()
    test = classify.split(amplitude.store, Rotation())["test"]
    by_hand = np.abs(amplitude.store.load(test.rows)[:, 2]).mean(axis=1).mean()
    assert rows.query("metric == 'size'")["value"].tolist() == pytest.approx([by_hand] * 4)
    assert evaluate_all(amplitude, "amplitude").equals(rows) and Amplitude.calls == 4
    collected = collect(amplitude.profile, tmp_path)
    assert collected.path == tmp_path / "small.csv" and not collected.missing
    table = tables.by_method(saved.read(collected.path))
    assert set(table["task"]) == {"ptbxl_amplitude"} and set(table["seeds"]) == {2}
    shown = tables.by_fraction(table, ["output", "size"])
    assert shown["labels"].tolist() == ["50%", "100%"]
    assert shown["size"].str.startswith(f"{by_hand:.3f}").all()


def test_other_settings_of_a_new_task_make_it_anew(amplitude):
    evaluate_all(amplitude, "amplitude")
    other = {"amplitude": dataclasses.replace(amplitude.profile.tasks["amplitude"], lead=0)}
    w = dataclasses.replace(amplitude, profile=dataclasses.replace(amplitude.profile, tasks=other))
    with pytest.raises(saved.StaleResultsError, match="other settings.*run --profile small"):
        saved.evaluations(w.profile, "amplitude")
    before = Amplitude.calls
    evaluate_all(w, "amplitude")
    assert Amplitude.calls == before + 4 and saved.evaluations(w.profile, "amplitude")


def test_settings_of_a_task_are_checked(amplitude, tmp_path):
    for tasks, words in (
        ({"amplitude": {"led": 2}}, "tasks.amplitude: unknown key 'led'; known: label_fractions"),
        ({"amplitud": {}}, "tasks='amplitud' is not known; known: .*amplitude"),
        ({"classify": {}}, "tasks='classify' is not known"),  # it has an entry of its own
    ):
        text = yaml.safe_dump({"profiles": {"p": {"tasks": tasks}}})
        (tmp_path / "runs.yml").write_text(text)
        with pytest.raises(ConfigError, match=words):
            load_profile("p", tmp_path / "runs.yml")


def test_an_unknown_task_or_protocol_lists_the_known_ones(small):
    known = "known: classification, segmentation, embedding, label draws, more folds"
    for use in (
        lambda: evaluate_all(small, "x"),
        lambda: absent(small, "x"),
        lambda: saved.evaluations(small.profile, "x"),
    ):
        with pytest.raises(ConfigError, match=f"task 'x' is not known; {known}"):
            use()
    with pytest.raises(ConfigError, match="known: frozen, finetune, scratch"):
        base.Case(make_run(), None, small.store, None, "probe")


def test_results_of_a_task_that_is_no_more_are_left_out(amplitude, monkeypatch):
    evaluate_all(amplitude, "amplitude")
    monkeypatch.delitem(TASKS, "amplitude")
    with pytest.warns(UserWarning, match="left out: random-s0-ptbxl_amplitude"):
        assert saved.evaluations(amplitude.profile) == []
