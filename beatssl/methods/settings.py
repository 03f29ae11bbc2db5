"""Settings of a run, whatever its method."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from beatssl.settings import ConfigError, one_of

RHYTHM_TARGETS = ("hard", "soft_1", "soft_2")


BEAT_TARGETS = ("none", "hard", "soft_1", "soft_2")


LOSSES = ("normalised", "unnormalised", "bce", "mse")


MEASURES = (  # of similarity between two feature vectors, see `beatssl.methods.targets`
    "cosine",
    "cosine_standardised",
    "cosine_minmax",
    "inverse_distance",
    "exp_distance",
    "linear_distance",
)


AMPLITUDE_UNITS = ("mV", "uV")


ROW = ("rhythm", "beat", "exponent")  # of the paper's Table 1; only Beat-SSL has one


RELEASED_ECG_FM = "BEATSSL_ECG_FM"  # environment variable: file of the released ECG-FM weights


TRAINING = (  # settings that concern every method that is trained
    "seed",
    "epochs",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "warmup_fraction",
)


DELINEATORS = ("neurokit_dwt", "neurokit_peak", "neurokit_prominence")  # draw waves, no training


UNTRAINED = {  # random weights: method -> the methods whose network it is
    "random": ("beatssl", "cmsc", "domain_ssl"),  # batch-norm statistics (0, 1): no normalisation
    "random_data": ("beatssl", "cmsc", "domain_ssl"),  # statistics of the records pretrained on
    "random_ts2vec": ("ts2vec",),  # these two networks have no batch normalisation
    "random_w2v": ("w2v",),
}


METHODS = (
    *UNTRAINED,
    "features",
    "beatssl",
    "cmsc",
    "domain_ssl",
    "ts2vec",
    "w2v",
    "ecg_fm",
    *DELINEATORS,
)


@dataclass(frozen=True)
class PretrainConfig:
    """One pretraining run. An ablation row of the paper is (rhythm, beat, exponent)."""

    method: str = "beatssl"  # one of METHODS
    rhythm: str = "hard"  # hard | soft_1 | soft_2
    beat: str = "none"  # none | hard | soft_1 | soft_2
    exponent: float = 1.0
    variant: str = ""  # names what differs from the row's settings; empty for the row itself
    seed: int = 0
    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1.0e-3
    weight_decay: float = 1.0e-4
    warmup_fraction: float = 0.1
    loss: str = "normalised"  # normalised | unnormalised | bce | mse
    temperature: float = 0.1
    soft_1: str = "cosine"  # what soft_1 measures, one of MEASURES
    soft_2: str = "inverse_distance"  # what soft_2 measures, one of MEASURES
    amplitude_unit: str = "mV"  # mV | uV: of raw features; only the measure `cosine` depends on it
    rhythm_weight: float = 1.0
    beat_weight: float = 1.0
    beat_scope: str = "batch"  # batch | record: which beats are contrasted with each other
    beat_classifier: str = "rules"  # rules | clusters
    beat_before: float = 0.25  # s before the R peak
    beat_after: float = 0.50  # s after the R peak
    beats_per_record: int = 8
    projector_hidden: int = 256
    projector_out: int = 128
    rotation_degrees: float = 45.0
    scale_max: float = 1.5
    mask_fraction: float = 0.5
    encoder_stride: int = 0  # input samples per encoder step; 0: as the profile's encoder

    def __post_init__(self) -> None:
        one_of("method", self.method, METHODS)
        one_of("rhythm", self.rhythm, RHYTHM_TARGETS)
        one_of("beat", self.beat, BEAT_TARGETS)
        one_of("loss", self.loss, LOSSES)
        one_of("soft_1", self.soft_1, MEASURES)
        one_of("soft_2", self.soft_2, MEASURES)
        one_of("amplitude_unit", self.amplitude_unit, AMPLITUDE_UNITS)
        one_of("beat_scope", self.beat_scope, ("batch", "record"))
        one_of("beat_classifier", self.beat_classifier, ("rules", "clusters"))
        if self.exponent <= 0:
            raise ConfigError(f"exponent must be positive, got {self.exponent}")
        if self.batch_size < 2:
            raise ConfigError("batch_size must be at least 2: a contrast needs another record")
        if not re.fullmatch(r"[a-z0-9_.]*", self.variant):
            raise ConfigError(f"variant={self.variant!r}: only a-z, 0-9, _ and . may be used")

    @property
    def name(self) -> str:
        """The run without its seed: method, the ablation row, the variant."""
        row = [self.rhythm, self.beat, f"{self.exponent:g}"] if self.method == "beatssl" else []
        return "-".join([self.method, *row, *filter(None, [self.variant])])

    @property
    def run_id(self) -> str:
        """Name of the run with its seed."""
        return f"{self.name}-s{self.seed}"

    @property
    def has_encoder(self) -> bool:
        """False for the ECG features and the delineators: there is nothing to pretrain."""
        return self.method not in ("features", *DELINEATORS)

    @property
    def untrained(self) -> bool:
        """Random weights: there is an encoder, and nothing is trained."""
        return self.method in UNTRAINED

    def own_settings(self) -> dict:
        """The settings that concern its method, by name: those of another one change nothing."""
        if self.method == "beatssl":
            names = [f.name for f in dataclasses.fields(self) if f.name != "variant"]
        elif self.untrained:
            names = ["method", "seed", *(["batch_size"] if self.method == "random_data" else [])]
        else:
            names = ["method", *TRAINING]
        return {name: getattr(self, name) for name in names}

    def target(self, kind: str) -> str:
        """`hard`, or what the soft target `soft_1` or `soft_2` measures."""
        return {"soft_1": self.soft_1, "soft_2": self.soft_2}.get(kind, kind)
