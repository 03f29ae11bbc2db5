"""A vector of one's own ECG is what the book's probes see of the same record."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import beatssl
from beatssl.data.records import LAYOUTS, LEADS, RecordError
from beatssl.data.store import prepare
from beatssl.data.synthetic import write_folders
from beatssl.embedder import BeatSSLEmbedder, embed, read_encoder
from beatssl.methods.encoder import EncoderConfig, StandardisedConfig, build_encoder, save_encoder
from beatssl.settings import ConfigError, DataConfig
from beatssl.tasks.classify import embed as embed_rows
from beatssl.weights import WeightsError

SMALL = EncoderConfig(widths=(8, 8), strides=(1, 2), dilations=(1, 1), blocks=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("own"), 0, 6, 0, seed=0)


@pytest.fixture(scope="module")
def ecgs(folders):
    layout = LAYOUTS["ludb"]  # whose headers hold no physical unit: from the raw numbers
    rows = layout.list(folders / "ludb").to_dict("records")
    records = [layout.read(folders / "ludb", row) for row in rows]
    return [beatssl.read_ecg(r.signal, r.sampling_rate, LEADS) for r in records]


@pytest.fixture(scope="module")
def encoder():
    return build_encoder(SMALL, 0).eval()


def test_vectors_are_those_of_the_book(folders, ecgs, encoder, tmp_path):
    store = prepare(DataConfig(ludb="ludb"), tmp_path / "store", folders)
    rows = store.rows("ludb")
    want = embed_rows(encoder, store, rows)
    got = BeatSSLEmbedder(encoder).fit_transform(ecgs)
    assert len(want) == 6
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_pieces_of_a_long_recording_are_steps_in_a_row(encoder):
    ecg = beatssl.read_ecg(np.random.default_rng(0).standard_normal((12, 9100)), 250, LEADS)
    steps = embed(ecg, "step", encoder)
    assert steps.shape == (-(-3640 // encoder.stride), 8)  # 36.4 s
    np.testing.assert_allclose(embed(ecg, "record", encoder), steps.mean(axis=0), atol=1e-6)
    early = beatssl.read_ecg(ecg.signal[:, : 30 * 250], 250, LEADS)
    n = 992 // encoder.stride
    np.testing.assert_allclose(embed(early, "step", encoder)[:n], steps[:n], atol=1e-5)


def test_gain_of_the_device_means_nothing(ecgs, encoder):
    ecg = ecgs[0]
    louder = beatssl.read_ecg(ecg.signal * 3, ecg.sampling_rate, ecg.leads)
    np.testing.assert_allclose(embed(louder, encoder=encoder), embed(ecg, encoder=encoder),
                               atol=2e-3)  # fmt: skip


def test_a_vector_for_each_beat(ecgs, encoder):
    waves = beatssl.delineate(ecgs[0])
    beats = waves[(waves["lead"] == "II") & (waves["wave"] == "QRS")]
    of_beats, steps = embed(ecgs[0], "beat", encoder), embed(ecgs[0], "step", encoder)
    assert of_beats.shape == (len(beats), 8) and len(beats) > 3
    step = encoder.stride / 100
    for at, vector in zip(beats["peak"], of_beats, strict=True):  # a mean of the steps around it
        near = steps[max(0, int((at - 0.25) / step)) : int(np.ceil((at + 0.5) / step)) + 1]
        assert (vector >= near.min(axis=0) - 1e-5).all()
        assert (vector <= near.max(axis=0) + 1e-5).all()


def test_missing_leads_are_zero_and_said(ecgs, encoder):
    whole = ecgs[0]
    two = beatssl.read_ecg(whole.signal[[0, 6]], whole.sampling_rate, ["I", "V1"])
    zeros = np.where(np.isin(LEADS, ["I", "V1"])[:, None], whole.signal, 0)
    with pytest.warns(UserWarning, match="no II, III, aVR"):
        got = embed(two, encoder=encoder)
    want = embed(beatssl.read_ecg(zeros, whole.sampling_rate, LEADS), encoder=encoder)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_other_leads_have_no_part_in_a_vector(ecgs, encoder):
    whole = ecgs[0]
    more = np.concatenate([whole.signal, whole.signal[:1]])
    more = beatssl.read_ecg(more, whole.sampling_rate, [*LEADS, "CM5"])
    np.testing.assert_array_equal(embed(more, encoder=encoder), embed(whole, encoder=encoder))
    alone = beatssl.read_ecg(whole.signal[:1], whole.sampling_rate, ["CM5"])
    with pytest.raises(RecordError, match="none of the twelve leads: CM5"):
        embed(alone, encoder=encoder)
    assert set(beatssl.delineate(alone)["lead"]) == {"CM5"}


def test_slow_rates_are_said(ecgs, encoder):
    slow = beatssl.read_ecg(ecgs[0].signal[:, ::8], 62.5, LEADS)
    with pytest.warns(UserWarning, match="slower than the 100 Hz of training"):
        embed(slow, encoder=encoder)


def test_a_run_of_ones_own_is_read_by_its_folder(ecgs, encoder, tmp_path):
    save_encoder(encoder, tmp_path / "run" / "encoder.safetensors")
    np.testing.assert_array_equal(embed(ecgs[0], encoder=tmp_path / "run"),
                                  embed(ecgs[0], encoder=encoder))  # fmt: skip
    other = build_encoder(StandardisedConfig(widths=(8,), strides=(1,), dilations=(1,)), 0)
    save_encoder(other, tmp_path / "other.safetensors")
    assert read_encoder(tmp_path / "other.safetensors").config.standardise_leads


def test_wrong_weights_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="weights without a description"):
        read_encoder(tmp_path / "w.safetensors")
    save_file({"w": torch.zeros(1)}, tmp_path / "v.safetensors", {"delineator": "{}"})
    with pytest.raises(WeightsError, match="needs an encoder, it holds delineator"):
        read_encoder(tmp_path / "v.safetensors")
    with pytest.raises(ConfigError, match="of"):
        embed(beatssl.read_ecg(np.ones((1, 500)), 250, ["II"]), "window")


def test_a_pipeline_is_three_lines(ecgs, encoder):
    model = make_pipeline(BeatSSLEmbedder(encoder), StandardScaler())
    assert model.fit_transform(ecgs).shape == (len(ecgs), 8)
