"""Pretraining methods, all behind the two verbs of `base.Method`:
`training_step(batch, generator) -> losses` and `encode(signals) -> (batch, channels, steps)`.

A method may bring its own encoder (TS2Vec, wav2vec 2.0); the others train the profile's ResNet.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import torch

from beatssl import losses, targets, vcg
from beatssl.config import (
    RELEASED_ECG_FM, Architecture, EncoderConfig, PretrainConfig, TS2VecConfig, W2VConfig,
)  # fmt: skip
from beatssl.methods import base, beatssl, cmsc, domain_ssl, ecg_fm, ts2vec
from beatssl.methods.base import Method
from beatssl.models import Encoder
from beatssl.targets import FeatureScale

CODE = {  # the modules that decide what a method learns, beside the encoder and the training loop
    "random": (),
    "random_data": (),
    "random_ts2vec": (ts2vec,),
    "random_w2v": (ecg_fm,),
    "beatssl": (vcg, targets, losses, beatssl),
    "cmsc": (losses, cmsc),
    "domain_ssl": (targets, losses, domain_ssl),
    "ts2vec": (ts2vec,),
    "w2v": (losses, cmsc, ecg_fm),
    "ecg_fm": (ecg_fm,),
}


def code_of(config: PretrainConfig) -> tuple[ModuleType, ...]:
    """Modules whose code decides the weights of a run of this method."""
    return (base, *CODE[config.method])


def make_encoder(config: Architecture, sampling_rate: int) -> torch.nn.Module:
    """The encoder of an architecture, with random weights.

    Args: sampling_rate: Hz of the records that it will see."""
    if isinstance(config, EncoderConfig):
        return Encoder(config)
    if isinstance(config, TS2VecConfig):
        return ts2vec.TS2VecEncoder(config)
    if isinstance(config, W2VConfig):
        return ecg_fm.EcgFm(ecg_fm.W2VEncoder(config), sampling_rate)
    raise TypeError(f"{config!r} is no architecture")


def released(sampling_rate: int) -> ecg_fm.EcgFm:
    """ECG-FM with its released weights, from the file that BEATSSL_ECG_FM names.

    Raises:
        FileNotFoundError: the variable is not set, or there is no such file.
        CheckpointError: see `ecg_fm.load_ecg_fm`.
    """
    if not os.environ.get(RELEASED_ECG_FM):
        raise FileNotFoundError(
            f"method ecg_fm needs the released weights: name the file with `make ... ECG_FM=file` "
            f"or the environment variable {RELEASED_ECG_FM}"
        )
    encoder = ecg_fm.load_ecg_fm(Path(os.environ[RELEASED_ECG_FM]))
    return ecg_fm.EcgFm(encoder, sampling_rate).eval()


def build(
    config: PretrainConfig,
    encoder: torch.nn.Module,
    *,
    sampling_rate: int,
    record_features: torch.Tensor,
    record_scale: FeatureScale,
    beat_scale: FeatureScale,
    steps: int,
) -> Method:
    """The method of a run around its encoder; random weights are drawn from torch's global RNG.

    Args:
        sampling_rate: Hz of the signals.
        record_features: (records, 54) of all records that are pretrained on, raw.
        record_scale, beat_scale: fitted on them.
        steps: optimiser steps of the whole training.
    """
    if config.method == "beatssl":
        return beatssl.BeatSSL(encoder, config, sampling_rate, record_scale, beat_scale)
    if config.method == "cmsc":
        return cmsc.CMSC(encoder, cmsc.CMSCConfig())
    if config.method == "domain_ssl":
        settings = domain_ssl.DomainSSLConfig()
        known = record_scale.standardise(record_features)
        ids = domain_ssl.cluster_ids(known, settings.clusters, config.seed)
        return domain_ssl.DomainSSL(encoder, settings, record_scale, ids, sampling_rate, steps)
    if config.method == "ts2vec":
        return ts2vec.TS2Vec(encoder)
    if config.method == "w2v":
        return ecg_fm.W2VCmscRlm(encoder)
    raise ValueError(f"method {config.method} has nothing to train")
