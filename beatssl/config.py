"""Settings as frozen dataclasses: an unknown key or a wrong type is an error, never ignored.

`runs.yml` holds one mapping per profile (tiny | subset | full); `load_profile` turns it into a
`Profile`. Every default that the paper does not state is ours and is listed in the book's page
"What the paper does not say".
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
RUNS_YML = ROOT / "runs.yml"

RHYTHM_TARGETS = ("hard", "soft_1", "soft_2")
BEAT_TARGETS = ("none", "hard", "soft_1", "soft_2")
LOSSES = ("normalised", "unnormalised", "bce", "mse")
MEASURES = (  # of similarity between two feature vectors, see `beatssl.targets`
    "cosine", "cosine_standardised", "cosine_minmax",
    "inverse_distance", "exp_distance", "linear_distance",
)  # fmt: skip
AMPLITUDE_UNITS = ("mV", "uV")
PRECISIONS = ("auto", "bf16", "float32")
ROW = ("rhythm", "beat", "exponent")  # of the paper's Table 1; only Beat-SSL has one
RELEASED_ECG_FM = "BEATSSL_ECG_FM"  # environment variable: file of the released ECG-FM weights
TRAINING = (  # settings that concern every method that is trained
    "seed", "epochs", "batch_size", "learning_rate", "weight_decay", "warmup_fraction",
)  # fmt: skip
DELINEATORS = ("neurokit_dwt", "neurokit_peak", "neurokit_prominence")  # draw waves, no training
UNTRAINED = {  # random weights: method -> the methods whose network it is
    "random": ("beatssl", "cmsc", "domain_ssl"),  # batch-norm statistics (0, 1): no normalisation
    "random_data": ("beatssl", "cmsc", "domain_ssl"),  # statistics of the records pretrained on
    "random_ts2vec": ("ts2vec",),  # these two networks have no batch normalisation
    "random_w2v": ("w2v",),
}
METHODS = (
    *UNTRAINED, "features", "beatssl", "cmsc", "domain_ssl", "ts2vec", "w2v", "ecg_fm",
    *DELINEATORS,
)  # fmt: skip


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type, or outside its allowed values."""


def work_dir() -> Path:
    """Folder for everything that can be computed again (environment variable BEATSSL_WORK)."""
    return Path(os.environ.get("BEATSSL_WORK") or ROOT / "work")


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class DataConfig:
    """Which record folders are read and how a record becomes a row of the store.

    Folders are relative to the data root (option DATA of the Makefile, environment variable
    BEATSSL_DATA); an empty name leaves the data set out. With `synthetic` true the folders are
    written by `beatssl.synthetic` first.
    """

    synthetic: bool = False
    synthetic_ptbxl: int = 0  # number of simulated records per layout
    synthetic_ludb: int = 0
    synthetic_challenge: int = 0
    ptbxl: str = ""
    ludb: str = ""
    challenge: str = ""
    sampling_rate: int = 100  # Hz
    seconds: float = 10.0  # length of a row; longer recordings give several rows
    low_cut: float = 0.5  # Hz, zero-phase Butterworth band-pass; 0 switches that side off
    high_cut: float = 40.0  # Hz
    einthoven_tolerance: float = 0.1  # sd(I + III - II) / sd(II) above this: set aside


@dataclass(frozen=True)
class ComputeConfig:
    """What numbers depend on besides seeds, see `beatssl.compute`."""

    threads: int = 1  # of PyTorch, NumPy and scikit-learn
    precision: str = "auto"  # of training: auto (bf16 where the hardware has it) | bf16 | float32

    def __post_init__(self) -> None:
        _one_of("precision", self.precision, PRECISIONS)
        if self.threads < 1:
            raise ConfigError(f"threads must be at least 1, got {self.threads}")


