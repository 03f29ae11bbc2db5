"""A scale (tiny | subset | full): what runs.yml says of it, and what all its runs share."""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import yaml

from beatssl import compute
from beatssl.cache import clear_leftovers
from beatssl.data.beats import Beats, prepare_beats
from beatssl.data.store import Store, prepare
from beatssl.methods.ecg_fm import W2V_SMALL, W2VConfig
from beatssl.methods.encoder import Architecture, EncoderConfig, StandardisedConfig
from beatssl.methods.settings import RELEASED_ECG_FM, ROW, PretrainConfig
from beatssl.methods.ts2vec import TS2VecConfig
from beatssl.settings import (
    ROOT,
    ComputeConfig,
    ConfigError,
    DataConfig,
    cores,
    from_dict,
    one_of,
    work_dir,
)
from beatssl.tasks import TASKS
from beatssl.tasks.classify import ClassifyConfig
from beatssl.tasks.compare import CompareConfig
from beatssl.tasks.segment import SegmentConfig

RUNS_YML = ROOT / "runs.yml"


@dataclass(frozen=True)
class Profile:
    """Everything a scale (tiny | subset | full) fixes; `runs` are the pretraining runs, `pretrain`
    the settings of a run that is not among them, `tasks` the settings of further tasks."""

    name: str
    data: DataConfig = field(default_factory=DataConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    ts2vec: TS2VecConfig = field(default_factory=TS2VecConfig)
    w2v: W2VConfig = W2V_SMALL
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    tasks: typing.Mapping = field(default_factory=dict)  # by `Task.group`
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


def load_profile(name: str, path: Path | None = None) -> Profile:
    """Read one profile of `runs.yml`.

    The entry has the keys of `Profile` (without `name`); `pretrain` holds settings common to all
    its runs, and an item of `runs` may carry `seeds: [..]` in place of `seed`. `variants` holds
    runs that change one thing: `base` and, by name, the settings in which a variant differs from it
    (`seeds` of the base are its own; a variant of another method differs from that one's defaults).
    `tasks` holds settings of tasks that have no entry of their own, by `Task.group`.
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
    tasks = {group: _settings_of(group, given) for group, given in entry.pop("tasks", {}).items()}
    return from_dict(Profile, {**entry, "name": name, "runs": tuple(runs), "tasks": tasks}, name)


def _settings_of(group: str, given: typing.Mapping) -> object:
    fields = {f.name for f in dataclasses.fields(Profile)}
    kinds = {task.group or task.key: task.Settings for task in TASKS.values()}
    one_of("tasks", group, tuple(kinds.keys() - fields))
    return from_dict(kinds[group], given, f"tasks.{group}")


@dataclass(frozen=True)
class Workspace:
    """A profile with everything that all its runs share."""

    profile: Profile
    store: Store
    beats: Beats


def data_root(profile: Profile) -> Path:
    """Where the record folders lie: BEATSSL_DATA (synthetic records are written by the store).

    Raises:
        FileNotFoundError: BEATSSL_DATA is not set or no folder; says how to set it.
    """
    if profile.data.synthetic:
        return profile.work
    root = Path(os.environ.get("BEATSSL_DATA") or "")
    if not os.environ.get("BEATSSL_DATA") or not root.is_dir():
        names = filter(None, (profile.data.ptbxl, profile.data.ludb, profile.data.challenge))
        raise FileNotFoundError(
            f"profile {profile.name!r} reads real recordings: name the folder that holds "
            f"{', '.join(names)} with `make book PROFILE=... DATA=folder` or the environment "
            "variable BEATSSL_DATA"
        )
    return root


def open_workspace(name: str, jobs: int | None = None) -> Workspace:
    """Read the profile, prepare records and beats (or reuse them), and hand all of it over.

    From then on the process computes with the profile's threads and precision.

    Args:
        name: tiny | subset | full.
        jobs: processes for the preparation; default: the cores of the machine.
    """
    profile = load_profile(name)
    compute.use(profile.compute)
    clear_leftovers(profile.work)
    jobs = jobs or cores()
    store = prepare(profile.data, profile.work / "store", data_root(profile), jobs)
    return Workspace(profile, store, prepare_beats(store, profile.work / "beats", jobs))
