"""A scale (tiny | subset | full | size): what runs.yml says of it, and what all its runs share."""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from beatssl import compute
from beatssl.cache import clear_leftovers
from beatssl.data.beats import Beats, prepare_beats
from beatssl.data.store import Store, prepare
from beatssl.methods import METHODS, known_settings, make_run
from beatssl.methods.base import RunSettings, TrainSettings
from beatssl.methods.ecg_fm_weights import RELEASED_ECG_FM
from beatssl.methods.encoder import Architecture, EncoderConfig
from beatssl.settings import (
    ROOT, ComputeConfig, ConfigError, DataConfig, Rotation, cores, from_dict, one_of, read_yaml,
    work_dir,
)  # fmt: skip
from beatssl.tasks import TASKS
from beatssl.tasks.classify import ClassifyConfig
from beatssl.tasks.compare import CompareConfig
from beatssl.tasks.segment import SegmentConfig

RUNS_YML = ROOT / "runs.yml"


@dataclass(frozen=True)
class Profile:
    """Everything a scale fixes.

    Attributes:
        tasks: settings of further tasks, by `Task.group`.
        methods: method -> settings that all its runs share, unless a run has its own.
        runs: the pretraining runs and references.
    """

    name: str
    data: DataConfig = DataConfig()
    compute: ComputeConfig = ComputeConfig()
    encoder: EncoderConfig = EncoderConfig()
    classify: ClassifyConfig = ClassifyConfig()
    segment: SegmentConfig = SegmentConfig()
    compare: CompareConfig = CompareConfig()
    tasks: Mapping[str, object] = field(default_factory=dict)
    methods: Mapping[str, Mapping] = field(default_factory=dict)
    runs: tuple[RunSettings, ...] = ()

    @property
    def work(self) -> Path:
        return work_dir() / self.name

    def run(self, method: str = "beatssl", **settings: object) -> RunSettings:
        """A run of a method as the profile says, but for these settings."""
        return make_run(method, **{**self.methods.get(method, {}), **settings})

    def rotation_of(self, run: RunSettings) -> Rotation:
        """Which of PTB-XL's folds a run is trained, selected and tested on: by its seed."""
        return self.data.rotations[run.seed % len(self.data.rotations)]

    def repeats_of(self, run: RunSettings) -> tuple[int, ...]:
        """Numbers of the repeats of LUDB's folds that a run's encoder is evaluated in: repeat k
        takes encoder k mod their number of the method's seeds, so that a method has as many
        repeats whether it has one seed or several. Seeds beyond the number of repeats have none:
        of six seeds and five repeats the last is left out. With three rotations of PTB-XL, repeat
        k then takes an encoder of the same rotation whether a method has three seeds or six."""
        seeds = sorted({run.seed, *(other.seed for other in self.runs if other.name == run.name)})
        return tuple(range(seeds.index(run.seed), self.compare.repeats, len(seeds)))

    def encoder_of(self, run: RunSettings) -> Architecture:
        """The sizes of a run's encoder: the profile's ResNet, unless its method brings its own."""
        return run.architecture(self.encoder)


def load_profile(name: str, path: Path = RUNS_YML) -> Profile:
    """Read one profile of `runs.yml`.

    The entry has the keys of `Profile` (without `name`), and `stages`, which are for `pages.plan`
    alone. `pretrain` holds settings common to all
    methods that are trained, `methods` those of single ones, `tasks` those of tasks that have no
    entry of their own, by `Task.group`; an item of `runs` may carry `seeds: [..]` in place of
    `seed`, or be a list of items. `variants` holds runs that change one thing: `base` and, by
    name, the settings in which a variant differs from it (`seeds` of the base are its own; a
    variant of another method differs from that one's defaults). Where the environment variable
    BEATSSL_ECG_FM names a file, the released ECG-FM is a run too.

    Raises:
        ConfigError: unknown profile, unknown key, wrong type, or two runs with the same id.
    """
    profiles = read_yaml(path).get("profiles") or {}
    if name not in profiles:
        raise ConfigError(f"profile {name!r} is not in {path.name}; known: {', '.join(profiles)}")
    entry = {key: value for key, value in profiles[name].items() if key != "stages"}
    shared = _shared(entry.pop("pretrain", {}), entry.pop("methods", {}), name)
    variants = entry.pop("variants", {})
    base = {k: v for k, v in variants.get("base", {}).items() if k != "seeds"}
    items = []
    for item in entry.pop("runs", []):
        items += item if isinstance(item, list) else [item]
    for variant, change in variants.items():
        items.append({**({} if "method" in change else base), **change, "variant": variant})
    runs = {}
    for item in items:
        method = item.get("method", "beatssl")
        item = {**shared.get(method, {}), **item}
        for seed in item.pop("seeds", None) or [item.get("seed", 0)]:
            run = make_run(**{**item, "seed": seed}, where=f"{name}.runs")
            if run.run_id in runs:
                raise ConfigError(f"profile {name!r} lists the run {run.run_id} twice")
            runs[run.run_id] = run
    if os.environ.get(RELEASED_ECG_FM):
        for seed in range(len(entry.get("data", {}).get("rotations", [0]))):
            runs.setdefault(f"ecg_fm-s{seed}", make_run("ecg_fm", seed=seed))
    tasks = {group: _settings_of(group, given) for group, given in entry.pop("tasks", {}).items()}
    entry |= {"name": name, "runs": tuple(runs.values()), "methods": shared, "tasks": tasks}
    return from_dict(Profile, entry, name)


