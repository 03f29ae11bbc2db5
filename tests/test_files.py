"""What killed writers leave behind, and what takes the place of what."""

import os
import shutil
import subprocess
import sys

import pytest

from beatssl import cache as files


def dead_process() -> int:
    """The number of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_leftovers_of_dead_writers_are_cleared_and_others_are_not(tmp_path):
    dead, host = dead_process(), files.HOST
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    gone = folder / f".run.json.{host}-{dead}.part"
    gone.write_text("half")
    gone_folder = tmp_path / f".data.{host}-{dead}.part"
    gone_folder.mkdir()
    (gone_folder / "signals.i2").write_text("half")
    ours = files.part_of(folder / "run.json")
    elsewhere = tmp_path / f".run.json.other-{dead}.part"
    plain = tmp_path / ".hidden.part"
    for path in (ours, elsewhere, plain):
        path.write_text("kept")
    assert ours.name.endswith(f"-{os.getpid()}.part")
    files.clear_leftovers(tmp_path)
    assert not gone.exists() and not gone_folder.exists()
    assert all(path.read_text() == "kept" for path in (ours, elsewhere, plain))


def test_a_killed_writer_leaves_the_old_file_and_the_next_start_clears_its_part(tmp_path):
    path = tmp_path / "table.csv"
    files.write_text(path, "old")
    code = (
        "import os, signal, sys; from pathlib import Path; from beatssl.cache import replacing\n"
        f"with replacing(Path({str(path)!r})) as part:\n"
        "    part.write_text('new'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert path.read_text() == "old" and len(list(tmp_path.glob(".*.part"))) == 1
    files.clear_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_a_folder_is_whole_until_the_new_one_is(tmp_path):
    path = tmp_path / "work" / "store"
    for word in ("old", "new"):
        with files.replacing_folder(path) as part:
            assert not list(part.iterdir()) and part.name == files.part_of(path).name
            (part / word).write_text(word)
            assert not path.exists() or (path / "old").read_text() == "old"
    with pytest.raises(KeyboardInterrupt), files.replacing_folder(path) as part:
        (part / "newer").write_text("half")
        raise KeyboardInterrupt
    with files.replacing_folder(path) as part:
        shutil.rmtree(part)  # another process was faster
    assert [p.name for p in path.iterdir()] == ["new"]
    assert [p.name for p in path.parent.iterdir()] == ["store"]


def test_json_is_read_as_it_was_written_and_damage_is_nothing(tmp_path):
    path = tmp_path / "manifest.json"
    assert files.read_json(path) == {}
    files.write_json(path, {"b": [1], "a": "x"})
    assert files.read_json(path) == {"a": "x", "b": [1]}
    path.write_text(path.read_text()[:-3])
    assert files.read_json(path) == {}
