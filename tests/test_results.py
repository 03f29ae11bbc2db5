"""Tidy rows: saving and reuse, collecting, seeds together, tables, the paper's numbers."""

from __future__ import annotations

import dataclasses
import json
import os
import re

import numpy as np
import pandas as pd
import pytest
import torch
from notebook_functions import page
from torch import nn

from beatssl.data.records import wave_marks
from beatssl.methods.encoder import EncoderConfig
from beatssl.methods import METHODS, make_run
from beatssl.methods.base import Entry, NoEncoder, RunSettings
from beatssl.profile import Profile
from beatssl.report import comparison, held_out, tables
from beatssl.results import saved as results
from beatssl.results import uncertainty
from beatssl.results.collect import collect as write_results
from beatssl.results.saved import CLASSIFY, SEGMENT, ResultsError
from beatssl.settings import DataConfig
from beatssl.tasks.base import of_logits, to_logits
from beatssl.tasks import scores as metrics
from beatssl.tasks import task_of
from beatssl.tasks.classify import ClassifyConfig
from beatssl.tasks.segment import SegmentConfig

BASELINE = [make_run(seed=s) for s in range(3)]
BEST = [make_run(rhythm="soft_1", beat="hard", exponent=50.0, seed=s) for s in range(2)]
RANDOM = [make_run(method="random", seed=s) for s in range(2)]
ABLATION = page("08_ablation")
SENSITIVITY = page("09_sensitivity")
SUMMARY = page("16_summary")


class Store:
    sampling_rate = 100
    fingerprint = "aa"
    content = "aa"


class OtherStore(Store):
    fingerprint = "bb"


@pytest.fixture
def profile(tmp_path, monkeypatch) -> Profile:
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path / "work"))
    return Profile(
        "fake",
        data=DataConfig(ptbxl="ptbxl-subset", ludb="ludb"),
        classify=ClassifyConfig(label_fractions=(0.1, 1.0), bootstrap=50),
        segment=SegmentConfig(bootstrap=50),
        runs=(*BASELINE, *BEST, *RANDOM),
    )


def encoder(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(2, 2)


def classified(seed: int, skill: float = 1.0, n: int = 60) -> dict[str, np.ndarray]:
    truth = (np.random.default_rng(9).random((n, 5)) < 0.4).astype(np.int8)
    score = np.random.default_rng(seed).normal(size=(n, 5)) + skill * truth
    ids = np.arange(n).astype(str)
    return {
        "record_id": ids,
        "patient_id": ids,
        "truth": truth,
        "score": of_logits(to_logits(1 / (1 + np.exp(-score)))),  # in the 16 bits that are kept
        "threshold": np.full(5, 0.6),
    }


def segmented(seed: int, errors: float = 0.1, n: int = 8) -> dict[str, np.ndarray]:
    truth = np.zeros((n, 200), np.int8)
    for wave, first in ((1, 20), (2, 50), (3, 90)):
        truth[:, first : first + 15] = wave
    wrong = np.random.default_rng(seed).random(truth.shape) < errors
    return {
        "record_id": np.arange(n).astype(str),
        "patient_id": np.arange(n).astype(str),
        "truth": truth,
        "marks": wave_marks(truth, 100),
        "prediction": np.where(wrong, 0, truth).astype(np.int8),
        "sampling_rate": np.array(100),
        "tolerance_ms": np.array(150.0),
    }


def save(profile, run, task=CLASSIFY, protocol="frozen", fraction=1.0, **kw) -> list[dict]:
    """Evaluate with made-up predictions."""
    what = described(profile, run, encoder(run.seed), task, protocol, fraction)
    make = classified if task == CLASSIFY else segmented
    return results.reuse_or_make(what, profile, lambda: lambda fraction: make(run.seed, **kw))


def described(
    profile, run, weights, task=CLASSIFY, protocol="frozen", fraction=1.0, store=Store
) -> results.Evaluation:
    """The evaluation of an encoder with these weights."""
    case = results.case_of(profile, task_of(task), run, store(), weights, protocol)
    return results.describe(profile, task_of(task), case, fraction)


def fill(profile) -> None:
    for run in (*BASELINE, *BEST, *RANDOM):
        skill = {"random": 0.3}.get(run.method, 2.5 if run in BEST else 1.0)
        for fraction in (0.1, 1.0):
            save(profile, run, fraction=fraction, skill=skill * fraction)
        save(profile, run, SEGMENT, errors=0.4 / (1 + skill))
    for run in RANDOM:
        save(profile, run, protocol="scratch", skill=2.0)


def collect(profile, folder) -> pd.DataFrame:
    found = write_results(profile, folder)
    assert not found.missing and found.path == folder / "fake.csv"
    return found.table


# --- one evaluation ---


def test_row_has_exactly_the_columns_and_names_what_was_measured(profile):
    row = save(profile, BEST[1])[0]
    assert tuple(row) == results.COLUMNS
    expected = {
        "run_id": "beatssl-soft_1-hard-50-s1",
        "method": "beatssl",
        "rhythm": "soft_1",
        "beat": "hard",
        "exponent": 50.0,
        "seed": "1",
        "task": CLASSIFY,
        "protocol": "frozen",
        "label_fraction": 1.0,
        "n": 60,
        "data": "PTB-XL subset",
        "sampling_rate": 100,
        "source": "",
    }
    assert {name: row[name] for name in expected} == expected


def test_rows_without_contrast_leave_the_ablation_columns_empty(profile):
    untrained = save(profile, RANDOM[1])[0]
    reference = save(profile, RANDOM[1], protocol="scratch")[0]
    assert (untrained["method"], untrained["run_id"]) == ("random", "random-s1")
    assert (reference["method"], reference["run_id"]) == ("supervised", "supervised-s1")
    variant = dataclasses.replace(RANDOM[1], variant="coarse")
    assert save(profile, variant, protocol="scratch")[0]["run_id"] == "supervised-coarse-s1"
    for row in (untrained, reference):
        assert row["rhythm"] == row["beat"] == "" and np.isnan(row["exponent"])


@pytest.mark.parametrize(
    "data, task, name",
    [
        (DataConfig(ptbxl="ptbxl-subset"), CLASSIFY, "PTB-XL subset"),
        (DataConfig(ptbxl="ptb-xl/1.0.3"), CLASSIFY, "PTB-XL"),
        (DataConfig(ptbxl="ptbxl-subset", ludb="ludb"), SEGMENT, "LUDB"),
        (DataConfig(synthetic=True, ptbxl="x"), CLASSIFY, "synthetic"),
        (DataConfig(synthetic=True, ludb="x"), SEGMENT, "synthetic"),
    ],
)
def test_data_are_named_for_what_they_are(data, task, name):
    assert results.data_name(Profile("p", data=data), task_of(task)) == name


def test_saved_evaluation_is_reused_and_gives_the_same_rows(profile):
    first = save(profile, BASELINE[0])
    what = described(profile, BASELINE[0], encoder(0))
    again = results.reuse_or_make(what, profile, lambda: pytest.fail("computed again"))
    assert again == first


def change(kind: str, profile: Profile):
    """The evaluation of BASELINE[0] with one thing changed."""
    run, store, weights = BASELINE[0], Store, encoder(0)
    if kind == "weights":
        weights = encoder(7)
    elif kind == "data":
        store = OtherStore
    elif kind == "run":
        run = dataclasses.replace(run, epochs=99)
    elif kind == "encoder":
        deeper = dataclasses.replace(profile.encoder, blocks=5)
        profile = dataclasses.replace(profile, encoder=deeper)
    else:
        settings = dataclasses.replace(profile.classify, finetune_epochs=99)
        profile = dataclasses.replace(profile, classify=settings)
    return described(profile, run, weights, store=store)


@pytest.mark.parametrize("kind", ["weights", "data", "run", "encoder", "task"])
def test_whatever_changes_the_numbers_makes_them_anew(profile, kind):
    save(profile, BASELINE[0])
    with pytest.raises(ZeroDivisionError):
        results.reuse_or_make(change(kind, profile), profile, lambda: 1 / 0)


def test_another_label_fraction_in_the_profile_does_not_make_the_others_anew(profile):
    save(profile, BASELINE[0])
    more = dataclasses.replace(profile.classify, label_fractions=(0.1, 0.5, 1.0))
    wider = dataclasses.replace(profile, classify=more)
    what = described(wider, BASELINE[0], encoder(0))
    assert results.reuse_or_make(what, wider, lambda: pytest.fail("computed again"))


def test_weights_hash_sees_every_weight():
    a, b = encoder(), encoder()
    assert results.content_hash(a) == results.content_hash(b)
    with torch.no_grad():
        b.bias[1] += 1e-6
    assert results.content_hash(a) != results.content_hash(b)


@pytest.mark.parametrize("damage", ["truncated rows", "truncated npz", "no npz", "other npz"])
def test_damaged_files_are_made_again(profile, damage):
    good = save(profile, BASELINE[0])
    stem = "beatssl-hard-none-1-s0-ptbxl_superdiagnostic-frozen-1"
    rows = profile.work / "results" / f"{stem}.json"
    npz = profile.work / "predictions" / f"{stem}.npz"
    if damage == "truncated rows":
        rows.write_text(rows.read_text()[:200])
    elif damage == "truncated npz":
        npz.write_bytes(npz.read_bytes()[:100])
    elif damage == "no npz":
        npz.unlink()
    else:
        results.write_predictions(npz, classified(5), "another key")
    assert save(profile, BASELINE[0]) == good
    assert len(results.with_combined(profile))  # readable again


def test_an_interrupted_write_leaves_the_old_file_and_no_rest(profile, monkeypatch):
    save(profile, BASELINE[0])
    before = {p: p.read_bytes() for p in profile.work.rglob("*") if p.is_file()}

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    what = change("weights", profile)
    with pytest.raises(KeyboardInterrupt):
        results.reuse_or_make(what, profile, lambda: lambda fraction: classified(1))
    assert {p: p.read_bytes() for p in profile.work.rglob("*") if p.is_file()} == before


def test_undefined_scores_survive_saving_as_strict_json(profile):
    given = classified(0)
    given["truth"][:, 4] = 0
    what = described(profile, BASELINE[0], encoder())
    results.reuse_or_make(what, profile, lambda: lambda fraction: given)
    path = next((profile.work / "results").glob("*.json"))
    json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(text))
    values = {row["metric"]: row["value"] for row in results.read_rows(path)[1]}
    assert np.isnan(values["auroc_macro"]) and np.isfinite(values["auroc_MI"])


