"""The verdict rule, and the claims as differences of saved predictions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from beatssl.methods import make_run
from beatssl.profile import Profile
from beatssl.report import tables
from beatssl.results import claims, saved
from beatssl.results.claims import OPPOSITE, verdict
from beatssl.settings import DataConfig, Rotation
from beatssl.tasks import task_of
from beatssl.tasks.base import of_logits, to_logits
from beatssl.tasks.classify import ClassifyConfig
from beatssl.tasks.scores import classification_scores

ROWS = ["hard-none-1", "hard-hard-1", "soft_1-none-1", "soft_1-none-50", "soft_1-hard-1"]
ROWS += ["soft_1-hard-50"]
NAN = float("nan")


class Store:
    sampling_rate, fingerprint, content = 100, "aa", "aa"


@pytest.mark.parametrize(
    ("low", "high", "effect", "none", "said"),
    [
        (0.001, 0.050, 0.032, 0.0, "reproduced"),
        (0.001, 0.010, 0.032, 0.0, "reproduced"),  # above 0, though below half of the effect
        (-0.020, 0.015, 0.032, 0.0, "not reproduced"),
        (-0.020, 0.017, 0.032, 0.0, "cannot be told"),
        (-0.030, -0.010, 0.032, 0.0, "not reproduced"),
        (0.010, 0.020, -0.014, 0.0, OPPOSITE),
        (0.010, 0.020, 0.0, 0.0, OPPOSITE),
        (1.010, 1.030, 1.041, 1.0, "reproduced"),
        (0.950, 1.020, 1.041, 1.0, "not reproduced"),
        (0.950, 1.030, 1.041, 1.0, "cannot be told"),
        (NAN, NAN, 0.032, 0.0, "cannot be told"),
    ],
)
def test_the_verdict_is_the_rule_of_the_plan(low, high, effect, none, said) -> None:
    assert verdict(low, high, effect, none) == said


def predicted(run, skill: float, first: int, n: int = 60) -> dict:
    truth = (np.random.default_rng(9).random((first + n, 5)) < 0.4).astype(np.int8)[first:]
    noise = np.random.default_rng([run.seed, int(10 * skill)]).normal(size=(n, 5))
    ids = np.arange(first, first + n).astype(str)
    score = of_logits(to_logits(1 / (1 + np.exp(-noise - skill * truth))))
    ids = {"record_id": ids, "patient_id": ids}
    return {**ids, "truth": truth, "score": score, "threshold": np.full(5, 0.6)}


@pytest.fixture
def profile(tmp_path, monkeypatch) -> Profile:
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    monkeypatch.setattr(claims, "cores", lambda: 1)
    (tmp_path / "paper.csv").write_bytes((saved.RESULTS / "paper.csv").read_bytes())
    monkeypatch.setattr(saved, "RESULTS", tmp_path)
    rotations = Rotation((1, 2, 3), 4), Rotation((4, 5, 6), 7)
    runs = []
    for row in ROWS:
        rhythm, beat, exponent = row.split("-")
        same = {"rhythm": rhythm, "beat": beat, "exponent": float(exponent)}
        runs += [make_run(**same, seed=seed) for seed in range(4)]
        runs += [make_run(**same, seed=seed, variant="other") for seed in range(2)]
    return Profile(
        "claimed",
        data=DataConfig(ptbxl="ptbxl", rotations=rotations),
        classify=ClassifyConfig(label_fractions=(1.0,), bootstrap=100),
        runs=tuple(runs),
    )


def save(profile: Profile, skills: dict[str, float], variant: str = "", seeds=range(4)) -> dict:
    """Made-up predictions; row -> seed -> predictions."""
    made: dict = {}
    for run in profile.runs:
        row = run.name.removeprefix("beatssl-").removesuffix("-other")
        if run.variant == variant and row in skills and run.seed in seeds:
            torch.manual_seed(run.seed)
            task = task_of(saved.CLASSIFY)
            case = saved.case_of(profile, task, run, Store(), torch.nn.Linear(1, 1), "frozen")
            one = predicted(run, skills[row], 60 * (run.seed % 2))
            what = saved.describe(profile, task, case, 1.0)
            saved.reuse_or_make(what, profile, lambda one=one: lambda fraction: one)
            made.setdefault(row, {})[run.seed] = one
    return made


def test_claims_are_differences_with_the_papers_beside_them(profile: Profile) -> None:
    skills = dict(zip(ROWS, (1.0, 1.0, 1.0, 1.0, 0.2, 3.0), strict=True))
    made = save(profile, skills)
    save(profile, {"hard-none-1": 2.0, "soft_1-hard-50": 1.0}, "other", seeds=range(2))
    table = claims.claims(profile)
    assert len(table) == 2 * (8 * 3 + 2)
    best = table[(table["claim"] == "best row over baseline") & (table["score"] == "AUROC")]
    best = best.set_index("reading")
    assert best.loc["", "paper"] == pytest.approx(0.032)
    assert best["verdict"].to_dict() == {"": "reproduced", "other": "not reproduced"}
    assert best.loc["", "n"] == 120

    def mean(row: str) -> float:
        scores = [classification_scores(one)["auroc_macro"][0] for one in made[row].values()]
        return float(np.mean(scores))  # as many records in both rotations

    by_hand = mean("soft_1-hard-50") - mean("hard-none-1")
    assert best.loc["", "value"] == pytest.approx(by_hand, abs=1e-9)
    assert best.loc["", "ci_low"] < by_hand < best.loc["", "ci_high"]
    claims.write(profile)
    again = claims.read(profile)
    assert again["verdict"].tolist() == table["verdict"].tolist()
    assert again["value"].to_numpy() == pytest.approx(table["value"], rel=1e-5, nan_ok=True)
    own = again[again["reading"] == ""]
    short, count = tables.in_short(own), own["verdict"].value_counts()
    assert f"**{by_hand:+.3f}** in AUROC (paper +0.032, reproduced)" in short
    assert f"{count['reproduced']} reproduced" in short and f"{count[OPPOSITE]} {OPPOSITE}" in short
    worse = table.query("first == 'soft_1-hard-1' and score == 'AUROC' and reading == ''")
    assert set(worse["verdict"]) == {OPPOSITE}  # the paper's .681 lies below its own baselines
    assert (table[table["score"] == "LUDB F1"]["verdict"] == "not measured").all()


def test_a_row_that_lacks_a_rotation_is_not_measured(profile: Profile) -> None:
    save(profile, {"hard-none-1": 1.0}, seeds=[0, 2])  # both of rotation 0
    assert claims.claims(profile).empty  # no reading of which anything was measured
    save(profile, {"soft_1-hard-50": 3.0, "soft_1-none-50": 2.0})
    table = claims.claims(profile)
    assert set(table["reading"]) == {""}
    line = table.query("claim == 'best row over baseline' and score == 'AUROC' and reading == ''")
    assert line["verdict"].item() == "not measured" and np.isnan(line["value"].item())


def test_what_stands_for_ecg_fm_decides_nothing() -> None:
    assert [other.usable for other in claims.RATIOS] == [False, True]
    fields = {field.name for field in dataclasses.fields(claims.Claim)}
    assert {"reading", "verdict", "paper"} <= fields
