"""Tidy result rows: saved per evaluation, collected into `results/<profile>.csv`.

One evaluation is one run, task, protocol and label fraction. Its rows and predictions lie in
`work/<profile>/results/<stem>.json` and `work/<profile>/predictions/<stem>.npz`, both written
atomically and both carrying the evaluation's key, so numbers and predictions never mix.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from beatssl import compute
from beatssl.cache import replacing, write_text
from beatssl.data.store import Store
from beatssl.fingerprint import code_hash, name_of
from beatssl.methods import DELINEATORS
from beatssl.methods import encoder as models
from beatssl.methods.base import RunSettings
from beatssl.results import uncertainty as stats
from beatssl.settings import ROOT, config_hash, from_dict, to_dict
from beatssl.tasks import scores as metrics

if TYPE_CHECKING:
    from beatssl.profile import Profile

COLUMNS = (
    "run_id",
    "method",
    "rhythm",
    "beat",
    "exponent",
    "variant",
    "seed",
    "task",
    "protocol",
    "label_fraction",
    "metric",
    "value",
    "ci_low",
    "ci_high",
    "n",
    "data",
    "sampling_rate",
    "config_hash",
    "source",
)
FLOATS = ("exponent", "label_fraction", "value", "ci_low", "ci_high")
INTEGERS = ("n", "sampling_rate")
METHOD = ("method", "rhythm", "beat", "exponent", "variant")  # what names a row of the tables
GROUP = (*METHOD, "task", "protocol", "label_fraction")

CLASSIFY, SEGMENT, EMBED = "ptbxl_superdiagnostic", "ludb_segmentation", "ptbxl_embedding"
LABELS, FOLDS = "ptbxl_label_draws", "ludb_more_folds"  # of the comparison, see `tasks.compare`
SCORES = {
    CLASSIFY: metrics.classification_scores,
    SEGMENT: metrics.segmentation_scores,
    EMBED: metrics.embedding_scores,
    LABELS: metrics.draw_scores,
    FOLDS: metrics.fold_scores,
}
HEADLINES = (  # heading, task, metric: the columns of the main table
    ("AUROC", CLASSIFY, "auroc_macro"),
    ("F1", CLASSIFY, "f1_macro"),
    ("LUDB F1", SEGMENT, "f1_macro"),
    ("Dice", SEGMENT, "dice"),
)
RESULTS = ROOT / "results"

Predictions = Mapping[str, np.ndarray]


class ResultsError(ValueError):
    """A results file cannot be used; the message names it and the remedy."""


class StaleResultsError(ResultsError):
    """Results of a task were made with other settings or other data than the rest."""


# --- one evaluation -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """What was evaluated on what: all of a result row except its score.

    Attributes:
        weights: hash of the encoder's weights, so that a retrained encoder is evaluated anew;
            empty where the run failed.
        fingerprint: of the store.
        content: of the store's arrays on this machine.
        code: hash of the task's code.
        config_hash: changes with the run's, encoder's and task's settings, the data, the protocol.
    """

    run: RunSettings
    task: str
    protocol: str
    label_fraction: float
    data: str
    sampling_rate: int
    fingerprint: str
    weights: str
    content: str
    code: str
    config_hash: str

    @property
    def key(self) -> str:
        return config_hash(self)

    @property
    def name(self) -> str:
        """The run without its seed; an untrained encoder trained on the labels is `supervised`."""
        if self.protocol == "scratch":
            return self.run.name.replace(self.run.method, "supervised", 1)
        return self.run.name

    @property
    def stem(self) -> str:
        """Name of the evaluation's files."""
        run_id = f"{self.name}-s{self.run.seed}"
        return f"{run_id}-{self.task}-{self.protocol}-{self.label_fraction:g}"

    def row(self, metric: str, found: stats.Estimate, source: str = "") -> dict:
        """One tidy row; `source` says why there is no value where there is none."""
        contrastive = self.run.method == "beatssl"
        return {
            "run_id": f"{self.name}-s{self.run.seed}",
            "method": "supervised" if self.protocol == "scratch" else self.run.method,
            "rhythm": self.run.rhythm if contrastive else "",
            "beat": self.run.beat if contrastive else "",
            "exponent": self.run.exponent if contrastive else float("nan"),
            "variant": self.run.variant,
            "seed": str(self.run.seed),
            "task": self.task,
            "protocol": self.protocol,
            "label_fraction": self.label_fraction,
            "metric": metric,
            "value": found.value,
            "ci_low": found.low,
            "ci_high": found.high,
            "n": found.n,
            "data": self.data,
            "sampling_rate": self.sampling_rate,
            "config_hash": self.config_hash,
            "source": source,
        }