def test_predictions_hold_no_pickled_object(profile, tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, key=np.array("k"), bad=np.array([{}], dtype=object))
    with pytest.raises(ResultsError, match="x.npz cannot be read"):
        results.read_predictions(path, "k")


# --- all evaluations ---


def test_collect_writes_single_seeds_and_their_mean_deterministically(profile, tmp_path):
    fill(profile)
    table = collect(profile, tmp_path)
    path = tmp_path / "fake.csv"
    first = path.read_bytes()
    collect(profile, tmp_path)
    assert path.read_bytes() == first
    assert tuple(table.columns) == results.COLUMNS
    chosen = table[
        (table["run_id"].str.startswith("beatssl-hard-none-1"))
        & (table["metric"] == "auroc_macro")
        & (table["label_fraction"] == 1.0)
    ]
    single, together = chosen[chosen["seed"] != "all"], chosen[chosen["seed"] == "all"]
    assert list(single["seed"]) == ["0", "1", "2"] and len(together) == 1
    assert together["run_id"].item() == "beatssl-hard-none-1"
    assert together["value"].item() == pytest.approx(single["value"].mean())
    assert together["ci_low"].item() < together["value"].item() < together["ci_high"].item()
    keys = [c for c in results.COLUMNS if c not in ("value", "ci_low", "ci_high", "n")]
    assert not table.duplicated(keys).any()


def test_an_empty_or_partial_work_folder_never_replaces_the_committed_file(
    profile, tmp_path, monkeypatch
):
    fill(profile)
    collect(profile, tmp_path)
    path, before = tmp_path / "fake.csv", (tmp_path / "fake.csv").read_bytes()
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path / "empty"))
    found = write_results(profile, tmp_path)
    assert found.path is None and found.table.empty and path.read_bytes() == before
    assert (
        "beatssl-hard-none-1-s0 ludb_segmentation frozen 1.0: not evaluated here" in found.missing
    )

    save(profile, BASELINE[0])  # one of three seeds, one of two tasks
    found = write_results(profile, tmp_path)
    assert found.path == tmp_path / "fake.partial.csv" and path.read_bytes() == before
    assert set(results.read(found.path)["run_id"]) == {
        "beatssl-hard-none-1-s0",
        "beatssl-hard-none-1",
    }
    assert any("hard" in line and "seeds 1, 2" in line for line in found.missing)

    fill(profile)  # all of it again: the same file
    assert collect(profile, tmp_path) is not None and path.read_bytes() == before
    fewer = dataclasses.replace(profile, runs=(*BASELINE, *RANDOM))  # a run that was given up
    with pytest.warns(UserWarning, match="not in its runs"):
        table = collect(fewer, tmp_path)
    assert "soft_1" not in set(table["rhythm"])


