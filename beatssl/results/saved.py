"""Tidy result rows: saved per evaluation, collected into `results/<profile>.csv`.

One evaluation is one run, task, protocol and label fraction. Its rows and predictions lie in
`work/<profile>/results/<stem>.json` and `work/<profile>/predictions/<stem>.npz`, both written
atomically and both carrying the evaluation's key, so numbers and predictions never mix. What is not
there is read from those that stand in the repository (`results.kept`).
"""

import dataclasses
import hashlib
import json
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from beatssl import compute, fingerprint
from beatssl.cache import replacing, write_text
from beatssl.methods import stored_run
from beatssl.methods.base import RunSettings
from beatssl.methods.encoder import weights_hash
from beatssl.profile import Profile
from beatssl.results import kept
from beatssl.results.uncertainty import Estimate, Predictions, estimate
from beatssl.settings import ROOT, config_hash, to_dict
from beatssl.tasks import TASKS, task_of
from beatssl.tasks.base import Case, Task

COLUMNS = tuple(
    "run_id method rhythm beat exponent variant seed task protocol label_fraction metric value "
    "ci_low ci_high n data sampling_rate config_hash source".split()
)
FLOATS = ("exponent", "label_fraction", "value", "ci_low", "ci_high")
INTEGERS = ("n", "sampling_rate")
METHOD = ("method", "rhythm", "beat", "exponent", "variant")  # what names a row of the tables

OURS = ("classification", "segmentation", "embedding", "label draws", "more folds")
CLASSIFY, SEGMENT, EMBED, LABELS, FOLDS = (TASKS[key].name for key in OURS)
SCORES = {task.name: task.scores for task in TASKS.values()}
HEADLINES = tuple(  # heading, task, metric: the columns of the main table
    (heading, task.name, metric) for task in TASKS.values() for heading, metric in task.headlines
)
RESULTS = ROOT / "results"
NOTHING = Estimate(float("nan"), float("nan"), float("nan"), 0, ())

INCOMPLETE = "no value: "  # in column source, before the rotations that are missing
MOST_NAMED = 12  # of files, in a message
FAULTS = ("not in its runs", "made with other settings", "made by other code")


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
        recipe: of the encoder, see `evaluate.recipe_of`; empty where it has none.
        key: changes with all but the recipe; the predictions carry it.
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
    key: str = ""
    recipe: str = ""

    def __post_init__(self) -> None:
        if not self.key:
            named = to_dict(self)
            del named["recipe"]
            object.__setattr__(self, "key", config_hash(named))

    @property
    def name(self) -> str:
        """The run without its seed; an untrained encoder trained on the labels is `supervised`."""
        return name_of(self.run, self.protocol)

    @property
    def run_id(self) -> str:
        """`name` with the seed."""
        return f"{self.name}-s{self.run.seed}"

    @property
    def stem(self) -> str:
        """Name of the evaluation's files."""
        return stem_of(self.run, self.task, self.protocol, self.label_fraction)

    def row(self, metric: str, estimate: Estimate, source: str = "") -> dict:
        """One tidy row; `source` says why there is no value where there is none."""
        run = self.run
        method = "supervised" if self.protocol == "scratch" else run.method
        values = vars(self) | {"rhythm": "", "beat": "", "exponent": float("nan")} | run.named()
        values |= {"run_id": self.run_id, "method": method, "variant": run.variant}
        values |= {"seed": str(run.seed), "metric": metric, "n": estimate.n, "source": source}
        values |= {"value": estimate.value, "ci_low": estimate.low, "ci_high": estimate.high}
        return {column: values[column] for column in COLUMNS}


def name_of(run: RunSettings, protocol: str) -> str:
    """See `Evaluation.name`."""
    return run.name.replace(run.method, "supervised", 1) if protocol == "scratch" else run.name


def stem_of(run: RunSettings, task: str, protocol: str, fraction: float) -> str:
    """See `Evaluation.stem`."""
    return f"{name_of(run, protocol)}-s{run.seed}-{task}-{protocol}-{fraction:g}"


