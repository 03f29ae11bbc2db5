"""ECG-FM: published layout, safe loading, place of the tokens, losses of its pretraining."""

import argparse
import contextlib
import dataclasses
import hashlib
import math
import pickle
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from beatssl.methods import ecg_fm_weights, w2v
from beatssl.methods.base import Batch, Setup
from beatssl.methods.ecg_fm_weights import CheckpointError
from beatssl.methods.w2v import W2V_SMALL, EcgFm, W2VCmscRlm, W2VConfig, W2VEncoder, W2VSettings

TINY = W2VConfig(
    conv_channels=8,
    width=16,
    layers=2,
    heads=2,
    ffn=24,
    position_kernel=6,
    position_groups=4,
    entries=5,
    target_dim=6,
)
SPELLINGS = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}


def seed(n: int) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def built(cls, config=TINY, n=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(n)
        return cls(config).eval()


def method(config=TINY, rate=500, **settings):
    """The pretraining of a tiny encoder, for records of 500 Hz."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = EcgFm(W2VEncoder(config), rate)
        return W2VCmscRlm(Setup(W2VSettings(**settings), encoder, rate)).eval()


def randomised(module, n=0):
    """Norms and biases too are away from 1 and 0."""
    generator = seed(n)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return module


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize("time, tokens", [(2500, 156), (5000, 312), (1000, 62)])
def test_a_token_every_16_samples(time, tokens):
    encoder = built(W2VEncoder)
    e = encoder(torch.zeros(1, 12, time))
    features = encoder.feature_extractor(torch.zeros(1, 12, time))
    assert e.shape == (1, encoder.channels, tokens) and features.shape == (1, 8, tokens)
    assert encoder.stride == 16


def test_published_numbers_of_tensors_and_parameters():
    """215 tensors in the released file, 209 in a finetuned one (encoder and proj)."""
    with torch.device("meta"):
        whole, encoder = w2v.W2VPretraining(W2VConfig()), W2VEncoder(W2VConfig())
        width = dataclasses.replace(W2VConfig(), width=256, layers=4, heads=4, ffn=1024)
        small, ours = W2VEncoder(width), W2VEncoder(W2V_SMALL)
    count = {m: sum(p.numel() for p in m.parameters()) for m in (whole, encoder, small, ours)}
    assert (len(whole.state_dict()), count[whole]) == (215, 90_883_072)
    assert (len(encoder.state_dict()) + 2, count[encoder]) == (209, 90_373_248)
    assert count[small] == pytest.approx(4.15e6, rel=0.001)
    assert count[ours] == 911_936  # two convolutions, and narrower


def test_published_names():
    def both(*names):
        return {f"{name}.{part}" for name in names for part in ("weight", "bias")}

    layer = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.out_proj",
        "self_attn_layer_norm",
        "fc1",
        "fc2",
        "final_layer_norm",
    ]
    names = (
        {"mask_emb", "quantizer.vars", "conv_pos.pos_conv.0.bias"}
        | {f"conv_pos.pos_conv.0.{spelling}" for spelling in SPELLINGS}
        | {f"feature_extractor.conv_layers.{i}.0.weight" for i in range(4)}
        | both(
            "feature_extractor.conv_layers.0.2",
            "layer_norm",
            "post_extract_proj",
            "encoder.layer_norm",
            "quantizer.weight_proj",
            "project_q",
            "final_proj",
        )
        | both(*(f"encoder.layers.{i}.{part}" for i in range(12) for part in layer))
    )
    with torch.device("meta"):
        state = w2v.W2VPretraining(W2VConfig()).state_dict()
    assert set(state) == names
    assert state["quantizer.vars"].shape == (1, 640, 128)
    assert state["conv_pos.pos_conv.0.parametrizations.weight.original0"].shape == (1, 1, 128)
    assert state["conv_pos.pos_conv.0.parametrizations.weight.original1"].shape == (768, 48, 128)


def test_encoder_equals_torch_layers_with_the_same_weights():
    """Everything before the transformer by hand, the transformer by nn.TransformerEncoderLayer."""
    encoder = randomised(built(W2VEncoder))
    w = encoder.state_dict()
    signals = torch.randn(2, 12, 330, generator=seed(1))
    x = signals
    for i in range(4):
        x = F.conv1d(x, w[f"feature_extractor.conv_layers.{i}.0.weight"], stride=2)
        if i == 0:  # each channel over time
            variance = x.var(2, unbiased=False, keepdim=True)
            x = (x - x.mean(2, keepdim=True)) / (variance + 1e-5).sqrt()
            scale, shift = (w[f"feature_extractor.conv_layers.0.2.{n}"] for n in ("weight", "bias"))
            x = x * scale[:, None] + shift[:, None]
        x = F.gelu(x)
    x = F.layer_norm(x.transpose(1, 2), (8,), w["layer_norm.weight"], w["layer_norm.bias"])
    x = x @ w["post_extract_proj.weight"].T + w["post_extract_proj.bias"]
    g, v = (w[f"conv_pos.pos_conv.0.{spelling}"] for spelling in SPELLINGS)
    kernel = g * v / v.pow(2).sum((0, 1), keepdim=True).sqrt()
    position = F.conv1d(
        x.transpose(1, 2), kernel, w["conv_pos.pos_conv.0.bias"], padding=3, groups=4
    )[..., :-1]
    x = x + F.gelu(position).transpose(1, 2)
    x = F.layer_norm(x, (16,), w["encoder.layer_norm.weight"], w["encoder.layer_norm.bias"])
    for i in range(2):
        ours = {k.removeprefix(f"encoder.layers.{i}."): t for k, t in w.items()}
        layer = nn.TransformerEncoderLayer(
            16, 2, 24, 0.1, "gelu", batch_first=True, norm_first=False
        ).eval()
        stacked = {
            f"self_attn.in_proj_{p}": torch.cat([ours[f"self_attn.{q}_proj.{p}"] for q in "qkv"])
            for p in ("weight", "bias")
        }
        rest = {
            "self_attn.out_proj": "self_attn.out_proj",
            "linear1": "fc1",
            "linear2": "fc2",
            "norm1": "self_attn_layer_norm",
            "norm2": "final_layer_norm",
        }
        layer.load_state_dict(
            stacked
            | {f"{a}.{p}": ours[f"{b}.{p}"] for a, b in rest.items() for p in ("weight", "bias")}
        )
        x = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(encoder(signals), x.transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_masked_tokens_are_hidden():
    model = built(w2v.W2VPretraining)
    a, b = torch.randn(2, 1, 12, 320, generator=seed(0))
    everything = torch.ones(1, 20, dtype=torch.bool)
    torch.testing.assert_close(model(a, everything), model(b, everything))
    torch.testing.assert_close(model(a, ~everything), model(a))
    with pytest.raises(AttributeError, match="W2VEncoder.*mask_emb"):
        built(W2VEncoder)(a, everything)
    with pytest.raises(RuntimeError, match=r"\[1, 8, 320\] to have 12 channels"):
        model(a[:, :8])


# ---------------------------------------------------------------- checkpoints


def published(model, finetuned=False, old_spelling=False):
    """The state dict of a tiny model as the released files name it."""
    state = dict(model.state_dict())
    if old_spelling:
        for new, old in SPELLINGS.items():
            state[f"conv_pos.pos_conv.0.{old}"] = state.pop(f"conv_pos.pos_conv.0.{new}")
    if finetuned:
        heads = ("mask_emb", "quantizer", "project_q", "final_proj")
        state = {f"encoder.{k}": t for k, t in state.items() if not k.startswith(heads)}
        state |= {"proj.weight": torch.zeros(3, 16), "proj.bias": torch.zeros(3)}
    return state


@pytest.mark.parametrize("form", ["fairseq", "bare", "safetensors"])
@pytest.mark.parametrize("finetuned", [False, True])
@pytest.mark.parametrize("old_spelling", [False, True])
def test_every_published_form_gives_the_same_encoder(tmp_path, form, finetuned, old_spelling):
    model = randomised(built(w2v.W2VPretraining))
    state = published(model, finetuned, old_spelling)
    path = tmp_path / ("c.safetensors" if form == "safetensors" else "c.pt")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"args": None, "model": state} if form == "fairseq" else state, path)
    encoder = ecg_fm_weights.load_ecg_fm(path, TINY)
    x = torch.randn(2, 12, 320, generator=seed(0))
    assert not encoder.training and type(encoder) is W2VEncoder
    assert all(p.requires_grad and p.dtype == torch.float32 for p in encoder.parameters())
    assert torch.equal(encoder(x), model(x))


def test_wrong_tensors_are_named(tmp_path):
    path, whole = tmp_path / "c.safetensors", published(built(w2v.W2VPretraining))

    def error(**changes):
        state = {k: t for k, t in (whole | changes).items() if t is not None}
        save_file(state, path)
        with pytest.raises(CheckpointError, match="c.safetensors.*W2VConfig") as caught:
            ecg_fm_weights.load_ecg_fm(path, TINY)
        return str(caught.value)

    lost = "encoder.layers.1.fc1.bias"
    assert f'Missing key(s) in state_dict: "{lost}"' in error(**{lost: None})
    shape = "size mismatch for post_extract_proj.weight"
    assert shape in error(**{"post_extract_proj.weight": torch.zeros(16, 9)})
    assert 'Unexpected key(s) in state_dict: "encoder.layers.2.fc1.bias"' in error(
        **{"encoder.layers.2.fc1.bias": torch.zeros(24)}  # a deeper model is not cut silently
    )
    del whole["layer_norm.bias"]
    save_file(whole, path)
    with pytest.raises(CheckpointError, match="(?s)layer_norm.bias.*size mismatch"):
        ecg_fm_weights.load_ecg_fm(path, W2VConfig(**{**vars(TINY), "ffn": 25}))


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no-file.pt.*wanglab/ecg-fm"):
        ecg_fm_weights.load_ecg_fm(tmp_path / "no-file.pt")
    for name, content in [("a.pt", b"PK\3\4 cut"), ("b.pt", b""), ("c.safetensors", b"junk")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            ecg_fm_weights.load_ecg_fm(tmp_path / name)
    torch.save({"model": {"epoch": 3}}, tmp_path / "d.pt")
    with pytest.raises(CheckpointError, match="d.pt holds no tensors"):
        ecg_fm_weights.load_ecg_fm(tmp_path / "d.pt")
    torch.save([torch.zeros(1)], tmp_path / "e.pt")
    with pytest.raises(CheckpointError, match="e.pt holds a list"):
        ecg_fm_weights.load_ecg_fm(tmp_path / "e.pt")


class Trap:
    """Unpickling it is seen."""

    sprung = False

    def __reduce__(self):
        return spring, ()


def spring():
    Trap.sprung = True


def test_pickled_objects_are_refused_unless_trusted(tmp_path, capsys):
    source, target = tmp_path / "released.pt", tmp_path / "new" / "w2v.safetensors"
    state = published(built(w2v.W2VPretraining), old_spelling=True)
    torch.save({"cfg": argparse.Namespace(lr=5e-5), "trap": Trap(), "model": state}, source)
    with pytest.raises(CheckpointError, match="released.pt.*trust.*--trust"):
        ecg_fm_weights.load_ecg_fm(source, TINY)
    assert ecg_fm_weights.main([str(source), str(target)]) == 1
    assert "--trust" in capsys.readouterr().err and not target.exists() and not Trap.sprung

    assert ecg_fm_weights.main([str(source), str(target), "--trust"]) == 0
    assert Trap.sprung
    said = capsys.readouterr().out
    assert hashlib.sha256(source.read_bytes()).hexdigest() in said
    assert f"{len(state)} tensors, {sum(t.numel() for t in state.values())} parameters" in said
    back = load_file(target)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k].view(torch.int32), state[k].view(torch.int32)) for k in state)
    ecg_fm_weights.load_ecg_fm(target, TINY)
    assert [p.name for p in target.parent.iterdir()] == [target.name]
    with pytest.raises(CheckpointError, match="end it in .safetensors"):
        ecg_fm_weights.convert(source, tmp_path / "x.pt", trust=True)


def test_a_package_that_unpickling_needs_is_named(tmp_path):
    module = types.ModuleType("not_installed_here")
    module.Settings = type("Settings", (), {"__module__": module.__name__})
    sys.modules[module.__name__] = module
    try:
        torch.save({"cfg": module.Settings(), "model": {}}, tmp_path / "c.pt")
    finally:
        del sys.modules[module.__name__]
    with pytest.raises(CheckpointError, match="not_installed_here.*install"):
        ecg_fm_weights.convert(tmp_path / "c.pt", tmp_path / "c.safetensors", trust=True)
    assert not (tmp_path / "c.safetensors").exists()
    (tmp_path / "d.pt").write_bytes(pickle.dumps(3))
    with pytest.raises(CheckpointError, match="d.pt"):
        ecg_fm_weights.read_checkpoint(tmp_path / "d.pt", trust=True)


# ---------------------------------------------------------------- our records


class Means(nn.Module):
    """Stands in for the encoder: a token is the mean of its 16 samples of lead I."""

    channels, stride, config = 1, 16, TINY

    def forward(self, x):
        assert x.shape[2] <= 2500
        return F.avg_pool1d(x[:, :1], 16)


@pytest.mark.parametrize(
    "time, rate",
    [(1000, 100), (1001, 100), (999, 100), (640, 100), (300, 100), (5000, 500), (2570, 257)],
)
def test_step_j_lies_on_sample_j_times_stride(time, rate):
    """A ramp comes back as a ramp, across the borders of segments; the ends are kept."""
    ramp = torch.arange(time).float().expand(1, 12, time)
    wrapper = EcgFm(Means(), rate)
    wrapper.stride = 4
    e = wrapper(ramp)[0, 0]
    assert e.shape == (math.ceil(time / 4),)
    step = 4.0 * torch.arange(len(e))
    inside = (step > 0.1 * rate) & (step < time - 0.1 * rate)  # tokens are 32 ms wide
    x = w2v.model_input(ramp, rate, 500)[0, 0]  # z-scores at 500 Hz
    expected = np.interp(step.numpy() / rate, np.arange(len(x)) / 500, x.numpy())
    np.testing.assert_allclose(e[inside].numpy(), expected[inside.numpy()], atol=1e-4)
    assert e.min() >= x.min() and e.max() <= x.max() and (e.diff() >= 0).all()


@pytest.mark.parametrize("seconds", [0.3, 3.21, 4.99, 5.02, 7.5, 9.7])
def test_a_peak_is_found_where_it_was(seconds):
    t = torch.arange(1000) / 100
    peak = torch.exp(-(((t - seconds) / 0.05) ** 2)).expand(3, 12, 1000)
    e = EcgFm(Means(), 100)(peak)
    assert e.shape == (3, 1, 250)
    assert (e.argmax(dim=2) * 0.04 - seconds).abs().max() <= 0.03


def test_records_and_leads_are_prepared_apart():
    signals = torch.randn(2, 12, 1000, generator=seed(0)) * 3 + 100
    signals[0, 4] = 0.1
    signals[1, 5] = 0
    x = w2v.model_input(signals, 100, 500)
    assert x.shape == (2, 12, 5000)
    assert (x[0, 4] == 0).all() and (x[1, 5] == 0).all()
    varies = torch.ones(2, 12, dtype=torch.bool)
    varies[0, 4] = varies[1, 5] = False
    torch.testing.assert_close(x.mean(2), torch.zeros(2, 12), rtol=0, atol=1e-4)
    torch.testing.assert_close(x.std(2, unbiased=False)[varies], torch.ones(22))
    torch.testing.assert_close(w2v.model_input(3 * signals - 7, 100, 500), x, rtol=0, atol=1e-4)
    where = np.arange(5000) / 5
    lead = np.interp(where, np.arange(1000), signals[0, 0].double().numpy())
    lead = (lead - lead.mean()) / lead.std()
    np.testing.assert_allclose(x[0, 0].numpy(), lead, atol=1e-4)


def test_wrapper_on_the_encoder_itself():
    """Ten seconds are two segments that do not see each other; too short a record is named."""
    encoder = built(W2VEncoder)
    signals = torch.randn(1, 12, 10_000, generator=seed(0))
    wrapper = EcgFm(encoder, 1000)
    wrapper.stride = 1
    x, e = w2v.model_input(signals, 1000, 500), wrapper(signals)
    assert wrapper.channels == 16 and e.shape == (1, 16, 10_000)
    for first in (0, 2500):
        tokens = encoder(x[..., first : first + 2500])
        at = 2 * first + 32 * torch.arange(156) + 15  # sample 15 at 1000 Hz is 7.5 at 500 Hz
        torch.testing.assert_close(e[..., at], tokens)
    with pytest.raises(ValueError, match="shorter than two tokens"):
        wrapper(signals[..., :62])


# ---------------------------------------------------------------- pretraining


def test_info_nce_equals_numpy():
    rows, masked, dim = 2, 7, 5
    x, y = torch.randn(2, rows, masked, dim, generator=seed(0))
    codes = torch.randint(2, (rows, masked, 2), generator=seed(1))
    negatives = w2v.draw_negatives(rows, masked, 100, seed(2))
    assert negatives.shape == (rows, masked, 100)
    assert (negatives != torch.arange(masked)[:, None]).all()
    assert negatives.min() == 0 and negatives.max() == masked - 1

    def logit(r, t, j):
        a, b = x[r, t].double().numpy(), y[r, j].double().numpy()
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b) / 0.1

    terms, left_out = [], 0
    for r in range(rows):
        for t in range(masked):
            others = [j for j in negatives[r, t].tolist() if (codes[r, j] != codes[r, t]).any()]
            left_out += 100 - len(others)
            exponents = np.exp([logit(r, t, j) for j in [t, *others]])
            terms.append(-np.log(exponents[0] / exponents.sum()))
    assert left_out > 0
    loss = w2v.info_nce(x, y, codes, negatives, 0.1)
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-5)
    same = torch.zeros_like(codes)  # a collapsed quantiser leaves nothing to tell apart
    assert w2v.info_nce(x, y, same, negatives, 0.1).item() == pytest.approx(0, abs=1e-6)


def expected_share(tokens, span=10, probability=0.65):
    """Mean over tokens of 1 - C(S - c, n) / C(S, n): none of n starts among the c that cover it."""
    starts, spans = tokens - span + 1, probability * tokens / span
    total = 0.0
    for n, weight in ((int(spans), 1 - spans % 1), (int(spans) + 1, spans % 1)):
        for t in range(tokens):
            c = min(t, starts - 1) - max(0, t - span + 1) + 1
            total += weight * (1 - math.comb(starts - c, n) / math.comb(starts, n)) / tokens
    return total


@pytest.mark.parametrize("tokens, documented", [(156, 0.496), (31, 0.532)])
def test_masked_share_of_one_row(tokens, documented):
    generator = seed(0)
    share = torch.cat([w2v.span_mask(1, tokens, 0.65, 10, generator) for _ in range(400)]).float()
    assert expected_share(tokens) == pytest.approx(documented, abs=0.001)
    assert share.mean().item() == pytest.approx(documented, abs=0.015)
    assert share[:, -1].any() and share[:, 0].any()


def test_rows_of_a_batch_have_as_many_masked_tokens():
    generator = seed(0)
    for rows, documented in [(16, 0.40), (128, 0.35)]:
        masks = [w2v.span_mask(rows, 156, 0.65, 10, generator) for _ in range(20)]
        assert all(len(set(m.sum(dim=1).tolist())) == 1 for m in masks)
        assert torch.cat(masks).float().mean().item() == pytest.approx(documented, abs=0.02)
    alone = w2v.span_mask(1, 156, 0.65, 10, generator)[0].tolist()
    runs = "".join("x" if m else " " for m in alone).split()
    assert min(map(len, runs)) >= 10  # whole spans
    with pytest.raises(ValueError, match="10 tokens"):
        w2v.span_mask(4, 10, 0.65, 10, generator)


def test_leads_are_masked_whole_and_half_of_them():
    signals = torch.rand(300, 12, 8, generator=seed(0)) + 1
    masked = w2v.mask_leads(signals, 0.5, seed(1))
    gone = (masked == 0).all(dim=2)
    assert torch.equal(masked, signals * ~gone[..., None])
    assert gone.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert (gone != gone[:, :1]).any()  # leads are drawn apart


def test_quantiser_picks_code_vectors_as_often_as_the_softmax_says():
    q = built(w2v.Quantizer)
    x = 0.3 * torch.randn(1, 8, generator=seed(0))
    vectors, chosen, perplexity = q(x.expand(4000, 8), 0.7, seed(1))
    books = q.vars.view(2, 5, 3)
    assert torch.equal(vectors, torch.cat([books[0, chosen[:, 0]], books[1, chosen[:, 1]]], dim=1))
    p = q.weight_proj(x).view(2, 5).softmax(dim=1).detach().double().numpy()
    share = F.one_hot(chosen, 5).double().mean(dim=0).numpy()
    np.testing.assert_allclose(share, p, atol=0.03)
    assert perplexity.item() == pytest.approx(np.exp(-(p * np.log(p)).sum(1)).sum(), rel=1e-4)
    vectors.sum().backward()
    assert q.weight_proj.weight.grad.abs().max() > 0  # through the choice


def step(model, n=5, signals=None):
    if signals is None:
        signals = torch.randn(3, 12, 640, generator=seed(9))
    return model.losses(signals, seed(n))


def test_training_step_hangs_on_its_generator_alone():
    before = torch.random.get_rng_state()
    a, b = (method().train() for _ in range(2))
    first, again = step(a), step(b)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert step(a, 6)["total"] != step(b, 7)["total"]
    dropped, kept = step(a, 5)["cmsc"], step(a.eval(), 5)["cmsc"]
    assert dropped == first["cmsc"] != kept  # dropout took part


def test_training_step_adds_up_and_reaches_every_parameter():
    model = method().train()
    out = step(model)
    parts = out["info_nce"] + 0.1 * out["diversity"] + 10 * out["penalty"] + out["cmsc"]
    torch.testing.assert_close(out["total"].detach(), parts)
    assert [k for k, v in out.items() if v.requires_grad] == ["total"]
    assert out["diversity"] == (10 - out["perplexity"]) / 10 and 2 <= out["perplexity"] <= 10
    out["total"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert model.encode(torch.zeros(2, 12, 640)).shape == (2, 16, 40)


def test_convolutions_learn_with_a_tenth_of_the_gradient(monkeypatch):
    monkeypatch.setattr(w2v, "autocast", lambda device: contextlib.nullcontext())  # exact
    grads = []
    for factor in (0.1, 1.0):
        model = method(feature_gradient=factor).train()
        step(model)["total"].backward()
        grads.append({k: p.grad for k, p in model.model.named_parameters()})
    for name, gradient in grads[0].items():
        factor = 0.1 if name.startswith("feature_extractor") else 1.0
        torch.testing.assert_close(gradient, factor * grads[1][name], msg=name)


def test_gumbel_temperature_falls_by_the_step():
    model = method().train()
    assert model.tau == 2.0
    assert step(model)["tau"] == 2.0 and int(model.steps) == 1
    assert model.tau == pytest.approx(2 * 0.999995)
    model.steps.fill_(100_000)
    assert built_from(model).tau == model.tau == pytest.approx(2 * 0.999995**100_000)
    model.steps.fill_(10_000_000)
    assert model.tau == 0.5


def built_from(model):
    """Another method that took over the state, as when a run goes on."""
    other = method()
    other.load_state_dict(model.state_dict())
    return other


def test_training_lowers_the_loss():
    model = method().train()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    t = torch.linspace(0, 1, 640)
    signals = torch.sin(t * torch.linspace(20, 200, 8 * 12).view(8, 12, 1))
    totals = []
    for n in range(24):
        out = step(model, n, signals)
        optimiser.zero_grad()
        out["total"].backward()
        optimiser.step()
        totals.append(out["total"].item())
    assert np.mean(totals[-8:]) < np.mean(totals[:8]) - 0.3


def test_kept_encoder_has_the_trained_weights_and_none_of_the_heads():
    model = randomised(method())
    kept = model.kept.eval()
    assert not any("quantizer" in name or "mask_emb" in name for name in kept.state_dict())
    signals = torch.randn(2, 12, 640, generator=seed(3))
    torch.testing.assert_close(kept(signals), model.encode(signals))


def test_training_step_resamples_and_standardises_records_of_another_rate():
    config = dataclasses.replace(TINY, sampling_rate=200)
    model = method(config, 100).train()
    signals = 5 + torch.randn(3, 12, 320, generator=seed(9))
    found = model.training_step(Batch(None, signals, *[None] * 5), seed(1))
    model.steps.fill_(0)
    expected = model.losses(w2v.model_input(signals, 100, 200), seed(1))
    assert all(torch.equal(found[k], expected[k]) for k in found)


def test_small_encoder_has_a_token_every_40_ms():
    with torch.device("meta"):
        wrapper = EcgFm(W2VEncoder(W2V_SMALL), 100)
    assert (wrapper.stride, W2V_SMALL.stride, wrapper.channels) == (4, 4, 128)
