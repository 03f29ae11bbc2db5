"""Settings: what is unknown or of the wrong type is refused with its name."""

import dataclasses

import nbformat
import pytest

from beatssl import settings as config
from beatssl.methods import METHODS, make_run
from beatssl.methods.base import RunSettings
from beatssl.methods.beatssl import BeatSSLSettings
from beatssl.methods.encoder import EncoderConfig
from beatssl.pages import plan as pages
from beatssl.profile import load_profile, run_of
from beatssl.results import saved as results
from beatssl.results.claims import readings
from beatssl.settings import ConfigError, from_dict
from beatssl.tasks import task_of


def test_unknown_key_lists_the_known_ones():
    with pytest.raises(ConfigError, match="epoch'.*epochs"):
        make_run(epoch=3)
    with pytest.raises(ConfigError, match="'rhythm'; known: .*lead_mask"):
        make_run("w2v", rhythm="soft_1")


@pytest.mark.parametrize(
    "key, value", [("epochs", 2.5), ("epochs", True), ("temperature", "0.1"), ("rhythm", 1)]
)
def test_wrong_type_names_the_setting(key, value):
    with pytest.raises(ConfigError, match=f"run.{key}: expected"):
        make_run(**{key: value})


def test_yaml_float_trap_is_explained():
    with pytest.raises(ConfigError, match=r"1\.0e-3"):
        make_run(learning_rate="1e-3")


@pytest.mark.parametrize(
    "key, value",
    [
        ("rhythm", "soft_3"),
        ("beat", "soft"),
        ("method", "simclr"),
        ("beat_scope", "patient"),
        ("exponent", 0.0),
        ("batch_size", 1),
        ("loss", "triplet"),
        ("soft_1", "dtw"),
        ("soft_2", "dtw"),
        ("amplitude_unit", "µV"),
        ("variant", "a b"),
        ("variant", "../x"),
    ],
)
def test_values_outside_their_range_are_refused(key, value):
    with pytest.raises(ConfigError, match=key):
        make_run(**{key: value})


@pytest.mark.parametrize(
    "key, known",
    [
        ("rhythm", "hard, soft_1, soft_2"),
        ("beat", "none, hard, soft_1, soft_2"),
        ("loss", "normalised, unnormalised, bce, mse"),
        ("soft_1", "cosine, cosine_standardised"),
    ],
)
def test_an_unknown_row_target_or_loss_lists_the_known_ones(key, known):
    with pytest.raises(ConfigError, match=known):
        make_run(**{key: "new"})


def test_the_step_is_set_by_the_later_stages():
    default = EncoderConfig()
    assert default.with_step(default.step_ms) == default
    assert [default.with_step(s).step_ms for s in (20, 40, 80, 160)] == [20, 40, 80, 160]
    assert default.with_step(160).strides == (1, 2, 2, 2)
    for step in (0, 10, 30, 60, 320):
        with pytest.raises(ConfigError, match="known: 20.0, 40.0, 80.0, 160.0"):
            default.with_step(step)


def test_variants_change_the_base_and_have_names_of_their_own(tmp_path):
    (tmp_path / "runs.yml").write_text(
        "profiles: {a: {pretrain: {epochs: 7}, runs: [{rhythm: soft_1, beat: hard}], variants: "
        "{base: {rhythm: soft_1, beat: hard, seeds: [0, 1]}, mse: {loss: mse}, "
        "coarse: {method: random, encoder_step_ms: 80}}}}"
    )
    row, *bases, mse, coarse = load_profile("a", tmp_path / "runs.yml").runs
    same = {"rhythm": "soft_1", "beat": "hard", "epochs": 7}
    assert bases == [make_run(**same, variant="base", seed=s) for s in (0, 1)]
    assert mse == make_run(**same, variant="mse", loss="mse")
    ids = ["beatssl-soft_1-hard-1-s0", "beatssl-soft_1-hard-1-mse-s0", "random-coarse-s0"]
    assert [row.run_id, mse.run_id, coarse.run_id] == ids
    assert coarse == make_run("random", encoder_step_ms=80.0, variant="coarse")


def test_every_setting_of_every_method_can_be_set_in_runs_yml(tmp_path):
    """Once for all runs of a method, and once for a single run, which counts more."""
    (tmp_path / "runs.yml").write_text(
        "profiles: {a: {pretrain: {epochs: 7}, methods: {w2v: {network: {width: 48}, span: 5}, "
        "domain_ssl: {clusters: 9}, cmsc: {epochs: 3}}, runs: [{method: w2v, span: 6}, "
        "{method: random_w2v}, {method: domain_ssl, noise_sd: 0.1}, {method: cmsc}, "
        "{method: ts2vec, alpha: 0.2}, {method: random_data}]}}"
    )
    w2v, untrained, domain_ssl, cmsc, ts2vec, data = load_profile("a", tmp_path / "runs.yml").runs
    assert (w2v.span, w2v.network.width, w2v.epochs) == (6, 48, 7)
    assert untrained.network == w2v.network and not hasattr(untrained, "span")
    assert (domain_ssl.clusters, domain_ssl.noise_sd, domain_ssl.epochs) == (9, 0.1, 7)
    assert (cmsc.epochs, ts2vec.alpha, data.batch_size) == (3, 0.2, 128)
    for method, entry in METHODS.items():
        for setting in dataclasses.fields(entry.settings):  # what it has, it takes
            run = make_run(method)
            assert make_run(**{**vars(run), setting.name: getattr(run, setting.name)}) == run


