"""Thirty SIGKILLs at seeded moments: what is made in the end is what an undisturbed run makes, bit
for bit.

Twenty-four hit the chain of `pipeline.py`, six in each of four rounds: while simulated records and
the store are made, in beats, in training (twice), in classification and in segmentation. Six hit
`python -m beatssl run` while it executes the pages of a small project. A moment is drawn within the
stage as long as it took undisturbed; all processes of the group die with it.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import psutil
import pytest
from pipeline import RUNS_YML, STAGES
from test_book import make_project, write_notebook

from beatssl.cache import read_json

HERE = Path(__file__).resolve().parent
ROUNDS, KILLS, KILLS_OF_PAGES = 4, ("store", "beats", "training", *STAGES[2:5]), 6

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="process groups and SIGKILL are POSIX's"),
]


def start(words: list[str], folder: Path) -> subprocess.Popen:
    """A process group of our own; what its workers share lies in `folder`."""
    env = {**os.environ, "BEATSSL_WORK": str(folder / "work"), "JOBLIB_TEMP_FOLDER": str(folder)}
    env |= {"PYTHONPATH": str(HERE.parent), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *words], env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def kill(process: subprocess.Popen) -> bool:
    """SIGKILL to the process, its group and all below it; False where it had ended by itself."""
    below = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for child in below:
        if child.is_running():  # a kernel has a group of its own
            child.kill()
    psutil.wait_procs(below)
    killed = process.wait() == -signal.SIGKILL
    for semaphore in Path("/dev/shm").glob(f"sem.loky-{process.pid}-*"):
        semaphore.unlink()  # nobody is left to do it
    return killed


# --- the chain --------------------------------------------------------------------------------


def products(work: Path) -> dict[str, object]:
    """Path -> content of all files, without the times in them."""
    found: dict[str, object] = {}
    for path in (path for path in work.rglob("*") if path.is_file()):
        found[path.relative_to(work).as_posix()] = path.read_bytes()
        if path.name == "curves.csv":
            curves = pd.read_csv(path).drop(columns="seconds")
            found[path.relative_to(work).as_posix()] = curves.to_csv()
        elif path.name == "manifest.json" and path.parent.name == "store":
            manifest = read_json(path)  # the signature holds the times of the records' files
            found[path.relative_to(work).as_posix()] = {**manifest, "signature": ""}
    return found


def test_a_chain_killed_again_and_again_makes_the_same_bits(tmp_path: Path) -> None:
    (tmp_path / "runs.yml").write_text(RUNS_YML)
    words = [str(HERE / "pipeline.py"), str(tmp_path / "runs.yml")]

    def undisturbed(folder: Path) -> tuple[dict[str, object], dict[str, float]]:
        folder.mkdir(exist_ok=True)
        process = start(words, folder)
        began = {line.strip(): time.monotonic() for line in process.stdout}
        assert process.wait() == 0 and list(began) == list(STAGES)
        took = {a: began[b] - began[a] for a, b in zip(STAGES, STAGES[1:])}
        return products(folder / "work"), took

    wanted, _ = undisturbed(tmp_path / "first")
    again, took = undisturbed(tmp_path / "second")  # what Python imports is in memory now
    assert again == wanted
    for kind in ("signals.i2", "r_peak.npy", "encoder.safetensors", "curves.csv", ".npz", ".json"):
        assert any(path.endswith(kind) for path in wanted)
    draw, hit = random.Random(0), []
    for number in range(ROUNDS):
        folder = tmp_path / f"round {number}"
        folder.mkdir()
        for stage in KILLS:
            wait = draw.uniform(0, took[stage])
            while (at := killed_in(start(words, folder), stage, wait)) is None:
                wait /= 2  # it was over
            hit.append(at)
            there = products(folder / "work")
            for path in wanted.keys() & there.keys():  # what has its name is whole
                assert there[path] == wanted[path], f"after kill {len(hit)}, in {at}: {path}"
        assert undisturbed(folder)[0] == wanted, f"round {number}, killed in {hit[-len(KILLS) :]}"
        shutil.rmtree(folder)
    print(Counter(hit))
    assert len(hit) == ROUNDS * len(KILLS) and set(STAGES[:-1]) <= set(hit), Counter(hit)


def killed_in(process: subprocess.Popen, stage: str, wait: float) -> str | None:
    """Kill so many seconds after a stage began; returns the stage it was in, None where the process
    had ended."""
    seen = []
    for line in process.stdout:
        seen.append(line.strip())
        if seen[-1] == stage:
            time.sleep(wait)
            killed = kill(process)
            return [*seen, *map(str.strip, process.stdout)][-1] if killed else None
    return pytest.fail(f"ended before {stage}: {seen}, status {process.wait()}")


# --- pages ------------------------------------------------------------------------------------


RUN = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(HERE.parent)!r})
from beatssl.pages.run import run
os.environ.pop("PYTHONPATH")  # the kernels import the package of the small project
sys.exit(run("tiny", root=Path(sys.argv[1]), jobs=2))
"""


def test_pages_killed_again_and_again_are_good_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_project(tmp_path, monkeypatch)
    code = "from beatssl.high import four\nprint(profile, four())"
    write_notebook(root, "02_more", "import time\ntime.sleep(0.5)\n" + code)
    write_notebook(root, "01_data", code)
    shown, book = (root / "runs.yml").read_text(), root / "book" / "runs" / "tiny"
    (root / "runs.yml").write_text(shown.replace("[01_data]", "[01_data, 02_more]"))
    words = ["-c", RUN, str(root)]

    def pages() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(book.iterdir())}

    def undisturbed() -> float:
        began, process = time.monotonic(), start(words, root)
        assert "all pages of profile tiny are executed" in process.communicate()[0]
        return time.monotonic() - began

    def anew() -> None:
        for folder in (book, root / "work"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

    undisturbed()
    anew()
    took, wanted = undisturbed(), pages()
    assert list(wanted) == ["01_data.ipynb", "02_more.ipynb", "16_summary.ipynb"]
    draw, hit = random.Random(1), []
    anew()
    while len(hit) < KILLS_OF_PAGES:
        process = start(words, root)
        time.sleep(draw.uniform(0, took))
        if not kill(process):
            assert pages() == wanted
            anew()
            continue
        there = {name: page for name, page in pages().items() if name in wanted}
        assert there.items() <= wanted.items()  # what has its name is whole
        hit.append(len(there))
    undisturbed()
    assert pages() == wanted and not list(root.rglob(".*.part")), hit