def test_a_new_method_is_added_without_the_others_at_hand(profile, tmp_path, monkeypatch):
    fill(profile)
    before = collect(profile, tmp_path)
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path / "fresh"))
    new = [make_run(method="cmsc", seed=s) for s in range(2)]
    profile = dataclasses.replace(profile, runs=(*profile.runs, *new))
    save(profile, BASELINE[0], skill=9.0)  # it is in the file: it stays what it was
    save(profile, new[0])
    write_results(profile, tmp_path, add=True)  # without its second seed: not yet
    pd.testing.assert_frame_equal(results.read(tmp_path / "fake.csv"), before, rtol=1e-5)
    save(profile, new[1])
    write_results(profile, tmp_path, add=True)
    table = results.read(tmp_path / "fake.csv")
    assert set(table["run_id"]) - set(before["run_id"]) == {"cmsc-s0", "cmsc-s1", "cmsc"}
    old = table[table["method"] != "cmsc"].reset_index(drop=True)
    pd.testing.assert_frame_equal(old, before, rtol=1e-5)


def test_the_file_has_details_of_combined_rows_only(profile, tmp_path):
    fill(profile)
    table = collect(profile, tmp_path)
    detail = table["metric"].isin(["f1_MI", "auroc_NORM", "f1_QRS", "event_f1_P_onset"])
    assert set(table.loc[detail, "metric"]) == {"f1_MI", "auroc_NORM", "f1_QRS", "event_f1_P_onset"}
    assert set(table.loc[detail, "seed"]) == {"all"}
    assert {"0", "1", "2"} <= set(table.loc[table["metric"] == "f1_macro", "seed"])


def test_reading_back_gives_what_was_written(profile, tmp_path):
    fill(profile)
    table = collect(profile, tmp_path)
    back = results.read(tmp_path / "fake.csv")
    pd.testing.assert_frame_equal(back, table, rtol=1e-5)


def test_values_are_those_of_the_saved_predictions(profile):
    rows = save(profile, BASELINE[0], SEGMENT)
    expected = metrics.segmentation_scores(segmented(0))
    assert {row["metric"] for row in rows} == set(expected)
    for row in rows:
        assert row["value"] == pytest.approx(expected[row["metric"]][0], nan_ok=True)


def test_runs_outside_the_profile_are_left_out_with_a_warning(profile):
    fill(profile)
    fewer = dataclasses.replace(profile, runs=(*BASELINE, *RANDOM))
    with pytest.warns(UserWarning, match="left out: beatssl-soft_1-hard-50-s0"):
        found = results.evaluations(fewer)
    assert {what.name for what, _ in found} == {"beatssl-hard-none-1", "random", "supervised"}


def test_results_of_other_settings_do_not_hinder_other_tasks(profile, tmp_path):
    save(profile, BASELINE[0])
    save(profile, BASELINE[0], SEGMENT)
    changed = dataclasses.replace(profile, segment=SegmentConfig(bootstrap=50, epochs=99))
    with pytest.raises(ResultsError, match="other settings: beatssl-hard-none-1-s0-ludb"):
        results.evaluations(changed)
    assert {what.task for what, _ in results.evaluations(changed, CLASSIFY)} == {CLASSIFY}
    found = write_results(dataclasses.replace(changed, runs=(BASELINE[0],)), tmp_path)
    assert found.missing[0].startswith("ludb_segmentation: made with other settings")
    assert set(found.table["task"]) == {CLASSIFY} and found.path.name == "fake.partial.csv"


def test_results_that_a_later_page_makes_anew_do_not_hinder_an_earlier_one(profile):
    """Fine-tuned evaluations of older code, which page 12 makes, when page 06 shows the frozen."""
    save(profile, BASELINE[0])
    changed = dataclasses.replace(profile, encoder=EncoderConfig(blocks=1))
    save(changed, BASELINE[0], protocol="finetune")
    for show in (results.with_combined, results.evaluations):
        with pytest.raises(ResultsError, match="other settings: beatssl-hard-none-1-s0.*finetune"):
            show(profile, CLASSIFY)
        assert len(show(profile, CLASSIFY, protocols=("frozen", "scratch")))
    assert list(comparison.groups(profile, CLASSIFY)) == ["beatssl-hard-none-1"]


def test_results_of_other_settings_or_other_data_are_not_mixed(profile):
    save(profile, BASELINE[0])
    longer = tuple(dataclasses.replace(run, epochs=99) for run in BASELINE)
    with pytest.raises(ResultsError, match="other settings: beatssl-hard-none-1-s0"):
        results.evaluations(dataclasses.replace(profile, runs=longer))
    what = described(profile, BASELINE[1], encoder(), store=OtherStore)
    results.reuse_or_make(what, profile, lambda: lambda fraction: classified(1))
    with pytest.raises(ResultsError, match="different data"):
        results.evaluations(profile)


def test_a_file_that_is_no_results_file_is_named(profile):
    save(profile, BASELINE[0])
    (profile.work / "results" / "x.json").write_text('{"rows": ')
    with pytest.raises(ResultsError, match="x.json is not a results file.*remove it"):
        write_results(profile)


def test_reading_refuses_a_missing_file_wrong_columns_and_text_for_numbers(tmp_path):
    with pytest.raises(ResultsError, match="no results in none.csv"):
        results.read(tmp_path / "none.csv")
    path = tmp_path / "bad.csv"
    table = results.paper()
    table.drop(columns="metric").assign(other=1).to_csv(path, index=False)
    with pytest.raises(ResultsError, match="missing: .'metric'.*unknown: .'other'"):
        results.read(path)
    table.astype({"value": object}).assign(value="high").to_csv(path, index=False)
    with pytest.raises(ResultsError, match="bad.csv"):
        results.read(path)


# --- tables ---