def test_integers_become_floats_and_lists_tuples():
    assert isinstance(make_run(exponent=50).exponent, float)
    assert from_dict(EncoderConfig, {"widths": [8, 8]}).widths == (8, 8)


def test_hash_changes_with_every_setting():
    base = make_run()
    others = [make_run(seed=1), make_run(exponent=50.0), make_run(beat="hard")]
    assert len({config.config_hash(c) for c in [base, *others]}) == 4
    assert config.config_hash(base) == config.config_hash(make_run())


def test_all_profiles_of_runs_yml_are_valid_and_hold_the_rows_of_the_paper():
    for name in ("tiny", "subset", "full"):
        profile = load_profile(name)
        rows = {tuple(r.named().values()) for r in profile.runs if r.method == "beatssl"}
        assert ("hard", "none", 1.0) in rows  # the baseline
        assert ("soft_1", "hard", 50.0) in rows  # the paper's best
        assert any(r.method == "random" for r in profile.runs)
        for variants in (False, True):  # the same number of steps for all rows, for all variants
            runs = [r for r in profile.runs if r.method == "beatssl"]
            runs = [r for r in runs if not r.variant.startswith("try_")]  # of the better encoder
            rows = ("", *readings(profile))
            steps = {(r.epochs, r.batch_size) for r in runs if (r.variant not in rows) == variants}
            assert len(steps) <= 1


@pytest.mark.parametrize("profile", ["subset", "full"])
def test_a_profile_of_real_records_holds_every_row_of_table_1(profile):
    runs = load_profile(profile).runs
    rows = list(results.paper().query("source == 'Table 1'").itertuples())
    names = {(r.rhythm, r.beat, r.exponent) for r in rows}
    assert len(names) == 14
    for rhythm, beat, exponent in names:
        name = make_run(rhythm=rhythm, beat=beat, exponent=exponent).name
        seeds = {r.seed for r in runs if r.name == name}
        assert len(seeds) >= 3, (rhythm, beat, exponent)


