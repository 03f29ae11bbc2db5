"""Commands for one's own ECGs, from a built wheel and with what the core installs alone."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from beatssl import delineate, own, read_ecg, weights
from beatssl.__main__ import main
from beatssl.data.store import sha256_of
from beatssl.data.synthetic import write_folders

ROOT = Path(__file__).resolve().parent.parent
OF_THE_BOOK = "matplotlib seaborn papermill nbformat jupyter_book IPython ipykernel PIL".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Ten simulated 500 Hz records in the Challenge's layout: one is 3 s long, all are whole."""
    return write_folders(tmp_path_factory.mktemp("own"), 0, 0, 10, seed=0) / "challenge"


def test_a_folder_gives_a_table_a_picture_each_and_a_word_about_bad_ones(folder, tmp_path, capsys):
    files = own.found([folder])
    bad = tmp_path / "in" / "bad.csv"
    bad.parent.mkdir()
    bad.write_text("II,V1\n1,hello\n2,world\n")
    words = ["delineate", str(files[0]), str(bad), str(files[1])]
    assert main([*words, "--csv", str(tmp_path / "w.csv"), "--plot", str(tmp_path / "png")]) == 1
    said = capsys.readouterr().err
    assert "passed over" in said and "'V1' holds text" in said and "2 of 3 files" in said
    table = pd.read_csv(tmp_path / "w.csv")
    assert table["file"].unique().tolist() == [str(files[0]), str(files[1])]
    first = table[table["file"] == str(files[0])].drop(columns="file").reset_index(drop=True)
    pd.testing.assert_frame_equal(first, delineate(read_ecg(files[0])), check_dtype=False)
    assert len(list((tmp_path / "png").glob("*.png"))) == 2


def test_one_file_is_printed(folder, capsys):
    assert main(["delineate", str(own.found([folder])[0])]) == 0
    assert "QRS" in capsys.readouterr().out


def test_vectors_of_a_folder(folder, tmp_path, capsys):
    assert main(["embed", str(folder), "--out", str(tmp_path / "v.csv")]) == 0
    table = pd.read_csv(tmp_path / "v.csv")
    assert table["file"].tolist() == [str(path) for path in own.found([folder])]
    assert np.isfinite(table.filter(like="z").to_numpy()).all()
    assert main(["embed", str(folder), "--out", str(tmp_path / "v.xlsx")]) == 1
    assert "must end with .csv or .parquet" in capsys.readouterr().err


def test_vectors_as_parquet_or_a_word_before_the_work(folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "v.parquet"
    assert main(["embed", str(folder), "--out", str(out)]) == 0
    table = pd.read_parquet(out)
    assert table["file"].tolist() == [str(path) for path in own.found([folder])]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(own, "read_encoder", lambda *_: pytest.fail("began without pyarrow"))
    assert main(["embed", str(folder), "--out", str(out)]) == 1
    assert "needs pyarrow: pip install pyarrow" in capsys.readouterr().err


def test_a_folder_without_ecgs_is_an_error(tmp_path, capsys):
    assert main(["delineate", str(tmp_path)]) == 1
    assert "no file that ends with .hea" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["encoder", "delineator"])
def test_weights_are_small_known_and_described(name):
    path = weights.path_of(name)
    assert path.stat().st_size < {"encoder": 2_000_000, "delineator": 3_000_000}[name]
    assert sha256_of(path) == weights.SHA256[name]
    card = path.with_suffix(".md").read_text()
    for word in ("Trained on", "licence", "Never tested on", "no medical device"):
        assert word in card, word


def test_changed_weights_are_refused(tmp_path, monkeypatch):
    whole = weights.path_of("encoder").read_bytes()
    (tmp_path / "encoder.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    with pytest.raises(weights.WeightsError, match="SHA-256"):
        weights.path_of("encoder")
    with pytest.raises(weights.WeightsError, match="is missing"):
        weights.path_of("delineator")


def test_a_wheel_holds_all_and_needs_the_core_alone(folder, tmp_path):
    """Unpacked elsewhere, with the modules of the extra `book` out of reach."""
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "beatssl"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*build, "-w", str(tmp_path), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("beatssl-*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({OF_THE_BOOK}))
from beatssl.__main__ import main
import beatssl
assert beatssl.__file__.startswith({str(tmp_path)!r}), beatssl.__file__
file = {str(own.found([folder])[0])!r}
assert main(["delineate", file, "--csv", "w.csv"]) == 0
assert main(["embed", file, "--out", "v.csv"]) == 0
assert main(["check"]) == 1  # says that the book needs more
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": str(tmp_path / "installed"), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "without the extra `book` there are delineate and embed" in done.stderr
    assert (tmp_path / "w.csv").stat().st_size > 1000
