"""Pages on the workers of a Dask cluster, and on several GPUs of one machine."""

from __future__ import annotations

import importlib
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from test_book import RUN_PARAMETERS, make_project, plan_tiny, write_notebook

from beatssl.__main__ import main
from beatssl.pages import fresh, run
from beatssl.pages import plan as pages
from beatssl.settings import ConfigError

ROOT = Path(__file__).resolve().parent.parent
PAPERMILL = """import sys
import nbformat
_, source, path, *_ = sys.argv
page, status, names = nbformat.read(source, 4), 0, {}
for number, cell in enumerate((c for c in page.cells if c.cell_type == "code"), 1):
    cell.execution_count = number
    try:
        exec(cell.source, names)
    except Exception as error:
        fault = {"ename": type(error).__name__, "evalue": str(error), "traceback": []}
        cell.outputs, status = [nbformat.v4.new_output("error", **fault)], 1
nbformat.write(page, path)
sys.exit(status)
"""
LOG = """import os, time
from pathlib import Path
def log(word):
    with open("log", "a") as file:
        names = "BEATSSL_DATA", "BEATSSL_WORK", "CUDA_VISIBLE_DEVICES"
        print(word, os.getpid(), *map(os.environ.get, names), file=file, flush=True)
log("start")
"""
WAIT = (
    LOG
    + """
while not Path("go").exists():
    time.sleep(0.02)
log("end")
"""
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small project of `test_book` with two notebooks in its first stage; in the place of
    papermill a module that starts no kernel."""
    root = make_project(tmp_path, monkeypatch)
    (root / "papermill").mkdir()
    (root / "papermill" / "__init__.py").touch()
    (root / "papermill" / "__main__.py").write_text(PAPERMILL)
    (root / "runs.yml").write_text(
        "stages: [[01_data, 02_beats], [16_summary]]\nprofiles: {tiny: {}}\n"
    )
    write_notebook(root, "02_beats", "print('beats')")
    return root


def until(fact: Callable, seconds: float = 60) -> object:
    """What `fact` says as soon as it says something."""
    end = time.monotonic() + seconds
    while not (found := fact()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)
    return found


@contextmanager
def cluster(folder: Path, count: int, python_path: Path = ROOT) -> Iterator[str]:
    """The address of a scheduler with so many worker processes of one thread each."""
    file, started = folder / "scheduler.json", []
    env = {k: v for k, v in os.environ.items() if not k.startswith("BEATSSL_")}
    env |= {"PYTHONPATH": str(python_path), "BEATSSL_DATA": "/a/folder/that/is/not/there"}
    words = "--scheduler-file", str(file), "--no-dashboard"

    def start(name: str, *more: str) -> None:
        command = [sys.executable, "-m", f"distributed.cli.{name}", *words, *more]
        out = (folder / f"{name}.log").open("a")
        started.append(subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out))

    try:
        start("dask_scheduler", "--host", "127.0.0.1", "--port", "0")
        for _ in range(count):
            start("dask_worker", "--nthreads", "1", "--no-nanny")
        until(file.exists)
        address = re.search(r"tcp://[\d.]+:\d+", file.read_text())[0]
        yield address
    finally:
        for process in started:
            process.kill()
            process.wait()


# --- a cluster --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_of_a_killed_worker_is_done_again_and_failures_stop_later_stages(
    root: Path, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture
) -> None:
    write_notebook(root, "01_data", WAIT)
    log = root / "log"
    with ThreadPoolExecutor() as pool, cluster(tmp_path_factory.mktemp("dask"), 2) as address:
        running = pool.submit(run.run, "tiny", root=root, scheduler=address)
        papermill = psutil.Process(int(until(lambda: log.exists() and log.read_text()).split()[1]))
        lost = papermill.parent()
        assert "dask_worker" in " ".join(lost.cmdline())
        lost.kill()
        time.sleep(1)  # papermill goes on without its worker, and must stay the only writer
        (root / "go").touch()
        assert running.result(60) == 0
        assert run.check("tiny", root) == 0
        lines = [line.split() for line in log.read_text().splitlines()]
        words, ids, data, work, _ = zip(*lines, strict=True)
        assert words == ("start", "end", "start", "end") and ids[0] == ids[1] != ids[2] == ids[3]
        assert set(data) == {"None"} and set(work) == {str(root / "work")}
        out = capfd.readouterr().out
        assert out.count("done   ") == 3 and out.count("start  01_data") == 2
        assert out.index("done   01_data") < out.index("start  16_summary")

        write_notebook(root, "01_data", "raise ValueError('lead V2 is flat')")
        write_notebook(root, "16_summary", "print('other')")
        assert run.run("tiny", root=root, scheduler=address) == 1
        out = capfd.readouterr().out
        assert "ValueError: lead V2 is flat" in out
        assert "fresh: 02_beats" in out and "not started: 16_summary" in out
        assert "start  16_summary" not in out


@pytest.mark.slow
def test_workers_with_another_package_are_a_clear_failure(
    root: Path, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture
) -> None:
    other = tmp_path_factory.mktemp("other")  # found before the package that is installed
    (other / "beatssl" / "pages").mkdir(parents=True)
    for name in ("__init__.py", "pages/__init__.py", "pages/run.py"):
        (other / "beatssl" / name).touch()
    with cluster(tmp_path_factory.mktemp("dask"), 1, python_path=other) as address:
        assert run.run("tiny", root=root, scheduler=address) == 1
    out = capfd.readouterr().out
    assert out.count("scheduler and workers need this folder and its .venv") == 2
    assert "FAILED 01_data, " in out and "FAILED 02_beats, " in out
    assert "not started: 16_summary" in out


def test_no_scheduler_is_one_line_and_nothing_is_executed(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(run, "plan", lambda profile, _: pages.plan(profile, root))
    monkeypatch.setattr(run, "_work", lambda *_: pytest.fail("a page was executed"))
    connect = importlib.import_module("distributed").Client
    patience = partial(connect, timeout="0.2s")
    monkeypatch.setattr("distributed.Client", lambda address, timeout: patience(address))
    for address in ("tcp://127.0.0.1:9", "nonsense://x", "tcp://127.0.0.1"):
        assert main(["run", "--scheduler", address]) == 1
        told = capsys.readouterr().err.strip().splitlines()
        assert len(told) == 1 and told[0].startswith(
            f"error: no Dask scheduler answers at {address}"
        )
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["run", "--scheduler", "tcp://127.0.0.1:9"]) == 1
    assert "pip install -e .[cluster]" in capsys.readouterr().err


def test_a_worker_that_sees_other_files_or_other_code_refuses_the_page(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEATSSL_ECG_FM", "only here")
    page, given = plan_tiny(root)[0], {"BEATSSL_WORK": str(root / "work")}
    token = root / "token"

    def ask(page: pages.Page, stamp: dict) -> object:
        monkeypatch.setattr(run, "execute", lambda page: os.environ.copy())
        return run._work(page, "why", 0.0, stamp, given, token)[0]

    stamp = fresh.stamp(page)
    with pytest.raises(ConfigError, match=f"does not see {re.escape(str(root))}: "):
        ask(page, stamp)
    token.touch()
    assert {k: v for k, v in ask(page, stamp).items() if k.startswith("BEATSSL_")} == given
    with pytest.raises(ConfigError, match="does not see /somewhere/else: "):
        ask(replace(page, root=Path("/somewhere/else")), stamp)
    (root / "beatssl" / "low.py").write_text("def two():\n    return 3\n")
    with pytest.raises(ConfigError, match="has other code, settings or notebooks"):
        ask(page, stamp)


# --- one writer -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_page_waits_for_the_orphan_of_a_killed_runner(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only papermill is left and still writes: the page starts when it has ended."""
    write_notebook(root, "01_data", WAIT)
    page, log = plan_tiny(root)[0], root / "log"
    runner = subprocess.Popen(
        [sys.executable, "-c", "import pickle, sys; from beatssl.pages import run\n"
         "run.execute(pickle.load(sys.stdin.buffer))"],
        stdin=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    runner.stdin.write(pickle.dumps(page))
    runner.stdin.close()
    until(lambda: log.exists() and log.read_text())
    runner.kill()
    runner.wait()
    with ThreadPoolExecutor() as pool:
        again = pool.submit(run.execute, page)
        time.sleep(2)
        (root / "go").touch()
        assert again.result(60) == ""
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["start", "end"] * 2


# --- this machine -----------------------------------------------------------------------------


def run_on_gpus(
    root: Path, count: int, monkeypatch: pytest.MonkeyPatch, at_once: int, jobs: int = 0
) -> list:
    """Lines of the log after a run of six pages that train, none of which ends before so many have
    started: word, process, GPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    (root / "runs.yml").write_text(
        "stages: [[01_data], [05_pretraining]]\nprofiles:\n  tiny:\n"
        "    runs: [{method: random, seeds: [0, 1, 2, 3, 4, 5]}]\n"
    )
    write_notebook(root, "01_data", LOG)
    code = f"while Path('log').read_text().count('start') < {1 + at_once}:\n    time.sleep(0.02)"
    write_notebook(root, "05_pretraining", f"{LOG}{code}\nlog('end')", RUN_PARAMETERS)
    assert run.run("tiny", root=root, jobs=jobs, force=True) == 0
    lines = [line.split() for line in (root / "log").read_text().splitlines()]
    return [(word, number, gpu) for word, number, _, _, gpu in lines]


def most_at_once(lines: list) -> int:
    """The most pages that were under way at a time, and no two of them on one GPU."""
    under_way: dict[str, str] = {}
    most = 0
    for word, number, gpu in lines:
        if word == "end":
            assert under_way.pop(number) == gpu
        else:
            assert gpu == "None" or gpu not in under_way.values(), "two pages on one GPU"
            under_way[number] = gpu
        most = max(most, len(under_way))
    return most


def test_each_gpu_trains_one_page_at_a_time(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (_, _, first), *training = run_on_gpus(root, 3, monkeypatch, 3)
    assert first == "None"  # a page that does not train sees them all
    assert {gpu for *_, gpu in training} == {"0", "1", "2"} and most_at_once(training) == 3
    assert "those that train one on each of 3 GPUs" in capsys.readouterr().out


def test_jobs_and_the_gpus_named_by_the_caller_are_kept_to(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-ab,7")
    _, *training = run_on_gpus(root, 3, monkeypatch, 2, jobs=2)
    assert {gpu for *_, gpu in training} == {"4", "GPU-ab"} and most_at_once(training) == 2


def test_without_a_gpu_jobs_counts_all_pages(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    _, *training = run_on_gpus(root, 0, monkeypatch, 2, jobs=2)
    assert {gpu for *_, gpu in training} == {"None"} and most_at_once(training) == 2


def test_a_future_that_breaks_is_a_failed_page(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Here by an error of `execute` itself; on a cluster where each of its workers was lost."""

    def execute(page: pages.Page) -> str:
        if page.name == "01_data":
            raise RuntimeError("gone\nand more")
        return ""

    monkeypatch.setattr(run, "execute", execute)
    assert run.run("tiny", root=root) == 1
    out = capsys.readouterr().out
    assert "FAILED 01_data, RuntimeError: gone\n" in out and "done   02_beats" in out
    assert "not started: 16_summary" in out
