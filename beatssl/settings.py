"""Settings as frozen dataclasses: an unknown key or a wrong type is an error, never ignored.

`runs.yml` holds one mapping per profile (tiny | subset | full | size); `load_profile` turns it into
a `Profile`. Every default that the paper does not state is ours and is listed in the book's page
"What the paper does not say".
"""

import dataclasses
import hashlib
import json
import os
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type, or outside its allowed values."""


def read_yaml(path: Path) -> dict:
    """The mapping in a YAML file, which may hold plain values only.

    Raises:
        ConfigError: no readable YAML, or no mapping.
    """
    try:
        found = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} is no readable YAML: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path.name} is no mapping from names to settings")
    return found


def work_dir() -> Path:
    """Folder for everything that can be computed again (environment variable BEATSSL_WORK)."""
    return Path(os.environ.get("BEATSSL_WORK") or ROOT / "work")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


DATASETS = ("ptbxl", "ludb", "challenge")  # those with a setting of their own; PTB-XL first


@dataclass(frozen=True)
class Source:
    """A data set: its name in the store, its layout (`records.LAYOUTS`), and its folder."""

    name: str
    layout: str
    folder: str


FOLDS = range(1, 11)  # PTB-XL's own, each patient in one of them
OFFICIAL = {"train": tuple(range(1, 9)), "validation": (9,), "test": (10,)}


@dataclass(frozen=True)
class Rotation:
    """Which of PTB-XL's folds are tested, and which one selects; all others train.

    Raises:
        ConfigError: no such fold, no test fold, a fold named twice, or none is left to train.
    """

    test: tuple[int, ...] = (10,)
    select: int = 9

    def __post_init__(self) -> None:
        named = [*self.test, self.select]
        unknown = sorted(set(named) - set(FOLDS))
        if unknown:
            raise ConfigError(f"rotations: PTB-XL has folds 1 to 10, no fold {unknown[0]}")
        if not self.test:
            raise ConfigError("rotations: each needs a test fold")
        if len(set(named)) < len(named):
            raise ConfigError(f"rotations: a fold has one part only, got {to_dict(self)}")
        if not self.train:
            raise ConfigError(f"rotations: no fold is left to train on, got {to_dict(self)}")

    @property
    def train(self) -> tuple[int, ...]:
        """The folds that are neither tested nor select."""
        return tuple(fold for fold in FOLDS if fold not in (*self.test, self.select))

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """train, validation and test -> their folds."""
        return {"train": self.train, "validation": (self.select,), "test": self.test}

    @property
    def in_key(self) -> list[dict]:
        """What of it stands in a key: `parts`; nothing for the official ones, so that what was made
        before there were others keeps its key."""
        return [] if self.parts == OFFICIAL else [self.parts]

    def folds(self, part: str) -> str:
        """A part in words: `fold 10`, `folds 1-3, 8-10`."""
        return folds_in_words(self.parts[part])


def folds_in_words(folds: Iterable[int]) -> str:
    """`fold 10`, `folds 1-3, 8-10`."""
    runs: list[list[int]] = []
    for fold in sorted(folds):
        if runs and fold == runs[-1][-1] + 1:
            runs[-1].append(fold)
        else:
            runs.append([fold])
    texts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return f"fold{'s' if '-' in texts[0] or len(texts) > 1 else ''} {', '.join(texts)}"


@dataclass(frozen=True)
class DataConfig:
    """Which record folders are read and how a record becomes a row of the store.

    Folders are relative to the data root (option DATA of the Makefile, environment variable
    BEATSSL_DATA); an empty name leaves the data set out. With `synthetic` true the folders of
    `DATASETS` are written by `beatssl.data.synthetic` first, into what is the data root then.

    Attributes:
        rotations: of PTB-XL's folds: seed k of a method takes number k modulo their number. They
            decide which rows train, select and are tested, not what the store holds.

    Raises:
        ConfigError: two data sets have one name, a folder is named twice, rows have no length, or a
            fold is tested twice.
    """

    synthetic: bool = False
    synthetic_ptbxl: int = 0  # number of simulated records per layout
    synthetic_ludb: int = 0
    synthetic_challenge: int = 0
    ptbxl: str = ""
    ludb: str = ""
    challenge: tuple[str, ...] = ()  # several folders are one data set
    sources: tuple[Source, ...] = ()  # further data sets, each in a known layout
    sampling_rate: int = 100  # Hz
    seconds: float = 10.0  # length of a row; longer recordings give several rows
    low_cut: float = 0.5  # Hz, zero-phase Butterworth band-pass; 0 switches that side off
    high_cut: float = 40.0  # Hz
    einthoven_tolerance: float = 0.1  # sd(I + III - II) / sd(II) above this: set aside
    rotations: tuple[Rotation, ...] = (Rotation(),)

    def __post_init__(self) -> None:
        if self.sampling_rate <= 0 or self.seconds <= 0:
            raise ConfigError("sampling_rate and seconds must be positive")
        names = [*DATASETS, *(source.name for source in self.sources)]
        if len(set(names)) < len(names):
            raise ConfigError(f"sources: each needs a name of its own, got {', '.join(names)}")
        folders = [os.path.normpath(source.folder) for source in self.all_sources]
        if twice := [folder for folder in folders if folders.count(folder) > 1]:
            raise ConfigError(f"folder {twice[0]!r} is named twice under data: name it once")
        tested = [fold for rotation in self.rotations for fold in rotation.test]
        if not tested or len(set(tested)) < len(tested):
            raise ConfigError("rotations: name one or more, and test no fold in two of them")

    def folds(self, part: str) -> str:
        """Folds of a part (`Rotation.parts`) in words: `fold 10`, or `folds 1-3, 4-6, 7-10 in turn`
        where there are several rotations."""
        if len(self.rotations) == 1:
            return self.rotations[0].folds(part)
        each = [rotation.folds(part).split(" ", 1)[1] for rotation in self.rotations]
        return f"folds {', '.join(each)} in turn"

    @property
    def split_in_words(self) -> str:
        """What PTB-XL's folds are for, in words."""
        test, select, n = self.folds("test"), self.folds("validation"), len(self.rotations)
        if n == 1:
            verbs = ("tests" if len(self.rotations[0].test) == 1 else "test"), "selects"
            return f"{test} {verbs[0]}, {select} {verbs[1]}, the others train"
        return f"{test} test, {select} select, the others train: seed k takes rotation k mod {n}"

    @property
    def all_sources(self) -> tuple[Source, ...]:
        """Every folder that takes part; a simulated one does where its count is above 0."""
        folders = {"ptbxl": (self.ptbxl,), "ludb": (self.ludb,), "challenge": self.challenge}
        if self.synthetic:
            folders = {name: (name,) for name in DATASETS if getattr(self, f"synthetic_{name}")}
        own = tuple(Source(n, n, f) for n, some in folders.items() for f in some if f)
        return own + self.sources


