"""The comparison's protocols: draws of few labels, more folds, delineators."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from beatssl import evaluate
from beatssl.data.beats import pretraining_rows
from beatssl.data.records import wave_marks, wave_runs
from beatssl.methods import DELINEATORS, make_run
from beatssl.results import saved as results
from beatssl.settings import Rotation
from beatssl.tasks import compare, delineate, task_of
from beatssl.tasks import scores as metrics
from beatssl.tasks.classify import embed, probe, split, stratified_draw
from beatssl.tasks.scores import MetricError
from beatssl.tasks.segment import folds
from beatssl.train import pretrain

RANDOM = make_run(method="random")


def labels(n=200, seed=0):
    return (np.random.default_rng(seed).random((n, 5)) < [0.5, 0.3, 0.2, 0.2, 0.1]).astype(int)


def test_a_draw_with_all_classes_is_the_stratified_one_drawn_again():
    y = labels()
    for fraction in (0.03, 0.1, 0.5):
        for number in range(5):
            chosen = compare.draw_with_all_classes(y, fraction, number)
            assert len(chosen) == round(fraction * len(y))
            assert (y[chosen].sum(axis=0) > 0).all() and (y[chosen].min(axis=0) == 0).all()
            first = stratified_draw(y, fraction, number)
            if (y[first].sum(axis=0) > 0).all() and (y[first].min(axis=0) == 0).all():
                np.testing.assert_array_equal(chosen, first)
    draws = {tuple(compare.draw_with_all_classes(y, 0.1, number)) for number in range(5)}
    assert len(draws) == 5
    rare = np.zeros((200, 5), int)
    rare[:, :4] = y[:, :4]
    with pytest.raises(MetricError, match="1% of 200 records.*100 draws.*larger fraction"):
        compare.draw_with_all_classes(rare, 0.01, 0)


def test_each_draw_is_a_probe_of_its_records(small):
    parts = split(small.store, Rotation())
    rng = np.random.default_rng(0)
    x = {
        name: rng.normal(size=(len(part.rows), 6)) + part.labels[:, :1]
        for name, part in parts.items()
    }
    found = compare.probe_draws(x, parts, 0.5, 3)
    train, test = parts["train"], parts["test"]
    assert found["score"].shape == (3, len(test.rows), 5) and found["drawn"].shape[0] == 3
    for number in range(3):
        chosen = found["drawn"][number]
        alone = probe(x, parts, chosen)
        np.testing.assert_array_equal(found["score"][number], alone["score"])
        np.testing.assert_array_equal(found["threshold"][number], alone["threshold"])
    whole = compare.probe_draws(x, parts, 1.0, 3)
    assert whole["score"].shape[0] == 1 and len(whole["drawn"][0]) == len(train.rows)


def test_scores_of_draws_are_the_mean_of_the_draws():
    rng = np.random.default_rng(0)
    draws = {"truth": labels(60), "score": rng.random((3, 60, 5)), "threshold": rng.random((3, 5))}
    weights = rng.multinomial(60, np.full(60, 1 / 60), size=4)
    found = metrics.draw_scores(draws, weights)
    for name in ("auroc_macro", "f1_macro", "f1_MI"):
        each = [
            metrics.classification_scores(
                {"truth": draws["truth"], "score": s, "threshold": t}, weights
            )[name]
            for s, t in zip(draws["score"], draws["threshold"], strict=True)
        ]
        np.testing.assert_allclose(found[name], sum(each) / 3)


def test_both_protocols_run_are_saved_and_reused(small, tmp_path, monkeypatch):
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    profile = replace(small.profile, runs=(RANDOM, make_run(method="neurokit_prominence")))
    w = replace(small, profile=profile)
    few = evaluate.evaluate_all(w, "label draws")
    fractions = sorted(profile.compare.label_fractions)
    assert sorted(few["label_fraction"].unique()) == fractions
    assert set(few["run_id"]) == {"random-s0"}  # a delineator classifies nothing
    assert few.query("metric == 'auroc_macro'")["value"].between(0, 1).all()
    more = evaluate.evaluate_all(w, "more folds")
    assert set(more["run_id"]) == {"random-s0", "supervised-s0", "neurokit_prominence-s0"}
    only = evaluate.evaluate_all(w, "more folds", names=["random"])
    assert "neurokit_prominence-s0" not in set(only["run_id"])
    for what, _ in results.evaluations(profile):
        saved = results.load_predictions(profile, what)
        if what.task == results.FOLDS:  # one encoder a method: it has all repeats
            assert saved["repeat"].tolist() == [0, 1]
            assert saved["prediction"].shape == (2, *saved["truth"].shape)
            assert saved["prediction"].dtype == np.int8
            for repeat, fold in zip(saved["repeat"], saved["fold"], strict=True):
                parts = folds(saved["record_id"], profile.compare.folds, repeat)
                for k, (_, unseen) in enumerate(parts, start=1):
                    assert (np.flatnonzero(fold == k) == unseen).all()
    monkeypatch.setattr(compare, "cross_validate", lambda *a, **_: pytest.fail("trained again"))
    monkeypatch.setattr(compare, "delineated", lambda *a: pytest.fail("drawn again"))
    monkeypatch.setattr(compare, "probe", lambda *a: pytest.fail("fitted again"))
    assert evaluate.evaluate_all(w, "label draws").equals(few)
    assert evaluate.evaluate_all(w, "more folds").equals(more)
    combined = results.with_combined(profile).query("seed == 'all'")
    assert {results.LABELS, results.FOLDS} <= set(combined["task"])


def test_scores_of_repeats_are_the_mean_of_the_repeats():
    rng = np.random.default_rng(0)
    saved = {
        "truth": rng.integers(0, 4, (9, 80)),
        "prediction": rng.integers(0, 4, (3, 9, 80)),
        "sampling_rate": np.array(100),
        "tolerance_ms": np.array(150.0),
    }
    saved["marks"] = wave_marks(saved["truth"], 100)
    weights = rng.multinomial(9, np.full(9, 1 / 9), size=4)
    found = metrics.fold_scores(saved, weights)
    for name in ("f1_macro", "dice", "event_f1_QRS_onset"):
        each = [
            metrics.segmentation_scores({**saved, "prediction": p}, weights)[name]
            for p in saved["prediction"]
        ]
        np.testing.assert_allclose(found[name], sum(each) / 3)


def test_a_repeat_is_the_task_with_its_split_and_seed(small, tmp_path, monkeypatch):
    """The first repeat of the first encoder is task 2 of seed 0; no repeat is done twice."""
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    runs = (RANDOM, replace(RANDOM, seed=1))
    wide = replace(small.profile.compare, repeats=3)
    w = replace(small, profile=replace(small.profile, runs=runs, compare=wide))
    assert [w.profile.repeats_of(run) for run in runs] == [(0, 2), (1,)]
    assert w.profile.repeats_of(replace(RANDOM, seed=5)) == (2,)  # a third one
    for task in ("more folds", "segmentation"):
        evaluate.evaluate_all(w, task)
    of = {
        (what.task, what.run.seed): results.load_predictions(w.profile, what)
        for what, _ in results.evaluations(w.profile)
        if what.protocol == "frozen"
    }
    repeated, once = of[results.FOLDS, 0], of[results.SEGMENT, 0]
    np.testing.assert_array_equal(repeated["prediction"][0], once["prediction"])
    np.testing.assert_array_equal(repeated["fold"][0], once["fold"])
    assert (repeated["prediction"][1] != once["prediction"]).any()
    few = replace(w.profile, compare=replace(wide, repeats=1))
    assert few.repeats_of(runs[1]) == ()
    none = evaluate.evaluate_all(replace(w, profile=few), "more folds")
    assert set(none["run_id"]) == {"random-s0", "supervised-s0"}


def test_number_of_folds_and_draws_are_part_of_the_evaluation(small):
    def key(profile, task):
        case = results.case_of(profile, task_of(task), RANDOM, small.store, None, "frozen")
        return results.describe(profile, task_of(task), case, 1.0).key

    other = replace(small.profile, compare=replace(small.profile.compare, folds=3, draws=7))
    for task in (results.LABELS, results.FOLDS):
        assert key(other, task) != key(small.profile, task)
    for task in (results.CLASSIFY, results.SEGMENT, results.EMBED):
        assert key(other, task) == key(small.profile, task)


# --- delineators ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", DELINEATORS)
def test_delineators_find_the_waves_of_a_simulated_heart(small, method):
    found, failed = delineate.delineated(
        delineate.Delineator(method), small.store, small.store.rows("ludb"), "II"
    )
    rows = np.asarray(small.store.rows("ludb"))
    truth = small.store.wave_targets(rows, lead="II")
    assert found.shape == truth.shape and len(failed) < len(rows) / 2
    scores = metrics.segmentation_scores(
        {
            "truth": truth,
            "marks": small.store.wave_marks(rows, lead="II"),
            "prediction": found,
            "sampling_rate": np.array(100),
            "tolerance_ms": np.array(150.0),
        }
    )
    assert scores["f1_QRS"][0] > 0.4 and scores["f1_macro"][0] > 0.4


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        ([10, 50, 90], [15, 55, 95], [(10, 15), (50, 55), (90, 95)]),
        ([50, 90], [15, 55, 95], [(50, 55), (90, 95)]),  # one shorter: the first onset is missing
        ([10, 50, 90], [15, 95], [(10, 15), (90, 95)]),  # and the offset between
        ([10, np.nan, 90], [15, 55, np.nan, 95], [(10, 15), (90, 95)]),
        ([10, 12], [15], [(12, 15)]),  # of two first marks the nearer one has the partner
        ([10], [12, 15], [(10, 12)]),
        ([10, 50], [31, 70], [(50, 70)]),  # 21 samples: beyond the limit
        ([20], [10], []),
        ([], [10], []),
        ([10], [], []),
        ([10], [10], [(10, 10)]),
    ],
)
def test_marks_of_one_wave_are_paired_by_where_they_lie(first, last, expected):
    found = delineate.match_marks(np.array(first, float), np.array(last, float), 20)
    assert [tuple(pair) for pair in found] == expected and found.shape[1] == 2


def test_peak_draws_all_other_waves_where_one_onset_is_missing(monkeypatch):
    """The lists of LUDB's record 6 have 9 P peaks and 8 P onsets."""
    beats = np.array([100, 200, 300])
    marks = {
        "ECG_P_Onsets": [185, 285],
        "ECG_P_Peaks": beats - 10,
        "ECG_Q_Peaks": beats - 2,
        "ECG_S_Peaks": beats + 3,
        "ECG_T_Peaks": beats + 30,
        "ECG_T_Offsets": beats + 38,
    }
    monkeypatch.setattr(delineate.nk, "ecg_clean", lambda lead, **_: lead)
    monkeypatch.setattr(delineate.nk, "ecg_peaks", lambda *_, **__: (0, {"ECG_R_Peaks": beats}))
    monkeypatch.setattr(delineate.nk, "ecg_delineate", lambda *_, **__: (0, marks))
    expected = [
        *[(0, 1, r - 15, r - 5) for r in beats[1:]],
        *[(0, 2, r - 2, r + 3) for r in beats],
        *[(0, 3, r + 22, r + 38) for r in beats],
    ]
    found = wave_runs(delineate.delineate(np.zeros(400), 100, "peak")[None])
    assert {tuple(run) for run in found.tolist()} == set(expected)