def case_of(
    profile: Profile, task: Task, run: RunSettings, store: Any, encoder: Any, protocol: str
) -> Case:
    """What a task of a profile sees of a run."""
    how = profile.repeats_of(run), profile.rotation_of(run)
    return Case(run, task.settings(profile), store, encoder, protocol, *how)


def describe(
    profile: Profile, task: Task, case: Case, fraction: float, recipe: str = ""
) -> Evaluation:
    """The evaluation that is about to be made."""
    run, store = case.run, case.store
    return Evaluation(
        run=run,
        task=task.name,
        protocol=case.protocol,
        label_fraction=fraction,
        data=data_name(profile, task, run),
        sampling_rate=int(store.sampling_rate),
        fingerprint=store.fingerprint,
        weights=content_hash(case.encoder),
        content=store.content,
        code=code_of(run, profile, task),
        config_hash=settings_hash(run, profile, task, case.protocol, fraction, store.fingerprint),
        recipe=recipe,
    )


def settings_hash(
    run: RunSettings, profile: Profile, task: Task, protocol: str, fraction: float,
    fingerprint: str, names: Sequence[str] = (),
) -> str:  # fmt: skip
    """Digits of what an evaluation is made with, its code apart: the settings of the run that
    concern its method, of its encoder and of the task, the data and on PTB-XL the folds that it is
    tested on, protocol, threads, precision.

    Args: names: of the method's settings that count; default all."""
    settings = task.concerns(task.settings(profile), fraction, profile.repeats_of(run))
    left_out = set(run.own_settings()) - set(names) if names else set()
    own = {name: value for name, value in task.of_run(run).items() if name not in left_out}
    encoder, how = profile.encoder_of(run), compute.name(profile.compute)
    folds = profile.rotation_of(run).in_key if task.dataset == "ptbxl" else []
    return config_hash(own, encoder, settings, fingerprint, protocol, how, *folds)


def code_of(run: RunSettings, profile: Profile, task: Task, root: Path = ROOT) -> str:
    """Hash of the code that makes the predictions of a run: of the task, and of its encoder.

    Args: root: folder of the package."""
    encoder = [type(profile.encoder_of(run))] if run.has_encoder else []
    return fingerprint.code_of(*task.code(run), *encoder, root=root)


def content_hash(encoder: Any) -> str:
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
    return weights_hash(encoder)


def data_name(profile: Profile, task: Task, run: RunSettings | None = None) -> str:
    """What a number was measured on, in words; a part of PTB-XL is never called PTB-XL.

    Args: run: of a single one, the folds too where a profile has several rotations."""
    folders = {source.name: source.folder for source in profile.data.all_sources}
    part = " subset" if "subset" in folders.get(task.dataset, "").lower() else ""
    name = {"ptbxl": "PTB-XL", "ludb": "LUDB"}.get(task.dataset, task.dataset) + part
    name = "synthetic" if profile.data.synthetic else name
    if run and task.dataset == "ptbxl" and len(profile.data.rotations) > 1:
        name += f", {profile.rotation_of(run).folds('test')}"
    return name


def reuse_or_make(
    evaluation: Evaluation,
    profile: Profile,
    predictor: Callable[[], Callable[[float], Predictions]],
) -> list[dict]:
    """Rows of an evaluation, saved with its predictions.

    Saved predictions are used where they have the same key, and made otherwise; the scores are
    computed from them each time, so that they always follow the code of the metrics.

    Args: predictor: called without arguments, makes a function label fraction -> predictions.
    """
    try:
        predictions = load_predictions(profile, evaluation)
    except ResultsError:  # none yet, unreadable, or of another evaluation
        predictions = predictor()(evaluation.label_fraction)
        predictions = task_of(evaluation.task).rounded(predictions)
        write_predictions(_npz(profile, evaluation), predictions, evaluation.key)
    return score(evaluation, profile, predictions)


