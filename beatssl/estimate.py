"""What a profile would take on this machine, from a few steps and evaluations on simulated records.

Nothing of the profile is prepared, and nothing is kept: each kind of run takes some steps and is
evaluated once on a few hundred simulated records, and the times are extended to the records,
epochs and learning rates of the profile in proportion. A guess: it knows nothing of a full memory,
of other work on the machine, or of a GPU that grows hot.
"""

import resource
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter

import pandas as pd
import torch

from beatssl import compute
from beatssl.data.beats import prepare_beats, training_rows
from beatssl.data.store import StoreError, open_store, prepare
from beatssl.evaluate import COMPARED
from beatssl.methods import METHODS
from beatssl.methods.base import RunSettings
from beatssl.methods.encoder import build_encoder, pick_device
from beatssl.profile import Profile, Workspace
from beatssl.results.saved import FOLDS, case_of
from beatssl.settings import Rotation, cores
from beatssl.tasks import TASKS
from beatssl.tasks.classify import MOST_PASSES
from beatssl.train import Training

PUBLISHED = {"ptbxl": 21_799, "ludb": 200, "challenge": 66_416}  # records; the last without PTB-XL
WAVES = 20  # simulated records with waves
STEPS = 4  # of which the first is left out


def estimate(profile: Profile) -> tuple[pd.DataFrame, str]:
    """Expected cost of every run of a profile.

    Returns:
        a line for each method or row: seeds, seconds of a step, hours of training and of
        evaluation (all its seeds), GB that a step takes (of the process, or of the GPU);
        and in words: the records, the machine, the sums, and the disk.
    """
    compute.use(profile.compute)
    records, small, device = _records(profile), _small(profile), pick_device()
    seeds = Counter(run.name for run in profile.runs)
    lines: dict[str, tuple] = {}
    evaluation: dict[tuple, float] = {}  # s, of an encoder
    for run in profile.runs:
        if run.name in lines or not run.has_encoder or METHODS[run.method].load:
            continue
        step, gb, steps = 0.0, 0.0, 0
        if METHODS[run.method].build:
            step, gb = _step(run, small, device)
            steps = run.epochs * max(1, records["training"] // run.batch_size)
        kind = profile.encoder_of(run), run.name in COMPARED, run.name == "random"
        if kind not in evaluation:
            evaluation[kind] = _evaluation(run, small, profile, records, seeds[run.name])
        hours = (seeds[run.name] * s / 3600 for s in (step * steps, evaluation[kind]))
        lines[run.name] = seeds[run.name], step, *hours, gb
    columns = ["seeds", "s a step", "h training", "h evaluation", "GB"]
    table = pd.DataFrame.from_dict(lines, orient="index", columns=columns)
    shutil.rmtree(small.profile.work)
    return table, _told(profile, table, records, device)


def _records(profile: Profile) -> dict[str, int]:
    """Rows of the store where there is one, else what was published (or is to be simulated)."""
    with suppress(StoreError):
        store = open_store(profile.work / "store")
        training = max(len(training_rows(store, rotation)) for rotation in profile.data.rotations)
        waves = len(store.rows("ludb"))
        return {"rows": len(store), "training": training, "ludb": waves}
    data, counts = profile.data, PUBLISHED
    if data.synthetic:
        counts = {name: getattr(data, f"synthetic_{name}") for name in PUBLISHED}
    used = Counter()
    for layout in {source.name: source.layout for source in data.all_sources}.values():
        used[layout] += counts[layout]
    folds = max(len(rotation.train) for rotation in data.rotations)
    training = round(folds / 10 * used["ptbxl"]) + used["challenge"]
    return {"rows": used.total(), "training": training, "ludb": used["ludb"]}


def _small(profile: Profile) -> Workspace:
    """Simulated records, as many as the largest batch needs, and one epoch on labels."""
    most = max((getattr(run, "batch_size", 0) for run in profile.runs), default=0)
    few = {"synthetic_ptbxl": max(200, round(1.4 * most)), "synthetic_ludb": WAVES}
    few |= {"synthetic_challenge": 0, "sources": (), "rotations": (Rotation(),)}
    data = replace(profile.data, synthetic=True, **few)
    rate = {"finetune_learning_rates": profile.classify.finetune_learning_rates[:1]}
    small = replace(
        profile, name=f"{profile.name}-estimate", data=data,
        classify=replace(profile.classify, finetune_epochs=1, **rate),
        segment=replace(profile.segment, epochs=1, folds=2, **rate),
        compare=replace(profile.compare, repeats=1, folds=2),
    )  # fmt: skip
    shutil.rmtree(small.work, ignore_errors=True)
    store = prepare(small.data, small.work / "store", small.work, cores())
    return Workspace(small, store, prepare_beats(store, small.work / "beats", cores()))


def _step(run: RunSettings, w: Workspace, device: torch.device) -> tuple[float, float]:
    """Seconds of an optimiser step, and GB at its peak."""
    training = Training(run, w.profile, w.store, w.beats, device)
    training.model.train()
    batch, seconds = next(training.source.epoch(training.generator)), []
    _reset_peak(device)
    for _ in range(STEPS):
        seconds.append(_seconds(lambda: training.step(batch)["total"].item()))  # item: waits for it
    return median(seconds[1:]), _peak(device)


def _evaluation(
    run: RunSettings, w: Workspace, profile: Profile, records: dict[str, int], seeds: int
) -> float:
    """Seconds to evaluate one encoder on all tasks, at the size of the profile."""
    encoder = build_encoder(profile.encoder_of(run), 0, w.store.sampling_rate).to(pick_device())
    classify, segment, total = profile.classify, profile.segment, 0.0
    for task in TASKS.values():
        if task.of_runs == "asked" or not len(w.store.rows(task.dataset)):
            continue
        for protocol in task.protocols(run, finetune=run.name in COMPARED):
            case = case_of(w.profile, task, run, w.store, encoder.eval(), protocol)
            trained, draws = protocol != "frozen", getattr(case.settings, "draws", 1)
            fractions = task.fractions(task.settings(profile), case.repeats)
            passes = [min(1, f * MOST_PASSES) if trained else f for f in fractions]
            shares = [p * (draws if f < 1 else 1) for f, p in zip(fractions, passes)]
            predict = task.predictor(case)
            first = _seconds(predict, 1.0)  # with what is computed once for all fractions
            again = _seconds(predict, 1.0) if len(shares) > 1 and not trained else first
            seconds = first - again + again * sum(shares)
            if task.dataset == "ludb":
                rates = len(segment.finetune_learning_rates) / segment.folds  # tried in one fold
                seconds *= records["ludb"] / WAVES * segment.epochs * (segment.folds - 1)
                seconds *= 1 + trained * rates
            else:
                rates = len(classify.finetune_learning_rates)
                seconds *= records["training"] / len(training_rows(w.store, case.rotation))
                seconds *= classify.finetune_epochs * rates if trained else 1
            total += seconds * (profile.compare.repeats / seeds if task.name == FOLDS else 1)
    return total


def _seconds(work: Callable, *given: object) -> float:
    began = perf_counter()
    work(*given)
    return perf_counter() - began


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # only Linux has it: else the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(li for li in lines if li.startswith("VmHWM")).split()[1]) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _told(
    profile: Profile, table: pd.DataFrame, records: dict[str, int], device: torch.device
) -> str:
    data, how = profile.data, compute.name()
    signals = 24 * records["rows"] * data.seconds * data.sampling_rate / 1e9  # 12 leads, 16 bits
    hours = table[["h training", "h evaluation"]].sum()
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{cores()} cores"
    at_once = torch.cuda.device_count() or max(1, cores() // how["threads"])
    return (
        f"{records['rows']:,} records, {records['training']:,} of them to pretrain on, "
        f"{data.sampling_rate} Hz; {where}, {how['threads']} thread(s) a page, {how['precision']}\n"
        f"training {hours.iloc[0]:.1f} h, evaluation {hours.iloc[1]:.1f} h, one after the other; "
        f"{at_once} page(s) at once: {hours.sum() / at_once:.1f} h. Preparation is not in it.\n"
        f"disk: {signals:.1f} GB of signals, {0.01 * signals + len(profile.runs) * 0.02:.1f} GB of "
        "products"
    )