def _settings_of(group: str, given: Mapping) -> object:
    own = {field.name for field in dataclasses.fields(Profile)}
    kinds = {task.group or task.key: task.Settings for task in TASKS.values()}
    one_of("tasks", group, tuple(kinds.keys() - own))
    return from_dict(kinds[group], given, f"tasks.{group}")


def _shared(
    common: Mapping[str, object], of_method: Mapping[str, Mapping], name: str
) -> dict[str, dict]:
    """Method -> settings that all its runs share. An untrained network is that of its method."""
    from_dict(TrainSettings, {"method": "", **common}, f"{name}.pretrain")  # refuses unknown keys
    for method, settings in of_method.items():
        make_run(method, f"{name}.methods.{method}", **settings)
    shared = {}
    for method, entry in METHODS.items():
        given = dict(common)
        for twin in entry.network_of:
            given |= {k: v for k, v in of_method.get(twin, {}).items() if k == "network"}
        given |= of_method.get(method, {})
        shared[method] = {k: v for k, v in given.items() if k in known_settings(method)}
    return shared


# --- a run by hand --------------------------------------------------------------------------------


def differing(run: RunSettings, base: RunSettings) -> list[str]:
    """Names of the settings in which two runs differ, besides variant and seed."""
    names = [name for name in known_settings(run.method) if name not in ("variant", "seed")]
    return [name for name in names if getattr(run, name) != getattr(base, name, None)]


def run_of(profile: Profile, namespace: Mapping[str, object]) -> RunSettings:
    """The run that the parameters of the pretraining notebook ask for.

    What the profile says holds unless a parameter is given: a setting that is None is that of the
    profile's run of the same name, or, where it lists none, of its other runs of the method. A
    setting that differs from it goes into the run's variant (`temperature_0.5`), unless the
    parameter `variant` gives a name that the profile does not know: so no run of the profile is
    ever overwritten.

    Args: namespace: `globals()` of the notebook.

    Raises:
        ConfigError: a value of the wrong type or outside its range, a setting of another method,
            or more changes than fit in a name.
    """
    method = namespace.get("method") or "beatssl"
    one_of("method", method, METHODS)
    rows = METHODS["beatssl"].settings.row  # always given; other methods have none
    every = {name for other in METHODS for name in known_settings(other)} - {*rows}
    every |= {*METHODS[method].settings.row}
    given = {name: namespace[name] for name in sorted(every) if namespace.get(name) is not None}
    asked = make_run(**{**given, "method": method})
    known: dict[str, RunSettings] = {}
    for run in sorted(profile.runs, key=lambda run: run.seed != asked.seed):
        known.setdefault(run.name, run)
    row = dataclasses.replace(asked, variant="").name
    known.setdefault(row, _with(profile.run(method), asked, asked.row))
    config = _with(known.get(asked.name, known[row]), asked, {"seed", *given})
    while changed := differing(config, known.get(config.name, config)):
        words = [f"{name}_{_word(getattr(config, name))}" for name in changed]
        variant = ".".join(filter(None, [known[config.name].variant, *words]))
        if len(variant) > 120:  # it becomes part of file names
            raise ConfigError(f"name these changes with the parameter variant: {', '.join(words)}")
        config = dataclasses.replace(config, variant=variant)
    return config


def _with(base: RunSettings, other: RunSettings, names: Iterable[str]) -> RunSettings:
    """`base` with these settings of `other`."""
    return dataclasses.replace(base, **{name: getattr(other, name) for name in names})


def _word(value: object) -> str:
    """A setting's value in the letters of a variant's name: 1e-05 is 0.00001."""
    text = f"{Decimal(repr(value)).normalize():f}" if isinstance(value, float) else str(value)
    return re.sub(r"[^a-z0-9_.]", "_", text.lower())


# --- what all runs of a profile share -------------------------------------------------------------


@dataclass(frozen=True)
class Workspace:
    """A profile with everything that all its runs share; `has_data` is false where only results
    are at hand, which the pages of results can be made from."""

    profile: Profile
    store: Store
    beats: Beats
    has_data: bool = True


def data_root(profile: Profile) -> Path:
    """Where the record folders lie: BEATSSL_DATA (synthetic records are written by the store).

    Raises:
        FileNotFoundError: BEATSSL_DATA is not set or no folder; says how to set it.
    """
    if profile.data.synthetic:
        return profile.work
    root = os.environ.get("BEATSSL_DATA") or ""
    if not root or not Path(root).is_dir():
        names = ", ".join(source.folder for source in profile.data.all_sources)
        raise FileNotFoundError(
            f"profile {profile.name!r} reads real recordings: name the folder that holds {names} "
            "with `make book PROFILE=... DATA=folder` or the environment variable BEATSSL_DATA"
        )
    return Path(root)


def open_workspace(name: str, needs_data: bool = True) -> Workspace:
    """Read the profile, prepare records and beats (or reuse them), and hand all of it over.

    From then on the process computes with the profile's threads and precision.

    Args:
        name: tiny | subset | full | size.
        needs_data: else, where no recordings are named, a workspace without store and beats.

    Raises:
        FileNotFoundError: see `data_root`.
    """
    profile = load_profile(name)
    compute.use(profile.compute)
    if not (needs_data or profile.data.synthetic or os.environ.get("BEATSSL_DATA")):
        return Workspace(profile, None, None, has_data=False)
    clear_leftovers(profile.work)
    store = prepare(profile.data, profile.work / "store", data_root(profile), cores())
    beats = prepare_beats(store, profile.work / "beats", cores(), profile.data.rotations)
    return Workspace(profile, store, beats)
