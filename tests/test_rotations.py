"""PTB-XL's folds in rotations: what is tested was never trained on, fitted on, or selected with."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from beatssl import evaluate
from beatssl import train as training
from beatssl.data import beats as beats_of
from beatssl.data.records import SUPERCLASSES
from beatssl.data.store import Store, prepare
from beatssl.methods import domain_ssl, make_run
from beatssl.methods.targets import FeatureScale
from beatssl.profile import Profile, Workspace
from beatssl.results import saved
from beatssl.settings import DataConfig, Rotation, from_dict
from beatssl.tasks import classify, embedding

ROTATIONS = (Rotation((1, 2, 3), 4), Rotation((4, 5, 6), 7), Rotation((7, 8, 9, 10), 1))
SMALL = {"epochs": 1, "batch_size": 32}
RUNS = (
    *(make_run(beat_classifier="clusters", seed=seed, **SMALL) for seed in range(4)),
    *(make_run(method="domain_ssl", seed=seed, clusters=4, **SMALL) for seed in range(3)),
    *(make_run(method=method, seed=seed) for method in ("random_data", "random", "features")
      for seed in range(3)),
)  # fmt: skip
TASKS = ("classification", "label draws", "embedding")


class Watch:
    """Which records' values reached what learns, found by the values themselves: each row of an
    array is looked up among those of the store, or among what was made from them."""

    def __init__(self):
        self.records: dict[bytes, set[str]] = defaultdict(set)
        self.read: dict[tuple, set[str]] = defaultdict(set)  # of a run, by what read them
        self.run = None

    @staticmethod
    def _rows(values) -> list[bytes]:
        array = np.asarray(values, dtype=np.float32)  # of float64 made of float32, too
        return [row.tobytes() for row in array.reshape(len(array), -1)]

    def name(self, values, ids) -> None:
        """These values are of these records."""
        for row, record in zip(self._rows(values), ids, strict=True):
            self.records[row].add(record)

    def of(self, values) -> list[str]:
        """Records of these values; those that several records share are nobody's."""
        found = [self.records.get(row, set()) for row in self._rows(values)]
        assert all(found), "a value of no known record"
        return [next(iter(ids)) if len(ids) == 1 else "" for ids in found]

    def note(self, what: str, values) -> None:
        names = self.of(values)
        assert np.mean([name == "" for name in names]) < 0.2, what
        self.read[self.run, what] |= {*names} - {""}

    def passed_on(self, values, made) -> None:
        """What was made of these values, row by row, is of the same records."""
        self.name(made, self.of(values))