def describe(
    run: RunSettings,
    profile: Profile,
    store: Store,
    encoder: object,
    task: str,
    protocol: str,
    label_fraction: float,
) -> Evaluation:
    """The evaluation that is about to be made.

    Args:
        encoder: what is evaluated; see `content_hash`.
    """
    return Evaluation(
        run=run,
        task=task,
        protocol=protocol,
        label_fraction=label_fraction,
        data=data_name(profile, task),
        sampling_rate=int(store.sampling_rate),
        fingerprint=store.fingerprint,
        weights=content_hash(encoder),
        content=store.content,
        code=code_of(run, profile, task),
        config_hash=settings_hash(run, profile, store.fingerprint, task, protocol, label_fraction),
    )


def settings_hash(
    run: RunSettings,
    profile: Profile,
    fingerprint: str,
    task: str,
    protocol: str,
    label_fraction: float,
) -> str:
    """Digits of what an evaluation is made with, its code apart: the settings of the run that
    concern its method, of its encoder and of the task, the data, protocol, threads, precision."""
    if task == SEGMENT:
        settings = profile.segment
    elif task == FOLDS:
        folds = dataclasses.replace(profile.segment, folds=profile.compare.folds)
        settings = [to_dict(folds), list(profile.repeats_of(run))]
    elif task == CLASSIFY:
        settings = dataclasses.replace(profile.classify, label_fractions=(label_fraction,))
    elif task == LABELS:
        settings = dataclasses.replace(profile.compare, label_fractions=(label_fraction,))
    else:
        settings = profile.classify
    own = {**run.own_settings(), "seed": run.seed}
    if task == EMBED:  # the views are the same for every method
        own |= {name: getattr(run, name) for name in VIEWS}
    how = compute.name(profile.compute)
    return config_hash(own, profile.encoder_of(run), settings, fingerprint, protocol, how)


VIEWS = ("rotation_degrees", "scale_max", "mask_fraction")  # settings of 3KG
PREDICTING = {  # what makes the predictions of a task
    CLASSIFY: ("beatssl.tasks.classify.predictor",),
    SEGMENT: ("beatssl.tasks.segment.cross_validate",),
    EMBED: ("beatssl.tasks.embedding.diagnose",),
    LABELS: (
        "beatssl.tasks.compare.probe_draws",
        "beatssl.tasks.classify.embed",
        "beatssl.tasks.classify.split",
    ),
    FOLDS: ("beatssl.tasks.compare.repeated",),
}


def code_of(run: RunSettings, profile: Profile, task: str, root: Path = ROOT) -> str:
    """Hash of the code that makes the predictions of a run: of the task, and of its encoder.

    Args: root: folder of the package."""
    parts = PREDICTING[task]
    if run.method in DELINEATORS:
        parts += ("beatssl.tasks.delineate.delineated",)
    elif run.method == "features":
        parts += ("beatssl.evaluate.ecg_features",)
    else:
        parts += (name_of(type(profile.encoder_of(run))),)
    return code_hash(*parts, root=root)


def content_hash(encoder: object) -> str:
    """Twelve hexadecimal digits that change with what is evaluated.

    Args:
        encoder: a module; an array of features; a dataclass for what draws waves without weights;
            None for a run that failed, which has no digits.
    """
    if encoder is None:
        return ""
    if dataclasses.is_dataclass(encoder):
        return config_hash(encoder)
    if isinstance(encoder, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(encoder).tobytes()).hexdigest()[:12]
    return models.weights_hash(encoder)


def data_name(profile: Profile, task: str) -> str:
    """What a number was measured on, in words; a part of PTB-XL is never called PTB-XL."""
    if profile.data.synthetic:
        return "synthetic"
    if task in (SEGMENT, FOLDS):
        return "LUDB"
    return "PTB-XL subset" if "subset" in profile.data.ptbxl.lower() else "PTB-XL"


def score(what: Evaluation, predictions: Predictions, resamples: int) -> list[dict]:
    """Rows of all scores of one evaluation, with bootstrap intervals."""
    found = stats.estimate(SCORES[what.task], [predictions], resamples)
    return [what.row(metric, value) for metric, value in found.items()]


def reuse_or_make(
    what: Evaluation, profile: Profile, predict: Callable[[], Predictions], resamples: int
) -> list[dict]:
    """Rows of an evaluation, saved with its predictions.

    Saved predictions are used where they have the same key, and made otherwise; the scores are
    computed from them each time, so that they always follow the code of the metrics.
    """
    path = _predictions_path(profile, what.stem)
    try:
        predictions = read_predictions(path, what.key)
    except ResultsError:  # none yet, unreadable, or of another evaluation
        predictions = dict(predict())
        write_predictions(path, predictions, what.key)
    rows = score(what, predictions, resamples)
    write_rows(profile.work / "results" / f"{what.stem}.json", rows, what)
    return rows


