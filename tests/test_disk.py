"""A disk that is full and a folder that cannot be written: one clear line, and nothing is lost.

Each command runs with its folder on a small disk of its own (tmpfs, in a private mount namespace).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline import RUNS_YML
from test_book import fake_run, make_project, prepare_book

from beatssl.cache import replacing

ROOT = Path(__file__).resolve().parent.parent
PRIVATE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
ON_DISK = """
disk=$1 before=$2 after=$3 size=$4; shift 4
mount -t tmpfs -o size=64m none "$disk" && cp -a "$before/." "$disk" || exit 99
case $size in
  ro) mount -o remount,ro "$disk" ;;
  *) mount -o remount,size=$(($(du -sk "$disk" | cut -f1) + size))k "$disk" ;;
esac || exit 99
"$@"; status=$?
cp -a "$disk/." "$after"; exit $status
"""
FULL = "[Errno 28] No space left on device (make room on its disk, or set BEATSSL_WORK to "
LOCKED = "[Errno 30] Read-only file system (make its folder writable, or set BEATSSL_WORK to "
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _disks(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = str(tmp_path_factory.mktemp("disk"))
    try:
        subprocess.run([*PRIVATE, f"mount -t tmpfs none {place}"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no small disk of its own on this machine (unshare, tmpfs)")


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def on_disk(folder: Path, size: str, *words: str) -> tuple[subprocess.CompletedProcess, set[str]]:
    """Run Python with `folder` on a disk of its own that has so many kB left, or cannot be written
    (`ro`). Returns: what it said, and the names of the files that are new.

    What was there must be there still, with the same bytes, and no leftovers beside it."""
    disk, after = folder.with_name("disk"), folder.with_name("after")
    for place in (disk, after):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    env |= {"BEATSSL_WORK": str(disk / "work"), "JOBLIB_TEMP_FOLDER": str(folder.parent)}
    places = [str(place) for place in (disk, folder, after)]
    words = (*PRIVATE, ON_DISK, "sh", *places, size, sys.executable, *words)
    done = subprocess.run(words, env=env, cwd=folder.parent, capture_output=True, text=True)
    assert done.returncode != 99, done.stderr
    old, new = content(folder), content(after)
    assert old.items() <= new.items()
    assert not list(after.rglob(".*.part"))
    return done, new.keys() - old.keys()


# --- what writes ------------------------------------------------------------------------------

WRITERS = """
import sys
from pathlib import Path
import numpy as np, pandas as pd, torch
from beatssl.cache import replacing, replacing_folder, write_text
from beatssl.methods.encoder import EncoderConfig, build_encoder, save_encoder
from beatssl.results.saved import write_predictions

def checkpoint(path):
    with replacing(path) as part:
        torch.save({"a": torch.randn(100_000)}, part)

def array(path):
    with replacing_folder(path) as part:
        np.save(part / "a.npy", np.random.default_rng(0).random(100_000))

def table(path):
    with replacing_folder(path) as part:
        pd.DataFrame({"a": np.random.default_rng(0).random(30_000)}).to_csv(part / "a.csv")

def predictions(path):
    write_predictions(path, {"score": np.random.default_rng(0).random(100_000)}, "key")

def encoder(path):
    save_encoder(build_encoder(EncoderConfig(), 0), path)

def text(path):
    write_text(path, "x" * 200_000)

for write in (checkpoint, array, table, predictions, encoder, text):
    try:
        write(Path(sys.argv[1]) / write.__name__)
    except OSError as error:
        print(error)
