"""A method, a loss and a measure that are added in one place are found in a table."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch

from beatssl.evaluate import evaluate_all
from beatssl.methods import METHODS
from beatssl.methods.base import Batch, Entry, Method, TrainSettings
from beatssl.methods.losses import LOSSES
from beatssl.methods.targets import MEASURES
from beatssl.profile import Profile, Workspace, load_profile
from beatssl.report import tables
from beatssl.results import saved


@dataclass(frozen=True)
class QuietSettings(TrainSettings):
    method: str = "quiet"
    wanted: float = 0.0  # what the encoder's output should be


class Quiet(Method):
    def training_step(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        total = (self.encode(batch.signals) - self.config.wanted).pow(2).mean()
        return {"total": total, "distance": total.detach()}


QUIET = Entry("Quiet encoder", QuietSettings, Quiet, losses=("total", "distance"))


def absolute(z, targets, temperature, allowed=None):
    """Mean distance of cosines and targets."""
    z = torch.nn.functional.normalize(z, dim=1)
    return (z @ z.T - targets).abs().mean()


def first_feature(x, scale):
    """Alike where the first feature is."""
    u = scale.standardise(x)[:, :1]
    return torch.exp(-torch.cdist(u, u))


def with_runs(small: Workspace, text: str, tmp_path, monkeypatch) -> Workspace:
    """The small workspace with the runs of a runs.yml and a work folder of its own."""
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    (tmp_path / "runs.yml").write_text(f"profiles: {{small: {text}}}")
    read: Profile = load_profile("small", tmp_path / "runs.yml")
    profile = dataclasses.replace(small.profile, runs=read.runs, methods=read.methods)
    return dataclasses.replace(small, profile=profile)


def test_a_new_method_is_trained_evaluated_and_has_a_line_in_a_table(small, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "quiet", QUIET)
    text = "{pretrain: {epochs: 2, batch_size: 32}, runs: [{method: quiet, wanted: 0.5}]}"
    w = with_runs(small, text, tmp_path, monkeypatch)
    assert w.profile.runs == (QuietSettings(epochs=2, batch_size=32, wanted=0.5),)
    evaluate_all(w, "classification")
    evaluate_all(w, "segmentation")
    (folder,) = (w.profile.work / "runs").iterdir()
    head = (folder / "curves.csv").read_text().splitlines()[0]
    assert folder.name.startswith("quiet-s0-") and "distance" in head
    table = tables.by_method(saved.with_combined(w.profile))
    assert set(table["label"]) == {"Quiet encoder"}
    assert table.loc[table["metric"] == "auroc_macro", "value"].between(0, 1).all()


@pytest.mark.parametrize(
    ("registry", "name", "function", "setting"),
    [(LOSSES, "absolute", absolute, "loss"), (MEASURES, "first", first_feature, "soft_1")],
)
def test_a_new_loss_or_measure_is_a_row_of_a_table(
    small, tmp_path, monkeypatch, registry, name, function, setting
):
    monkeypatch.setitem(registry, name, function)
    text = (
        "{pretrain: {epochs: 1, batch_size: 32}, variants: {base: {rhythm: soft_1}, "
        f"changed: {{{setting}: {name}}}}}}}"
    )
    w = with_runs(small, text, tmp_path, monkeypatch)
    evaluate_all(w, "classification")
    rows = saved.with_combined(w.profile)
    table = tables.per_run(rows[rows["seed"] != "all"], ["auroc_macro"])
    row = "beatssl-soft_1-none-1"
    assert list(table.index) == [f"{row}-base-s0", f"{row}-changed-s0"]
    assert table["AUROC"].nunique() == 2  # it trained another encoder
