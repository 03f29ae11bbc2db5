"""What it costs: ours beside a plain way to the same numbers, on simulated recordings.

`make bench` measures, writes `results/bench.csv` and lets `bench_page.py` draw it. Ours and the
reference take turns, after one round that is not counted; a ratio is the median over the rounds of
the ratio of two times of one round.
"""

from __future__ import annotations

import datetime
import itertools
import os
import platform
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
import wfdb
from scipy.signal import butter, sosfiltfilt
from test_ts2vec import full_hierarchical
from test_vcg import record_by_record

from beatssl import compute
from beatssl.cache import replacing
from beatssl.data import beats as beats_module
from beatssl.data import store as store_module
from beatssl.data.beats import Beats, prepare_beats, pretraining_rows
from beatssl.data.records import LEADS
from beatssl.data.store import Store, prepare
from beatssl.data.synthetic import simulate, write_folders
from beatssl.delineator import delineate
from beatssl.ecg import read_ecg
from beatssl.methods import make_run
from beatssl.methods.encoder import EncoderConfig, autocast, build_encoder
from beatssl.methods.ts2vec import hierarchical_parts
from beatssl.methods.views import augment
from beatssl.profile import Profile
from beatssl.settings import ROOT, ComputeConfig, DataConfig, Rotation, cores
from beatssl.tasks.delineate import delineate as neurokit
from beatssl.train import BatchSource, Training

nk = compute.lazily("neurokit2")

RESULTS = ROOT / "results" / "bench.csv"
RATE = 100  # Hz
DATA = DataConfig(ptbxl="ptbxl", sampling_rate=RATE)
GROWTH = "growth: "  # measures whose ratio is to the smallest size, a record
CLOCKS = time.perf_counter, time.process_time
COLUMNS = (
    "measure side what size records repeats seconds seconds_q1 seconds_q3 cpu_seconds ratio "
    "ratio_q1 ratio_q3 cpu_ratio extra_mb difference threads precision machine cores memory_gb "
    "system python torch date"
).split()


@dataclass(frozen=True)
class Sizes:
    """How much is measured; the defaults are those of the page."""

    repeats: int = 5
    quick_repeats: int = 15  # of what takes well under a second
    simulated: int = 340  # records that are written and prepared; 8 folds of 10 are trained on
    batches: tuple[int, ...] = (128, 256)
    encoder: EncoderConfig = EncoderConfig()
    loss_shape: tuple[int, int] = (8, 320)  # records and channels of TS2Vec's loss
    steps: tuple[int, ...] = (1000, 2500)  # of it
    growth: tuple[int, ...] = (500, 2_000, 20_000)


@dataclass(frozen=True)
class Case:
    """One side of a comparison: `run` is timed, `before` is called first and is not."""

    side: str  # ours | reference
    what: str
    size: str
    records: int
    run: Callable[[], object]
    before: Callable[[], object] = lambda: None
    processes: int = 1
    more: dict = field(default_factory=dict)


# --- measuring ------------------------------------------------------------------------------------


def take_turns(cases: list[Case], repeats: int) -> tuple[np.ndarray, list]:
    """(repeats, cases, 2) seconds of the clock and of this process's processor, and what each case
    gave in the first round, which is not counted."""
    seconds, first = np.full((repeats + 1, len(cases), 2), np.nan), []
    for turn, (i, case) in itertools.product(range(repeats + 1), enumerate(cases)):
        case.before()
        start = [clock() for clock in CLOCKS]
        outcome = case.run()
        seconds[turn, i] = [clock() - begun for clock, begun in zip(CLOCKS, start)]
        first += [outcome] if turn == 0 else []
    return seconds[1:], first


