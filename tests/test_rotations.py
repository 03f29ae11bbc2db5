"""PTB-XL's folds in rotations: what is tested was never trained on, fitted on, or selected with."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_stats import mean_score

from beatssl import evaluate
from beatssl import train as training
from beatssl.data import beats as beats_of
from beatssl.data.records import SUPERCLASSES
from beatssl.data.store import Store, open_store
from beatssl.methods import domain_ssl, make_run
from beatssl.methods.targets import FeatureScale
from beatssl.profile import Profile, Workspace, load_profile
from beatssl.report import comparison, tables
from beatssl.results import saved, uncertainty
from beatssl.results.collect import collect
from beatssl.settings import ConfigError, DataConfig, Rotation, config_hash, from_dict
from beatssl.tasks.base import of_logits, to_logits
from beatssl.tasks import classify, embedding, task_of
from beatssl.tasks.scores import MetricError, classification_scores
from beatssl.train import run_key

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
def turned(small, tmp_path_factory):
    """A workspace in three rotations in which all is trained and evaluated, watched; and what the
    beat shapes of each rotation were clustered from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEATSSL_WORK", str(tmp_path_factory.mktemp("work")))
        profile = replace(
            small.profile,
            name="turned",
            runs=RUNS,
            data=replace(small.profile.data, rotations=ROTATIONS),
            compare=replace(small.profile.compare, draws=1),
        )
        store = small.store  # the same whatever the rotations
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

        def analysed(work, chunks, *_):  # as in `small`, which took its time
            kept = {n: getattr(small.beats, n) for n in beats_of.ARRAYS}
            rows = [
                {n: array[row] for n, array in kept.items() if n != "clusters"}
                for row in range(len(store))
            ]
            return [[row | {"trouble": ""} for row in rows]]

        with patch.context() as inner:
            inner.setattr(beats_of, "in_processes", analysed)
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
        assert len(records) > 60 and not people(w, records - {""}) & people(w, mine)
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


# --- scores, intervals and differences ------------------------------------------------------------