def failed(what: Evaluation, profile: Profile, reason: str) -> list[dict]:
    """Rows without a value, saved, of a run that has no encoder to evaluate.

    Args: reason: what went wrong; it stands in column `source` after "failed: "."""
    headline = [metric for _, task, metric in HEADLINES if task == what.task]
    nothing = stats.Estimate(float("nan"), float("nan"), float("nan"), 0, ())
    rows = [what.row(metric, nothing, f"failed: {reason}") for metric in headline]
    write_rows(profile.work / "results" / f"{what.stem}.json", rows, what)
    return rows


def write_rows(path: Path, rows: Sequence[Mapping], what: Evaluation) -> None:
    """Save the rows of one evaluation as JSON, atomically."""
    plain = [{k: None if v != v else v for k, v in row.items()} for row in rows]  # NaN -> null
    entry = {"key": what.key, "evaluation": to_dict(what), "rows": plain}
    write_text(path, json.dumps(entry, indent=1, allow_nan=False))


def read_rows(path: Path) -> tuple[Evaluation, list[dict]]:
    """What `write_rows` saved.

    Raises:
        ResultsError: not such a file.
    """
    try:
        entry = json.loads(path.read_text())
        what = from_dict(Evaluation, entry["evaluation"], path.name)
        rows = [{k: row[k] for k in COLUMNS} for row in entry["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ResultsError(
            f"{path.name} is not a results file ({error}): remove it and evaluate the run again"
        ) from error
    nan = float("nan")
    return what, [{k: nan if row[k] is None else row[k] for k in row} for row in rows]


def write_predictions(path: Path, predictions: Predictions, key: str) -> None:
    """Save predictions as npz with the evaluation's key inside, atomically."""
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, key=np.array(key), **predictions)


def read_predictions(path: Path, key: str) -> dict[str, np.ndarray]:
    """What `write_predictions` saved.

    Raises:
        ResultsError: missing, unreadable, or of another evaluation than `key`.
    """
    remedy = "evaluate the run again (`python -m beatssl run`)"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ResultsError(f"predictions {path.name} cannot be read: {remedy}") from error
    if str(arrays.pop("key", "")) != key:
        raise ResultsError(f"predictions {path.name} belong to another evaluation: {remedy}")
    return arrays


def _predictions_path(profile: Profile, stem: str) -> Path:
    return profile.work / "predictions" / f"{stem}.npz"


# --- all evaluations of a profile -----------------------------------------------------------------


def evaluations(profile: Profile, *tasks: str) -> list[tuple[Evaluation, list[dict]]]:
    """Saved evaluations of the profile's runs on these tasks (without any: on all), ordered by
    file name.

    Files of runs or label fractions that the profile no longer lists are left out with a warning.
    A run that failed has rows without a value.

    Raises:
        ResultsError: a file cannot be read.
        StaleResultsError: a file was made with other settings or other data than the rest; the
            message names it. Files of other tasks do not count: later pages may still have to make
            them.
    """
    found, foreign, stale, outdated = [], [], [], []
    listed = {run.run_id: run for run in profile.runs}
    for path in sorted((profile.work / "results").glob("*.json")):
        what, rows = read_rows(path)
        if tasks and what.task not in tasks:
            continue
        fractions = {
            CLASSIFY: profile.classify.label_fractions,
            LABELS: profile.compare.label_fractions,
        }.get(what.task, (1.0,))
        if what.run.run_id not in listed or what.label_fraction not in fractions:
            foreign.append(path.name)
            continue
        run = listed[what.run.run_id]
        expected = settings_hash(
            run, profile, what.fingerprint, what.task, what.protocol, what.label_fraction
        )
        if expected != what.config_hash:
            stale.append(path.name)
        elif what.weights and what.code != code_of(run, profile, what.task):
            outdated.append(path.name)
        found.append((what, rows))
    if foreign:
        warnings.warn(
            f"profile {profile.name}: not in its runs, left out: {', '.join(foreign)}", stacklevel=2
        )
    remedy = "evaluate again (`python -m beatssl run`) or remove these files"
    if stale:
        raise StaleResultsError(f"made with other settings: {', '.join(stale)}; {remedy}")
    if outdated:
        raise StaleResultsError(
            f"made by other code: {', '.join(outdated)}; {remedy}, or `python -m beatssl restamp` "
            "where the code gives the same numbers"
        )
    if len({what.fingerprint for what, _ in found}) > 1:
        kinds = [f"{what.stem}.json on {what.fingerprint}" for what, _ in found]
        raise StaleResultsError(f"made on different data: {', '.join(kinds)}; {remedy}")
    return found


