"""Pages on the workers of a Dask cluster, and on several GPUs of one machine."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from test_book import RUN_PARAMETERS, make_project, plan_tiny, write_notebook

from beatssl.__main__ import main
from beatssl.pages import fresh, run, workers
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
        given = [os.environ.get(n) for n in ("BEATSSL_DATA", "BEATSSL_WORK", "CUDA_VISIBLE_DEVICES")]
        print(word, os.getpid(), *given, file=file, flush=True)
log("start")
"""
WAIT = LOG + """
while not Path("go").exists():
    time.sleep(0.02)
log("end")
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small project of `test_book` with two notebooks in its first stage; in the place of
    papermill a module that starts no kernel."""
    root = make_project(tmp_path, monkeypatch)
    (root / "papermill").mkdir()
    (root / "papermill" / "__init__.py").touch()
    (root / "papermill" / "__main__.py").write_text(PAPERMILL)
    (root / "runs.yml").write_text(
        "stages: [[01_data, 02_beats], [12_summary]]\nprofiles: {tiny: {}}\n"
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
        assert out.index("done   01_data") < out.index("start  12_summary")

        write_notebook(root, "01_data", "raise ValueError('lead V2 is flat')")
        assert run.run("tiny", root=root, scheduler=address) == 1
        out = capfd.readouterr().out
        assert "ValueError: lead V2 is flat" in out
        assert "fresh: 02_beats" in out and "not started: 12_summary" in out
        assert "start  12_summary" not in out


def test_workers_with_another_package_are_a_clear_failure(
    root: Path, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture
) -> None:
    with cluster(tmp_path_factory.mktemp("dask"), 1, python_path=root) as address:
        assert run.run("tiny", root=root, scheduler=address) == 1
    out = capfd.readouterr().out
    for name in ("01_data", "02_beats"):
        assert re.search(rf"FAILED {name}, .*need this folder and its .venv", out)