def lines(measure: str, cases: list[Case], seconds: np.ndarray, against: int) -> list[dict]:
    """One line a case. Ratios are of the time a record, to that of case `against` in one round."""
    each = seconds / np.array([case.records for case in cases])[:, None]
    ratio, found = each / each[:, [against]], []
    for i, case in enumerate(cases):
        line = {"measure": measure, "side": case.side, "what": case.what, "size": case.size}
        line |= {"records": case.records, "repeats": len(seconds), **case.more}
        for name, values in (("seconds", seconds[:, i, 0]), ("ratio", ratio[:, i, 0])):
            quarters = np.quantile(values, [0.5, 0.25, 0.75])
            line |= dict(zip((name, f"{name}_q1", f"{name}_q3"), quarters, strict=True))
        if case.processes == 1:
            line["cpu_seconds"] = np.median(seconds[:, i, 1])
            if cases[against].processes == 1:
                line["cpu_ratio"] = np.median(ratio[:, i, 1])
        found.append(line)
        text = f"{line['seconds']:.4g} s, ratio {line['ratio']:.3g}"
        print(f"{measure}, {case.size}: {case.what}: {text}", flush=True)
    return found


def difference(ours: tuple, reference: tuple) -> float:
    """Largest difference of arrays of numbers, each in units of the reference's largest value; NaN
    must meet NaN."""
    pairs = [[np.asarray(x, float) for x in pair] for pair in zip(ours, reference, strict=True)]
    assert all(np.array_equal(np.isnan(a), np.isnan(b)) for a, b in pairs)
    return max(float(np.nanmax(abs(a - b)) / np.nanmax(abs(b))) for a, b in pairs)


def machine() -> dict:
    """What the times are times of; no host name."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else []
    model = next(iter(models), platform.processor() or platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    using, day = compute.name(), datetime.date.today().isoformat()
    versions = {"system": platform.system(), "python": platform.python_version()}
    versions |= {"torch": torch.__version__, "date": day}
    return {**using, "machine": model, "cores": cores(), "memory_gb": round(memory), **versions}


# --- one training step ----------------------------------------------------------------------------


def training(sizes: Sizes, batch: int, store: Store, beats: Beats) -> Training:
    """The paper's best row."""
    run = make_run(rhythm="soft_1", beat="hard", exponent=50, batch_size=batch)
    profile = Profile("bench", encoder=sizes.encoder)
    return Training(run, profile, store, beats, torch.device("cpu"))