def combine(profile: Profile, found: Iterable[tuple[Evaluation, list[dict]]]) -> list[dict]:
    """Method-level rows, seed `all`: mean over the seeds with its joint-bootstrap interval. Seeds
    that failed are left out; where all did, there is no such row.

    Args: found: `evaluations`."""
    groups: dict[tuple, list[Evaluation]] = {}
    for what, _ in found:
        if what.weights:
            key = (what.name, what.task, what.protocol, what.label_fraction)
            groups.setdefault(key, []).append(what)
    rows = []
    for members in groups.values():
        members.sort(key=lambda what: what.run.seed)
        together = stats.estimate(
            SCORES[members[0].task],
            [load_predictions(profile, what) for what in members],
            resamples_of(profile, members[0].task),
        )
        common = {
            "run_id": members[0].name,
            "seed": "all",
            "config_hash": config_hash(*[what.config_hash for what in members]),
        }
        rows += [members[0].row(metric, found) | common for metric, found in together.items()]
    return rows


def with_combined(profile: Profile, *tasks: str) -> pd.DataFrame:
    """All saved rows of the profile on these tasks (without any: on all), single seeds and
    combined."""
    found = evaluations(profile, *tasks)
    return frame([row for _, rows in found for row in rows] + combine(profile, found))


def saved_predictions(profile: Profile, task: str, seed: int) -> dict[str, Predictions]:
    """Frozen and scratch predictions of one seed: name of the method -> arrays of the task."""
    return {
        what.name: load_predictions(profile, what)
        for what, _ in evaluations(profile, task)
        if what.run.seed == seed
        and what.protocol != "finetune"
        and what.label_fraction == 1
        and what.weights
    }


def load_predictions(profile: Profile, what: Evaluation) -> dict[str, np.ndarray]:
    return read_predictions(_predictions_path(profile, what.stem), what.key)


def rekey(profile: Profile, path: Path, old: Evaluation, new: Evaluation) -> None:
    """Give a saved evaluation another key; its predictions and rows stay what they are.

    Args: path: of its rows."""
    predictions = load_predictions(profile, old)
    _, rows = read_rows(path)
    write_predictions(_predictions_path(profile, new.stem), predictions, new.key)
    write_rows(path, rows, new)


def resamples_of(profile: Profile, task: str) -> int:
    tuned = profile.segment if task in (SEGMENT, FOLDS) else profile.classify
    return tuned.bootstrap


# --- files of rows --------------------------------------------------------------------------------


def frame(rows: Iterable[Mapping]) -> pd.DataFrame:
    """Rows as a typed table in the fixed order of columns and a fixed order of rows."""
    table = pd.DataFrame(list(rows), columns=list(COLUMNS))
    for column in COLUMNS:
        if column in FLOATS:
            table[column] = pd.to_numeric(table[column]).astype("float64")
        elif column in INTEGERS:
            table[column] = pd.to_numeric(table[column]).astype("Int64")
        else:
            table[column] = table[column].fillna("").astype(str)
    order = ["task", "protocol", "label_fraction", *METHOD, "seed", "metric", "source"]
    return table.sort_values(order, kind="stable", ignore_index=True)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a results table as CSV (six significant digits), atomically."""
    text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_text(path, text)


def read(path: Path) -> pd.DataFrame:
    """Read a results table.

    Raises:
        ResultsError: missing, or its columns are not exactly `COLUMNS`.
    """
    if not path.is_file():
        raise ResultsError(
            f"no results in {path.name}: run the profile first (`python -m beatssl run`)"
        )
    raw = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(raw.columns) != list(COLUMNS):
        missing = [c for c in COLUMNS if c not in raw.columns]
        unknown = [c for c in raw.columns if c not in COLUMNS]
        raise ResultsError(
            f"{path.name}: columns are not those of a results table (missing: {missing}, "
            f"unknown: {unknown}, expected in this order: {', '.join(COLUMNS)})"
        )
    numbers = [*FLOATS, *INTEGERS]
    raw[numbers] = raw[numbers].replace("", None)
    try:
        return frame(raw.to_dict("records"))
    except ValueError as error:
        raise ResultsError(f"{path.name}: {error}") from error


def of_profile(profile: Profile) -> pd.DataFrame:
    """The collected results of a profile, `results/<profile>.csv`; see `read`."""
    return read(RESULTS / f"{profile.name}.csv")


def paper() -> pd.DataFrame:
    """The paper's numbers, each with its source."""
    return read(RESULTS / "paper.csv")
