"""Fixtures shared by the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)
W2V = {"conv_channels": 8, "width": 16, "layers": 1, "heads": 2, "ffn": 16, "entries": 8}
W2V |= {"sampling_rate": 100, "conv_blocks": 2, "position_kernel": 8, "position_groups": 4}
TS2VEC = {"network": {"hidden": 4, "depth": 3, "channels": 8}}
W2V = {"network": {**W2V, "target_dim": 8}}
SMALL_NETWORKS = {"ts2vec": TS2VEC, "random_ts2vec": TS2VEC, "w2v": W2V, "random_w2v": W2V}


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real recordings; the test is skipped where it is absent."""
    folder = Path(os.environ.get("BEATSSL_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "ptbxl-subset" / "ptbxl_database.csv").is_file():
        pytest.skip(f"real recordings not found ({folder.name}): set BEATSSL_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A small synthetic workspace: 160 PTB-XL-like, 8 LUDB-like, 4 Challenge-like records."""
    from beatssl.data.beats import prepare_beats
    from beatssl.data.store import prepare
    from beatssl.methods import make_run
    from beatssl.methods.encoder import EncoderConfig
    from beatssl.profile import CompareConfig, Profile, Workspace
    from beatssl.settings import DataConfig
    from beatssl.tasks.classify import ClassifyConfig
    from beatssl.tasks.segment import SegmentConfig

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEATSSL_WORK", str(tmp_path_factory.mktemp("work")))
        profile = Profile(
            name="small",
            data=DataConfig(
                synthetic=True, synthetic_ptbxl=160, synthetic_ludb=8, synthetic_challenge=4
            ),
            encoder=EncoderConfig(widths=(8, 16), strides=(1, 2), dilations=(1, 2), blocks=1),
            methods=SMALL_NETWORKS,
            compare=CompareConfig(label_fractions=(0.5, 1.0), draws=2, folds=2, repeats=2),
            classify=ClassifyConfig(
                label_fractions=(1.0,),
                bootstrap=50,
                finetune_epochs=1,
                finetune_learning_rates=(1e-3,),
            ),
            segment=SegmentConfig(folds=2, epochs=2, bootstrap=50, finetune_learning_rates=(2e-3,)),
            runs=(make_run(epochs=3, batch_size=32), make_run(method="random")),
        )
        store = prepare(profile.data, profile.work / "store", profile.work)
        beats = prepare_beats(store, profile.work / "beats")
        yield Workspace(profile, store, beats)