def test_headlines_set_the_paper_beside_ours(profile, tmp_path):
    fill(profile)
    collect(profile, tmp_path)
    table = tables.headlines(profile, folder=tmp_path)
    assert list(table["label"].drop_duplicates()) == [
        "Untrained, as initialised",
        "Supervised from scratch",
        "hard / - / 1 (baseline, 3KG)",
        "soft_1 / hard / 50 (paper's best)",
    ]
    rows = table.set_index(["label", "score"])
    best = rows.loc["soft_1 / hard / 50 (paper's best)"]
    assert best["paper"].tolist()[:3] == [0.843, 0.622, 0.911] and np.isnan(best["paper"]["Dice"])
    assert rows.loc["Untrained, as initialised", "paper"].isna().all()
    own = [metrics.classification_scores(classified(s, 2.5))["auroc_macro"][0] for s in range(2)]
    assert best["value"]["AUROC"] == pytest.approx(np.mean(own), rel=1e-5)
    assert best["sd"]["AUROC"] == pytest.approx(np.std(own, ddof=1), rel=1e-3)
    assert best["n"].tolist() == [60, 60, 8, 8] and best["seeds"]["AUROC"] == 2


def test_table_of_texts_and_its_markdown(profile, tmp_path):
    fill(profile)
    collect(profile, tmp_path)
    long = tables.headlines(profile, folder=tmp_path)
    texts = tables.paper_and_ours(long)
    best = long[(long["label"].str.startswith("soft_1")) & (long["score"] == "AUROC")].iloc[0]
    line = texts.loc[best["label"]]
    assert line["AUROC, paper"] == "0.843" and line["test records"] == "60 / 8"
    low, high = best["ci_low"], best["ci_high"]
    assert line["AUROC, ours"] == f"{best['value']:.3f} ({best['sd']:.3f}) [{low:.3f}, {high:.3f}]"
    # the reference was run on one task: no LUDB numbers
    reference = texts.loc["Supervised from scratch"]
    assert reference["LUDB F1, ours"] == "–" and "(" in reference["AUROC, ours"]
    assert (reference["test records"], reference["seeds"]) == ("60 / –", "2 / –")
    lines = tables.markdown(texts).splitlines()
    assert len(lines) == 2 + 4 and len({text.count("|") for text in lines}) == 1


def test_every_row_of_the_paper_is_there_and_says_when_it_was_not_run(profile, tmp_path):
    fill(profile)
    collect(profile, tmp_path)
    texts = tables.paper_and_ours(tables.headlines(profile, every_row=True, folder=tmp_path))
    assert len(texts) == 2 + 14
    assert (texts["AUROC, ours"] == "not run").sum() == 12
    assert list(texts.index[2:5]) == [
        "hard / - / 1 (baseline, 3KG)",
        "hard / hard / 1",
        "hard / soft_1 / 1",
    ]


def test_headlines_at_another_label_fraction(profile, tmp_path):
    fill(profile)
    collect(profile, tmp_path)
    key = ["label", "score"]
    full = tables.headlines(profile, folder=tmp_path).set_index(key)["value"]
    tenth = tables.headlines(profile, fraction=0.1, folder=tmp_path).set_index(key)["value"]
    name = "soft_1 / hard / 50 (paper's best)"
    assert tenth[name, "AUROC"] < full[name, "AUROC"]
    assert tenth[name, "LUDB F1"] == full[name, "LUDB F1"]


def test_headlines_of_a_single_run(profile, tmp_path):
    profile = dataclasses.replace(profile, runs=(RANDOM[0],))
    save(profile, RANDOM[0], SEGMENT)
    collect(profile, tmp_path)
    texts = tables.paper_and_ours(tables.headlines(profile, folder=tmp_path))
    assert list(texts.index) == ["Untrained, as initialised"]
    assert texts["AUROC, ours"].item() == "–" and texts["LUDB F1, ours"].item().startswith("0.")


def test_methods_stand_in_the_order_of_the_papers_table():
    rhythm_beat = [("hard", "none"), ("hard", "hard"), ("soft_1", "none"), ("soft_2", "soft_2")]
    methods = [("beatssl", *rb, 1.0, "") for rb in rhythm_beat]
    names = ("random", "supervised", "features")
    methods = [*[(name, "", "", np.nan, "") for name in names], *methods]
    assert sorted([*reversed(methods)], key=tables.rank) == methods


def test_a_new_method_has_its_line_in_every_table(profile, tmp_path, monkeypatch):
    """A method that no list of the report names: a label is all it brings."""
    monkeypatch.setitem(METHODS, "dummy", Entry("A dummy", NoEncoder))
    fill(profile)
    known = results.with_combined(profile, CLASSIFY)
    new = known[known["method"] == "random"].replace({"method": {"random": "dummy"}})
    new["run_id"] = new["run_id"].str.replace("random", "dummy")
    rows = pd.concat([known, new])
    table = tables.by_method(rows)
    assert list(table["label"].unique())[-1] == "A dummy"  # after the rows of the ablation
    assert set(table.loc[table["method"] == "dummy", "name"]) == {"dummy"}
    texts = tables.by_fraction(table, ["auroc_macro"])
    dummy, untrained = texts.loc["A dummy"], texts.loc["Untrained, as initialised"]
    assert dummy["AUROC"].tolist() == untrained["AUROC"].tolist()
    assert list(texts.index[-2:]) == ["A dummy"] * 2
    beside = comparison.beside_paper(rows.replace({"task": {CLASSIFY: results.LABELS}}))
    assert beside.loc["A dummy", "seeds"] == "2"
    assert beside.loc["A dummy", "PTB-XL F1, ours"].startswith("0.")
    assert list(beside.index).index("A dummy") < list(beside.index).index("TS2Vec")  # not run


def test_gaps_of_wide_tables_are_dashes_and_lines_keep_their_order():
    """Also where a line has no number of records, as when all seeds failed."""
    long = pd.DataFrame(
        {
            "label": ["b", "a", "b"],
            "n": pd.array([3, None, 3], "Int64"),
            "score": ["x", "x", "y"],
            "text": ["1", "2", "3"],
        }
    )
    table = tables.wide(long, ["label", "n"], "score", "corner")
    assert list(table.index) == ["b", "a"] and list(table) == ["n", "x", "y"]
    assert table.to_numpy().tolist() == [[3, "1", "3"], ["–", "2", "–"]]
    assert table.columns.name == "corner"


