"""Task 1: split, label draw, probe, fine-tuning; leakage, determinism, bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from beatssl import evaluate
from beatssl.data.records import SUPERCLASSES
from beatssl.methods import make_run
from beatssl.settings import ConfigError, Rotation
from beatssl.tasks import TASKS, classify
from beatssl.tasks.base import Case
from beatssl.tasks.classify import ClassifyConfig
from beatssl.tasks.fit import Fit, Plan, batches
from beatssl.tasks.scores import MetricError, classification_scores
from beatssl.tasks.segment import SegmentConfig


class FakeStore:
    """PTB-XL-like rows whose classes are visible in the leads' mean level."""

    sampling_rate = 100
    fingerprint = "fake"
    content = "fake"

    def __init__(self, n: int = 200, time: int = 64, seed: int = 0):
        rng = np.random.default_rng(seed)
        labels = (rng.random((n, 5)) < 0.35).astype(int)
        self.data = rng.normal(size=(n, 12, time)).astype(np.float32)
        self.data[:, :5] += labels[:, :, None]
        self.table = pd.DataFrame(labels, columns=list(SUPERCLASSES))
        self.table["record_id"] = [f"r{i}" for i in range(n)]
        self.table["patient_id"] = [f"p{i % 10}-{i // 20}" for i in range(n)]  # two records each
        self.table["dataset"] = "ptbxl"
        self.table["fold"] = np.arange(n) % 10 + 1

    def rows(self, dataset, folds=None):
        chosen = (self.table["dataset"] == dataset).to_numpy()
        if folds is not None:
            chosen &= self.table["fold"].isin(list(folds)).to_numpy()
        return np.flatnonzero(chosen)

    def load(self, rows):
        return self.data[np.asarray(rows, int)]


class TinyEncoder(nn.Module):
    """One strided convolution with batch normalisation, and dropout."""

    channels, stride = 8, 4

    def __init__(self, seed: int = 0, dropout: float = 0.0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv1d(12, 8, 5, stride=4, padding=2)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.dropout(self.norm(self.conv(x)))


CONFIG = ClassifyConfig(
    label_fractions=(0.5, 1.0),
    bootstrap=20,
    finetune_epochs=2,
    finetune_batch_size=32,
    finetune_learning_rates=(1e-3,),
)
RANDOM = make_run(method="random", seed=3)
TRAINED = make_run(seed=3)


def case(run=TRAINED, store=None, encoder=None, protocol="frozen", config=CONFIG) -> Case:
    return Case(run, config, store or FakeStore(), encoder or TinyEncoder(), protocol)


def tuned(store, chosen, config=CONFIG, seed=0, encoder=None) -> dict:
    """`classify.finetune` of these records."""
    run = replace(TRAINED, seed=seed)
    one = case(run, store, encoder, "finetune", config)
    return classify.finetune(one, classify.split(store, Rotation()), chosen)


def probed(*arrays) -> dict:
    """`classify.probe` of train x, train y, validation x, .. test y."""
    features = dict(zip(Rotation().parts, arrays[::2], strict=True))
    parts = {
        name: classify.Part(None, y, {}, 0)
        for name, y in zip(Rotation().parts, arrays[1::2], strict=True)
    }
    return classify.probe(features, parts, np.arange(len(arrays[0])))


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_split_uses_the_official_folds_and_counts_unlabelled_records():
    store = FakeStore()
    store.table.loc[[0, 8, 9, 19], list(SUPERCLASSES)] = -1  # folds 1, 9, 10, 10
    parts = classify.split(store, Rotation())
    for name, folds in (("train", range(1, 9)), ("validation", [9]), ("test", [10])):
        assert set(store.table["fold"].iloc[parts[name].rows]) == set(folds)
        assert (parts[name].labels >= 0).all()
    assert [part.unlabelled for part in parts.values()] == [1, 1, 2]
    rows = np.concatenate([part.rows for part in parts.values()])
    assert len(rows) == len(set(rows)) == 196


def test_an_empty_fold_and_a_class_without_positives_are_named():
    store = FakeStore()
    store.table.loc[store.table["fold"] == 9, "CD"] = 0
    with pytest.raises(MetricError, match="fold 9 .validation.*CD"):
        classify.split(store, Rotation())
    store.table.loc[store.table["fold"] == 10, "fold"] = 1
    store.table["CD"] = FakeStore().table["CD"]
    with pytest.raises(MetricError, match="fold 10 .test. holds no labelled record"):
        classify.split(store, Rotation())


@pytest.mark.parametrize("fraction", [0.1, 0.37, 1.0])
def test_label_draw_keeps_the_share_of_every_combination(fraction):
    labels = classify.split(FakeStore(2000), Rotation())["train"].labels
    chosen = classify.stratified_draw(labels, fraction, seed=1)
    assert len(chosen) == round(fraction * len(labels)) == len(set(chosen))
    combination = labels @ (1 << np.arange(5))
    for value in np.unique(combination):
        share = fraction * (combination == value).sum()
        assert abs((combination[chosen] == value).sum() - share) <= 1 + 1e-9
    assert np.array_equal(chosen, classify.stratified_draw(labels, fraction, seed=1))
    if fraction < 1:
        assert not np.array_equal(chosen, classify.stratified_draw(labels, fraction, seed=2))


def test_label_draw_gives_every_record_the_same_chance():
    labels = (np.random.default_rng(0).random((40, 5)) < 0.3).astype(int)
    drawn = np.zeros(40)
    for seed in range(2000):
        drawn[classify.stratified_draw(labels, 0.25, seed)] += 1
    assert drawn / 2000 == pytest.approx(np.full(40, 0.25), abs=0.05)


@pytest.mark.parametrize("fraction", [0.0, 1.5])
def test_label_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match="label fraction"):
        classify.stratified_draw(np.ones((10, 5), int), fraction, 0)