def standing(
    profile: Profile, task: Task, run: RunSettings, protocol: str, fraction: float, recipe: str
) -> list[dict]:
    """Rows of an evaluation that was made earlier, here or elsewhere, of an encoder with this
    recipe, by the task's settings and code of today; empty where there is none. So an encoder that
    is not at hand any more need not be trained again."""
    stem, on_shelf = stem_of(run, task.name, protocol, fraction), kept.entries(shelf(profile))
    path = profile.work / "results" / f"{stem}.json"
    if not recipe or not (path.is_file() or stem in on_shelf):
        return []
    evaluation, _ = read_rows(path) if path.is_file() else of_entry(on_shelf[stem])
    if evaluation.recipe != recipe or not evaluation.weights or fault_of(profile, evaluation):
        return []
    return score(evaluation, profile, load_predictions(profile, evaluation))


def score(evaluation: Evaluation, profile: Profile, predictions: Predictions) -> list[dict]:
    """Rows of an evaluation from its predictions, by the metrics of today; saved."""
    rows = scored(evaluation, profile, predictions)
    write_rows(profile, rows, evaluation)
    return rows


def scored(evaluation: Evaluation, profile: Profile, predictions: Predictions) -> list[dict]:
    """The same, not saved."""
    scores = _estimates(profile, evaluation.task, [predictions])
    return [evaluation.row(metric, score) for metric, score in scores.items()]


def _estimates(profile: Profile, task: str, per_seed: Sequence[Predictions]) -> dict[str, Estimate]:
    return estimate(task_of(task).scores, per_seed, resamples_of(profile, task))


def failed(evaluation: Evaluation, profile: Profile, reason: str) -> list[dict]:
    """Rows without a value, saved, of a run that has no encoder to evaluate.

    Args: reason: what went wrong; it stands in column `source` after "failed: "."""
    metrics = [metric for _, metric in task_of(evaluation.task).headlines]
    rows = [evaluation.row(metric, NOTHING, f"failed: {reason}") for metric in metrics]
    write_rows(profile, rows, evaluation)
    return rows


def write_rows(profile: Profile, rows: Sequence[Mapping], evaluation: Evaluation) -> None:
    """Save the rows of one evaluation as JSON, atomically."""
    entry = as_entry(evaluation, rows)
    path = profile.work / "results" / f"{evaluation.stem}.json"
    write_text(path, json.dumps(entry, indent=1, allow_nan=False))


def as_entry(evaluation: Evaluation, rows: Sequence[Mapping]) -> dict:
    """An evaluation and its rows as plain JSON."""
    plain = [{k: None if v != v else v for k, v in row.items()} for row in rows]  # NaN -> null
    return {"evaluation": to_dict(evaluation), "rows": plain}