def predicted(seed: int, skill: float = 1.0, first: int = 0, n: int = 60, each: int = 1) -> dict:
    """Made-up predictions on n records from number `first` on, `each` of them a patient."""
    truth = (np.random.default_rng(9).random((first + n, 5)) < 0.4).astype(np.int8)[first:]
    score = np.random.default_rng(seed).normal(size=(n, 5)) + skill * truth
    numbers = np.arange(first, first + n)
    return {
        "record_id": numbers.astype(str),
        "patient_id": (numbers // each).astype(str),
        "truth": truth,
        "score": score,
        "threshold": np.full(5, 0.5),
    }


def kept(predictions: dict) -> dict:
    """Their scores as probabilities in the 16 bits that are kept."""
    score = of_logits(to_logits(1 / (1 + np.exp(-predictions["score"]))))
    return predictions | {"score": score, "threshold": 1 / (1 + np.exp(-predictions["threshold"]))}


def test_one_rotation_gives_the_numbers_that_it_gave_before():
    """Computed by the code of commit c90b767, which knew no rotations."""
    scores = classification_scores
    a = {seed: predicted(seed, each=2) for seed in range(3)}
    b = {seed: predicted(10 + seed, 0.6, each=2) for seed in range(2)}
    c = {seed: predicted(20 + seed, 0.3, each=2) for seed in range(3)}
    before = {
        "auroc_macro": (
            (0.7725817825286425, 0.7280549718941556, 0.8194560116609251),
            (0.7452453955461202, 0.6868621414590633, 0.7999484276676666),
            (0.10698757317537522, 0.04165379047264787, 0.17068017630553076),
            (0.1708575579735001, 0.10155782577685299, 0.25468661089190436),
        ),
        "f1_macro": (
            (0.6086277534762704, 0.5224472462197333, 0.6889487522663439),
            (0.573340337527689, 0.48814929082124614, 0.6430743401503627),
            (0.1178703475147862, 0.03660192123106191, 0.22352529334424914),
            (0.19148367375467734, 0.09250503144624231, 0.2849197844500932),
        ),
    }
    now = (
        uncertainty.estimate(scores, list(a.values()), 200),
        uncertainty.estimate(scores, [a[0]], 200, seed=3),
        uncertainty.difference(scores, a, b, 200),
        uncertainty.difference(scores, a, c, 200),
    )
    for metric, numbers in before.items():
        for expected, found in zip(numbers, now, strict=True):
            one = found[metric]
            assert (one.value, one.low, one.high) == pytest.approx(expected, rel=1e-12)
            assert one.n == 60


def of_records(x, first: int, patients=None) -> dict:
    """What `mean_score` needs, on records from number `first` on."""
    ids = np.arange(first, first + len(x)).astype(str)
    return {"record_id": ids, "patient_id": ids if patients is None else patients, "x": x}


def test_interval_over_rotations_by_hand():
    """Two rotations, of 6 and 4 records, with two seeds and one, drawn one by one."""
    rng = np.random.default_rng(4)
    patients = [np.array(list("pqprsp")), np.array(list("tuvt"))]
    x = {0: rng.normal(size=6), 1: rng.normal(size=4), 2: rng.normal(size=6)}
    per_seed = [of_records(x[0], 0, patients[0]), of_records(x[1], 6, patients[1])]
    per_seed.append(of_records(x[2], 0, patients[0]))
    found = uncertainty.estimate(mean_score, per_seed, 40, seed=8)["mean"]
    stream = np.random.default_rng(8)
    drawn = [stream.multinomial(k, np.full(k, 1 / k), size=40) for k in (4, 3)]
    of_seeds = np.random.default_rng(np.random.SeedSequence(8, spawn_key=(1, 0, 2)))
    of_seeds = of_seeds.multinomial(2, [0.5, 0.5], size=40)
    samples = []
    for first, second, times in zip(*drawn, of_seeds, strict=True):
        w = np.array([first["pqrs".index(p)] for p in patients[0]])
        v = np.array([second["tuv".index(p)] for p in patients[1]])
        a = (times[0] * w @ x[0] + times[1] * w @ x[2]) / 2 / w.sum()
        samples.append((w.sum() * a + v.sum() * (v @ x[1] / v.sum())) / (w.sum() + v.sum()))
    assert (found.low, found.high) == pytest.approx(np.quantile(samples, [0.025, 0.975]))
    assert found.value == pytest.approx((6 * (x[0].mean() + x[2].mean()) / 2 + x[1].sum()) / 10)
    assert found.n == 10 and found.per_seed == pytest.approx([x[k].mean() for k in range(3)])


def test_three_rotations_have_the_interval_of_all_their_records():
    """One seed in each: as wide as theory says of the mean of all, not of a third of them."""
    x = np.random.default_rng(0).normal(size=900)
    parts = np.array_split(np.arange(900), [250, 520])
    found = uncertainty.estimate(mean_score, [of_records(x[p], p[0]) for p in parts], 4000)["mean"]
    error = 1.96 * x.std() / 30
    assert (found.value, found.n) == (pytest.approx(x.mean()), 900)
    assert found.high - found.low == pytest.approx(2 * error, rel=0.08)


def test_one_seed_a_rotation_is_compared_with_two():
    """The same patients are drawn on both sides; seeds widen the interval only where there are two,
    and levels of rotations do not."""
    rng = np.random.default_rng(1)
    x = {k: rng.normal(k, 1, 80) for k in range(3)}
    one = {k: of_records(x[k] + 0.1, 80 * k) for k in x}
    two = {k: of_records(x[k % 3], 80 * (k % 3)) for k in range(6)}
    found = uncertainty.difference(mean_score, one, two, 300)["mean"]
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found.n == 240 and found.per_seed == ()
    back = uncertainty.difference(mean_score, two, one, 300)["mean"]
    assert (back.value, back.low, back.high) == pytest.approx((-0.1, -0.1, -0.1))
    apart = {k: of_records(x[k % 3] + (k > 2), 80 * (k % 3)) for k in range(6)}
    wide = uncertainty.difference(mean_score, one, apart, 300)["mean"]
    assert wide.value == pytest.approx(-0.4) and wide.high - wide.low > 0.5
    same = uncertainty.difference(mean_score, apart, two, 300)["mean"]  # drawn alike on both sides
    assert same.per_seed == pytest.approx((0, 0, 0, 1, 1, 1))


def test_other_records_are_never_compared_unseen():
    x = np.ones(10)
    whole = {k: of_records(x, 10 * k) for k in range(3)}
    lacking = {0: whole[0], 1: whole[1]}
    for first, second in ((whole, lacking), (lacking, whole)):
        with pytest.raises(ValueError, match="different test records.*in all rotations"):
            uncertainty.difference(mean_score, first, second, 10)
    twice = of_records(x, 10, np.array([*"abcdefgh", "9", "i"]))  # a patient of the first rotation
    with pytest.raises(ValueError, match="different test records"):
        uncertainty.estimate(mean_score, [whole[0], twice], 10)
    other = of_records(x, 5)  # half of the records of each
    with pytest.raises(ValueError, match="different test records"):
        uncertainty.estimate(mean_score, [whole[0], whole[1], other], 10)


# --- saved evaluations ----------------------------------------------------------------------------

HARD = [make_run(seed=seed) for seed in range(6)]
SOFT = [make_run(rhythm="soft_1", exponent=50.0, seed=seed) for seed in range(3)]
SIZES = (60, 50, 90)  # records of the rotations


class FakeStore:
    sampling_rate = 100
    fingerprint = content = "aa"


@pytest.fixture
def profile(tmp_path, monkeypatch) -> Profile:
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path / "work"))
    data = DataConfig(ptbxl="ptbxl-subset", ludb="ludb", rotations=ROTATIONS)
    classify_config = classify.ClassifyConfig(label_fractions=(1.0,), bootstrap=50)
    return Profile("turning", data=data, classify=classify_config, runs=(*HARD, *SOFT))