def test_differences_say_whether_the_interval_excludes_zero(profile):
    fill(profile)
    pairs = [
        ("beatssl-soft_1-hard-50", "beatssl-hard-none-1"),
        ("random", "random"),
        ("supervised", "random"),
        ("beatssl-soft_2-none-1", "random"),
    ]
    table, absent = comparison.differences(profile, pairs)
    gap = table[(table["second"] == "hard / - / 1 (baseline, 3KG)")].set_index("score")
    assert list(gap.index) == ["AUROC", "F1", "LUDB F1", "Dice"]
    assert gap.loc["AUROC", "difference"] > 0 and gap.loc["AUROC", "zero"] == "excludes zero"
    same = table[table["first"] == "Untrained, as initialised"]
    assert (same["difference"] == 0).all() and (same["zero"] == "includes zero").all()
    assert "supervised and random on ludb_segmentation" in absent
    assert "beatssl-soft_2-none-1 and random on ptbxl_superdiagnostic" in absent
    words = SUMMARY.in_words(table)
    name = "*Untrained, as initialised*"
    said = f"{name} against {name}: **no difference shown** in AUROC"
    assert said in words
    texts = SUMMARY.difference_texts(table)
    name = "soft_1 / hard / 50 (paper's best) − hard / - / 1 (baseline, 3KG)"
    assert texts.loc[name, "AUROC"].startswith(f"{gap.loc['AUROC', 'difference']:+.3f} [")
    # three seeds against two: what intervals cover is said
    assert set(gap["seeds"]) == {(2, 3)}
    assert texts.columns.name == "difference [95 % interval over patients and seeds]"
    assert "(intervals over patients and seeds)." in words.splitlines()[-1]
    assert set(gap["covers"]) == {"patients and seeds"} and set(gap["n"]) == {60, 8}
    single = with_runs(profile, BEST[0], *BASELINE)  # one seed on one side
    with pytest.warns(UserWarning, match="left out"):
        table, _ = comparison.differences(single, [(BEST[0].name, BASELINE[0].name)])
    assert set(table["covers"]) == {"patients and the seeds of one side"}
    with pytest.warns(UserWarning, match="left out"):
        single = with_runs(profile, BEST[0], BASELINE[0])
        table, _ = comparison.differences(single, [(BEST[0].name, BASELINE[0].name)])
    assert set(table["covers"]) == {"patients"}


ROWS = [
    ("hard", "none", 1.0),
    ("hard", "hard", 1.0),
    ("soft_1", "none", 50.0),
    ("soft_1", "hard", 1.0),
    ("soft_1", "hard", 50.0),
]


def with_runs(profile: Profile, *runs: RunSettings) -> Profile:
    return dataclasses.replace(profile, runs=runs)


def ablation(profile: Profile, skill: dict) -> Profile:
    """Five rows of Table 1, one seed each, classified with the skill given for the row."""
    runs = [make_run(rhythm=r, beat=b, exponent=e) for r, b, e in ROWS]
    profile = with_runs(profile, *runs)
    for run in runs:
        save(profile, run, skill=skill[run.rhythm, run.beat, run.exponent], n=400)
    return profile


@pytest.mark.parametrize("sign", [1, -1])
def test_ranks_and_agreement_follow_the_papers_order(profile, tmp_path, sign):
    """Skills in the order of the paper's AUROC give its ranks, reversed ones the reverse."""
    printed = results.paper().query("source == 'Table 1' and metric == 'auroc_macro'")
    paper = {(r.rhythm, r.beat, r.exponent): r.value for r in printed.itertuples()}
    order = sorted(ROWS, key=paper.get)[::sign]
    profile = ablation(profile, {row: 0.5 * k for k, row in enumerate(order)})
    collect(profile, tmp_path)
    table = ABLATION.ranks_of(tables.headlines(profile, every_row=True, folder=tmp_path), ["AUROC"])
    ours = table["ours"] if sign == 1 else 6 - table["ours"]
    assert sorted(ours) == [1, 2, 3, 4, 5] and (table["paper"] == ours).all()
    long = tables.headlines(profile, every_row=True, folder=tmp_path)
    text = ABLATION.agreement(profile, long).loc["AUROC"]
    assert text["rows"] == 5 and text["Spearman"] == f"{sign:+.2f}"
    p = text["p (100,000 permutations of the rows)"]
    assert float(p) == pytest.approx(2 / 120, abs=2e-3)  # the order and its reverse, of 5!
    low, high = map(float, text["95 % interval over patients and seeds"].strip("[]").split(","))
    assert low <= sign <= high and low * high > 0
    for path in (profile.work / "predictions").glob("*"):
        path.unlink()
    for path in (profile.work / "results").glob("*"):
        path.unlink()
    bare = ABLATION.agreement(profile, long).loc["AUROC"]  # from the table alone
    assert bare["95 % interval over patients and seeds"] == "–"
    assert bare.iloc[:3].equals(text.iloc[:3])
    words = ABLATION.rank_findings(table)
    best = 1 if sign == 1 else 5
    assert (
        f"**AUROC**, 5 rows: of the paper's rows, the first (*soft_1 / hard / 50*) is number "
        f"{best}," in words
    )
    assert "the third (*hard / - / 1*) is number 3 here." in words


def test_order_of_the_committed_rows():
    """From results/subset.csv as it is, with SciPy's permutations of the ranks."""
    from scipy.stats import permutation_test, rankdata

    from beatssl.profile import load_profile

    if not (results.RESULTS / "subset.csv").is_file():
        pytest.skip("no committed results on real recordings")
    settings = load_profile("subset")
    raw = pd.read_csv(results.RESULTS / "subset.csv").query("seed == 'all' and variant.isna()")
    raw = raw[(raw["method"] == "beatssl") & (raw["protocol"] == "frozen")]
    key = ["rhythm", "beat", "exponent"]
    for fraction, scores in ((1.0, ("AUROC", "F1", "LUDB F1")), (0.1, ("AUROC", "F1"))):
        long = tables.headlines(settings, every_row=True, fraction=fraction)
        table = ABLATION.agreement(settings, long, fraction=fraction)
        assert list(table.index) == list(scores)
        for score, task, metric in results.HEADLINES[:3]:
            if score not in scores:
                continue
            ours = raw[
                (raw["task"] == task)
                & (raw["metric"] == metric)
                & np.isclose(raw["label_fraction"], fraction)
            ]
            both = printed(task, metric).merge(ours, on=key, suffixes=("_paper", ""))
            assert len(both) == 14
            theirs, mine = rankdata(both["value_paper"]), rankdata(both["value"])
            z = (mine - mine.mean()) / np.linalg.norm(mine - mine.mean())
            z /= np.linalg.norm(theirs - theirs.mean())
            found = permutation_test(
                (theirs,),
                lambda x, axis, z=z: (x - x.mean(axis=axis, keepdims=True)) @ z,
                vectorized=True,
                permutation_type="pairings",
                n_resamples=30_000,
                random_state=1,
            )
            rho, p = table.loc[score].iloc[1:3].astype(float)
            assert rho == pytest.approx(found.statistic, abs=0.005)
            assert p == pytest.approx(found.pvalue, abs=0.03)


