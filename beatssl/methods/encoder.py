"""Encoder with a time axis, projector, 1-D RoIAlign, mixed precision, safe saving and loading."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from beatssl import compute
from beatssl.cache import replacing
from beatssl.settings import ConfigError, one_of, to_dict


class Architecture(Protocol):
    """Sizes of an encoder, a frozen dataclass."""

    def build(self, sampling_rate: int) -> nn.Module:
        """The encoder with random weights. Args: sampling_rate: Hz of the records it will see."""


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm1d,
    "group": lambda width: nn.GroupNorm(math.gcd(8, width), width),
    "none": lambda width: nn.Identity(),  # its convolutions have a bias
}


@dataclass(frozen=True)
class EncoderConfig:
    """A 1-D ResNet whose output keeps a time axis. What touches the signal is in ms, so that at any
    sampling rate the first convolution hands on the same steps of the same time."""

    widths: tuple[int, ...] = (32, 64, 128, 128)
    strides: tuple[int, ...] = (1, 2, 1, 1)
    dilations: tuple[int, ...] = (1, 1, 2, 4)
    blocks: int = 2  # residual blocks per stage
    stem_kernel_ms: float = 150.0
    stem_stride_ms: float = 20.0
    kernel: int = 3  # steps
    norm: str = "batch"  # batch | group | none

    standardise_leads: ClassVar[bool] = False  # a setting of `StandardisedConfig` alone

    def __post_init__(self) -> None:
        one_of("norm", self.norm, NORMS)

    @property
    def step_ms(self) -> float:
        """Time from one output step to the next."""
        return self.stem_stride_ms * math.prod(self.strides)

    def with_step(self, step_ms: float) -> EncoderConfig:
        """The same layers with another step: stages after the first halve the time axis, early
        ones first, until it is reached.

        Raises:
            ConfigError: not stem_stride_ms times 1, 2, .. 2^(stages - 1).
        """
        late = len(self.strides) - 1
        known = [self.stem_stride_ms * 2**halvings for halvings in range(late + 1)]
        one_of("encoder_step_ms", step_ms, known)
        halvings = known.index(step_ms)
        return replace(self, strides=(1, *[2] * halvings, *[1] * (late - halvings)))

    def build(self, sampling_rate: int) -> Encoder:
        """Raises: ConfigError: as `Encoder`."""
        return Encoder(self, sampling_rate)


def kernel_samples(ms: float, sampling_rate: float) -> int:
    """The odd number of samples nearest to a length in ms, from below where two are as near."""
    return 2 * math.ceil(ms * sampling_rate / 2000 - 1) + 1


@dataclass(frozen=True)
class StandardisedConfig(EncoderConfig):
    """The same ResNet with leads z-scored before it. Domain-SSL pretrains on such leads."""

    standardise_leads: bool = field(default=True, init=False)


class ArchitectureError(ValueError):
    """Saved weights belong to another architecture."""


class ResidualBlock(nn.Module):
    """Two convolutions with normalisation and a shortcut (ResNet's basic block)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, dilation: int, norm: str
    ):
        super().__init__()
        bias, pad, norms = norm == "none", dilation * (kernel // 2), NORMS[norm]
        self.main = nn.Sequential(
            nn.Conv1d(inputs, outputs, kernel, stride, pad, dilation, bias=bias),
            norms(outputs), nn.ReLU(),
            nn.Conv1d(outputs, outputs, kernel, 1, pad, dilation, bias=bias),
            norms(outputs),
        )  # fmt: skip
        self.shortcut = nn.Identity()
        if inputs != outputs or stride != 1:
            conv = nn.Conv1d(inputs, outputs, 1, stride, bias=bias)
            self.shortcut = nn.Sequential(conv, norms(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.main(x) + self.shortcut(x))


class Encoder(nn.Module):
    """1-D ResNet, f in the paper's figure: (batch, 12, time) -> (batch, channels, steps).

    `steps = ceil(time / stride)`; step j is centred on input sample `j * stride` (odd kernels,
    half padding), which is what `roi_align` relies on. The paper's encoder is unknown: this one is
    ours. With a `StandardisedConfig` each lead of a record is z-scored first, in training mode too,
    so that it is evaluated and fine-tuned on what its layers were pretrained on.

    Args: sampling_rate: Hz of the signals.

    Attributes: stride: input samples a step.

    Raises: ConfigError: the first convolution's stride is no whole number of samples.
    """

    def __init__(self, config: EncoderConfig, sampling_rate: float = 100):
        super().__init__()
        stem = config.stem_stride_ms * sampling_rate / 1000
        if stem < 1 or stem % 1:
            ms = f"stem_stride_ms={config.stem_stride_ms:g}"
            raise ConfigError(f"{ms} is {stem:g} samples at {sampling_rate:g} Hz, not a whole one")
        self.config, self.channels, width = config, config.widths[-1], config.widths[0]
        self.stride = int(stem) * math.prod(config.strides)
        kernel, bias = kernel_samples(config.stem_kernel_ms, sampling_rate), config.norm == "none"
        first = nn.Conv1d(12, width, kernel, int(stem), kernel // 2, bias=bias)
        layers: list[nn.Module] = [first, NORMS[config.norm](width), nn.ReLU()]
        stages = config.widths, config.strides, config.dilations
        for outputs, stride, dilation in zip(*stages, strict=True):
            for step in (stride, *[1] * (config.blocks - 1)):
                sizes = width, outputs, config.kernel, step, dilation
                layers.append(ResidualBlock(*sizes, config.norm))
                width = outputs
        self.layers = nn.Sequential(*layers)

    def forward(self, signals: Tensor) -> Tensor:
        return self.layers(zscore(signals) if self.config.standardise_leads else signals)


def zscore(signals: Tensor) -> Tensor:
    """Each lead to mean 0 and sd 1; a constant lead is 0. Args: signals (..., time)."""
    centred = signals - signals.mean(dim=-1, keepdim=True)
    sd = centred.pow(2).mean(dim=-1, keepdim=True).sqrt()
    return torch.where(sd > 1e-6, centred / sd.clamp_min(1e-6), 0.0)


def build_encoder(config: Architecture, seed: int, sampling_rate: int = 100) -> nn.Module:
    """An untrained encoder; the same seed gives the same weights.

    Args: sampling_rate: Hz of the records that it will see."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.build(sampling_rate)


def with_data_statistics(encoder: nn.Module, signals: Iterable[Tensor]) -> nn.Module:
    """A copy whose batch-norm statistics are those of these records; the weights are the same.

    A new ResNet normalises nothing in evaluation mode, since its statistics are 0 and 1. This is
    the network that training starts from: it normalises by what it sees.

    Args: signals: batches (batch, 12, time); the plain mean of their statistics is taken.

    Returns: the copy, in evaluation mode."""
    copied = copy.deepcopy(encoder)
    update_bn(signals, copied)
    return copied.eval()


def projector(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """g_r and g_b: Linear, batch normalisation, ReLU, Linear (SimCLR's head; sizes are ours)."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def roi_align(e: Tensor, start: Tensor, end: Tensor, stride: int, points: int = 16) -> Tensor:
    """Mean of `e` over a window of each beat, with linear interpolation (1-D RoIAlign).

    Args:
        e: (batch, channels, steps); step j lies on input sample `j * stride`.
        start, end: (batch, beats) window in input samples, may be fractional; points beyond the
            ends of `e` take the value at the end.
        stride: input samples per step.
        points: evenly spaced points, at the centres of as many bins.

    Returns:
        (batch, beats, channels).
    """
    steps = e.shape[2]
    centre = (torch.arange(points, device=e.device) + 0.5) / points
    where = (start[..., None] + (end - start)[..., None] * centre) / stride  # (.., beats, points)
    where = where.clamp(0, steps - 1)
    hat = 1 - (where[..., None] - torch.arange(steps, device=e.device)).abs()
    weight = hat.clamp_min(0).mean(dim=2)  # (batch, beats, steps), rows sum to 1
    return weight.to(e.dtype) @ e.transpose(1, 2)


def pick_device(name: str = "auto") -> torch.device:
    """`auto` takes a GPU where there is one."""
    best = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(best if name == "auto" else name)


def autocast(device: torch.device) -> torch.autocast:
    """bf16 mixed precision or float32, as the setting `precision` says (`compute.bf16`)."""
    return torch.autocast(device.type, torch.bfloat16, enabled=compute.bf16(device))


def weights_hash(module: nn.Module) -> str:
    """Twelve hexadecimal digits that change with any weight or buffer."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def save_encoder(encoder: nn.Module, path: Path) -> None:
    """Weights as safetensors with the architecture beside them, written atomically."""
    with replacing(path) as part:
        save_model(encoder, part, {"encoder": json.dumps(to_dict(encoder.config))})


def load_encoder(path: Path, config: Architecture, sampling_rate: int = 100) -> nn.Module:
    """Read what `save_encoder` wrote, in evaluation mode.

    Args: config: the architecture that the file must hold. sampling_rate: as in `build_encoder`.

    Raises:
        FileNotFoundError: no such file; names the run to execute.
        ArchitectureError: the file's architecture is not `config`.
    """
    if not path.is_file():
        place = f"{path.parent.name}/{path.name}"
        raise FileNotFoundError(
            f"no encoder at {place}: run its pretraining (`python -m beatssl run`)"
        )
    with safe_open(path, framework="pt") as file:
        stored = json.loads((file.metadata() or {}).get("encoder", "null"))
    if stored != to_dict(config):
        raise ArchitectureError(
            f"{path.parent.name}/{path.name} holds another architecture ({stored}); the profile "
            f"asks for {config}. Remove the run's folder to train it again."
        )
    encoder = config.build(sampling_rate)
    load_model(encoder, path)
    return encoder.eval()
