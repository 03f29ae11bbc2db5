"""ECG paper: true to size, every lead in its place, waves where they are."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from beatssl.data.records import LEADS
from beatssl.ecg import ECG
from beatssl.paper import COLOURS, MARGIN, MM_PER_MV, MM_PER_S, ROW, plot

RATE = 500.0


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def pulse(leads=LEADS, seconds: float = 10.0) -> ECG:
    """1 mV high and 0.2 s long at 1 s of each lead, at 6 s a second one."""
    signal = np.zeros((len(leads), int(seconds * RATE)), np.float32)
    for at in (1.0, 6.0):
        signal[:, int(at * RATE) : int((at + 0.2) * RATE)] = 1.0
    return ECG(signal, tuple(leads), RATE, "pulse")


def traces(figure) -> dict[str, list]:
    """Lead -> its lines, by the text at their left end."""
    (ax,) = figure.axes
    found: dict[str, list] = {}
    for text in ax.texts:
        x, y = text.get_position()
        for line in ax.lines:
            data = line.get_xydata()
            if len(data) and abs(data[0, 0] - (x - 1)) < 0.1 and y - ROW < data[0, 1] < y:
                found.setdefault(text.get_text(), []).append(data)
    return found


def test_a_millivolt_is_ten_millimetres_and_a_second_twenty_five(tmp_path) -> None:
    figure = plot(pulse(), path=tmp_path / "a.png")
    width, height = figure.get_size_inches() * 25.4
    assert (width, height) == pytest.approx((250 + 2 * MARGIN, 4 * ROW + 2 * MARGIN))
    (ax,) = figure.axes
    box = ax.get_position()
    assert box.width * width / np.ptp(ax.get_xlim()) == pytest.approx(1)  # data are millimetres
    assert box.height * height / np.ptp(ax.get_ylim()) == pytest.approx(1)
    line = traces(figure)["I"][0]
    assert np.ptp(line[:, 1]) == pytest.approx(MM_PER_MV)
    high = line[line[:, 1] > line[:, 1].min() + 5, 0]
    assert high.min() == pytest.approx(MM_PER_S, abs=0.1)
    assert np.ptp(high) == pytest.approx(0.2 * MM_PER_S, abs=0.1)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == pytest.approx(np.array([width, height]) / 25.4 * 200, abs=2)


def test_twelve_leads_stand_in_three_rows_of_four_with_lead_ii_below() -> None:
    found = traces(plot(pulse()))
    assert set(found) == set(LEADS) and len(found["II"]) == 2
    lengths = sorted(np.ptp(line[:, 0]) for lines in found.values() for line in lines)
    assert lengths[:12] == pytest.approx([62.5] * 12, abs=0.1)
    assert lengths[12] == pytest.approx(250, abs=0.1)
    start = {lead: lines[0][0, 0] for lead, lines in found.items()}
    assert start["I"] == start["III"] == 0 and start["aVR"] == start["aVF"] == 62.5
    assert start["V1"] == 125 and start["V4"] == start["V6"] == 187.5
    v1 = found["V1"][0]  # its pulse at 6 s lies 1 s after its start
    assert v1[v1[:, 1] > v1[:, 1].min() + 5, 0].min() == pytest.approx(150, abs=0.1)


def test_fewer_leads_and_short_records_have_a_row_each() -> None:
    figure = plot(pulse(["II", "V5"], seconds=3.0))
    assert figure.get_size_inches()[1] * 25.4 == pytest.approx(2 * ROW + 2 * MARGIN)
    found = traces(figure)
    assert {lead: np.ptp(lines[0][:, 0]) for lead, lines in found.items()} == pytest.approx(
        {"II": 75.0, "V5": 75.0}, abs=0.1
    )
    assert len(traces(plot(pulse(["II"], 30.0), start=25.0))["II"][0]) == 5 * RATE


def test_waves_lie_on_their_samples_and_missing_ones_leave_a_gap() -> None:
    ecg = pulse(["II"])
    ecg.signal[0, 2000:2100] = np.nan
    waves = pd.DataFrame([["II", "QRS", 1.0, 1.2], ["V1", "P", 2.0, 2.1], ["II", "T", 9.9, 11.0]])
    figure = plot(ecg, waves.set_axis(["lead", "wave", "onset", "offset"], axis=1))
    (ax,) = figure.axes
    of = {
        c: line.get_xydata()
        for line in ax.lines
        for c in [line.get_color()]
        if len(line.get_xydata())
    }
    assert of[COLOURS["QRS"]][[0, -1], 0] == pytest.approx([25, 30], abs=0.06)
    assert of[COLOURS["T"]][-1, 0] <= 250 and COLOURS["P"] not in of
    assert np.isnan(traces(figure)["II"][0][2000:2100, 1]).all()
    assert {text.get_text() for text in ax.get_legend().get_texts()} == set(COLOURS)