def described(profile: Profile, run, task: str = saved.CLASSIFY):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        weights = torch.nn.Linear(2, 2)
    case = saved.case_of(profile, task_of(task), run, FakeStore(), weights, "frozen")
    return saved.describe(profile, task_of(task), case, 1.0)


def save(profile: Profile, *runs, skill: float = 1.0, of: Profile | None = None) -> None:
    """Made-up predictions on the records of the run's rotation. Args: of: whose rotations."""
    for run in runs:
        k = ROTATIONS.index((of or profile).rotation_of(run))
        given = {"skill": skill, "first": sum(SIZES[:k]), "n": SIZES[k]}
        made = kept(predicted(run.seed, **given))
        what = described(of or profile, run)
        saved.reuse_or_make(what, of or profile, lambda made=made: lambda fraction: made)


def combined(profile: Profile, metric: str = "auroc_macro") -> pd.DataFrame:
    rows = saved.with_combined(profile, saved.CLASSIFY)
    return rows[rows["metric"] == metric].set_index("seed")


def test_a_methods_score_is_the_mean_over_rotations_by_their_records(profile):
    save(profile, *HARD)
    for metric in ("auroc_macro", "f1_MI"):
        rows = combined(profile, metric)
        assert rows.loc["4", "data"] == "PTB-XL subset, folds 4-6" and rows.loc["4", "n"] == 50
        assert rows.loc["all", "data"] == "PTB-XL subset" and rows.loc["all", "n"] == sum(SIZES)
        value = rows["value"]
        each = [(value[f"{k}"] + value[f"{k + 3}"]) / 2 for k in range(3)]
        assert value["all"] == pytest.approx(np.average(each, weights=SIZES))
        assert rows.loc["all", "source"] == ""
    table = tables.by_method(saved.with_combined(profile)).set_index("metric").loc["auroc_macro"]
    value = combined(profile)["value"]
    squares = [(value[f"{k}"] - value[f"{k + 3}"]) ** 2 / 2 for k in range(3)]
    assert table["sd"] == pytest.approx(np.sqrt(np.mean(squares))) and table["seeds"] == 6


