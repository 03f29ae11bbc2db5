"""Progress bars: seen where stderr is no terminal, as in a notebook; silent on request."""

import re
import sys
import time

import pytest

from beatssl.progress import progress

TIME_LEFT = r"\d+/3 \[\d\d:\d\d<(\d\d:\d\d|\?), "
FOLDS = """
import numpy as np, pandas as pd, torch
from beatssl.methods import make_run
from beatssl.tasks.base import Case
from beatssl.tasks.segment import SegmentConfig, cross_validate

class Store:
    sampling_rate = 100
    table = pd.DataFrame({"record_id": list("abcdef"), "patient_id": list("abcdef")})
    def rows(self, source): return range(6)
    def load(self, rows): return np.ones((6, 12, 40), np.float32)
    def wave_targets(self, rows, lead): return np.tile(np.arange(40) // 10, (6, 1)).astype(np.int8)
    def wave_marks(self, rows, lead): return np.zeros((0, 4))

class Encoder(torch.nn.Sequential):
    channels, stride = 4, 2

encoder = Encoder(torch.nn.Conv1d(12, 4, 2, stride=2))
case = Case(make_run(), SegmentConfig(folds=3, epochs=1), Store(), encoder)
found = cross_validate(case, seed=0)
assert found["prediction"].shape == (6, 40)
"""


@pytest.fixture
def shown(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)


def test_a_bar_with_the_time_left_where_there_is_no_terminal(shown, capfd, monkeypatch):
    assert not sys.stderr.isatty()
    assert list(progress(range(3), "folds")) == [0, 1, 2]
    assert re.search(r"folds: +0%.*" + TIME_LEFT, capfd.readouterr().err)
    list(progress((k for k in range(3)), "folds", total=3))  # it does not tell its length
    assert re.search(r"folds: +0%.*" + TIME_LEFT, capfd.readouterr().err)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert list(progress(range(3), "folds")) == [0, 1, 2]
    assert capfd.readouterr().err == ""


def test_the_time_left_is_told_in_a_slow_loop_and_an_inner_loop_shows_only_when_slow(
    shown, capfd, monkeypatch
):
    now = [0.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    for delay, seconds, seen in ((5, 0.1, ""), (5, 10, "00:10<00:20"), (0, 60, "01:00<02:00")):
        bar = progress(range(3), "folds", delay=delay)
        bar._time = time.time  # tqdm keeps the clock it was imported with
        bar.start_t = bar.last_print_t = now[0]
        for _ in bar:
            now[0] += seconds
        written = capfd.readouterr().err
        assert seen in written and bool(written.strip()) == bool(seen)


def test_an_evaluation_shows_its_folds(shown, capfd):
    exec(FOLDS, {})
    assert re.search(r"folds: +0%.*" + TIME_LEFT, capfd.readouterr().err)
