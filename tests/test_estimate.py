"""What a profile would take: the arithmetic by hand, and a small one from end to end."""

from dataclasses import replace

import pytest

from beatssl import __main__ as command_line
from beatssl import estimate as e
from beatssl.methods import make_run
from beatssl.profile import load_profile
from beatssl.settings import Rotation


def test_hours_follow_from_steps_seeds_and_records(monkeypatch, tmp_path):
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    monkeypatch.setattr(e, "_step", lambda run, w, device: (2.0, 1.5))
    monkeypatch.setattr(e, "_evaluation", lambda *_: 360.0)
    monkeypatch.setattr(e, "_small", lambda profile: replace_work(tmp_path))
    profile = load_profile("full")
    table, told = e.estimate(profile)
    records = round(0.8 * 21_799) + 66_416  # folds 1-8 and the Challenge without PTB-XL
    assert f"{records:,} of them to pretrain on" in told and "88,415 records" in told
    row = table.loc["beatssl-soft_1-hard-50"]
    run = next(run for run in profile.runs if run.name == row.name)
    steps = run.epochs * (records // run.batch_size)
    assert row["h training"] == pytest.approx(3 * 2.0 * steps / 3600)
    assert row["h evaluation"] == pytest.approx(0.3) and row["GB"] == 1.5
    assert table.loc["random", ["s a step", "h training", "GB"]].tolist() == [0, 0, 0]
    names = {run.name for run in profile.runs if run.has_encoder}
    assert set(table.index) == names and (table["seeds"] == 3).all()
    gigabytes = 88_415 * 12 * 1000 * 2 / 1e9
    assert f"{gigabytes:.1f} GB of signals" in told


def replace_work(folder):
    """Stands for the simulated workspace, of which only the folder is used here."""
    (folder / "estimate").mkdir()
    profile = type("Profile", (), {"work": folder / "estimate"})
    return type("Workspace", (), {"profile": profile})


def test_records_are_those_of_the_store_where_there_is_one(small):
    rotation = Rotation((1, 2, 3), 4)
    profile = replace(small.profile, data=replace(small.profile.data, rotations=(rotation,)))
    here, table = e._records(profile), small.store.table
    trains = table["fold"].isin([5, 6, 7, 8, 9, 10]) | (table["dataset"] == "challenge")
    trains &= table["dataset"] != "ludb"
    assert here == {"rows": len(table), "training": trains.sum(), "ludb": 8}
    there = replace(profile, name="never made")
    assert e._records(there) == {"rows": 172, "training": 96 + 4, "ludb": 8}


@pytest.mark.slow
def test_a_small_profile_is_estimated_from_end_to_end(small, monkeypatch, tmp_path, capsys):
    """Every run with an encoder has a line, and nothing is left behind."""
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    runs = (make_run(epochs=3, batch_size=32), make_run("random"), make_run("features"))
    profile = replace(small.profile, name="some", runs=runs)
    monkeypatch.setattr(command_line, "load_profile", lambda name: profile)
    assert command_line.main(["run", "--profile", "some", "--estimate"]) == 0
    said = capsys.readouterr().out
    assert "beatssl-hard-none-1" in said and "features" not in said and "172 records" in said
    assert list(tmp_path.iterdir()) == [] or not any(tmp_path.rglob("*.npy"))
    table, _ = e.estimate(profile)
    assert (table[["h evaluation"]] > 0).all().all() and table.loc["random", "h training"] == 0