def test_the_sd_over_seeds_is_not_that_over_rotations(profile):
    save(profile, *SOFT)
    table = tables.by_method(saved.with_combined(profile)).set_index("metric").loc["auroc_macro"]
    assert np.isnan(table["sd"]) and table["seeds"] == 3 and table["n"] == sum(SIZES)


def test_a_method_that_lacks_a_rotation_has_no_value_and_says_so(profile, tmp_path):
    save(profile, *HARD[:3], SOFT[0], SOFT[2])
    saved.failed(
        replace(described(profile, SOFT[1]), weights="", key=""), profile, "the loss is nan"
    )
    rows = saved.with_combined(profile, saved.CLASSIFY)
    row = rows[(rows["run_id"] == SOFT[0].name) & (rows["metric"] == "auroc_macro")].iloc[0]
    assert np.isnan(row["value"]) and row["n"] == 0
    assert row["source"] == "no value: rotation 1 (tests folds 4-6) is missing"
    single = rows[(rows["run_id"] == SOFT[2].run_id) & (rows["metric"] == "auroc_macro")].iloc[0]
    assert np.isfinite(single["value"]) and single["n"] == 90
    collect(profile, tmp_path)
    (tmp_path / "turning.partial.csv").rename(tmp_path / "turning.csv")
    texts = tables.paper_and_ours(tables.headlines(profile, folder=tmp_path), ["AUROC"])
    label = tables.label("beatssl", "soft_1", "none", 50)
    assert texts.loc[label, "AUROC, ours"] == "failed"
    assert texts.loc[label, "seeds"].startswith("2 (1 failed)")
    (profile.work / "results" / f"{described(profile, SOFT[1]).stem}.json").unlink()
    rows = saved.with_combined(profile)  # not run, in place of failed
    texts = tables.by_fraction(tables.by_method(rows), ["auroc_macro"])
    assert texts.loc[label, "AUROC"] == "lacks a rotation"
    # the difference is over the records that both have, and says how many
    table, absent = comparison.differences(profile, [(SOFT[0].name, HARD[0].name)])
    assert absent == [f"{SOFT[0].name} and {HARD[0].name} on {saved.SEGMENT}"]
    auroc = table.set_index("score").loc["AUROC"]
    assert auroc["n"] == 60 + 90 and auroc["seeds"] == (2, 2) and auroc["covers"] == "patients"
    pairs = {
        seed: (predicted_by(profile, SOFT[seed]), predicted_by(profile, HARD[seed]))
        for seed in (0, 2)
    }
    by_hand = [
        classification_scores(first)["auroc_macro"][0]
        - classification_scores(second)["auroc_macro"][0]
        for first, second in pairs.values()
    ]
    assert auroc["difference"] == pytest.approx(np.average(by_hand, weights=[60, 90]))
    more = pd.concat([table, table.assign(n=sum(SIZES))])
    assert tables.signed(more)[0].endswith(", n = 150") and "n =" not in tables.signed(table)[0]


def predicted_by(profile: Profile, run) -> dict:
    return saved.load_predictions(profile, described(profile, run))


def test_methods_without_a_rotation_in_common_are_not_compared(profile):
    save(profile, HARD[0], SOFT[1])
    table, absent = comparison.differences(profile, [(SOFT[0].name, HARD[0].name)])
    assert table.empty and "the same records of ptbxl" in absent[0]


