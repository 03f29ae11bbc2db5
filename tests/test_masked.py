"""Masked reconstruction: what is hidden, what is scored, what the encoder is asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from beatssl.methods.base import Batch, Setup
from beatssl.methods.encoder import EncoderConfig, build_encoder
from beatssl.methods.masked import Masked, MaskedSettings, hide
from beatssl.methods.targets import FeatureScale
from beatssl.settings import ConfigError

SMALL = EncoderConfig(widths=(8, 8), strides=(1, 2), dilations=(1, 1), blocks=1)


def a_batch(n: int = 6, time: int = 200, beats: int = 2) -> Batch:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(n, 54, generator=g)
    features[0, 3] = torch.nan
    places = torch.arange(n * beats)
    return Batch(
        torch.arange(n), torch.randn(n, 12, time, generator=g), features,
        torch.tensor([60, 120]).repeat(n, 1), places, places % 2,
        torch.randn(n * beats, 28, generator=g),
    )  # fmt: skip


def a_method(batch: Batch, **settings) -> Masked:
    torch.manual_seed(0)
    config = MaskedSettings(projector_hidden=8, projector_out=4, decoder_width=8, **settings)
    scales = (FeatureScale.fit(f) for f in (batch.record_features, batch.beat_features))
    return Masked(Setup(config, build_encoder(SMALL, 0), 100, batch.record_features, *scales))


def test_whole_leads_and_whole_stretches_are_hidden():
    hidden = hide(50, 12, 1000, 25, 0.4, 0.4, torch.Generator().manual_seed(1)).numpy()
    for record in hidden:
        whole = record.all(axis=1)
        assert whole.sum() == 5  # 0.4 x 12, rounded
        rest = record[~whole]
        assert (rest == rest[0]).all()  # the same stretches in all other leads
        by_patch = rest[0].reshape(40, 25)
        assert (by_patch.all(axis=1) == by_patch.any(axis=1)).all()
        assert by_patch.any(axis=1).sum() == 16
    assert len({record.tobytes() for record in hidden}) == 50


def test_losses_by_numpy():
    """The same draw, the same forward pass, the loss written out."""
    batch = a_batch()
    method = a_method(batch).eval()
    losses = method.training_step(batch, torch.Generator().manual_seed(3))
    hidden = hide(6, 12, 200, 25, 0.4, 0.4, torch.Generator().manual_seed(3)).numpy()
    x = batch.signals.numpy()
    seen = torch.from_numpy(np.where(hidden, 0, x))
    with torch.no_grad():
        e = method.encoder(seen)
        drawn, told = method.decoder(e).numpy(), method.features(e.mean(dim=2)).numpy()
    stride = method.encoder.stride
    whole = np.empty_like(x)
    for lead in range(12):
        for sample in range(200):
            whole[:, lead, sample] = drawn[:, lead * stride + sample % stride, sample // stride]
    reconstruction = ((whole - x) ** 2)[hidden].mean()
    features = batch.record_features.numpy()
    filled = np.where(np.isnan(features), np.nanmedian(features, axis=0), features)
    low = np.sort(features[1:, 3])[(6 - 1 - 1) // 2]  # torch's median is the lower of two
    filled[0, 3] = low
    known = (filled - filled.mean(axis=0)) / filled.std(axis=0)
    apart = np.abs(told - known)
    smooth = np.where(apart < 1, 0.5 * apart**2, apart - 0.5).mean()
    assert float(losses["reconstruction"]) == pytest.approx(reconstruction, rel=2e-2)
    assert float(losses["features"]) == pytest.approx(smooth, rel=2e-2)
    total = losses["reconstruction"] + 0.3 * losses["features"]
    assert float(losses["total"]) == pytest.approx(float(total), rel=1e-5)


def test_what_is_not_hidden_does_not_count():
    """Another decoder output where nothing was hidden leaves the loss as it is."""
    batch = a_batch()
    whole = a_method(batch, time_fraction=0.0, lead_fraction=0.0).eval()
    losses = whole.training_step(batch, torch.Generator().manual_seed(0))
    assert float(losses["reconstruction"]) == 0


def test_contrast_is_beat_ssls():
    batch = a_batch()
    generator = torch.Generator().manual_seed(5)
    both = a_method(batch, contrast_weight=0.5).training_step(batch, generator)
    assert both["total"].requires_grad and not both["contrast"].requires_grad
    parts = both["reconstruction"] + 0.3 * both["features"] + 0.5 * both["contrast"]
    assert float(both["total"]) == pytest.approx(float(parts), rel=1e-5)
    without = a_method(batch).training_step(batch, torch.Generator().manual_seed(5))
    assert "contrast" not in without
    assert float(without["reconstruction"]) == pytest.approx(float(both["reconstruction"]))


def test_all_of_the_encoder_learns():
    batch = a_batch()
    method = a_method(batch)
    method.training_step(batch, torch.Generator().manual_seed(0))["total"].backward()
    assert all(p.grad is not None and p.grad.any() for p in method.encoder.parameters())


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match="lead_fraction"):
        MaskedSettings(lead_fraction=1.0)
    with pytest.raises(ConfigError, match="patch_ms"):
        MaskedSettings(patch_ms=0.0)