def test_embedding_is_the_mean_over_time_and_leaves_the_encoder_alone():
    store, encoder = FakeStore(20), TinyEncoder()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    found = classify.embed(encoder, store, np.array([3, 7, 9]))
    with torch.no_grad():
        expected = encoder.eval()(torch.from_numpy(store.data[[3, 7, 9]])).mean(dim=2)
    assert found == pytest.approx(expected.numpy(), abs=1e-6)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_embedding_that_is_not_finite_names_the_record():
    store = FakeStore(20)
    store.data[7, 0, 0] = np.nan
    with pytest.raises(ValueError, match="record r7.*not finite"):
        classify.embed(TinyEncoder(), store, np.array([3, 7, 9]))


def probe_input(seed: int = 0):
    rng = np.random.default_rng(seed)
    x, weights = rng.normal(size=(300, 12)), rng.normal(size=(12, 5))
    y = (x @ weights + rng.normal(size=(300, 5)) > 0).astype(int)
    return x, y


def test_probe_learns_a_linear_rule_and_nothing_from_shuffled_labels():
    x, y = probe_input()
    args = (x[:200], y[:200], x[200:250], y[200:250], x[250:], y[250:])
    found = probed(*args)
    assert classify.macro_auroc(found["truth"], found["score"]) > 0.9
    assert found["regularisation"] in classify.REGULARISATION
    shuffled = np.random.default_rng(1).permutation(y[:200])
    chance = probed(args[0], shuffled, *args[2:])
    assert 0.3 < classify.macro_auroc(chance["truth"], chance["score"]) < 0.7


def test_probe_does_not_depend_on_units_or_on_the_test_labels():
    x, y = probe_input()
    scale, shift = np.geomspace(1e-3, 1e3, 12), np.arange(12)
    a = probed(x[:200], y[:200], x[200:250], y[200:250], x[250:], y[250:])
    z = x * scale + shift
    b = probed(z[:200], y[:200], z[200:250], y[200:250], z[250:], 1 - y[250:])
    assert b["score"] == pytest.approx(a["score"], abs=1e-6)
    assert b["threshold"] == pytest.approx(a["threshold"], abs=1e-6)