def bare_step(sizes: Sizes, views: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Forward, backward (of a sum of squares) and AdamW step of the same encoder on these views."""
    encoder = build_encoder(sizes.encoder, seed=0).train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3, weight_decay=1e-4)

    def step() -> torch.Tensor:
        with autocast(views.device):
            e = encoder(views)
        optimizer.zero_grad()
        e.float().square().mean().backward()
        optimizer.step()
        return e.detach()

    return step


def training_steps(sizes: Sizes, store: Store, beats: Beats) -> Iterator[dict]:
    for size in sizes.batches:
        ours = training(sizes, size, store, beats)
        ours.model.train()
        batch = next(iter(ours.source.epoch(ours.generator)))
        views = torch.cat([ours.model.view(batch.signals, ours.generator) for _ in range(2)])
        of = f"batch {size}", len(batch.signals)
        cases = [
            Case("ours", "soft_1 / hard / 50", *of, lambda t=ours, b=batch: t.step(b)),
            Case("reference", "its encoder alone", *of, bare_step(sizes, views)),
        ]
        yield from lines("training step", cases, take_turns(cases, sizes.repeats)[0], 1)


# --- 3KG ------------------------------------------------------------------------------------------


def views_of(sizes: Sizes, store: Store) -> Iterator[dict]:
    for size in sizes.batches:
        signals = torch.from_numpy(store.load(range(size)))
        of = f"batch {size}", size
        array = signals.numpy()
        ours = Case(
            "ours", "augment", *of, lambda s=signals: augment(s, torch.Generator().manual_seed(0))
        )
        loop = Case(
            "reference", "NumPy, record by record", *of,
            lambda x=array: record_by_record(x, torch.Generator().manual_seed(0)),
        )  # fmt: skip
        seconds, (a, b) = take_turns([ours, loop], sizes.quick_repeats)
        ours.more["difference"] = difference((a,), (b,))
        yield from lines("3KG view", [ours, loop], seconds, 1)


# --- one's own ECG --------------------------------------------------------------------------------


def waves_of_an_ecg(sizes: Sizes) -> Iterator[dict]:
    """12 leads of 10 s at 500 Hz, by the delineator that comes along and by NeuroKit2's."""
    patient, recording = (np.random.default_rng(k) for k in range(2))
    made = simulate(["NORM"], "sinus", 10.0, 500, patient, recording)
    ecg = read_ecg(made.microvolts, 500, LEADS, unit="uV")
    of = "12 leads, 10 s", 1
    cases = [Case("ours", "delineate", *of, lambda: delineate(ecg))]
    for method in ("prominence", "dwt"):
        cases.append(
            Case(
                "reference", f"NeuroKit2 {method}", *of,
                lambda method=method: [neurokit(lead, 500, method) for lead in ecg.signal],
            )
        )  # fmt: skip
    for case in cases[1:]:
        pair = [cases[0], case]
        measure = f"waves, {case.what}"
        yield from lines(measure, pair, take_turns(pair, sizes.repeats)[0], 1)


# --- TS2Vec's loss --------------------------------------------------------------------------------

LOSSES = {"ours": hierarchical_parts, "reference": full_hierarchical}


def loss_and_gradient(side: str, records: int, steps: int, channels: int) -> tuple:
    """Both parts of the loss and the gradient of their sum, of random views."""
    seeded = torch.Generator().manual_seed(0)
    z = torch.randn(2, records, steps, channels, generator=seeded).div(channels**0.25)
    z.requires_grad_()
    parts = LOSSES[side](z[0], z[1])
    sum(parts).backward()
    return (*(part.item() for part in parts), z.grad.numpy())


def resident(kind: str) -> float:
    """MB of this process in memory now (VmRSS), or at most so far (VmHWM); NaN where the system
    does not say. `ru_maxrss` is no substitute: it keeps the peak of the process that started it."""
    status = Path("/proc/self/status")
    found = re.search(rf"{kind}:\s*(\d+) kB", status.read_text() if status.is_file() else "")
    return int(found[1]) * 1024 / 1e6 if found else np.nan


def extra_memory(side: str, *shape: int) -> float:
    """MB by which the peak of a process exceeds what it held before `loss_and_gradient`."""
    compute.use(ComputeConfig())
    loss_and_gradient(side, 2, 4, 8)  # loads what torch loads late
    before = resident("VmRSS")
    loss_and_gradient(side, *shape)
    return resident("VmHWM") - before


def in_a_fresh_process(function: Callable, *values: object) -> object:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *values).result()


def ts2vec_loss(sizes: Sizes) -> Iterator[dict]:
    records, channels = sizes.loss_shape
    whats = {"ours": "in chunks, computed again", "reference": "full matrices"}
    for steps in sizes.steps:
        shape, size = (records, steps, channels), f"{records} records, T = {steps}"
        cases = [
            Case(side, what, size, records, lambda side=side, s=shape: loss_and_gradient(side, *s))
            for side, what in whats.items()
        ]
        seconds, outcomes = take_turns(cases, sizes.repeats)
        cases[0].more["difference"] = difference(*outcomes)
        for case in cases:
            case.more["extra_mb"] = in_a_fresh_process(extra_memory, case.side, *shape)
        yield from lines("TS2Vec loss", cases, seconds, 1)


# --- preparation ----------------------------------------------------------------------------------


def prepare_all(root: Path, folder: Path, jobs: int) -> tuple:
    """Store and beats, from nothing; returns what `plain_loop` does."""
    store = prepare(DATA, folder / "store", root, jobs)
    beats = prepare_beats(store, folder / "beats", jobs)
    return beats.count, *np.nan_to_num(beats.record_features[:, [28, 53]]).T


def headers(root: Path) -> list[str]:
    return [str(path.with_suffix("")) for path in sorted((root / "ptbxl").rglob("*.hea"))]


