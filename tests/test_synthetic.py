"""The simulated heart: reproducible bytes, exact identities, and the layouts' readers on it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from beatssl.data import records, synthetic
from beatssl.data.records import LAYOUTS, LEADS, SUPERCLASSES
from beatssl.data.vcg import DOWER


def rng(*seed):
    return np.random.default_rng(seed or 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return synthetic.write_folders(tmp_path_factory.mktemp("syn") / "made", 40, 3, 6, seed=1)


def content(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_same_seed_same_bytes_and_another_seed_differs(tmp_path):
    a = synthetic.write_folders(tmp_path / "a", 5, 1, 2, seed=1)
    b = synthetic.write_folders(tmp_path / "b", 5, 1, 2, seed=1, jobs=2)
    c = synthetic.write_folders(tmp_path / "c", 5, 1, 2, seed=2)
    assert content(a) == content(b)
    dat = "ludb/data/1.dat"
    assert content(a)[dat] != content(c)[dat]


def test_a_complete_folder_is_reused_and_a_damaged_one_written_again(tmp_path):
    folder = synthetic.write_folders(tmp_path / "a", 3, 0, 0, seed=1)
    before = content(folder)
    dat = folder / "ptbxl" / "records100" / "00000" / "00002_lr.dat"
    stamp = dat.stat().st_mtime_ns
    synthetic.write_folders(folder, 3, 0, 0, seed=1)
    assert dat.stat().st_mtime_ns == stamp
    dat.unlink()
    synthetic.write_folders(folder, 3, 0, 0, seed=1)
    assert content(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]  # no part left


def test_an_interrupted_write_leaves_the_old_folder(tmp_path, monkeypatch):
    folder = synthetic.write_folders(tmp_path / "a", 2, 0, 0, seed=1)
    before = content(folder)
    monkeypatch.setattr(synthetic, "_write_ludb", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        synthetic.write_folders(folder, 2, 1, 0, seed=1)
    assert content(folder) == before


def test_a_foreign_folder_is_never_replaced(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="holds other files"):
        synthetic.write_folders(tmp_path, 1, 0, 0, seed=1)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_limb_leads_obey_einthoven_and_goldberger():
    made = synthetic.simulate(["AMI"], "sinus", 10.0, 500, rng(1), rng(2))
    i, ii, iii, avr, avl, avf = made.microvolts[:6]
    np.testing.assert_array_equal(i + iii, ii)
    for lead, value in ((avr, -(i + ii) / 2), (avl, i - ii / 2), (avf, ii - i / 2)):
        assert np.abs(lead - value).max() <= 0.5


def test_without_noise_the_leads_are_the_projection_of_a_dipole(monkeypatch):
    monkeypatch.setattr(synthetic, "_noise", lambda time, *_: np.zeros((8, len(time))))
    made = synthetic.simulate(["NORM"], "ectopic", 10.0, 500, rng(1), rng(2))
    eight = made.microvolts[[0, 1, 6, 7, 8, 9, 10, 11]].astype(float)
    projector = DOWER @ np.linalg.pinv(DOWER)
    assert np.abs(projector @ eight - eight).max() < 2  # rounding only


def test_outside_the_marked_waves_a_noise_free_lead_is_almost_silent(monkeypatch):
    monkeypatch.setattr(synthetic, "_noise", lambda time, *_: np.zeros((8, len(time))))
    made = synthetic.simulate([], "bradycardia", 10.0, 500, rng(4, 1), rng(5))
    lead, waves = made.microvolts[1], made.marks[1]
    rest = np.ones(len(lead), bool)
    for _, onset, peak, offset in waves:
        assert onset < peak < offset
        rest[onset : offset + 1] = False
    rest[: waves[0][1]] = rest[waves[-1][3] :] = False
    inside = np.abs(lead[waves[0][1] : waves[-1][3]]).max()
    assert np.abs(lead[rest]).max() < max(2 * 1000 * synthetic.VISIBLE, 0.1 * inside)


def test_rhythms_differ_as_named():
    def beats(name, seed):
        return synthetic.draw_beats(name, 60.0, rng(seed))

    def spread(name):
        return np.mean([np.std(rr := beats(name, s)[1]) / np.mean(rr) for s in range(5)])

    assert np.mean(beats("bradycardia", 0)[1]) > 1.05
    assert np.mean(beats("tachycardia", 0)[1]) < 0.6
    assert spread("fibrillation") > 3 * spread("sinus") > 0
    times, rr, early = beats("ectopic", 0)
    assert 0 < early.mean() < 0.4 and not beats("sinus", 0)[2].any()
    assert rr[early].mean() < 0.8 * rr[~early].mean()


def test_fibrillation_has_no_p_and_first_and_last_beats_are_not_marked():
    made = synthetic.simulate(["NORM"], "fibrillation", 10.0, 500, rng(1), rng(3))
    symbols = [w[0] for w in made.marks[1]]
    times, *_ = synthetic.draw_beats("fibrillation", 10.0, rng(3))
    inside = ((times >= 0) & (times < 10)).sum()
    assert "p" not in symbols and 0 < symbols.count("N") <= inside - 2


def test_readers_see_the_marks_that_were_made(made):
    for number, row in enumerate(LAYOUTS["ludb"].list(made / "ludb").to_dict("records"), 1):
        record = records.read_ludb(made / "ludb", row)
        patient, recording = rng(1, 5, number), rng(1, 6, number)
        codes = synthetic.draw_codes(patient)
        rhythm = synthetic._draw_rhythm(recording)
        truth = synthetic.simulate(codes, rhythm, 10.0, 500, patient, recording)
        np.testing.assert_allclose(record.signal * 1000, truth.microvolts, atol=0.01)
        for lead in range(12):
            marks = truth.marks[lead]
            expected = np.full(5000, -1)
            expected[marks[0][1] : marks[-1][3] + 1] = 0
            for symbol, onset, _, offset in marks:
                expected[onset : offset + 1] = records.WAVE_OF_SYMBOL[symbol]
            np.testing.assert_array_equal(record.waves[lead], expected)


def test_ptbxl_layout(made):
    listed = LAYOUTS["ptbxl"].list(made / "ptbxl", 500)
    assert len(listed) == 40 and set(listed["fold"]) == set(range(1, 11))
    assert (listed.groupby("patient_id")["fold"].nunique() == 1).all()
    assert listed["patient_id"].duplicated().any()
    assert (listed[list(SUPERCLASSES)].clip(lower=0).sum() > 0).all()
    record = records.read_ptbxl(made / "ptbxl", listed.iloc[0])
    assert record.signal.shape == (12, 1000) and record.sampling_rate == 100


def test_folds_are_stratified():
    codes = [["NORM"]] * 50 + [["LVH"]] * 20 + [["AMI", "LAFB"]] * 30
    folds = np.array(synthetic._stratified_folds(codes, rng()))
    counts = [
        np.bincount(folds[part], minlength=11)[1:]
        for part in (slice(0, 50), slice(50, 70), slice(70, 100))
    ]
    assert [set(c) for c in counts] == [{5}, {2}, {3}]


def test_headers_are_those_of_the_layouts(made):
    ludb = (made / "ludb" / "data" / "1.hea").read_text().splitlines()
    assert ludb[0].startswith("1 12 500 5000")
    assert [line.split()[-1] for line in ludb[1:13]] == [lead.lower() for lead in LEADS]
    challenge = next((made / "challenge" / "training").rglob("*.hea")).read_text().splitlines()
    assert ".mat 16+24 1000" in challenge[1]
    assert json.loads((made / synthetic.MANIFEST).read_text())["seed"] == 1


def test_it_does_not_claim_to_be_clinical():
    assert "Nothing here is clinical" in synthetic.__doc__
