"""Settings: what is unknown or of the wrong type is refused with its name."""

import pytest

from beatssl import config, results
from beatssl.config import ConfigError, EncoderConfig, PretrainConfig, from_dict


def test_unknown_key_lists_the_known_ones():
    with pytest.raises(ConfigError, match="epoch'.*epochs"):
        from_dict(PretrainConfig, {"epoch": 3})


@pytest.mark.parametrize("key, value", [
    ("epochs", 2.5), ("epochs", True), ("temperature", "0.1"), ("rhythm", 1),
])
def test_wrong_type_names_the_setting(key, value):
    with pytest.raises(ConfigError, match=f"PretrainConfig.{key}: expected"):
        from_dict(PretrainConfig, {key: value})


def test_yaml_float_trap_is_explained():
    with pytest.raises(ConfigError, match=r"1\.0e-3"):
        from_dict(PretrainConfig, {"learning_rate": "1e-3"})


@pytest.mark.parametrize("key, value", [
    ("rhythm", "soft_3"), ("beat", "soft"), ("method", "simclr"), ("beat_scope", "patient"),
    ("exponent", 0.0), ("batch_size", 1), ("loss", "triplet"), ("soft_1", "dtw"), ("soft_2", "dtw"),
    ("amplitude_unit", "µV"),
    ("variant", "a b"), ("variant", "../x"),
])
def test_values_outside_their_range_are_refused(key, value):
    with pytest.raises(ConfigError, match=key):
        from_dict(PretrainConfig, {key: value})


@pytest.mark.parametrize("key, known", [
    ("rhythm", "hard, soft_1, soft_2"), ("beat", "none, hard, soft_1, soft_2"),
    ("loss", "normalised, unnormalised, bce, mse"), ("soft_1", "cosine, cosine_standardised"),
])
def test_an_unknown_row_target_or_loss_lists_the_known_ones(key, known):
    with pytest.raises(ConfigError, match=known):
        from_dict(PretrainConfig, {key: "new"})


def test_stride_is_set_by_the_later_stages():
    default = EncoderConfig()
    assert default.with_stride(default.stride) == default
    assert [default.with_stride(s).stride for s in (2, 4, 8, 16)] == [2, 4, 8, 16]
    assert default.with_stride(16).strides == (1, 2, 2, 2)
    for stride in (0, 1, 3, 6, 32):
        with pytest.raises(ConfigError, match="known: 2, 4, 8, 16"):
            default.with_stride(stride)


def test_variants_change_the_base_and_have_names_of_their_own(tmp_path):
    (tmp_path / "runs.yml").write_text(
        "profiles: {a: {pretrain: {epochs: 7}, runs: [{rhythm: soft_1, beat: hard}], variants: "
        "{base: {rhythm: soft_1, beat: hard, seeds: [0, 1]}, mse: {loss: mse}, "
        "coarse: {method: random, encoder_stride: 8}}}}"
    )
    row, *bases, mse, coarse = config.load_profile("a", tmp_path / "runs.yml").runs
    same = {"rhythm": "soft_1", "beat": "hard", "epochs": 7}
    assert bases == [PretrainConfig(**same, variant="base", seed=s) for s in (0, 1)]
    assert mse == PretrainConfig(**same, variant="mse", loss="mse")
    ids = ["beatssl-soft_1-hard-1-s0", "beatssl-soft_1-hard-1-mse-s0", "random-coarse-s0"]
    assert [row.run_id, mse.run_id, coarse.run_id] == ids
    other = {"method": "random", "encoder_stride": 8, "epochs": 7}
    assert coarse == PretrainConfig(**other, variant="coarse")


def test_integers_become_floats_and_lists_tuples():
    assert isinstance(from_dict(PretrainConfig, {"exponent": 50}).exponent, float)
    assert from_dict(EncoderConfig, {"widths": [8, 8]}).widths == (8, 8)


def test_hash_changes_with_every_setting():
    base = PretrainConfig()
    others = [PretrainConfig(seed=1), PretrainConfig(exponent=50.0), PretrainConfig(beat="hard")]
    assert len({config.config_hash(c) for c in [base, *others]}) == 4
    assert config.config_hash(base) == config.config_hash(PretrainConfig())


def test_all_profiles_of_runs_yml_are_valid_and_hold_the_rows_of_the_paper():
    for name in ("tiny", "subset", "full"):
        profile = config.load_profile(name)
        rows = {(r.method, r.rhythm, r.beat, r.exponent) for r in profile.runs}
        assert ("beatssl", "hard", "none", 1.0) in rows  # the baseline
        assert ("beatssl", "soft_1", "hard", 50.0) in rows  # the paper's best
        assert any(r.method == "random" for r in profile.runs)
        for variants in (False, True):  # the same number of steps for all rows, for all variants
            runs = [r for r in profile.runs if bool(r.variant) == variants]
            assert len({(r.epochs, r.batch_size) for r in runs if r.method == "beatssl"}) <= 1


def test_subset_holds_every_row_of_table_1():
    runs = config.load_profile("subset").runs
    rows = [r for r in results.paper().query("source == 'Table 1'").itertuples()]
    names = {(r.rhythm, r.beat, r.exponent) for r in rows}
    assert len(names) == 14
    for rhythm, beat, exponent in names:
        mine = [r for r in runs if (r.rhythm, r.beat, r.exponent) == (rhythm, beat, exponent)]
        seeds = {r.seed for r in mine if r.method == "beatssl" and not r.variant}
        assert len(seeds) >= 3, (rhythm, beat, exponent)


@pytest.mark.parametrize("text, words", [
    ("profiles: {a: {date: {}}}", "unknown key 'date'"),
    ("profiles: {a: {data: {ptbxl: 3}}}", "expected str"),
    ("profiles: {a: {runs: [{seeds: [0, 0]}]}}", "twice"),
    ("profiles: {b: {}}", "known: b"),
])
def test_a_faulty_runs_yml_is_refused(tmp_path, text, words):
    (tmp_path / "runs.yml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        config.load_profile("a", tmp_path / "runs.yml")


def test_namespace_of_a_notebook_gives_the_settings():
    made = config.from_namespace(PretrainConfig, {"seed": 4, "profile": "tiny", "exponent": 50})
    assert made == PretrainConfig(seed=4, exponent=50.0)