"""


@pytest.mark.parametrize("size, told", [("40", FULL), ("ro", LOCKED)])
def test_every_writer_names_the_file_and_what_helps(tmp_path: Path, size: str, told: str) -> None:
    names = ["checkpoint", "array", "table", "predictions", "encoder", "text"]
    for name in names:
        place = tmp_path / "before" / name
        if name in ("array", "table"):
            place.mkdir(parents=True)
            place /= "old"
        place.parent.mkdir(exist_ok=True)
        place.write_text(f"an older {name}")
    done, new = on_disk(tmp_path / "before", size, "-c", WRITERS, str(tmp_path / "disk"))
    assert done.returncode == 0 and not new, done.stderr
    lines = [f"{told}another folder): '{tmp_path / 'disk' / name}'" for name in names]
    assert done.stdout.splitlines() == lines


def test_an_error_of_another_kind_keeps_its_words(tmp_path: Path) -> None:
    for error in (ValueError("three"), FileNotFoundError(2, "none", "a.hea"), OSError("torn")):
        with pytest.raises(type(error)) as told, replacing(tmp_path / "a"):
            raise error
        assert told.value is error


# --- stages -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs.yml and all products of the chain."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / "runs.yml").write_text(RUNS_YML)
    words = [sys.executable, str(ROOT / "tests" / "pipeline.py"), str(folder / "runs.yml")]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "BEATSSL_WORK": str(folder / "work")}
    subprocess.run(words, env=env, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(
    "stage, lost, kilobytes, named",
    [
        ("store", "synthetic store beats runs predictions results", 100, "synthetic'"),
        ("store", "store beats runs predictions results", 100, "store'"),
        ("beats", "beats runs predictions results", 100, "beats'"),
        ("training", "runs predictions results", 20, "checkpoint.pt'"),
        ("classification", "predictions results", 2, "-frozen-0.5."),
    ],
)
def test_a_stage_that_cannot_be_kept_says_so_in_a_line(
    chain: Path, tmp_path: Path, stage: str, lost: str, kilobytes: int, named: str
) -> None:
    shutil.copytree(chain, tmp_path / "before")
    for name in lost.split():
        shutil.rmtree(tmp_path / "before" / "work" / "small" / name)
    words = [str(ROOT / "tests" / "pipeline.py"), str(tmp_path / "disk" / "runs.yml")]
    for size, told in ((str(kilobytes), FULL), ("ro", LOCKED)):
        done, _ = on_disk(tmp_path / "before", size, *words)
        assert done.returncode == 1 and done.stdout.split()[-1] == stage, done.stderr
        assert "Traceback" not in done.stderr
        line = done.stderr.splitlines()[-1]
        assert line.startswith(f"error: {told}") and (named in line or size == "ro"), line


# --- pages and the book -----------------------------------------------------------------------

COMMAND = """
import os, sys
from functools import partial, update_wrapper
from pathlib import Path
from beatssl import __main__
from beatssl.pages import build, run

os.environ.pop("PYTHONPATH")  # the kernels import the package of the small project
root = Path(sys.argv[1])
for module, name in ((run, "run"), (build, "build")):
    command = getattr(module, name)
    setattr(module, name, update_wrapper(partial(command, root=root), command))
sys.exit(__main__.main(sys.argv[2:]))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project with executed pages and a book built from them."""
    (tmp_path / "before").mkdir()
    root = make_project(tmp_path / "before", monkeypatch)
    prepare_book(root)
    fake_run(root)
    (root / "_build" / "html").mkdir(parents=True)
    (root / "_build" / "html" / "index.html").write_text("an older book")
    return root


@pytest.mark.parametrize("size, told", [("0", "No space left on device"), ("ro", "Read-only")])
def test_a_page_that_cannot_be_kept_leaves_the_old_one(project: Path, size: str, told: str) -> None:
    words = ["run", "--profile", "tiny", "--force", "--jobs", "1"]
    done, _ = on_disk(project, size, "-c", COMMAND, str(project.with_name("disk")), *words)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    lines = [line for line in (done.stdout + done.stderr).splitlines() if told in line]
    assert len(lines) == 1, done.stdout + done.stderr


@pytest.mark.parametrize(
    "size, told", [("0", FULL), ("500", "[Errno 28] No space"), ("ro", LOCKED)]
)
def test_a_book_that_cannot_be_kept_leaves_the_old_one(project: Path, size: str, told: str) -> None:
    words = ["build", "--profile", "tiny"]
    done, _ = on_disk(project, size, "-c", COMMAND, str(project.with_name("disk")), *words)
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in said, said
    assert len([line for line in said.splitlines() if told in line]) == 1, said