def plain_loop(root: Path) -> tuple:
    """The same with wfdb, SciPy and NeuroKit2, one record after the other, nothing written:
    band-pass of all leads, to whole microvolts; R peaks, waves, heart-rate variability and quality
    of lead II.

    Returns: (records,) number of R peaks, mean RR in ms, quality."""
    sos, found = butter(2, (0.5, 40), "bandpass", fs=RATE, output="sos"), []
    for path in headers(root):
        leads = sosfiltfilt(sos, wfdb.rdsamp(path)[0].T, padlen=2 * RATE).round(3)
        clean = nk.ecg_clean(leads[1], sampling_rate=RATE)
        peaks = nk.ecg_peaks(clean, sampling_rate=RATE)[1]["ECG_R_Peaks"]
        nk.ecg_delineate(clean, peaks, sampling_rate=RATE, method="prominence")
        rr = nk.hrv_time(peaks, sampling_rate=RATE)["HRV_MeanNN"][0]
        rating = {"sampling_rate": RATE, "method": "zhao2018", "approach": "fuzzy"}
        quality = beats_module.QUALITY[str(nk.ecg_quality(clean, peaks, **rating))]
        found.append((len(peaks), rr, quality))
    return tuple(np.array(found).T)


def read_only(root: Path) -> None:
    for path in headers(root):
        wfdb.rdsamp(path)


def preparation(sizes: Sizes, root: Path, folder: Path) -> Iterator[dict]:
    of, work = (f"{sizes.simulated} records", sizes.simulated), folder / "prepared"
    cases = [
        Case(
            "ours", f"store and beats, {jobs} process{'es' * (jobs > 1)}", *of,
            lambda jobs=jobs: prepare_all(root, work, jobs),
            lambda: shutil.rmtree(work, ignore_errors=True), jobs,
        )
        for jobs in sorted({1, cores()})
    ]  # fmt: skip
    ours = range(len(cases))
    cases.append(Case("reference", "wfdb and NeuroKit2 in a loop", *of, lambda: plain_loop(root)))
    cases.append(Case("reference", "reading alone, wfdb", *of, lambda: read_only(root)))
    with warnings.catch_warnings():  # NeuroKit2 warns of records with few beats
        warnings.simplefilter("ignore")
        seconds, outcomes = take_turns(cases, sizes.repeats)
    for name, reference in (("preparation against reading", -1), ("preparation", -2)):
        kept = [*ours, len(cases) + reference]
        for i in ours if name == "preparation" else ():
            cases[i].more["difference"] = difference(outcomes[i], outcomes[reference])
        yield from lines(name, [cases[i] for i in kept], seconds[:, kept], len(ours))


# --- growth ---------------------------------------------------------------------------------------


def write_repeated(source: Path, folder: Path, n: int) -> None:
    """A PTB-XL folder of n records: those of `source` again and again, as hard links, each copy
    with new record and patient numbers and the same fold."""
    base = pd.read_csv(source / "ptbxl_database.csv", dtype=str, keep_default_na=False)
    table = base.iloc[np.arange(n) % len(base)].reset_index(drop=True)
    numbers = np.arange(1, n + 1)
    names = [f"records100/{k // 1000 * 1000:05d}/{k:05d}_lr" for k in numbers]
    for old, new in zip(table["filename_lr"], names, strict=True):
        (folder / new).parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".hea", ".dat"):
            os.link(source / f"{old}{suffix}", folder / f"{new}{suffix}")
    patients = table["patient_id"].astype(float) + (numbers - 1) // len(base) * len(base)
    table = table.assign(ecg_id=numbers, patient_id=patients, filename_lr=names)
    table.to_csv(folder / "ptbxl_database.csv", index=False)
    shutil.copy(source / "scp_statements.csv", folder)


