"""Weights that come along: each with its hash and, beside it, a model card."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from beatssl.data.store import sha256_of

FOLDER = Path(__file__).parent
SHA256 = {
    "delineator": "b0e18fc2755013b4bfd368398fce8c8fb0d35824e4ae48f4a13e117ef4e2fea5",
    "encoder": "af3cd41a500e44ba525681b49eb06cfd09877e3075e98c1c58234c99d6eb3376",
}


class WeightsError(ValueError):
    """A file of weights is absent, damaged, or of another network than was asked for."""


def path_of(name: str) -> Path:
    """The file of a network that comes along: encoder | delineator.

    Raises:
        WeightsError: it is absent or not the one that this version was made with.
    """
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise WeightsError(f"{path.name} is missing in this installation: install beatssl again")
    if (found := sha256_of(path)) != SHA256[name]:
        raise WeightsError(
            f"{path.name} has the SHA-256 {found[:12]}.., this version was made with "
            f"{SHA256[name][:12]}..: install beatssl again"
        )
    return path


def sizes_of(path: Path, network: str) -> dict:
    """Sizes of a network as its file names them. Args: network: encoder | delineator.

    Raises:
        WeightsError: no such file, no safetensors, or weights of something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            known = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path.name}: no readable safetensors file ({error})") from error
    sizes = json.loads(known.get(network, "null"))
    if not isinstance(sizes, dict):
        held = ", ".join(known) or "weights without a description"
        raise WeightsError(f"{path.name}: needs an {network}, it holds {held}")
    return sizes