def read_rows(path: Path) -> tuple[Evaluation, list[dict]]:
    """What `write_rows` saved, now or when the key stood beside the evaluation.

    Raises:
        ResultsError: not such a file.
    """
    try:
        return of_entry(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(
            f"{path.name} is not a results file ({error}): remove it and evaluate the run again"
        ) from error


def of_entry(entry: Mapping) -> tuple[Evaluation, list[dict]]:
    """What `as_entry` made."""
    described = {"key": entry.get("key", ""), **entry["evaluation"]}
    evaluation = Evaluation(**described | {"run": stored_run(described["run"])})
    rows, nan = [{k: row[k] for k in COLUMNS} for row in entry["rows"]], float("nan")
    return evaluation, [{k: nan if v is None else v for k, v in row.items()} for row in rows]


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
            arrays = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ResultsError(f"predictions {path.name} cannot be read: {remedy}") from error
    if str(arrays.pop("key", "")) != key:
        raise ResultsError(f"predictions {path.name} belong to another evaluation: {remedy}")
    return arrays


def _npz(profile: Profile, evaluation: Evaluation) -> Path:
    return profile.work / "predictions" / f"{evaluation.stem}.npz"


def load_predictions(profile: Profile, evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Arrays of a saved evaluation, or of one that is kept; raises as `read_predictions`."""
    path, folder = _npz(profile, evaluation), shelf(profile)
    entry = kept.entries(folder).get(evaluation.stem)
    if entry and entry["evaluation"]["key"] == evaluation.key and not path.is_file():
        return kept.predictions(folder, evaluation.stem)
    return read_predictions(path, evaluation.key)


def is_kept(profile: Profile, run: RunSettings) -> bool:
    """Whether the repository holds evaluations of a run that can stand beside those of today."""
    entries = kept.entries(shelf(profile)).items()
    own = [entry for stem, entry in entries if stem.startswith(f"{run.run_id}-")]
    return any(not fault_of(profile, of_entry(entry)[0]) for entry in own)


def shelf(profile: Profile) -> Path:
    """Where the repository holds a profile's predictions (`results.kept`)."""
    return RESULTS / profile.name


# --- all evaluations of a profile -----------------------------------------------------------------


def fault_of(profile: Profile, evaluation: Evaluation) -> str:
    """Why a saved evaluation cannot stand beside those of today, one of FAULTS; empty where it
    can."""
    task = next((task for task in TASKS.values() if task.name == evaluation.task), None)
    run = next((run for run in profile.runs if run.run_id == evaluation.run.run_id), None)
    if task is None or run is None:
        return FAULTS[0]
    fractions = task.fractions(task.settings(profile), profile.repeats_of(run))
    if evaluation.label_fraction not in fractions:
        return FAULTS[0]
    today = of_today(profile, run, evaluation)
    if evaluation.config_hash != today.config_hash:
        return FAULTS[1]
    return FAULTS[2] if evaluation.weights and evaluation.code != today.code else ""


def evaluations(
    profile: Profile, *tasks: str, protocols: Collection[str] = ()
) -> list[tuple[Evaluation, list[dict]]]:
    """Evaluations of the profile's runs on these tasks in these protocols (without any: on all, in
    all), saved here or kept in the repository, ordered by file name.

    Those of runs, tasks or label fractions that are no longer listed are left out with a warning;
    kept ones of other settings are left out, and of older code where something was evaluated here:
    alone they stand for the results in the repository. A run that failed has rows without a value.

    Args: tasks: names or keys.

    Raises:
        ConfigError: an unknown task.
        ResultsError: a file cannot be read.
        StaleResultsError: a file was made with other settings or other data than the rest; the
            message names it. Files of other tasks and protocols do not count: later pages may
            still have to make them.
    """
    wanted = {task_of(task).name for task in tasks}
    found = []
    faulty: dict[str, list[str]] = {fault: [] for fault in ("", *FAULTS)}
    every = {path.stem: path for path in (profile.work / "results").glob("*.json")}
    on_shelf = kept.entries(shelf(profile))
    for stem in sorted({*every, *on_shelf}):
        here = stem in every
        evaluation, rows = read_rows(every[stem]) if here else of_entry(on_shelf[stem])
        if wanted and evaluation.task not in wanted:
            continue
        if protocols and evaluation.protocol not in protocols:
            continue
        fault = fault_of(profile, evaluation)
        if not here:
            if fault and (every or fault != FAULTS[2]):
                continue
            fault = ""
        faulty[fault].append(f"{stem}.json")
        if fault != FAULTS[0]:
            found.append((evaluation, rows))
    named = {fault: _first_of(names) for fault, names in faulty.items() if names}
    if FAULTS[0] in named:
        text = f"profile {profile.name}: {FAULTS[0]}, left out: {named[FAULTS[0]]}"
        warnings.warn(text, stacklevel=2)
    again = f"`python -m beatssl run --profile {profile.name}`"
    remedy = f"evaluate again ({again}) or remove these files"
    same = "or `python -m beatssl restamp` where the code gives the same numbers"
    for fault in FAULTS[1:]:
        if fault in named:
            raise StaleResultsError(f"{fault}: {named[fault]}; {remedy}, {same}")
    if len({one.fingerprint for one, _ in found}) > 1:
        kinds = _first_of([f"{one.stem}.json on {one.fingerprint}" for one, _ in found])
        raise StaleResultsError(f"made on different data: {kinds}; {remedy}")
    return found


def _first_of(names: Sequence[str]) -> str:
    """The first names and how many there are, where they are many."""
    many = len(names) > MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + f" and {len(names) - MOST_NAMED} more" * many


def combine(profile: Profile, found: Iterable[tuple[Evaluation, list[dict]]]) -> list[dict]:
    """Method-level rows, seed `all`: the mean over the seeds of each rotation, and over rotations
    weighted by their records, with its joint-bootstrap interval. Seeds that failed are left out;
    where all did, there is no such row.

    Where a rotation has no seed left, the rows hold no value and `source` says which one: a mean
    over fewer records is a number of other records, and would stand in one column with those of all
    of them. The rows of its single seeds are not touched.

    Args: found: `evaluations`."""
    groups: dict[tuple, list[tuple[Evaluation, list[dict]]]] = defaultdict(list)
    for one, own in found:
        if one.weights:
            groups[one.name, one.task, one.protocol, one.label_fraction].append((one, own))
    rows = []
    for members in groups.values():
        members.sort(key=lambda member: member[0].run.seed)
        of = [one for one, _ in members]
        task, hashes = task_of(of[0].task), [one.config_hash for one in of]
        common = {"run_id": of[0].name, "seed": "all", "config_hash": config_hash(*hashes)}
        common["data"] = data_name(profile, task)
        if missing := missing_rotations(profile, of):
            listed = [row["metric"] for row in members[0][1]]
            scores = dict.fromkeys(task.listed or listed, NOTHING)
        else:
            loaded = [load_predictions(profile, one) for one in of]
            scores = _estimates(profile, task.name, loaded)
        rows += [of[0].row(metric, score, missing) | common for metric, score in scores.items()]
    return rows


def missing_rotations(profile: Profile, found: Iterable[Evaluation]) -> str:
    """Which rotations of PTB-XL's folds none of these evaluations tests, in words; empty where all
    are tested, and on other data sets."""
    found, rotations = list(found), profile.data.rotations
    tested = [profile.rotation_of(one.run) for one in found]
    missing = [
        f"rotation {number} (tests {rotation.folds('test')})"
        for number, rotation in enumerate(rotations)
        if rotation not in tested
    ]
    if not missing or task_of(found[0].task).dataset != "ptbxl":
        return ""
    return f"{INCOMPLETE}{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"


def with_combined(profile: Profile, *tasks: str, protocols: Collection[str] = ()) -> pd.DataFrame:
    """All rows of `evaluations`, single seeds and combined."""
    found = evaluations(profile, *tasks, protocols=protocols)
    return frame([row for _, rows in found for row in rows] + combine(profile, found))


def of_today(profile: Profile, run: RunSettings, old: Evaluation) -> Evaluation:
    """A saved evaluation as the settings and the code of today name it."""
    task = task_of(old.task)
    made_with = old.protocol, old.label_fraction, old.fingerprint
    settings = settings_hash(run, profile, task, *made_with)
    code = code_of(run, profile, task)
    return dataclasses.replace(old, run=run, code=code, config_hash=settings, key="")


def rekey(profile: Profile, run: RunSettings, old: Evaluation, recipe: str) -> None:
    """Give a saved evaluation today's key; its predictions stay as they are, but for rounding."""
    predictions = task_of(old.task).rounded(load_predictions(profile, old))
    new = dataclasses.replace(of_today(profile, run, old), recipe=recipe)
    write_predictions(_npz(profile, new), predictions, new.key)
    score(new, profile, predictions)


def resamples_of(profile: Profile, task: str) -> int:
    """Number of bootstrap resamples of a task."""
    return task_of(task).resamples(profile)


# --- files of rows --------------------------------------------------------------------------------


def frame(rows: Iterable[Mapping]) -> pd.DataFrame:
    """Rows as a typed table in the fixed order of columns and a fixed order of rows."""
    table = pd.DataFrame(list(rows), columns=list(COLUMNS))
    kinds = {**dict.fromkeys(FLOATS, "float64"), **dict.fromkeys(INTEGERS, "Int64")}
    texts = [column for column in COLUMNS if column not in kinds]
    table[texts] = table[texts].fillna("").astype(str)
    table[list(kinds)] = table[list(kinds)].apply(pd.to_numeric)
    table = table.astype(kinds)
    order = ["task", "protocol", "label_fraction", *METHOD, "seed", "metric", "source"]
    return table.sort_values(order, kind="stable", ignore_index=True)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a results table as CSV (six significant digits), atomically."""
    write_text(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


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
    if tuple(raw.columns) != COLUMNS:
        missing, unknown = sorted(set(COLUMNS) - set(raw)), sorted(set(raw) - set(COLUMNS))
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
