"""Threads and precision of this process: both change numbers, so both are settings of a profile.

The order in which a sum is taken depends on the number of threads, and bf16 rounds. Numbers are the
same bits for the same settings on one machine, however the process was started.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import scipy.linalg  # noqa: F401  limits reach only the libraries that are loaded
import sklearn  # noqa: F401
import torch
from threadpoolctl import threadpool_limits

from beatssl.settings import ComputeConfig

_used = ComputeConfig()
_limits: threadpool_limits | None = None  # of BLAS and OpenMP, in force while the process lives


def use(config: ComputeConfig) -> None:
    """Compute with so many threads (PyTorch, NumPy, scikit-learn) and this precision from now on,
    whatever OMP_NUM_THREADS says."""
    global _used, _limits
    _used, _limits = config, threadpool_limits(limits=config.threads)
    torch.set_num_threads(config.threads)
    torch.backends.cudnn.allow_tf32 = config.precision != "float32"  # rounds as bf16 does, nearly


def lazily(name: str) -> ModuleType:
    """A module that is imported when something of it is first used: NeuroKit2 takes a second."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def bf16(device: torch.device, config: ComputeConfig | None = None) -> bool:
    """Whether training on a device uses bf16 mixed precision; with `auto` where its hardware does.

    Args: config: default: what is in use."""
    precision = (config or _used).precision
    if precision != "auto":
        return precision == "bf16"
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bf16()


def _cpu_has_bf16() -> bool:
    """Native bf16 dot products (AVX512-BF16 or AMX); emulated ones are slower than float32."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def name(config: ComputeConfig | None = None) -> dict[str, int | str]:
    """What applies on this machine, for keys and pages: {"threads": 1, "precision": "bf16"}.

    Args: config: default: what this process computes with, also where `use` was not called."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "threads": config.threads if config else torch.get_num_threads(),
        "precision": "bf16" if bf16(device, config) else "float32",
    }