@pytest.mark.parametrize(
    "text, words",
    [
        ("profiles: {a: {date: {}}}", "unknown key 'date'"),
        ("profiles: {a: {data: {ptbxl: 3}}}", "expected str"),
        ("profiles: {a: {runs: [{seeds: [0, 0]}]}}", "twice"),
        ("profiles: {a: {runs: [{method: simclr}]}}", "known: random, .*beatssl, cmsc"),
        ("profiles: {a: {pretrain: {epoch: 3}}}", "unknown key 'epoch'"),
        ("profiles: {a: {methods: {cmsc: {span: 3}}}}", "unknown key 'span'"),
        ("profiles: {a: {methods: {simclr: {}}}}", "known: random, .*beatssl, cmsc"),
        ("profiles: {a: {runs: [{loss: triplet}]}}", "known: normalised, unnormalised, bce, mse"),
        ("profiles: {b: {}}", "known: b"),
    ],
)
def test_a_faulty_runs_yml_is_refused(tmp_path, text, words):
    (tmp_path / "runs.yml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_profile("a", tmp_path / "runs.yml")


# --- parameters of the pretraining notebook ------------------------------------------------------

NOTEBOOK = nbformat.read(config.ROOT / "notebooks" / "05_pretraining.ipynb", as_version=4)


def by_hand(profile: str, **given) -> RunSettings:
    """What the notebook does with `-p profile ... -p name value`: its cell, then the given ones."""
    namespace: dict = {}
    exec(NOTEBOOK.cells[1].source, namespace)
    return run_of(load_profile(profile), {**namespace, "profile": profile, **given})


def run(profile: str, run_id: str) -> RunSettings:
    return {r.run_id: r for r in load_profile(profile).runs}[run_id]


def test_the_notebook_declares_every_setting_with_its_type_and_leaves_it_to_the_profile():
    kinds = pages.declared_parameters(config.ROOT / "notebooks" / "05_pretraining.ipynb")
    fields = dataclasses.fields(BeatSSLSettings)
    settings = {f.name: getattr(f.type, "__name__", f.type) for f in fields}
    assert {n: k.__name__ for n, k in kinds.items()} == {"profile": "str", **settings}
    cell: dict = {}
    exec(NOTEBOOK.cells[1].source, cell)
    real = {name for name in kinds if cell[name] is not None}
    assert real == {"profile", "method", *BeatSSLSettings.row, "variant", "seed"}


@pytest.mark.parametrize("name", ["tiny", "subset", "full"])
def test_every_page_of_the_runner_has_exactly_its_run(name):
    profile = load_profile(name)
    planned = [page for page in pages.plan(profile) if page.run]
    assert len(planned) == sum(r.has_encoder for r in profile.runs) > 0
    for page in planned:
        assert run_of(profile, page.parameters) == page.run


@pytest.mark.parametrize(
    "given, run_id",
    [
        ({}, "beatssl-soft_1-hard-50-s0"),
        ({"seed": 2, "rhythm": "hard", "beat": "none", "exponent": 1.0}, "beatssl-hard-none-1-s2"),
        ({"variant": "temperature_0.05"}, "beatssl-soft_1-hard-50-temperature_0.05-s0"),
        ({"method": "ts2vec"}, "ts2vec-s0"),  # epochs and batch of its own, and no row
        ({"method": "random", "variant": "untrained_step_40"}, "random-untrained_step_40-s0"),
        ({"epochs": 15, "temperature": 0.5}, "beatssl-soft_1-hard-50-s0"),  # given, but no change
    ],
)
def test_by_hand_what_the_profile_says_holds(given, run_id):
    assert by_hand("subset", **given) == run("subset", run_id)


@pytest.mark.parametrize(
    "given, variant",
    [
        ({"epochs": 3}, "epochs_3"),
        ({"temperature": 1, "loss": "mse"}, "loss_mse.temperature_1"),
        ({"learning_rate": 1e-5}, "learning_rate_0.00001"),
        ({"amplitude_unit": "uV"}, "amplitude_unit_uv"),
        ({"variant": "loss_mse", "mask_fraction": 0.3}, "loss_mse.mask_fraction_0.3"),
        ({"variant": "mine", "mask_fraction": 0.3}, "mine"),
        ({"method": "ts2vec", "epochs": 20}, "epochs_20"),
        ({"temperature": 0.1}, "temperature_0.1.epochs_15"),  # the profile's temperature_0.1 has 6
    ],
)
def test_by_hand_a_changed_setting_is_a_variant_of_its_own(given, variant):
    made = by_hand("subset", **given)
    assert made.variant == variant
    assert made.run_id not in {r.run_id for r in load_profile("subset").runs}
    for name, value in given.items():
        assert name == "variant" or getattr(made, name) == value
    if "variant" not in given and "epochs" not in given:
        assert (made.epochs, made.batch_size) == (15, 128)


def test_by_hand_a_row_that_the_profile_does_not_list_has_its_common_settings():
    made = by_hand("full", rhythm="soft_2", exponent=5)
    found = {"loss": "bce", "temperature": 0.5, "epochs": 50, "batch_size": 256}
    assert made == make_run(rhythm="soft_2", beat="hard", exponent=5.0, **found)
    assert by_hand("full", method="cmsc", epochs=2).run_id == "cmsc-epochs_2-s0"
    other = by_hand("subset", seed=7)  # a seed more is no variant
    assert other == dataclasses.replace(run("subset", "beatssl-soft_1-hard-50-s0"), seed=7)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"rhythm": "soft_3"}, "known: hard, soft_1, soft_2"),
        ({"epochs": 2.5}, "epochs: expected int"),
        ({"learning_rate": "1e-3"}, r"write 1\.0e-3"),
        (
            dict.fromkeys(
                (
                    "temperature",
                    "weight_decay",
                    "warmup_fraction",
                    "beat_weight",
                    "rhythm_weight",
                    "beat_before",
                    "beat_after",
                    "scale_max",
                ),
                0.9,
            ),
            "name these changes with the parameter variant",
        ),
    ],
)
def test_by_hand_a_faulty_parameter_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        by_hand("subset", **given)


def test_results_of_a_run_by_hand_do_not_stop_the_profile(small, tmp_path, monkeypatch):
    """They used to bear the name of the profile's own run, which was then found stale."""
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    methods = {"beatssl": {"epochs": 3, "batch_size": 32}}
    profile = dataclasses.replace(small.profile, methods=methods)
    for given in ({}, {"temperature": 0.5}):
        made = run_of(profile, {"rhythm": "hard", "beat": "none", **given})
        task = task_of(results.CLASSIFY)
        case = results.case_of(profile, task, made, small.store, None, "frozen")
        what = results.describe(profile, task, case, 1.0)
        results.failed(what, profile, "not trained in this test")
    with pytest.warns(UserWarning, match="left out: beatssl-hard-none-1-temperature_0.5-s0"):
        found = results.evaluations(profile)
    assert [what.run for what, _ in found] == [profile.runs[0]]
