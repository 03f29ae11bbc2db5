"""Encoder geometry, RoIAlign and the safe loading of weights."""

import numpy as np
import pytest
import torch

from beatssl.methods import encoder as models
from beatssl.methods.encoder import EncoderConfig
from beatssl.settings import ConfigError
from beatssl.tasks import TASKS
from beatssl.train import pretrain

CONFIG = EncoderConfig(widths=(8, 8, 16), strides=(1, 2, 1), dilations=(1, 1, 2), blocks=1)


def test_default_encoder_keeps_a_time_axis_of_at_most_40_ms():
    config = EncoderConfig()
    assert config.step_ms <= 40
    e = models.build_encoder(config, 0).eval()(torch.zeros(2, 12, 1000))
    assert e.shape == (2, config.widths[-1], 250)


@pytest.mark.parametrize("time", [400, 401, 403])
def test_steps_are_the_ceiling_of_time_over_stride(time):
    encoder = models.build_encoder(CONFIG, 0).eval()
    assert encoder(torch.zeros(1, 12, time)).shape[2] == -(-time // encoder.stride)


def smooth(rate):
    """(1, 12, 4 s) of sines below 8 Hz, at any sampling rate the same signal."""
    t = torch.arange(4 * rate) / rate
    return torch.stack([torch.sin(2 * np.pi * (1 + 0.6 * k) * t + k) for k in range(12)])[None]


@pytest.mark.parametrize("rate", [250, 500])
def test_the_encoder_sees_the_same_time_at_any_sampling_rate(rate):
    """As many steps, each of the same time; with the first kernel stretched it says the same."""
    one, other = (models.build_encoder(EncoderConfig(), 0, hz).eval() for hz in (100, rate))
    assert (one.stride, other.stride) == (4, 4 * rate // 100)
    assert other.layers[0].kernel_size[0] == {250: 37, 500: 75}[rate]
    weights = one.state_dict()
    first = other.layers[0].weight
    here = (np.arange(first.shape[2]) - first.shape[2] // 2) * 1000 / rate  # ms from its middle
    there = (np.arange(15) - 7) * 10
    name, by = "layers.0.weight", 100 / rate
    stretched = [[np.interp(here, there, w) * by for w in out] for out in weights[name]]
    weights[name] = torch.tensor(np.array(stretched)).float()
    other.load_state_dict(weights)
    a, b = one(smooth(100)), other(smooth(rate))
    assert a.shape == b.shape == (1, 128, 100)
    inner = slice(10, -10)  # at the ends both see zeros
    assert (a - b)[..., inner].norm() < 0.12 * (a - a.mean(dim=2, keepdim=True))[..., inner].norm()


def test_a_rate_at_which_steps_are_no_whole_samples_is_refused():
    with pytest.raises(ConfigError, match="stem_stride_ms=20 is 2.56 samples at 128 Hz"):
        EncoderConfig().build(128)
    with pytest.raises(ConfigError, match="norm='layer' is not known; known: batch, group, none"):
        EncoderConfig(norm="layer")


@pytest.mark.parametrize("norm", ["group", "none"])
def test_an_encoder_without_batch_norm_is_the_same_in_training_and_in_evaluation(norm):
    encoder = models.build_encoder(EncoderConfig(norm=norm), 0)
    x = torch.randn(4, 12, 200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encoder.train()(x), encoder.eval()(x)) and len(list(encoder.buffers())) == 0
    torch.testing.assert_close(encoder(x)[:1], encoder(x[:1]))  # no record depends on the others
    found = [m for m in encoder.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert len(found) == (0 if norm == "none" else 1 + 8 * 2 + 2)
    assert encoder(x).std() > 1e-3  # nothing dies on the way


def test_same_seed_same_weights_and_the_global_generator_is_left_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    a, b, c = (models.build_encoder(CONFIG, s).state_dict() for s in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_step_j_is_centred_on_sample_j_times_stride():
    """The gradient of one step is symmetric about its sample when all weights are equal."""
    encoder = models.build_encoder(CONFIG, 0).eval()
    with torch.no_grad():
        for p in encoder.parameters():
            p.fill_(0.01)
    x = torch.ones(1, 12, 401, requires_grad=True)
    encoder(x)[0, 0, 50].backward()
    touched = x.grad[0, 0].double()
    centre = (touched * torch.arange(401)).sum() / touched.sum()
    assert centre.item() == pytest.approx(50 * encoder.stride, abs=0.5)


def test_roi_align_of_a_ramp_is_the_middle_of_the_window():
    """Linear interpolation is exact on a ramp: the mean over a window is its centre's value."""
    steps, stride = 100, 4
    ramp = torch.arange(steps).float().expand(2, 3, steps)
    start = torch.tensor([[10.0, 33.0], [100.0, 211.5]])
    out = models.roi_align(ramp, start, start + 75, stride)
    assert out.shape == (2, 2, 3)
    torch.testing.assert_close(out[..., 0], (start + 37.5) / stride)


def test_roi_align_equals_numpy_interpolation():
    e = torch.randn(1, 2, 30, generator=torch.Generator().manual_seed(0))
    out = models.roi_align(e, torch.tensor([[7.0]]), torch.tensor([[50.0]]), 2, points=8)
    where = (7 + 43 * (np.arange(8) + 0.5) / 8) / 2
    expected = [np.interp(where, np.arange(30), e[0, c].numpy()).mean() for c in range(2)]
    np.testing.assert_allclose(out[0, 0].numpy(), expected, rtol=1e-5)


def test_roi_align_does_not_mix_records_or_beats():
    e = torch.zeros(2, 1, 50)
    e[1, 0, 20:30] = 1.0
    start, end = torch.tensor([[80.0, 0.0]] * 2), torch.tensor([[112.0, 40.0]] * 2)
    out = models.roi_align(e, start, end, 4)[..., 0]
    np.testing.assert_allclose(out.numpy(), [[0, 0], [1, 0]], atol=1e-6)


def test_saved_encoder_is_the_same_encoder(tmp_path):
    encoder = models.build_encoder(CONFIG, 3).eval()
    models.save_encoder(encoder, tmp_path / "run" / "encoder.safetensors")
    back = models.load_encoder(tmp_path / "run" / "encoder.safetensors", CONFIG)
    x = torch.randn(1, 12, 200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(back(x), encoder(x)) and not back.training
    assert not list(tmp_path.rglob("*.part"))


def test_data_statistics_are_the_plain_mean_over_the_batches_and_weights_stay():
    encoder = models.build_encoder(CONFIG, 0)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    batches = [scale * torch.randn(6, 12, 200, generator=generator) for scale in (1.0, 2.0, 5.0)]
    made = models.with_data_statistics(encoder, iter(batches))
    assert not made.training and not any(m.training for m in made.modules())
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())
    weights = dict(made.named_parameters())
    assert all(torch.equal(before[k], v) for k, v in weights.items())
    with torch.no_grad():
        seen = [encoder.layers[0](batch) for batch in batches]  # what the first norm sees
    mean = sum(x.mean(dim=(0, 2)) for x in seen) / 3
    var = sum(x.var(dim=(0, 2)) for x in seen) / 3
    torch.testing.assert_close(made.layers[1].running_mean, mean)
    torch.testing.assert_close(made.layers[1].running_var, var)
    assert made.layers[1].momentum == encoder.layers[1].momentum


def test_missing_and_foreign_weights_are_named(tmp_path):
    path = tmp_path / "run-7" / "encoder.safetensors"
    with pytest.raises(FileNotFoundError, match="run-7.*pretraining"):
        models.load_encoder(path, CONFIG)
    models.save_encoder(models.build_encoder(CONFIG, 0), path)
    with pytest.raises(models.ArchitectureError, match="another architecture"):
        models.load_encoder(path, EncoderConfig())


def test_data_statistics_are_those_of_the_records_and_leave_the_weights_alone():
    encoder = models.build_encoder(CONFIG, 0)
    generator = torch.Generator().manual_seed(0)
    batches = [3 * torch.randn(4, 12, 64, generator=generator) + 1 for _ in range(3)]
    normalising = models.with_data_statistics(encoder, batches)
    first = [encoder.layers[0](b).detach().numpy() for b in batches]  # before the first norm
    of_batches = np.stack([x.mean(axis=(0, 2)) for x in first])
    spread = np.stack([x.var(axis=(0, 2), ddof=1) for x in first])
    norm = normalising.layers[1]
    np.testing.assert_allclose(norm.running_mean, of_batches.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.running_var, spread.mean(axis=0), rtol=1e-4)
    for (name, before), after in zip(
        encoder.named_parameters(), normalising.parameters(), strict=True
    ):
        assert torch.equal(before, after), name
    assert torch.equal(encoder.layers[1].running_var, torch.ones(8))  # the original is untouched
    assert not normalising.training


def test_untrained_encoders_of_all_networks(small):
    """Only `random` is trained on the labels; the others show another network or statistics."""
    strides = {"random": 4, "random_data": 4, "random_ts2vec": 1, "random_w2v": 4}
    for method, stride in strides.items():
        config = small.profile.run(method)
        run = pretrain(config, small.profile, small.store, small.beats)
        assert run.encoder.stride == stride and len(run.curves) == 0 and not run.encoder.training
        again = pretrain(config, small.profile, small.store, small.beats)  # from the file
        for name, value in run.encoder.state_dict().items():
            assert torch.equal(value, again.encoder.state_dict()[name]), name
        assert TASKS["classification"].protocols(config, finetune=True) == (
            ["frozen", "scratch"] if method == "random" else ["frozen"]
        )