def test_intervals_say_where_they_cover_seeds(profile):
    save(profile, *HARD, *SOFT)
    table, _ = comparison.differences(profile, [(SOFT[0].name, HARD[0].name)])
    assert set(table["covers"]) == {"patients and the seeds of one side"}
    assert set(table["n"]) == {sum(SIZES)} and set(table["seeds"]) == {(3, 6)}
    assert "has several" in tables.resampled(profile)
    assert tables.resampled(Profile("p")) == "patients and seeds"


def test_predictions_of_another_rotation_are_refused(profile):
    """The rotation is in the keys of what is measured on PTB-XL, and of nothing else."""
    turned_once = replace(
        profile, data=replace(profile.data, rotations=(*ROTATIONS[1:], ROTATIONS[0]))
    )
    save(profile, HARD[0], of=turned_once)
    with pytest.raises(
        saved.StaleResultsError, match="other settings.*hard-none-1-s0.*evaluate aga"
    ):
        saved.evaluations(profile)
    with pytest.raises(saved.ResultsError, match="belong to another evaluation: evaluate the run"):
        predicted_by(profile, HARD[0])
    for task, same in ((saved.CLASSIFY, False), (saved.EMBED, False), (saved.SEGMENT, True)):
        hashes = [described(p, HARD[0], task).config_hash for p in (profile, turned_once)]
        assert (hashes[0] == hashes[1]) == same


def test_the_rotation_is_in_the_key_of_a_run_and_the_official_one_changes_none():
    """Whoever has trained on the official folds keeps it, whatever else may be tested."""

    class Beats:
        content = "bb"

    encoder = Profile("p").encoder
    keys = {
        rotation: run_key(HARD[0], encoder, FakeStore(), Beats(), rotation)
        for rotation in (Rotation(), *ROTATIONS, Rotation((10,), 8), Rotation((1, 2, 3), 5))
    }
    assert len({key["key"] for key in keys.values()}) == 6
    assert len({key["code"] for key in keys.values()}) == 1
    assert keys[Rotation()]["data"] == config_hash("aa", "bb")  # as before there were rotations


def test_six_seeds_and_five_repeats_of_ludb_leave_nothing_missing(profile, tmp_path):
    assert [profile.repeats_of(run) for run in HARD] == [(0,), (1,), (2,), (3,), (4,), ()]
    assert [profile.repeats_of(run) for run in SOFT] == [(0, 3), (1, 4), (2,)]
    for run in HARD:  # repeat k is of the same rotation, whether there are six seeds or three
        for k in profile.repeats_of(run):
            other = next(soft for soft in SOFT if k in profile.repeats_of(soft))
            assert profile.rotation_of(run) == profile.rotation_of(other)
    for run in HARD[:5]:
        what = described(profile, run, saved.FOLDS)
        saved.write_rows(
            profile, [what.row("dice", saved.NOTHING)], replace(what, weights="", key="")
        )
    assert not [line for line in collect(profile, tmp_path).missing if "hard" in line]


