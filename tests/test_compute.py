"""Threads and precision: equal bits however a process is started, and part of every key."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from beatssl import compute
from beatssl import profile as workspace
from beatssl.methods import encoder as models
from beatssl.methods import make_run
from beatssl.profile import Profile
from beatssl.results import saved as results
from beatssl.settings import ROOT, ComputeConfig, ConfigError, Rotation
from beatssl.tasks import TASKS
from beatssl.train import run_key

CPU = torch.device("cpu")
TRAIN = """
import hashlib, sys
import numpy as np, torch
from sklearn.linear_model import LogisticRegression
from beatssl import compute
from beatssl.settings import ComputeConfig
from beatssl.methods.encoder import autocast

compute.use(ComputeConfig(threads=int(sys.argv[1])))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Conv1d(12, 16, 9), torch.nn.ReLU(), torch.nn.Conv1d(16, 4, 9))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
x, y = torch.randn(32, 12, 500), torch.randn(32, 4)
for _ in range(5):
    with autocast(x.device):
        e = model(x)
    loss = (e.float().mean(dim=2) - y).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
features = np.random.default_rng(0).standard_normal((3000, 200))
label = (features[:, 0] + features[:, 1:] @ np.linspace(-1, 1, 199) > 0).astype(int)
probe = LogisticRegression(solver="newton-cholesky").fit(features, label)
digest = hashlib.sha256(probe.coef_.tobytes())
for p in model.parameters():
    digest.update(p.detach().numpy().tobytes())
print(digest.hexdigest())
"""


def training(omp: str | None, threads: int = 1) -> subprocess.Popen:
    """A training in a process of its own; it prints digits. Args: omp: its OMP_NUM_THREADS."""
    env = {k: v for k, v in os.environ.items() if "NUM_THREADS" not in k}
    env |= {"PYTHONPATH": str(ROOT), **({"OMP_NUM_THREADS": omp} if omp else {})}
    words = [sys.executable, "-c", TRAIN, str(threads)]
    return subprocess.Popen(words, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_the_environment_of_a_process_changes_no_bit():
    processes = [training(None), training("1"), training("2"), training("1", threads=2)]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert said[0] == said[1] == said[2]
    assert said[3] != said[0]  # so the test sees what threads do


@pytest.fixture
def restored():
    yield
    compute.use(ComputeConfig())


def test_precision_decides_mixed_precision_and_stands_in_the_key(restored):
    class Store:
        content = "aa"

    untrained, run, profile = make_run(method="random"), make_run(), Profile("p")
    keys, hashes, layer = {}, {}, torch.nn.Linear(2, 2)
    for config in (
        ComputeConfig(precision="bf16"),
        ComputeConfig(precision="float32"),
        ComputeConfig(2, "float32"),
    ):
        compute.use(config)
        with models.autocast(CPU):
            kind = layer(torch.ones(1, 2)).dtype
        assert kind == (torch.bfloat16 if config.precision == "bf16" else torch.float32)
        assert torch.get_num_threads() == config.threads
        assert compute.name() == {"threads": config.threads, "precision": config.precision}
        for r in (run, untrained):
            keys[r.method, config] = run_key(r, profile.encoder, Store, Store, Rotation())["key"]
        one = replace(profile, compute=config)
        hashes[config] = results.settings_hash(
            run, one, TASKS["classification"], "frozen", 1.0, "aa"
        )
    assert len({key for (method, _), key in keys.items() if method == "beatssl"}) == 3
    assert len({key for (method, _), key in keys.items() if method == "random"}) == 1
    assert len(set(hashes.values())) == 3


def test_auto_is_what_the_hardware_has(restored):
    compute.use(ComputeConfig())
    found = compute.name()
    same = ComputeConfig(precision=found["precision"])
    assert found == compute.name(ComputeConfig()) == compute.name(same)
    profile = Profile("p")  # the resolved precision is hashed, not the word auto
    hashes = {
        results.settings_hash(make_run(), p, TASKS["segmentation"], "frozen", 1.0, "")
        for p in (profile, replace(profile, compute=same))
    }
    assert len(hashes) == 1


def test_a_workspace_computes_with_the_settings_of_its_profile(restored, monkeypatch, tmp_path):
    monkeypatch.setenv("BEATSSL_WORK", str(tmp_path))
    profile = Profile("p", compute=ComputeConfig(2, "float32"))
    monkeypatch.setattr(workspace, "load_profile", lambda name: profile)
    seen = []
    monkeypatch.setattr(workspace, "prepare", lambda *a: seen.append(compute.name()))
    monkeypatch.setattr(workspace, "prepare_beats", lambda *a: None)
    monkeypatch.setattr(workspace, "data_root", lambda p: tmp_path)
    workspace.open_workspace("p")
    assert seen == [{"threads": 2, "precision": "float32"}]


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"precision": "half"}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ComputeConfig(**wrong)
