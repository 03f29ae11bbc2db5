"""Predictions that stand in the repository: every number can be computed again without recordings
and without training.

`results/<profile>/<run>.npz` holds all evaluations of a run; `common.npz` beside it what many of
them share (records, labels, annotations), by content. Plain arrays; nothing is unpickled.
Probabilities are kept as log odds in 16 bits, to which they were rounded before they were scored.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from beatssl.cache import replacing
from beatssl.tasks import task_of
from beatssl.tasks.base import Predictions, of_logits, to_logits

SHARED = "record_id patient_id truth marks fold repeat sampling_rate tolerance_ms chance".split()
LEFT_OUT = ("train_record_id", "drawn", "unlabelled", "validation_auroc")  # needed for no score
INDEX, COMMON = "evaluations", "common"
Entry = dict  # evaluation, rows (as plain JSON), file, arrays: name -> name in the file


def write(folder: Path, run: str, entries: Mapping[str, tuple[Entry, Predictions | None]]) -> None:
    """Put evaluations of a run on the shelf; the others that it has there stay.

    Args: entries: stem -> entry with evaluation and rows, predictions; None where the run failed.
    """
    path, common = folder / f"{run}.npz", _arrays(folder / f"{COMMON}.npz")
    old, index, arrays = _arrays(path), {}, {}
    for stem, entry in _index(path).items():
        if stem not in entries:
            index[stem] = entry
            arrays |= {name: old[name] for name in entry["arrays"].values() if name in old}
    for stem, (entry, predictions) in entries.items():
        places, probabilities = {}, task_of(entry["evaluation"]["task"]).probabilities
        for name, array in (predictions or {}).items():
            if name in LEFT_OUT:
                continue
            if name in probabilities:
                array, name = to_logits(array), f"logits of {name}"
            place = f"{stem}/{name}"
            if name in SHARED:
                place = _digits(array)
                common[place] = array
            else:
                arrays[place] = array
            places[name] = place
        index[stem] = {**entry, "arrays": places}
    text = json.dumps(dict(sorted(index.items())), sort_keys=True)
    _save(folder / f"{COMMON}.npz", common)  # first: a run's file names what is in it
    _save(path, {INDEX: np.array(text), **arrays})


def entries(folder: Path) -> dict[str, Entry]:
    """Stem -> entry of every evaluation that is kept."""
    state = tuple((path, path.stat().st_mtime_ns) for path in sorted(folder.glob("*.npz")))
    return _entries(state)


def predictions(folder: Path, stem: str) -> Predictions:
    """The kept predictions of an evaluation, without the arrays that no score needs.

    Raises: KeyError: it is not kept."""
    entry = entries(folder)[stem]
    with np.load(entry["file"], allow_pickle=False) as own:
        common = np.load(folder / f"{COMMON}.npz", allow_pickle=False)
        with common:
            found = {n: (own if p in own else common)[p] for n, p in entry["arrays"].items()}
    mark = "logits of "
    return {
        name.removeprefix(mark): of_logits(array) if name.startswith(mark) else array
        for name, array in found.items()
    }


def _digits(array: np.ndarray) -> str:
    kind = f"{array.dtype.str} {array.shape}".encode()
    return hashlib.sha256(kind + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


@functools.lru_cache(8)
def _entries(state: tuple) -> dict[str, Entry]:
    found = {}
    for path, _ in state:
        found |= {stem: {**entry, "file": path} for stem, entry in _index(path).items()}
    return found


def _index(path: Path) -> dict[str, Entry]:
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return json.loads(str(file[INDEX])) if INDEX in file else {}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file if name != INDEX}


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **dict(sorted(arrays.items())))