def test_probe_takes_a_constant_feature_and_refuses_a_class_without_positives():
    x, y = probe_input()
    x[:, 0] = 1.0
    args = [x[:200], y[:200], x[200:250], y[200:250], x[250:], y[250:]]
    assert np.isfinite(probed(*args)["score"]).all()
    args[3] = y[200:250] * [1, 1, 1, 1, 0]
    with pytest.raises(MetricError, match="validation part.*HYP"):
        probed(*args)


def test_frozen_predictions_of_every_fraction():
    store = FakeStore()
    predict = classify.predictor(case(store=store))
    half, whole = predict(0.5), predict(1.0)
    assert len(half["train_record_id"]) == 80 and len(whole["train_record_id"]) == 160
    assert not set(whole["train_record_id"]) & set(whole["record_id"])
    patient = dict(zip(store.table["record_id"], store.table["patient_id"], strict=True))
    expected = [patient[record] for record in whole["record_id"]]
    assert whole["patient_id"].tolist() == expected and len(set(expected)) == 10
    for one in (half, whole):
        assert one["score"].dtype == np.float64
        assert classification_scores(one)["auroc_macro"] > 0.7  # the classes are in the signal
    assert same(classify.predictor(case(store=store))(0.5), half)


def test_test_labels_do_not_reach_the_predictions():
    store = FakeStore()
    cases = case(store=store), case(RANDOM, store, protocol="scratch")
    before = [classify.predictor(one)(1.0) for one in cases]
    test = store.rows("ptbxl", [10])
    names = list(SUPERCLASSES)
    store.table.loc[test, names] = 1 - store.table.loc[test, names]
    for one, old in zip(cases, before, strict=True):
        after = classify.predictor(one)(1.0)
        assert np.array_equal(after["score"], old["score"])
        assert np.array_equal(after["threshold"], old["threshold"])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_finetuning_is_deterministic_changes_with_the_seed_and_copies_the_encoder(dropout):
    store, encoder = FakeStore(), TinyEncoder(dropout=dropout)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    a, b, c = (tuned(store, np.arange(40), seed=s, encoder=encoder) for s in (0, 0, 1))
    assert same(a, b) and not np.array_equal(a["score"], c["score"])
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    # a quarter of the labels: four times the epochs, validated as often
    assert len(a["validation_auroc"]) == 2 and a["epoch"] in (4, 8)


def test_finetuning_learns_and_takes_the_best_validated_epoch():
    store = FakeStore(400)
    config = ClassifyConfig(finetune_epochs=8, finetune_learning_rates=(0.01,))
    found = tuned(store, np.arange(len(classify.split(store, Rotation())["train"].rows)), config)
    assert found["epoch"] == 1 + np.argmax(found["validation_auroc"])
    assert classify.macro_auroc(found["truth"], found["score"]) > 0.85


def test_the_learning_rate_with_the_best_validated_epoch_is_kept(monkeypatch):
    store, n = FakeStore(), len(classify.split(FakeStore(), Rotation())["validation"].rows)
    curves = {1e-4: [0.6, 0.7], 1e-3: [0.9, 0.5], 1e-2: [0.8, 0.8], 1e-1: [0.9], 1.0: None}
    models = {rate: classify.Classifier(TinyEncoder(i), 5) for i, rate in enumerate(curves)}
    for model in models.values():
        nn.init.ones_(model.head.weight)

    def made(case, parts, chosen, rate):
        if curves[rate] is None:
            raise FloatingPointError("diverged")
        return classify.Tuned(models[rate], 7, curves[rate], np.full((n, 5), rate))

    monkeypatch.setattr(classify, "tune", made)

    def tune(*rates):
        return tuned(store, np.arange(80), replace(CONFIG, finetune_learning_rates=rates))

    found = tune(1.0, *list(curves)[:4])
    assert found["learning_rate"] == 1e-3  # of equals the first
    assert found["epoch"] == 7 and found["validation_auroc"].tolist() == [0.9, 0.5]
    np.testing.assert_array_equal(found["rate_auroc"], [np.nan, 0.7, 0.9, 0.8, 0.9])
    assert np.array_equal(found["score"], tune(1e-3)["score"])
    assert not np.array_equal(found["score"], tune(1e-2)["score"])
    with pytest.raises(FloatingPointError, match="no finite loss with 1: lower"):
        tune(1.0)