def test_a_lead_that_neurokit_cannot_read_is_named():
    with pytest.raises(ValueError, match="NeuroKit2 dwt: "):
        delineate.delineate(np.zeros(1000), 100, "dwt")
    with pytest.raises(ValueError, match="no delineator; known: neurokit_dwt"):
        delineate.Delineator("dwt")


# --- methods --------------------------------------------------------------------------------------

OTHERS = ("cmsc", "domain_ssl", "ts2vec", "w2v")


def go(w, config, **options):
    return pretrain(config, w.profile, w.store, w.beats, **options)


@pytest.mark.parametrize("method", OTHERS)
def test_every_method_trains_resumes_exactly_and_is_read_back(small, tmp_path, monkeypatch, method):
    few = pretraining_rows(small.store, small.beats, Rotation())[:48]
    monkeypatch.setattr("beatssl.train.pretraining_rows", lambda *_: few)
    config = small.profile.run(method, epochs=2, batch_size=16, learning_rate=0.003)
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path / "a"))
    whole = go(small, config)
    assert np.isfinite(whole.curves["total"]).all() and len(whole.curves) == 2
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path / "b"))
    assert go(small, config, stop_after=1) is None
    torch.manual_seed(99)  # what happens outside does not matter
    resumed = go(small, config)
    back = go(small, config)
    untrained = go(small, make_run("random")).encoder
    x = torch.from_numpy(small.store.load(np.arange(3)))
    state = whole.encoder.state_dict()
    for run in (resumed, back):
        other = run.encoder.state_dict()
        assert list(other) == list(state) and all(torch.equal(other[k], state[k]) for k in state)
    with torch.no_grad():
        e = whole.encoder(x)
        torch.testing.assert_close(back.encoder(x), e)
    steps = -(-x.shape[2] // whole.encoder.stride)
    assert e.shape == (3, whole.encoder.channels, steps) and torch.isfinite(e).all()
    if method in ("cmsc", "domain_ssl"):  # they train the profile's encoder
        layers = [vars(run.config) for run in (untrained, whole.encoder)]
        assert layers[0].items() <= layers[1].items() and layers[0] == vars(small.profile.encoder)
        assert not torch.equal(untrained(x), e)


def test_domain_ssl_is_evaluated_on_z_scored_leads_also_when_read_back(
    small, tmp_path, monkeypatch
):
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    config = make_run(method="domain_ssl", epochs=1, batch_size=64)
    made, back, other = go(small, config), go(small, config), go(small, replace(config, seed=1))
    assert made.encoder is not back.encoder
    seen, rows = [], np.arange(5)
    back.encoder.layers[0].register_forward_hook(lambda m, args, out: seen.append(args[0]))
    first, second, third = (embed(r.encoder, small.store, rows) for r in (made, back, other))
    assert np.array_equal(first, second) and not np.array_equal(first, third)
    leads = seen[0].double().numpy()
    np.testing.assert_allclose(leads.mean(axis=2), 0, atol=1e-4)
    np.testing.assert_allclose(leads.std(axis=2), 1, atol=1e-4)
    as_stored = small.store.load(rows).std(axis=2)
    assert as_stored.max() > 1.5 * as_stored.min()  # z-scores they are not


def test_methods_have_keys_of_their_own_and_are_worth_an_evaluation(small, tmp_path, monkeypatch):
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    run = small.profile.run
    runs = tuple(run(m, epochs=1, batch_size=32) for m in ("cmsc", "ts2vec"))
    w = replace(small, profile=replace(small.profile, runs=runs))
    few = pretraining_rows(small.store, small.beats, Rotation())[:64]
    monkeypatch.setattr("beatssl.train.pretraining_rows", lambda *_: few)
    for task in ("classification", "segmentation", "embedding"):
        rows = evaluate.evaluate_all(w, task)
        assert set(rows["method"]) == {"cmsc", "ts2vec"}
    assert len({run.key for run in (evaluate.train(w, c) for c in runs)}) == 2


def test_released_weights_need_a_file(small, monkeypatch, tmp_path):
    monkeypatch.delenv("BEATSSL_ECG_FM", raising=False)
    with pytest.raises(FileNotFoundError, match="ECG_FM=file"):
        go(small, make_run(method="ecg_fm"))
    monkeypatch.setenv("BEATSSL_ECG_FM", str(tmp_path / "no.pt"))
    with pytest.raises(FileNotFoundError, match="no.pt"):
        go(small, make_run(method="ecg_fm"))