def test_a_claim_holds_fails_to_show_or_is_reversed(profile):
    """The paper: soft_1/hard/50 above hard/-/1, hard/hard/1 below it, soft_1/hard/50 above 1."""
    even = dict.fromkeys(ROWS, 1.0)
    profile = ablation(profile, even | {("soft_1", "hard", 50.0): 3.0, ("hard", "hard", 1.0): 3.0})
    table = ABLATION.claims(profile).query("score == 'AUROC'")
    verdict = dict(zip(zip(table["claim"], table["first"]), table["verdict"]))
    best = "soft_1 / hard / 50 (paper's best)"
    assert verdict["the paper's best row over its baseline", best] == "as in the paper"
    assert verdict["exponent 50 over 1", best] == "as in the paper"
    assert verdict["two contexts over one", "hard / hard / 1"] == "the reverse"
    paper = table[table["claim"].str.startswith("the paper's best")]["paper"].item()
    assert paper == pytest.approx(0.843 - 0.811)
    words = ABLATION.claim_findings(ABLATION.claims(profile))
    assert "*two contexts over one* (2 pairs): **AUROC** 1 as in the paper, 1 the reverse" in words
    assert "AUROC, paper" in ABLATION.claim_texts(ABLATION.claims(profile))


@pytest.fixture
def varied(profile) -> Profile:
    """Two rows of the ablation with seeds, a base of two, and what is changed from it."""
    base = [dataclasses.replace(r, variant="base", epochs=6) for r in BEST]
    one = base[0]
    runs = {
        **dict.fromkeys(BASELINE, 1.5),
        **dict.fromkeys(BEST, 2.0),
        RANDOM[0]: 1.0,
        **dict.fromkeys(base, 2.0),
        dataclasses.replace(one, variant="exponent_1", exponent=1.0): 3.5,
        dataclasses.replace(one, variant="loss_mse", loss="mse"): 0.2,
        dataclasses.replace(one, variant="warm", temperature=0.2): 2.02,
        make_run(method="random", variant="coarse", encoder_step_ms=80.0): 1.0,
        dataclasses.replace(one, rhythm="soft_2", soft_2="cosine_minmax", variant="both"): 2.0,
    }
    never = dataclasses.replace(one, variant="never", exponent=2.0)
    profile = with_runs(profile, *runs, never)
    for run, skill in runs.items():
        save(profile, run, skill=skill, n=400)
    return profile


def test_variants_stay_out_of_the_rows_and_are_compared_with_their_base(varied, tmp_path):
    write_results(varied, tmp_path)
    rows = tables.headlines(varied, folder=tmp_path)
    assert set(rows["name"]) == {"beatssl-hard-none-1", "beatssl-soft_1-hard-50", "random"}
    table, absent = SENSITIVITY.sensitivity(varied, rows=["beatssl-soft_1-hard-50"])
    auroc = table.query("score == 'AUROC'").set_index("first")
    left_open = [
        "epochs = 20",
        "loss = mse",
        "temperature = 0.2",
        "untrained: encoder_step_ms = 80",
    ]
    in_table_1 = ["exponent = 1", "rhythm = soft_2, soft_2 = cosine_minmax"]
    assert list(auroc.index) == [*left_open, *in_table_1]
    assert list(auroc["block"]) == [SENSITIVITY.BLOCKS[0]] * 4 + [SENSITIVITY.BLOCKS[1]] * 2
    every = results.with_combined(varied).query("seed == 'all' and metric == 'auroc_macro'")
    every = every.set_index("variant")["value"]
    expected = every["loss_mse"] - every["base"]
    assert auroc.loc["loss = mse", "difference"] == pytest.approx(expected, abs=1e-9)
    assert list(auroc[auroc["effect"]].index) == ["loss = mse", "exponent = 1"]
    assert "beatssl-soft_1-hard-2-never on ptbxl_superdiagnostic" in absent
    best = pd.DataFrame({"paper": 0.032, "difference": 0.9}, index=["AUROC"])
    words = SENSITIVITY.sensitivity_findings(table, best)
    assert "best row lies +0.032 from the baseline in the paper, +0.900 here" in words
    left, table_1 = words.splitlines()[1:]
    assert "left open by the paper*: of 3 changed settings, 1 move" in left
    assert "(0 up, 1 down); 1 further than the paper's difference, 0 further than ours" in left
    assert "`loss = mse`" in left and "untrained" not in words
    assert "varied in Table 1*: of 2 changed settings, 1 move" in table_1
    assert "(1 up, 0 down)" in table_1
    texts = SENSITIVITY.sensitivity_texts(table)
    assert texts.loc["loss = mse", "AUROC"].endswith(" *")
    assert texts.loc["epochs = 20", ["block", "seeds"]].tolist() == ["left open by the paper", 2]