def test_draws_of_a_rotation_are_blocks_of_their_own(profile, monkeypatch):
    """Two draws in each of three rotations are six blocks, the mean over seeds in each."""
    compare = replace(profile.compare, label_fractions=(0.1,), draws=2)
    profile = replace(profile, compare=compare)
    for run in (*HARD, *SOFT):
        k = ROTATIONS.index(profile.rotation_of(run))
        draws = [predicted(run.seed + 100 * d, first=sum(SIZES[:k]), n=SIZES[k]) for d in range(2)]
        each = [kept(draw) for draw in draws]
        made = each[0] | {n: np.stack([one[n] for one in each]) for n in ("score", "threshold")}
        task = task_of(saved.LABELS)
        case = saved.case_of(profile, task, run, FakeStore(), torch.nn.Linear(1, 1), "frozen")
        what = saved.describe(profile, task, case, 0.1)
        saved.reuse_or_make(what, profile, lambda made=made: lambda fraction: made)
    table = comparison.blocks(profile, "PTB-XL AUROC")
    assert table.shape == (6, 2)

    def score(seed, draw, k):
        made = kept(predicted(seed + 100 * draw, first=sum(SIZES[:k]), n=SIZES[k]))
        return classification_scores(made)["auroc_macro"][0]

    hard = [np.mean([score(k, d, k), score(k + 3, d, k)]) for k in range(3) for d in range(2)]
    assert table[tables.label("beatssl", "hard", "none", 1)].tolist() == pytest.approx(hard)


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rotations, words",
    [
        ([], "name one or more"),
        ([{"test": [10], "select": 11}], "no fold 11"),
        ([{"test": [], "select": 9}], "needs a test fold"),
        ([{"test": [9, 10], "select": 9}], "one part only"),
        ([{"test": list(range(1, 10)), "select": 10}], "no fold is left to train"),
        ([{"test": [1, 2], "select": 3}, {"test": [2], "select": 3}], "no fold in two of them"),
        ([{"test": [1], "selects": 3}], "unknown key 'selects'"),
    ],
)
def test_rotations_that_cannot_be_are_refused(rotations, words):
    with pytest.raises(ConfigError, match=words):
        from_dict(DataConfig, {"rotations": rotations})


def test_folds_are_said_in_words():
    assert DataConfig().split_in_words == "fold 10 tests, fold 9 selects, the others train"
    data = DataConfig(rotations=ROTATIONS)
    assert data.folds("test") == "folds 1-3, 4-6, 7-10 in turn"
    assert data.split_in_words == (
        "folds 1-3, 4-6, 7-10 in turn test, folds 4, 7, 1 in turn select, the others train: "
        "seed k takes rotation k mod 3"
    )
    assert ROTATIONS[1].folds("train") == "folds 1-3, 8-10"


def test_a_class_that_a_fold_lacks_is_named_with_its_rotation(turned):
    w, *_ = turned
    store = open_store(w.store.folder)
    table = store.table
    for folds, rotation, words in (
        ((4,), ROTATIONS[0], r"tests folds 1-3: PTB-XL fold 4 \(validation\): no .* class MI"),
        ((4, 5, 6), ROTATIONS[1], r"tests folds 4-6: PTB-XL folds 4-6 \(test\): no .* class MI"),
        (range(2, 7), ROTATIONS[2], r"folds 7-10: PTB-XL folds 2-6 \(train\): no .* class MI"),
    ):
        here = table["fold"].isin(folds) & (table["MI"] >= 0)
        store.table = table.assign(MI=table["MI"].where(~here, 0))
        with pytest.raises(MetricError, match=words):
            classify.split(store, rotation)


def test_subset_tests_every_fold_and_the_claims_have_two_seeds_a_rotation(monkeypatch):
    monkeypatch.delenv("BEATSSL_ECG_FM", raising=False)
    subset, full = load_profile("subset"), load_profile("full")
    assert subset.data.rotations == ROTATIONS and full.data.rotations == (Rotation(),)
    seeds = defaultdict(list)
    for run in subset.runs:
        seeds[run.name].append(run.seed)
    rows = ("hard-none-1", "hard-hard-1", "soft_1-none-1", "soft_1-none-50", "soft_1-hard-1")
    rows = (*rows, "soft_1-hard-50")
    two = {f"beatssl-{row}{reading}" for row in rows for reading in ("", "-default")}
    assert {name for name, of in seeds.items() if of == list(range(6))} == two
    assert {run.seed for run in full.runs} == {0, 1, 2}
    monkeypatch.setenv("BEATSSL_ECG_FM", "somewhere.pt")
    released = [run for run in load_profile("subset").runs if run.method == "ecg_fm"]
    assert [subset.rotation_of(run) for run in released] == list(ROTATIONS)