@dataclass(frozen=True)
class EncoderConfig:
    """A 1-D ResNet whose output keeps a time axis (stem stride x product of strides)."""

    widths: tuple[int, ...] = (32, 64, 128, 128)
    strides: tuple[int, ...] = (1, 2, 1, 1)
    dilations: tuple[int, ...] = (1, 1, 2, 4)
    blocks: int = 2  # residual blocks per stage
    stem_kernel: int = 15
    stem_stride: int = 2
    kernel: int = 3

    @property
    def stride(self) -> int:
        """Input samples per output step."""
        return self.stem_stride * math.prod(self.strides)

    def with_stride(self, stride: int) -> EncoderConfig:
        """The same layers with another stride: stages after the first halve the time axis, early
        ones first, until it is reached.

        Raises:
            ConfigError: not stem_stride times 1, 2, .. 2^(stages - 1).
        """
        halvings = (stride // self.stem_stride).bit_length() - 1
        late = len(self.strides) - 1
        if stride != self.stem_stride << max(halvings, 0) or halvings > late:
            known = [self.stem_stride << k for k in range(late + 1)]
            raise ConfigError(
                f"encoder_stride={stride} cannot be built; known: {', '.join(map(str, known))}"
            )
        return dataclasses.replace(self, strides=(1, *[2] * halvings, *[1] * (late - halvings)))


@dataclass(frozen=True)
class StandardisedConfig(EncoderConfig):
    """The same ResNet with leads z-scored before it. Domain-SSL pretrains on such leads."""

    standardise_leads: bool = field(default=True, init=False)  # what tells it from an EncoderConfig


@dataclass(frozen=True)
class TS2VecConfig:
    """Architecture and views of TS2Vec; the defaults are its paper's (`methods.ts2vec`).

    Attributes:
        hidden: width of the blocks.
        depth: blocks of that width; one more, of width `channels`, follows.
        channels: length of a time step's vector.
        dropout: probability, after the last block.
        mask_probability: probability that a time step is masked in a training view.
        temporal_unit: first pooling level with a temporal part; level k has 2^k samples a step.
    """

    hidden: int = 64
    depth: int = 10
    channels: int = 320
    dropout: float = 0.1
    mask_probability: float = 0.5
    temporal_unit: int = 0


@dataclass(frozen=True)
class W2VConfig:
    """Sizes of a wav2vec 2.0 encoder; the defaults are those of the released ECG-FM weights
    (`methods.ecg_fm`).

    Attributes:
        sampling_rate: Hz of what the convolutions see.
        conv_blocks: convolutions (kernel 2, stride 2), each halves the time axis.
        conv_channels: of the convolutions.
        width, layers, heads, ffn: of the transformer.
        position_kernel, position_groups: of the positional convolution.
        dropout: everywhere (input, targets, attention, residual branches).
        codebooks, entries: groups of the quantiser and vectors in each.
        target_dim: length of a quantised target, all codebooks together.
    """

    sampling_rate: int = 500
    conv_blocks: int = 4
    conv_channels: int = 256
    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    position_kernel: int = 128
    position_groups: int = 16
    dropout: float = 0.1
    codebooks: int = 2
    entries: int = 320
    target_dim: int = 256

    @property
    def stride(self) -> int:
        """Samples a token."""
        return 2**self.conv_blocks


# The recipe in small, called W2V+CMSC+RLM (small), never ECG-FM: 40 ms a token, a vector as long as
# the ResNet's, a size that trains on two cores.
W2V_SMALL = W2VConfig(
    sampling_rate=100, conv_blocks=2, conv_channels=128, width=128, layers=4, heads=4, ffn=512,
    position_kernel=64,
)  # fmt: skip
Architecture = EncoderConfig | TS2VecConfig | W2VConfig


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
        _one_of("method", self.method, METHODS)
        _one_of("rhythm", self.rhythm, RHYTHM_TARGETS)
        _one_of("beat", self.beat, BEAT_TARGETS)
        _one_of("loss", self.loss, LOSSES)
        _one_of("soft_1", self.soft_1, MEASURES)
        _one_of("soft_2", self.soft_2, MEASURES)
        _one_of("amplitude_unit", self.amplitude_unit, AMPLITUDE_UNITS)
        _one_of("beat_scope", self.beat_scope, ("batch", "record"))
        _one_of("beat_classifier", self.beat_classifier, ("rules", "clusters"))
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


@dataclass(frozen=True)
class ClassifyConfig:
    """Task 1, PTB-XL superdiagnostic classes."""

    label_fractions: tuple[float, ...] = (0.1, 1.0)
    bootstrap: int = 1000
    finetune_epochs: int = 15
    finetune_batch_size: int = 64
    finetune_learning_rates: tuple[float, ...] = (3.0e-4, 1.0e-3, 3.0e-3)
    finetune_weight_decay: float = 1.0e-2

    def __post_init__(self) -> None:
        _some_rates(self.finetune_learning_rates)


@dataclass(frozen=True)
class SegmentConfig:
    """Task 2, LUDB waves."""

    lead: str = "II"
    folds: int = 5
    epochs: int = 40
    batch_size: int = 16
    learning_rate: float = 2.0e-3  # of the decoder on a frozen encoder
    finetune_learning_rates: tuple[float, ...] = (6.0e-4, 2.0e-3, 6.0e-3)
    decoder_width: int = 32
    tolerance_ms: float = 150.0
    bootstrap: int = 1000

    def __post_init__(self) -> None:
        _some_rates(self.finetune_learning_rates)


@dataclass(frozen=True)
class CompareConfig:
    """What the comparison of methods adds to the two tasks (paper.md 2.4 and 7, our default)."""

    label_fractions: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    draws: int = 5  # stratified draws of the labelled records at each fraction
    folds: int = 5  # of LUDB, by record
    repeats: int = 5  # of the folds, each with another split and decoder


@dataclass(frozen=True)
class Profile:
    """Everything a scale (tiny | subset | full) fixes; `runs` are the pretraining runs, `pretrain`
    the settings of a run that is not among them."""

    name: str
    data: DataConfig = field(default_factory=DataConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    ts2vec: TS2VecConfig = field(default_factory=TS2VecConfig)
    w2v: W2VConfig = W2V_SMALL
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    runs: tuple[PretrainConfig, ...] = ()

    @property
    def work(self) -> Path:
        return work_dir() / self.name

    def repeats_of(self, run: PretrainConfig) -> tuple[int, ...]:
        """Numbers of the repeats of LUDB's folds that a run's encoder is evaluated in: repeat k
        takes encoder k mod their number of the method's seeds, so that a method has as many
        repeats whether it has one seed or several."""
        seeds = sorted({run.seed, *(other.seed for other in self.runs if other.name == run.name)})
        return tuple(range(seeds.index(run.seed), self.compare.repeats, len(seeds)))

    def encoder_of(self, run: PretrainConfig) -> Architecture:
        """The encoder of a run. TS2Vec and wav2vec 2.0 bring their own; all others have the
        profile's ResNet, with the run's stride where it names one, and for Domain-SSL with
        z-scored leads."""
        network = run.method.removeprefix("random_")
        if network in ("ts2vec", "w2v"):
            return getattr(self, network)
        if run.method == "ecg_fm":
            return W2VConfig()
        own = self.encoder.with_stride(run.encoder_stride) if run.encoder_stride else self.encoder
        return StandardisedConfig(**vars(own)) if run.method == "domain_ssl" else own


def _one_of(name: str, value: object, allowed: tuple) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} is not known; known: {', '.join(map(str, allowed))}")


def _some_rates(rates: tuple[float, ...]) -> None:
    if not rates or min(rates) <= 0:
        raise ConfigError(f"finetune_learning_rates={rates!r}: name one or more, all positive")


def _convert(value: object, kind: type, where: str) -> object:
    """Check `value` against the annotated type; an int is taken where a float is wanted."""
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        inner = typing.get_args(kind)[0]
        return tuple(_convert(v, inner, f"{where}[{i}]") for i, v in enumerate(value))
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else from_dict(kind, value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        hint = ""
        if kind in (int, float) and isinstance(value, str):
            hint = " (YAML reads 1e-3 as text: write 1.0e-3)"
        raise ConfigError(f"{where}: expected {kind.__name__}, got {value!r}{hint}")
    return value


def from_dict(cls: type, mapping: typing.Mapping, where: str = ""):
    """Build the dataclass `cls` from a mapping.

    Raises:
        ConfigError: an unknown key (the known ones are listed) or a value of the wrong type.
    """
    where = where or cls.__name__
    if not isinstance(mapping, typing.Mapping):
        raise ConfigError(f"{where}: expected a mapping, got {mapping!r}")
    kinds = typing.get_type_hints(cls)
    unknown = sorted(set(mapping) - set(kinds))
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(kinds)}")
    return cls(**{k: _convert(v, kinds[k], f"{where}.{k}") for k, v in mapping.items()})


def differing(run: PretrainConfig, base: PretrainConfig) -> list[str]:
    """Names of the settings in which two runs differ, besides variant and seed."""
    names = [f.name for f in dataclasses.fields(run) if f.name not in ("variant", "seed")]
    return [name for name in names if getattr(run, name) != getattr(base, name)]


def run_of(profile: Profile, namespace: typing.Mapping) -> PretrainConfig:
    """The run that the parameters of the pretraining notebook ask for.

    What the profile says holds unless a parameter is given: a setting that is None is that of the
    profile's run of the same name, or, where it lists none, that of its `pretrain`. A setting that
    differs from it goes into the run's variant (`temperature_0.5`), unless the parameter `variant`
    gives a name that the profile does not know: so no run of the profile is ever overwritten.

    Args: namespace: `globals()` of the notebook.

    Raises:
        ConfigError: a value of the wrong type or outside its range, or more changes than fit in
            a name.
    """
    fields = [f.name for f in dataclasses.fields(PretrainConfig)]
    given = {name: namespace[name] for name in fields if namespace.get(name) is not None}
    asked = from_dict(PretrainConfig, given)
    own = ("method", *ROW) if asked.method == "beatssl" else ("method",)
    taken = {*own, "seed", *given} - ({*ROW} - {*own})  # other methods have no row
    known: dict[str, PretrainConfig] = {}
    for run in sorted(profile.runs, key=lambda run: run.seed != asked.seed):
        known.setdefault(run.name, run)
    row = dataclasses.replace(asked, variant="").name
    known.setdefault(row, _with(profile.pretrain, asked, own))
    config = _with(known.get(asked.name, known[row]), asked, taken)
    while changed := differing(config, known.get(config.name, config)):
        words = [f"{name}_{_word(getattr(config, name))}" for name in changed]
        variant = ".".join(filter(None, [known[config.name].variant, *words]))
        if len(variant) > 120:  # it becomes part of file names
            raise ConfigError(f"name these changes with the parameter variant: {', '.join(words)}")
        config = dataclasses.replace(config, variant=variant)
    return config


def _with(base: PretrainConfig, other: PretrainConfig, names: Iterable[str]) -> PretrainConfig:
    """`base` with these settings of `other`."""
    return dataclasses.replace(base, **{name: getattr(other, name) for name in names})


def _word(value: object) -> str:
    """A setting's value in the letters of a variant's name: 1e-05 is 0.00001."""
    text = f"{Decimal(repr(value)).normalize():f}" if isinstance(value, float) else str(value)
    return re.sub(r"[^a-z0-9_.]", "_", text.lower())


def to_dict(config: object) -> dict:
    """Plain JSON-able mapping of a configuration dataclass."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def config_hash(*configs: object) -> str:
    """Twelve hexadecimal digits that change whenever any setting changes."""
    plain = [to_dict(c) if dataclasses.is_dataclass(c) else c for c in configs]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def load_profile(name: str, path: Path | None = None) -> Profile:
    """Read one profile of `runs.yml`.

    The entry has the keys of `Profile` (without `name`); `pretrain` holds settings common to all
    its runs, and an item of `runs` may carry `seeds: [..]` in place of `seed`. `variants` holds
    runs that change one thing: `base` and, by name, the settings in which a variant differs from it
    (`seeds` of the base are its own; a variant of another method differs from that one's defaults).
    Where the environment variable BEATSSL_ECG_FM names a file, the released ECG-FM is a run too.

    Raises:
        ConfigError: unknown profile, unknown key, wrong type, or two runs with the same id.
    """
    path = path or RUNS_YML
    profiles = yaml.safe_load(path.read_text())["profiles"]
    if name not in profiles:
        raise ConfigError(f"profile {name!r} is not in {path.name}; known: {', '.join(profiles)}")
    entry = dict(profiles[name])
    common = entry.get("pretrain", {})
    runs = []
    variants = entry.pop("variants", {})
    base = {k: v for k, v in variants.get("base", {}).items() if k != "seeds"}
    changed = [
        {**({} if "method" in change else base), **change, "variant": key}
        for key, change in variants.items()
    ]
    for item in [*entry.pop("runs", []), *changed]:
        item = {**common, **item}
        for seed in item.pop("seeds", None) or [item.get("seed", 0)]:
            runs.append(from_dict(PretrainConfig, {**item, "seed": seed}, f"{name}.runs"))
    if os.environ.get(RELEASED_ECG_FM) and "ecg_fm" not in [run.method for run in runs]:
        runs.append(PretrainConfig(method="ecg_fm"))
    ids = [run.run_id for run in runs]
    for run_id in ids:
        if ids.count(run_id) > 1:
            raise ConfigError(f"profile {name!r} lists the run {run_id} twice")
    return from_dict(Profile, {**entry, "name": name, "runs": tuple(runs)}, name)