@dataclass(frozen=True)
class ComputeConfig:
    """What numbers depend on besides seeds, see `beatssl.compute`."""

    threads: int = 1  # of PyTorch, NumPy and scikit-learn
    precision: str = "auto"  # of training: auto (bf16 where the hardware has it) | bf16 | float32

    def __post_init__(self) -> None:
        one_of("precision", self.precision, ("auto", "bf16", "float32"))
        if self.threads < 1:
            raise ConfigError(f"threads must be at least 1, got {self.threads}")


def one_of(name: str, value: object, allowed: Iterable[str]) -> None:
    """Raises: ConfigError: `value` is not allowed; the known ones are listed."""
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} is not known; known: {', '.join(map(str, allowed))}")


def in_range(settings: object, low: float, high: float, *names: str) -> None:
    """Raises: ConfigError: one of these settings (a number, or a pair in ascending order) does not
    lie in [low, high]."""
    for name in names:
        value = getattr(settings, name)
        limits = value if isinstance(value, tuple) else (value, value)
        if not low <= limits[0] <= limits[1] <= high:
            raise ConfigError(f"{name} must lie in [{low:g}, {high:g}], got {value}")


def some_rates(rates: tuple[float, ...]) -> None:
    if not rates or min(rates) <= 0:
        raise ConfigError(f"finetune_learning_rates={rates!r}: name one or more, all positive")


def _convert(value: object, kind: type, where: str) -> object:
    """Check `value` against the annotated type; an int is taken where a float is wanted."""
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        inner = typing.get_args(kind)[0]
        return tuple(_convert(v, inner, f"{where}[{i}]") for i, v in enumerate(value))
    kind = typing.get_origin(kind) or kind
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else from_dict(kind, value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        text = kind in (int, float) and isinstance(value, str)
        hint = " (YAML reads 1e-3 as text: write 1.0e-3)" if text else ""
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
    hints = typing.get_type_hints(cls)
    kinds = {setting.name: hints[setting.name] for setting in dataclasses.fields(cls)}
    unknown = sorted(set(mapping) - set(kinds))
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(kinds)}")
    return cls(**{k: _convert(v, kinds[k], f"{where}.{k}") for k, v in mapping.items()})


def to_dict(config: object) -> dict:
    """Plain JSON-able mapping of a configuration dataclass."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def config_hash(*configs: object) -> str:
    """Twelve hexadecimal digits that change whenever any setting changes."""
    plain = [to_dict(c) if dataclasses.is_dataclass(c) else c for c in configs]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]