def test_effects_by_hand(varied, monkeypatch):
    """Pool, t and Holm again, with NumPy and SciPy from the saved single seeds."""
    from scipy.stats import t

    table, _ = SENSITIVITY.sensitivity(varied, rows=["beatssl-soft_1-hard-50"])
    table = table.query("score == 'F1'").set_index("name")
    rows = results.with_combined(varied)
    f1 = rows[(rows["metric"] == "f1_macro") & (rows["seed"] != "all")]
    of = {
        name: f1.loc[f1["run_id"].str.fullmatch(f"{name}-s."), "value"].to_numpy()
        for name in [
            "beatssl-hard-none-1",
            "beatssl-soft_1-hard-50",
            "random",
            "beatssl-soft_1-hard-50-base",
            *table.index,
        ]
    }
    pool = [of["beatssl-hard-none-1"], of["beatssl-soft_1-hard-50"]]
    assert [len(group) for group in pool] == [3, 2]
    sd = np.sqrt((2 * np.var(pool[0], ddof=1) + np.var(pool[1], ddof=1)) / 3)
    spread = SENSITIVITY.seed_spread(varied).loc["F1"]
    assert spread["sd"] == pytest.approx(sd)
    assert spread[["df", "rows", "epochs"]].tolist() == [3, 2, "20"]
    p = {}
    for name in table.index:
        base = of["random" if name.startswith("random") else "beatssl-soft_1-hard-50-base"]
        size = abs(of[name].mean() - base.mean()) / sd
        p[name] = 2 * t.sf(size / np.sqrt(1 / len(of[name]) + 1 / len(base)), 3)
        assert table.loc[name, "p"] == pytest.approx(p[name], rel=1e-6)
    assert len(p) == 6
    running = 0.0
    for i, name in enumerate(sorted(p, key=p.get)):
        running = max(running, min(1.0, p[name] * (6 - i)))
        assert table.loc[name, "p_holm"] == pytest.approx(running, rel=1e-6)
    excludes = (table["low"] > 0) | (table["high"] < 0)
    assert (table["effect"] == (excludes & (table["p_holm"] < 0.05))).all()
    assert table["effect"].sum() == 2
    monkeypatch.setattr(uncertainty, "pooled_sd", lambda groups: (1.0, 3))
    table, _ = SENSITIVITY.sensitivity(varied)
    assert (table["zero"] == "excludes zero").any()  # the interval alone is not enough
    assert not table["effect"].any()


def test_words_say_from_which_seeds_the_limits_are(varied):
    base = dataclasses.replace(BEST[0], variant="base", epochs=6)
    spread = SENSITIVITY.seed_spread(varied)
    two = dict.fromkeys(spread.index, 2)
    words = SENSITIVITY.seed_findings(spread, base, two)
    limit = uncertainty.seed_test(0, spread["sd"]["AUROC"], 3, 1, 2)[0]
    assert "pooled over 2 rows of the ablation: AUROC " in words
    assert f"one seed against 2 must differ by {limit:.3f}" in words
    assert "These rows have 20 epochs, the base and its variants 6" in words
    assert "epochs" not in SENSITIVITY.seed_findings(spread, BEST[0], two)  # as many epochs
    single = with_runs(varied, *[run for run in varied.runs if run.variant or run.seed == 0])
    with pytest.warns(UserWarning, match="left out"):
        table, _ = SENSITIVITY.sensitivity(single)
        spread = SENSITIVITY.seed_spread(single)
    assert (spread["df"] == 0).all() and not table["effect"].any() and table["p_holm"].isna().all()
    assert "no change can be called an effect" in SENSITIVITY.seed_findings(spread, base, two)
    assert "p –" in SENSITIVITY.sensitivity_texts(table).loc["loss = mse", "AUROC"]


def test_a_failed_run_is_marked_and_its_other_seeds_count(profile, tmp_path):
    good, bad = BEST
    alone = make_run(rhythm="soft_2")
    profile = with_runs(profile, good, bad, alone)
    save(profile, good)
    for run in (bad, alone):
        what = described(profile, run, None)
        rows = results.failed(what, profile, "epoch 3: the loss is nan")
    assert {row["metric"] for row in rows} == {"auroc_macro", "f1_macro"}
    assert rows[0]["source"] == "failed: epoch 3: the loss is nan" and np.isnan(rows[0]["value"])
    collect(profile, tmp_path)
    table = tables.headlines(profile, folder=tmp_path)
    texts = tables.paper_and_ours(table, ["AUROC"])
    assert texts.loc["soft_2 / - / 1", "AUROC, ours"] == "failed"
    assert texts.loc["soft_2 / - / 1", "seeds"].startswith("0 (1 failed)")
    best = texts.loc["soft_1 / hard / 50 (paper's best)"]
    assert best["AUROC, ours"].startswith("0.") and best["seeds"].startswith("1 (1 failed)")
    assert "soft_2 / - / 1" not in set(ABLATION.ranks_of(table, ["AUROC"])["label"])


def test_rows_lead_to_the_pages_of_their_runs(profile, tmp_path):
    fill(profile)
    collect(profile, tmp_path)
    table = tables.headlines(profile, folder=tmp_path)
    html = ABLATION.linked(tables.paper_and_ours(table), table, profile)
    for run in (*BASELINE, *BEST, *RANDOM):
        assert f'<a href="05_pretraining--{run.run_id}.html">{run.seed}</a>' in html


def test_health_is_correlated_with_the_scores_over_the_rows():
    names = ["uniformity", "effective_rank", "neighbour_agreement", "AUROC", "LUDB F1"]
    table = pd.DataFrame({name: np.arange(6.0) for name in names})
    table["LUDB F1"] = table["LUDB F1"].max() - table["LUDB F1"]
    words = page("10_health").health_findings(table)
    assert "effective rank and AUROC: Spearman +1.00 over 6 rows" in words
    assert "effective rank and LUDB F1: Spearman -1.00" in words
    assert "Fewer than five" in page("10_health").health_findings(table[:4])


def test_tables_of_the_task_pages(profile):
    fill(profile)
    ours = tables.by_method(results.with_combined(profile, CLASSIFY))
    table = tables.by_fraction(ours, ["auroc_macro", "f1_macro", "auroc_MI"])
    assert list(table.columns) == ["labels", "n", "seeds", "AUROC", "F1", "AUROC, MI"]
    assert set(table["labels"]) == {"10%", "100%"} and (table["n"] == 60).all()
    classes = page("06_classification").per_class(ours, "auroc_")
    assert list(classes["class"].drop_duplicates()) == ["NORM", "MI", "STTC", "CD", "HYP"]
    waves = tables.by_method(results.with_combined(profile, SEGMENT))
    assert list(page("07_segmentation").events(waves).columns)[:2] == ["P onset", "P offset"]
    runs = tables.per_run(results.with_combined(profile).query("seed != 'all'"), ["auroc_macro"])
    assert runs.index.str.contains("-s").all()
    saved = comparison.groups(profile, SEGMENT)["random"].load(profile)[0]
    dice = metrics.record_dice(metrics.wave_counts(saved["truth"], saved["prediction"]))
    of = dict(zip(saved["record_id"], dice))
    assert (np.diff([of[name] for name in page("21_see").by_dice(saved)]) >= 0).all()