def without_signal_work(store: Store, beats: Beats) -> ExitStack:
    """Inside, `prepare` and `prepare_beats` take what they make of a single record from this store
    and these beats, in turn: what is left is their work on tables and whole arrays."""
    table, count = store.table.to_dict("records"), beats.count

    def process(config: DataConfig, task: dict) -> dict:
        row, name = task["row"], task["row"]["record_id"]
        k = (int(name.removeprefix("ptbxl-")) - 1) % len(table)
        line = {**table[k], "record_id": name, "patient_id": row["patient_id"]}
        done = {"dataset": "ptbxl", "record_id": name, "digest": name, "unused_s": 0.0}
        return {**done, "set_aside": [], "rows": [(line, store.signals[k], None)]}

    def analyse_rows(folder: Path, rows: np.ndarray) -> list[dict]:
        found = []
        for k in rows % len(table):
            each = ("r_peak", "features", "rules")
            arrays = {name: getattr(beats, name)[k, : count[k]] for name in each}
            found.append({**arrays, "record_features": beats.record_features[k], "trouble": ""})
        return found

    stack = ExitStack()
    stack.enter_context(mock.patch.object(store_module, "_process", process))
    stack.enter_context(mock.patch.object(beats_module, "_analyse_rows", analyse_rows))
    return stack


def growth(sizes: Sizes, root: Path, folder: Path, store: Store, beats: Beats) -> Iterator[dict]:
    """What is not done record by record, with more and more records; one process."""
    roots = {n: folder / f"growth-{n}" for n in sizes.growth}
    for n, place in roots.items():
        write_repeated(root / "ptbxl", place / "ptbxl", n)
    run = make_run(rhythm="soft_1", beat="hard", exponent=50, batch_size=100)
    stores: dict[int, Store] = {}
    of_store: dict[int, Beats] = {}
    source: dict[int, BatchSource] = {}

    def whole(n: int) -> None:
        stores[n] = prepare(DATA, roots[n] / "store", roots[n])

    def analysed(n: int) -> None:
        of_store[n] = prepare_beats(stores[n], roots[n] / "beats")

    def scales(n: int) -> None:
        rows = pretraining_rows(stores[n], of_store[n], Rotation())
        source[n] = BatchSource(stores[n], of_store[n], rows, run, Rotation())

    def epoch(n: int) -> None:
        for _ in source[n].epoch(torch.Generator().manual_seed(0)):
            pass

    steps = {
        "store: listing, tables, hashes": (whole, "store"),
        "store: opened again": (whole, ""),
        "beats: arrays, clusters": (analysed, "beats"),
        "scales of features": (scales, ""),
        "batches of an epoch": (epoch, ""),
    }
    with without_signal_work(store, beats):
        for name, (step, gone) in steps.items():
            cases = [
                Case(
                    "ours", name, f"{n:,} records", n, lambda step=step, n=n: step(n),
                    lambda n=n, gone=gone: gone and shutil.rmtree(roots[n] / gone, True),
                )
                for n in sizes.growth
            ]  # fmt: skip
            yield from lines(GROWTH + name, cases, take_turns(cases, sizes.repeats)[0], 0)


def bench(sizes: Sizes, folder: Path) -> pd.DataFrame:
    """All measures, in columns `COLUMNS`. Args: folder: empty, for what is written meanwhile."""
    compute.use(ComputeConfig())
    root = write_folders(folder / "simulated", sizes.simulated, 0, 0, seed=0, jobs=cores())
    store = prepare(DATA, folder / "store", root, cores())
    beats = prepare_beats(store, folder / "beats", cores())
    found = [*training_steps(sizes, store, beats), *views_of(sizes, store), *ts2vec_loss(sizes)]
    found += waves_of_an_ecg(sizes)
    found += [*preparation(sizes, root, folder), *growth(sizes, root, folder, store, beats)]
    return pd.DataFrame(found, columns=COLUMNS).assign(**machine())


def main() -> None:
    os.environ["TQDM_DISABLE"] = "1"
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        table = bench(Sizes(), Path(folder))
    with replacing(RESULTS) as part:
        table.to_csv(part, index=False, float_format="%.5g", lineterminator="\n")
    print(f"results/{RESULTS.name}: {len(table)} lines in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
