"""Fine-tuning that starts from the probe: the start is the probe, statistics stay, no leakage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from beatssl.data.records import SUPERCLASSES
from beatssl.methods import make_run
from beatssl.settings import ConfigError, Rotation
from beatssl.tasks import classify, from_probe
from beatssl.tasks.base import Case
from beatssl.tasks.from_probe import FromProbe, FromProbeConfig
from test_classify import TRAINED, FakeStore, TinyEncoder

CONFIG = FromProbeConfig(label_fractions=(0.5,), epochs=3, batch_size=32, learning_rates=(3e-3,))


def case(store=None, config=CONFIG, dropout: float = 0.0) -> Case:
    encoder = TinyEncoder(dropout=dropout)
    encoder.norm.running_mean += 0.3
    encoder.norm.running_var *= 4
    return Case(TRAINED, config, store or FakeStore(), encoder, "finetune")


def start_of(one: Case, chosen: np.ndarray):
    parts = classify.split(one.store, Rotation())
    features = classify.features_of(one, parts)
    return from_probe.probed(one.encoder, features, parts, chosen), features, parts


def test_the_start_scores_as_the_probe_does():
    one, chosen = case(), np.arange(0, 160, 2)
    start, features, parts = start_of(one, chosen)
    by_probe = classify.probe(features, parts, chosen)["score"]
    logits = torch.from_numpy(features["test"]) @ start.head.weight.T + start.head.bias
    np.testing.assert_allclose(logits.sigmoid().detach(), by_probe, atol=1e-5)
    found = classify._score(start, one.store, parts["test"].rows)
    np.testing.assert_allclose(found, by_probe, atol=1e-5)


def test_weights_learn_and_statistics_stay():
    one, chosen = case(dropout=0.5), np.arange(160)
    start, _, parts = start_of(one, chosen)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    tuned = from_probe.tune(one, start, parts, chosen, 3e-3)
    after = tuned.model.state_dict()
    assert tuned.epoch > 0
    for name, value in after.items():
        stays = "running" in name or "tracked" in name
        assert torch.equal(value, before[name]) == stays, name
    assert all(torch.equal(v, before[k]) for k, v in start.state_dict().items())
    again = from_probe.tune(one, start, parts, chosen, 3e-3)
    assert again.curve == tuned.curve and np.array_equal(again.score, tuned.score)


def test_where_every_step_harms_the_probe_itself_is_kept():
    chosen = np.arange(160)
    one = case()
    start, features, parts = start_of(one, chosen)
    tuned = from_probe.tune(one, start, parts, chosen, 30.0)
    assert len(tuned.curve) == 1 + CONFIG.epochs
    assert tuned.epoch == 0 and tuned.curve[0] == max(tuned.curve)
    validation = parts["validation"]
    assert tuned.curve[0] == classify.macro_auroc(validation.labels, tuned.score)
    np.testing.assert_allclose(
        classify._score(tuned.model, one.store, parts["test"].rows),
        classify.probe(features, parts, chosen)["score"],
        atol=1e-5,
    )


def test_the_test_part_reaches_no_choice_and_fewer_labels_have_as_many_checks():
    store = FakeStore()
    one = case(store, replace(CONFIG, learning_rates=(1e-3, 1e-2)))
    before = FromProbe().predictor(one)(0.5)
    names, test = list(SUPERCLASSES), store.rows("ptbxl", [10])
    store.table.loc[test, names] = 1 - store.table.loc[test, names]
    store.data[test] = -store.data[test]
    after = FromProbe().predictor(one)(0.5)
    for name in ("learning_rate", "epoch", "rate_auroc", "validation_auroc", "threshold"):
        assert np.array_equal(before[name], after[name]), name
    assert not np.array_equal(before["score"], after["score"])
    assert len(before["validation_auroc"]) == 1 + CONFIG.epochs
    assert before["epoch"] in (0, 2, 4, 6) and len(before["train_record_id"]) == 80
    assert {*before["train_record_id"]} & {*before["record_id"]} == set()


def test_only_trained_encoders_are_tuned_and_only_on_request():
    task = FromProbe()
    assert task.protocols(TRAINED, finetune=True) == ["finetune"]
    assert task.protocols(TRAINED) == [] == task.protocols(make_run(method="random"), True)
    assert task.protocols(make_run(method="features"), True) == []
    with pytest.raises(ConfigError, match="learning_rates"):
        FromProbeConfig(learning_rates=())