def watched(patch, watch: Watch, store: Store) -> None:
    """Note what trains, fits and selects."""
    ids = store.table["record_id"].to_numpy()
    for row in range(len(store)):
        watch.name(store.load([row]), ids[[row]])
    loaded, calls = Store.load, {"tune": 0}

    def load(self, rows):
        if calls["tune"]:
            watch.read[watch.run, "fine-tuned"] |= set(ids[np.asarray(rows)])
        return loaded(self, rows)

    def around(module, name, before=None, after=None):
        real = getattr(module, name)

        def wrapped(*args, **kwargs):
            if before:
                before(*args)
            made = real(*args, **kwargs)
            if after:
                after(made, *args)
            return made

        patch.setattr(module, name, wrapped)

    patch.setattr(Store, "load", load)

    # pretraining
    around(evaluate, "train", lambda w, run: setattr(watch, "run", (run.run_id, "pretrained")))
    around(training.Training, "step", lambda _, batch: watch.note("batches", batch.signals))
    statistics = training.with_data_statistics

    def with_statistics(encoder, signals):
        signals = list(signals)
        for batch in signals:
            watch.note("statistics", batch)
        return statistics(encoder, signals)

    patch.setattr(training, "with_data_statistics", with_statistics)
    around(domain_ssl, "cluster_ids", lambda features, *_: watch.note("clusters", features))
    around(FeatureScale, "standardise", after=lambda made, _, x: watch.passed_on(x, made))
    fit_scale = FeatureScale.fit.__func__

    def fit(cls, features):
        watch.note("scale", features)
        return fit_scale(cls, features)

    patch.setattr(FeatureScale, "fit", classmethod(fit))

    # tasks
    around(evaluate, "_rows", lambda w, task, run, *_: setattr(watch, "run", (run.run_id, task)))
    own = classify.Classification
    around(own, "without_encoder", lambda _, run, *__: setattr(watch, "run", (run.run_id, "made")))
    around(classify, "ecg_features", after=lambda made, store, *_: watch.name(made, ids))

    def embedded(made, encoder, store, rows):
        watch.name(made, ids[rows])
        if watch.run[1] == "pretrained":
            watch.read[watch.run, "monitor"] |= set(ids[rows])
        watch.read[watch.run, f"call {len(watch.read)}"] = set(ids[rows])

    around(classify, "embed", after=embedded)
    patch.setattr(embedding, "embed", classify.embed)

    class Scaler(classify.StandardScaler):
        def fit(self, x, y=None, **kwargs):
            watch.note("scaler", x)
            return super().fit(x, y, **kwargs)

        def transform(self, x, copy=None):
            made = super().transform(x, copy)
            watch.passed_on(x, made)
            return made

    class Classifiers(classify.OneVsRestClassifier):
        def fit(self, x, y):
            watch.note("probe", x)
            return super().fit(x, y)

        def predict_proba(self, x):
            made = super().predict_proba(x)
            watch.passed_on(x, made)
            return made

    patch.setattr(classify, "StandardScaler", Scaler)
    patch.setattr(classify, "OneVsRestClassifier", Classifiers)
    around(classify, "_score", after=lambda made, model, store, rows: watch.name(made, ids[rows]))
    for name in ("macro_auroc", "thresholds"):
        around(classify, name, lambda truth, score: watch.note("selection", score))
    real_tune = classify.tune

    def tune(*args):
        calls["tune"] += 1
        try:
            return real_tune(*args)
        finally:
            calls["tune"] -= 1

    patch.setattr(classify, "tune", tune)


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """A workspace in three rotations in which all is trained and evaluated, watched; and what the
    beat shapes of each rotation were clustered from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEATSSL_WORK", str(tmp_path_factory.mktemp("work")))
        data = DataConfig(
            synthetic=True, synthetic_ptbxl=300, synthetic_ludb=4, synthetic_challenge=4,
            rotations=ROTATIONS,
        )  # fmt: skip
        small = {"widths": (8, 16), "strides": (1, 2), "dilations": (1, 2), "blocks": 1}
        profile = from_dict(Profile, {
            "name": "turned", "data": data, "encoder": small, "runs": RUNS,
            "classify": {"label_fractions": [1.0], "bootstrap": 20, "finetune_epochs": 1,
                         "finetune_learning_rates": [1.0e-3]},
            "compare": {"label_fractions": [0.1, 1.0], "draws": 2},
        })  # fmt: skip
        store = prepare(data, profile.work / "store", profile.work, 2)
        ids, watch = store.table["record_id"].to_numpy(), Watch()
        clustered, shapes = [], beats_of.beat_shapes

        def named_shapes(store, r_peak, index, offsets):
            made = shapes(store, r_peak, index, offsets)
            watch.name(made, ids[index[:, 0]])
            return made

        class PCA(beats_of.PCA):
            def fit(self, x, y=None):
                clustered.append(set(watch.of(x)))
                return super().fit(x, y)

            def transform(self, x):
                made = super().transform(x)
                watch.passed_on(x, made)
                return made

        class KMeans(beats_of.KMeans):
            def fit(self, x, y=None, sample_weight=None):
                clustered[-1] |= set(watch.of(x))
                return super().fit(x, y, sample_weight)

        with patch.context() as inner:
            inner.setattr(beats_of, "beat_shapes", named_shapes)
            inner.setattr(beats_of, "PCA", PCA)
            inner.setattr(beats_of, "KMeans", KMeans)
            beats = beats_of.prepare_beats(store, profile.work / "beats", 2, ROTATIONS)
        w = Workspace(profile, store, beats)
        watch = Watch()
        watch.name(beats.record_features, ids)
        rows, places = np.nonzero(beats.r_peak >= 0)
        watch.name(beats.features[rows, places], ids[rows])
        with patch.context() as inner:
            watched(inner, watch, store)
            for task in TASKS:
                evaluate.evaluate_all(w, task, finetune_seeds=1)
        yield w, watch, clustered


def scored_by(w: Workspace) -> dict[tuple, list[str]]:
    """(run, task, protocol) -> records that were tested, as the saved predictions name them."""
    found = saved.evaluations(w.profile)
    return {
        (one.run.run_id, one.task, one.protocol): list(
            saved.load_predictions(w.profile, one)["record_id"]
        )
        for one, _ in found
        if one.label_fraction == 1
    }


def people(w: Workspace, records) -> set[str]:
    table = w.store.table.set_index("record_id")["patient_id"]
    return set(table[[*records]])


def leaks(w: Workspace, watch: Watch) -> list[tuple]:
    """(run, what read, records) of whatever a run read of a patient whom it is tested on."""
    tested = defaultdict(set)
    for (run_id, *_), records in scored_by(w).items():
        tested[run_id] |= set(records)
    found = []
    for ((run_id, phase), what), records in watch.read.items():
        if what.startswith("call") and (phase == "pretrained" or records == tested[run_id]):
            continue  # what is scored in the end; of the watch on pretraining: see `monitor`
        if people(w, records) & people(w, tested[run_id]):
            found.append((run_id, phase, what, sorted(records & tested[run_id])))
    return found


def test_no_record_or_patient_that_is_tested_was_seen_before(turned):
    """For every rotation and seed, by what was read: batches, statistics, scales, k-means, the
    watch on pretraining, scalers, probes, fine-tuning, thresholds, neighbours."""
    w, watch, _ = turned
    assert leaks(w, watch) == []
    kinds = defaultdict(set)
    for ((run_id, phase), what), records in watch.read.items():
        assert records, (run_id, what)
        kinds[run_id, phase].add(what.split(" ")[0])
    probe = {"scaler", "probe", "selection", "call"}
    for seed in range(4):
        run = f"{RUNS[0].name}-s{seed}"
        assert kinds[run, "pretrained"] >= {"batches", "scale", "monitor", "scaler", "probe"}
        assert kinds[run, "classification"] >= probe and kinds[run, "embedding"] == {"call"}
        assert ("fine-tuned" in kinds[run, "classification"]) == (seed < 3)  # one of each rotation
    for seed in range(3):
        assert "clusters" in kinds[f"domain_ssl-s{seed}", "pretrained"]
        assert "statistics" in kinds[f"random_data-s{seed}", "pretrained"]
        assert "fine-tuned" in kinds[f"random-s{seed}", "classification"]
        assert kinds[f"features-s{seed}", "made"] == {"scale"}
        assert kinds[f"features-s{seed}", "label draws"] >= probe - {"call"}


def test_what_selects_is_not_what_was_trained_on(turned):
    w, watch, _ = turned
    for (key, what), records in watch.read.items():
        if what == "selection" and key[1] in TASKS:
            for other in ("probe", "scaler"):
                assert not people(w, records) & people(w, watch.read.get((key, other), ()))
            pretrained = watch.read.get(((key[0], "pretrained"), "batches"), ())
            assert not people(w, records) & people(w, pretrained)


def test_beat_shapes_are_clustered_without_the_folds_that_a_rotation_tests(turned):
    w, _, clustered = turned
    assert len(clustered) == len(ROTATIONS)
    tested = scored_by(w)
    for seed, records in enumerate(clustered):
        mine = tested[f"{RUNS[0].name}-s{seed}", saved.CLASSIFY, "frozen"]
        assert len(records) > 100 and not people(w, records - {""}) & people(w, mine)
    each = [w.beats.classes("clusters", rotation) for rotation in ROTATIONS]
    assert not np.array_equal(each[0], each[1]) and not np.array_equal(each[0], each[2])
    source = [training.Training(run, w.profile, w.store, w.beats, "cpu").source for run in RUNS[:3]]
    for one, classes in zip(source, each, strict=True):
        assert np.array_equal(one.classes.numpy(), classes[one.rows])


def test_three_seeds_test_every_labelled_record_once(turned):
    w, *_ = turned
    table = w.store.table[w.store.table["dataset"] == "ptbxl"]
    labelled = table[(table[list(SUPERCLASSES)] >= 0).all(axis=1)]["record_id"]
    tested = scored_by(w)
    for run in RUNS[::3][1:]:
        for task in (saved.CLASSIFY, saved.LABELS, saved.EMBED):
            each = [tested.get((f"{run.name}-s{seed}", task, "frozen"), []) for seed in range(3)]
            if run.has_encoder or task != saved.EMBED:
                assert sorted(np.concatenate(each)) == sorted(labelled)
    rows = saved.with_combined(w.profile, saved.CLASSIFY)
    combined = rows[(rows["seed"] == "all") & (rows["metric"] == "auroc_macro")]
    assert set(combined["n"]) == {len(labelled)} and set(combined["data"]) == {"synthetic"}
    single = rows[(rows["seed"] == "1") & (rows["metric"] == "auroc_macro")]
    assert set(single["data"]) == {"synthetic, folds 4-6"}
    assert set(single["n"]) == {
        labelled.isin(table[table["fold"].isin([4, 5, 6])]["record_id"]).sum()
    }


def test_a_leak_is_found(turned, monkeypatch, tmp_path):
    """What watches can fail: a run that pretrains on the rows of another rotation."""
    w, *_ = turned
    run = make_run(seed=1, rhythm="soft_1", **SMALL)
    leaky = Workspace(replace(w.profile, name="leaky", runs=(run,)), w.store, w.beats)
    rows = training.pretraining_rows
    monkeypatch.setattr(
        training, "pretraining_rows", lambda store, beats, _: rows(store, beats, ROTATIONS[0])
    )
    watch, ids = Watch(), w.store.table["record_id"].to_numpy()
    watch.name(w.beats.record_features, ids)
    peaks = np.nonzero(w.beats.r_peak >= 0)
    watch.name(w.beats.features[peaks], ids[peaks[0]])
    with monkeypatch.context() as inner:
        watched(inner, watch, w.store)
        evaluate.evaluate_all(leaky, "classification")
    assert {what for _, _, what, _ in leaks(leaky, watch)} == {"batches", "scale"}