def test_the_best_of_each_column_is_bold():
    table = pd.DataFrame(
        {"labels": ["10%", "100%", "100%"], "auroc": ["0.900 [0.8, 1.0]", "0.800", "0.850 (0.1)"]}
    )
    found = tables.marked(table.assign(n=["5", "6", "7"]).set_axis(["a", "b", "c"]))
    assert re.findall("<strong>(.*?)</strong>(.*?)</td>", found) == [
        ("0.900", " [0.8, 1.0]"),
        ("0.850", " (0.1)"),
    ]


# --- the paper ---


def printed(task: str, metric: str, source: str = "Table 1") -> pd.DataFrame:
    table = results.paper()
    return table[
        (table["task"] == task)
        & (table["metric"] == metric)
        & table["source"].str.startswith(source)
    ]


def test_papers_table_1_has_fourteen_rows_of_three_numbers():
    columns = [(CLASSIFY, "auroc_macro"), (CLASSIFY, "f1_macro"), (SEGMENT, "f1_macro")]
    sums = []
    for task, metric in columns:
        rows = printed(task, metric)
        assert len(rows) == 14 and not rows.duplicated(["rhythm", "beat", "exponent"]).any()
        sums.append(rows["value"].sum())
    # column sums of the table in the paper, added up outside this package
    assert sums == pytest.approx([11.098, 7.422, 11.788], abs=1e-9)


@pytest.mark.parametrize(
    "rhythm, beat, exponent, numbers",
    [
        ("hard", "none", 1, (0.811, 0.595, 0.802)),
        ("soft_1", "hard", 1, (0.681, 0.247, 0.784)),
        ("soft_1", "hard", 50, (0.843, 0.622, 0.911)),
        ("soft_1", "soft_1", 50, (0.833, 0.598, 0.881)),
        ("soft_2", "soft_2", 1, (0.805, 0.537, 0.878)),
    ],
)
def test_papers_rows(rhythm, beat, exponent, numbers):
    table = results.paper()
    rows = table[
        (table["rhythm"] == rhythm) & (table["beat"] == beat) & (table["exponent"] == exponent)
    ]
    found = {(row.task, row.metric): row.value for row in rows.itertuples()}
    expected = [(CLASSIFY, "auroc_macro"), (CLASSIFY, "f1_macro"), (SEGMENT, "f1_macro")]
    assert found == dict(zip(expected, numbers, strict=True))


def test_papers_violin_medians_are_marked_as_read_off():
    names = ["beatssl", "ts2vec", "domain_ssl", "ecg_fm"]
    medians = {
        (CLASSIFY, "f1_macro"): [0.608, 0.536, 0.563, 0.649],
        (SEGMENT, "f1_macro"): [0.894, 0.869, 0.851, 0.679],
        (SEGMENT, "dice"): [0.896, 0.867, 0.845, 0.671],
    }
    for (task, metric), values in medians.items():
        rows = printed(task, metric, "read off a violin figure").set_index("method")
        assert rows.loc[names, "value"].tolist() == values
        for row in rows.itertuples():
            low, high = map(float, row.source.rpartition(" ")[2].split("-"))
            assert low <= row.value <= high
            if task == CLASSIFY:  # the five runs themselves: median and quartiles are theirs
                runs = [float(x) for x in row.source.split("runs ")[1].split(" (")[0].split()]
                assert [low, row.value, high] == pytest.approx(np.quantile(runs, [0.25, 0.5, 0.75]))
    best = printed(CLASSIFY, "f1_macro", "read off").set_index("method")["source"]
    means = {
        name: np.mean([float(x) for x in re.findall(r" (\.\d{3})", best[name])[:5]])
        for name in ("beatssl", "ecg_fm")
    }
    assert f"{means['beatssl'] / means['ecg_fm']:.0%}"[:2] in ("93", "94")  # 93.7: cut, not rounded


def test_paper_claims_nothing_it_does_not_state():
    table = results.paper()
    assert len(table) == 14 * 3 + 12
    assert table[["ci_low", "ci_high", "label_fraction", "n", "sampling_rate"]].isna().all(None)
    assert (table[["seed", "protocol", "config_hash"]] == "").all(None)
    assert table["value"].between(0.2, 0.95).all() and (table["source"] != "").all()
    assert set(table["data"][table["task"] == SEGMENT]) == {"LUDB"}


def test_the_readme_shows_the_committed_claims():
    from beatssl.profile import load_profile
    from beatssl.results import claims
    from beatssl.settings import ROOT

    told = claims.read(load_profile("subset")).query("reading == ''")
    if not len(told):
        pytest.skip("no committed claims on real recordings")
    expected = tables.markdown(tables.claim_texts(told))
    readme = (ROOT / "README.md").read_text()
    assert expected in readme, f"put this table into README.md:\n\n{expected}\n"


def test_predictions_of_some_records_score_as_if_alone():
    whole = segmented(1, n=8)
    half = held_out.on_records(whole, ["5", "2", "7", "not there"])
    assert half["record_id"].tolist() == ["2", "5", "7"]
    alone = {name: whole[name][[2, 5, 7]] for name in ("truth", "prediction", "record_id")}
    alone |= {"marks": wave_marks(alone["truth"], 100), "patient_id": alone["record_id"]}
    alone |= {name: whole[name] for name in ("sampling_rate", "tolerance_ms")}
    found, expected = map(metrics.segmentation_scores, (half, alone))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, err_msg=name)
    assert np.array_equal(np.sort(half["marks"], axis=0), np.sort(alone["marks"], axis=0))
    draws = {"record_id": np.array(["a", "b", "c"]), "score": np.arange(6).reshape(2, 3)}
    cut = held_out.on_records({**draws, "threshold": np.zeros((2, 5))}, ["c"])
    assert cut["score"].tolist() == [[2], [5]] and cut["threshold"].shape == (2, 5)


def test_what_chose_is_apart_from_what_confirms(tmp_path, monkeypatch):
    from beatssl.profile import load_profile

    profile = load_profile("subset")
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    assert held_out.records(profile, held_out.HELD_OUT) == {}  # no folds are kept
    monkeypatch.undo()
    chose, others = (held_out.records(profile, of) for of in (held_out.CHOSE, held_out.HELD_OUT))
    assert {k: len(v) for k, v in chose.items()} == {"folds 1-3": 664, "LUDB, first half": 100}
    assert [len(v) for v in others.values()] == [1372, 926, 100]
    assert not {*sum(chose.values(), [])} & {*sum(others.values(), [])}
    assert {*others["folds 7-10"]} < {*others["folds 5-10"]}