@pytest.mark.parametrize("rates", [(), (1e-3, 0.0)])
def test_learning_rates_that_train_nothing_are_refused(rates):
    for kind in (ClassifyConfig, SegmentConfig):
        with pytest.raises(ConfigError, match="finetune_learning_rates"):
            kind(finetune_learning_rates=rates)


def test_the_test_part_does_not_reach_the_choice_of_the_learning_rate():
    store = FakeStore()
    config = replace(CONFIG, finetune_learning_rates=(1e-5, 1e-2))

    before = tuned(store, np.arange(160), config)
    names, test = list(SUPERCLASSES), store.rows("ptbxl", [10])
    store.table.loc[test, names] = 1 - store.table.loc[test, names]
    store.data[test] = -store.data[test]
    after = tuned(store, np.arange(160), config)
    for name in ("learning_rate", "epoch", "rate_auroc", "validation_auroc", "threshold"):
        assert np.array_equal(before[name], after[name]), name
    assert before["rate_auroc"][0] != before["rate_auroc"][1]
    assert before["learning_rate"] == config.finetune_learning_rates[before["rate_auroc"].argmax()]
    assert before["validation_auroc"].max() == before["rate_auroc"].max()
    assert not np.array_equal(before["score"], after["score"])


def test_finetuning_that_diverges_stops_with_an_error():
    store = FakeStore()
    store.data[0] = np.inf
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        tuned(store, np.arange(100))


@pytest.mark.parametrize(
    "protocol, run", [("scratch", TRAINED), ("finetune", RANDOM), ("probe", RANDOM)]
)
def test_protocols_that_would_misname_an_encoder_are_refused(protocol, run):
    with pytest.raises(ValueError, match="encoder|not known; known: frozen, finetune, scratch"):
        case(run, protocol=protocol)


def test_a_crash_keeps_the_finished_fractions(small, tmp_path, monkeypatch):
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    classify_both = replace(small.profile.classify, label_fractions=(0.5, 1.0))
    profile = replace(small.profile, classify=classify_both, runs=(make_run(method="random"),))
    w, calls, real = replace(small, profile=profile), [], classify.probe

    def failing(features, parts, chosen):
        calls.append(len(chosen))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(features, parts, chosen)

    monkeypatch.setattr(classify, "probe", failing)
    monkeypatch.setattr(TASKS["classification"], "trainable", False)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate_all(w, "classification")
    rows = evaluate.evaluate_all(w, "classification")
    n = len(classify.split(w.store, Rotation())["train"].rows)
    assert calls == [n // 2, n, n]  # the first fraction is not computed again
    monkeypatch.setattr(classify, "embed", None)  # nothing is encoded for saved results
    assert evaluate.evaluate_all(w, "classification").equals(rows)


def test_batches_cover_everything_once_in_nearly_equal_parts():
    parts = batches(67, 16, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(parts).tolist()) == list(range(67))
    assert {len(part) for part in parts} == {13, 14}


def test_learning_rate_warms_up_and_ends_near_zero():
    model, rates = nn.Linear(1, 1), []

    def load(items):
        rates.append(fit.schedule.get_last_lr()[0])
        return torch.ones(len(items), 1), torch.ones(len(items), 1)

    fit = Fit(model, load, nn.functional.mse_loss, Plan(50, 5, 10, 1.0, 0.0), seed=0)
    for _ in range(10):
        fit.epoch()
    assert len(rates) == 100 and rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert np.all(np.diff(rates[5:]) <= 0) and rates[-1] < 0.01


def test_no_patient_of_the_real_records_is_in_two_parts(real_data):
    table = pd.read_csv(real_data / "ptbxl-subset" / "ptbxl_database.csv")
    train, validation, test = (
        set(table["patient_id"][table["strat_fold"].isin(list(folds))])
        for folds in Rotation().parts.values()
    )
    assert not train & validation and not train & test and not validation & test
