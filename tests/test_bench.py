"""The measuring of `make bench`: both sides give the same, and the committed file is whole."""

from __future__ import annotations

import bench
import bench_page
import numpy as np
import pandas as pd
import pytest
import torch

from beatssl.methods.encoder import EncoderConfig, autocast

SMALL = bench.Sizes(
    repeats=1,
    quick_repeats=1,
    simulated=12,
    batches=(8,),
    encoder=EncoderConfig(widths=(4, 4), strides=(1, 2), dilations=(1, 2), blocks=1),
    loss_shape=(2, 4),
    steps=(5,),
    growth=(12, 27),
)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Folder of a few simulated records, and store and beats made of them."""
    folder = tmp_path_factory.mktemp("bench")
    root = bench.write_folders(folder / "simulated", SMALL.simulated, 0, 0, seed=0)
    store = bench.prepare(bench.DATA, folder / "store", root)
    return root, store, bench.prepare_beats(store, folder / "beats")


# Both sides.


def test_the_bare_step_is_that_of_the_same_encoder_on_the_same_views(simulated):
    _, store, beats = simulated
    ours = bench.training(SMALL, 8, store, beats)
    assert (ours.model.config.rhythm, ours.model.config.beat) == ("soft_1", "hard")
    assert ours.model.config.exponent == 50
    batch = next(iter(ours.source.epoch(ours.generator)))
    views = ours.model.view(batch.signals, ours.generator)
    before = [weight.detach().clone() for weight in ours.model.encoder.parameters()]
    step = bench.bare_step(SMALL, views)
    embedding = step()
    with autocast(views.device):  # bf16 where the hardware has it, as in the step
        assert torch.equal(embedding, ours.model.train().encode(views))
    assert not torch.equal(step(), embedding)  # it learns
    assert all(map(torch.equal, before, ours.model.encoder.parameters()))


@pytest.mark.parametrize("steps", [2, 9])
def test_both_losses_have_one_value_and_gradient(steps):
    ours, reference = (bench.loss_and_gradient(side, 3, steps, 6) for side in bench.LOSSES)
    assert np.abs(ours[2]).max() > 1e-3
    assert bench.difference(ours, reference) < 1e-5


def test_the_plain_loop_finds_what_the_preparation_finds(simulated, tmp_path):
    root, store, beats = simulated
    ours, reference = bench.prepare_all(root, tmp_path, 1), bench.plain_loop(root)
    assert reference[0].sum() == beats.count.sum() > 60
    assert bench.difference(ours, reference) < 1e-6


def test_without_signal_work_the_same_store_and_beats_are_written(simulated, tmp_path):
    root, store, beats = simulated
    once, more = len(store), 2 * len(store) + 3
    with bench.without_signal_work(store, beats):
        for n in (once, more):
            bench.write_repeated(root / "ptbxl", tmp_path / f"{n}" / "ptbxl", n)
            again = bench.prepare(bench.DATA, tmp_path / f"{n}" / "store", tmp_path / f"{n}")
            found = bench.prepare_beats(again, tmp_path / f"{n}" / "beats")
            assert np.array_equal(again.signals, store.signals[np.arange(n) % once])
            assert (again.content == store.content) == (n == once)
            assert (found.content == beats.content) == (n == once)
    patients = [again.table["patient_id"][k::once].nunique() for k in range(once)]
    assert patients == [3] * 3 + [2] * (once - 3)  # each copy is of another person


def test_difference_is_relative_and_nan_must_meet_nan():
    assert bench.difference(([1.0, np.nan], 4), ([2.0, np.nan], 5)) == 0.5
    with pytest.raises(AssertionError):
        bench.difference(([1.0, np.nan],), ([1.0, 2.0],))


# Measuring.


def test_sides_take_turns_and_the_first_round_is_not_counted():
    called = []
    cases = [
        bench.Case("ours", "a", "", 1, lambda: called.append("a"), lambda: called.append("-")),
        bench.Case("reference", "b", "", 1, lambda: called.append("b")),
    ]
    seconds, first = bench.take_turns(cases, 2)
    assert "".join(called) == "-ab" * 3 and seconds.shape == (2, 2, 2) and len(first) == 2


def test_ratios_are_those_of_the_rounds_a_record():
    """Three rounds; the second one was twice as slow for both."""
    seconds = np.array([[[2.0, 1], [1, 1]], [[4, 1], [2, 1]], [[3, 1], [1, 1]]])
    cases = [bench.Case(side, side, "", n, int) for side, n in (("ours", 10), ("reference", 5))]
    ours, reference = bench.lines("x", cases, seconds, 1)
    assert (ours["ratio"], ours["ratio_q1"], ours["ratio_q3"]) == (1.0, 1.0, 1.25)
    assert (ours["seconds"], ours["cpu_ratio"], reference["ratio"]) == (3, 0.5, 1)


@pytest.mark.slow
def test_memory_of_a_fresh_process_is_its_own():
    """Matrices of 16 MB each, asked for by a process that holds many times as much."""
    held = np.ones(400_000_000 // 8)
    if np.isnan(bench.resident("VmHWM")):
        pytest.skip("only Linux says how much memory a process had at most")
    found = bench.in_a_fresh_process(bench.extra_memory, "reference", 1, 1000, 8)
    assert held.nbytes > 3e8 and 2 * 16 < found < 8 * 16  # MB; (2 x 1000)^2 float32


# The file and the page.


def check(table: pd.DataFrame, repeats: int) -> None:
    assert list(table) == bench.COLUMNS
    assert set(table["side"]) == {"ours", "reference"} and (table["repeats"] >= repeats).all()
    for name in ("records", "seconds", "seconds_q1", "seconds_q3", "ratio", "ratio_q1", "ratio_q3"):
        assert (table[name] > 0).all()
    for name in ("seconds", "ratio"):
        assert (table[f"{name}_q1"] <= table[name]).all()
        assert (table[name] <= table[f"{name}_q3"]).all()
    assert (table["cpu_seconds"].dropna() > 0).all() and table["cpu_seconds"].notna().sum() > 10
    found = table["difference"].dropna()
    assert (found < 1e-4).all() and len(found) > 2
    assert not table[["machine", "cores", "torch", "date"]].isna().any(axis=None)
    measures = {name.removeprefix(bench.GROWTH).split(":")[0] for name in table["measure"]}
    assert measures >= {"training step", "3KG view", "TS2Vec loss", "preparation", "store", "beats"}
    steps = table[table["measure"] == "training step"]
    assert (steps["size"] == "batch " + steps["records"].astype(str)).all()  # batches are full
    losses = table[table["measure"] == "TS2Vec loss"]
    assert (losses["extra_mb"] >= 0).all()  # a small one fits into what the process held


def test_the_committed_file_is_whole():
    table = pd.read_csv(bench.RESULTS)
    check(table, 5)
    assert (table["extra_mb"].dropna() > 100).all()
    sizes = set(table["size"])
    assert {f"{n:,} records" for n in bench.Sizes().growth} <= sizes
    assert {f"batch {n}" for n in bench.Sizes().batches} <= sizes


def test_the_page_shows_the_committed_file():
    """If not: `python tests/bench_page.py`."""
    text = bench_page.PAGE.read_text(encoding="utf-8")
    shown = text.partition(bench_page.START)[2].partition(bench_page.END)[0]
    assert shown.strip() == bench_page.measured(pd.read_csv(bench.RESULTS))
    for name in ("bench_ratios", "bench_growth"):
        picture = (bench_page.PICTURES / f"{name}.svg").read_text(encoding="utf-8")
        assert bench_page.digest(bench.RESULTS) in picture


def test_a_small_bench_from_end_to_end(tmp_path, monkeypatch):
    """All but the start of further processes, which takes longer than the rest."""
    monkeypatch.setattr(bench, "in_a_fresh_process", lambda function, *values: function(*values))
    monkeypatch.setattr(bench, "cores", lambda: 1)
    table = bench.bench(SMALL, tmp_path / "work")
    check(table, 1)
    results, page = tmp_path / "bench.csv", tmp_path / "bench.md"
    table.to_csv(results, index=False)
    page.write_text(f"before\n{bench_page.START}\nold\n{bench_page.END}\nafter\n")
    bench_page.draw(results, page, tmp_path)
    first = page.read_text(), (tmp_path / "bench_ratios.svg").read_bytes()
    assert "old" not in first[0] and first[0].startswith("before") and "3KG view" in first[0]
    bench_page.draw(results, page, tmp_path)
    assert first == (page.read_text(), (tmp_path / "bench_ratios.svg").read_bytes())
