"""Pretraining methods, all behind the two verbs of `base.Method`:
`training_step(batch, generator) -> losses` and `encode(signals) -> (batch, channels, steps)`.

A method may bring its own encoder (TS2Vec, wav2vec 2.0); the others train the profile's ResNet.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from beatssl.fingerprint import name_of
from beatssl.methods import beatssl, cmsc, domain_ssl, ecg_fm, ts2vec
from beatssl.methods.base import Method, Setup
from beatssl.methods.ecg_fm import W2VConfig
from beatssl.methods.encoder import (
    Architecture,
    EncoderConfig,
    StandardisedConfig,
    resnet,
    standardised_resnet,
)
from beatssl.methods.settings import RELEASED_ECG_FM, PretrainConfig
from beatssl.methods.ts2vec import TS2VecConfig

METHODS = {  # those that are trained; each makes its `Method` from a `Setup`
    "beatssl": beatssl.build,
    "cmsc": cmsc.build,
    "domain_ssl": domain_ssl.build,
    "ts2vec": ts2vec.build,
    "w2v": ecg_fm.build,
}
ENCODERS = {  # architecture -> function (architecture, Hz of the records) -> encoder
    EncoderConfig: resnet,
    StandardisedConfig: standardised_resnet,
    TS2VecConfig: ts2vec.encoder,
    W2VConfig: ecg_fm.encoder,
}


def code_of(config: PretrainConfig, architecture: Architecture) -> tuple[str, ...]:
    """Names of the definitions that decide the weights of a run, beside the training loop; see
    `fingerprint.code_hash`."""
    parts = [make_encoder, ENCODERS[type(architecture)]]
    if config.method in METHODS:
        parts += [build, METHODS[config.method]]
    return tuple(map(name_of, parts))


def make_encoder(config: Architecture, sampling_rate: int) -> torch.nn.Module:
    """The encoder of an architecture, with random weights.

    Args: sampling_rate: Hz of the records that it will see."""
    return ENCODERS[type(config)](config, sampling_rate)


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


def build(setup: Setup) -> Method:
    """The method of a run around its encoder; random weights are drawn from torch's global RNG.

    Raises:
        ValueError: the method has nothing to train.
    """
    if setup.config.method not in METHODS:
        raise ValueError(f"method {setup.config.method} has nothing to train")
    return METHODS[setup.config.method](setup)
