"""The released weights of ECG-FM, read safely (huggingface.co/wanglab/ecg-fm, MIT).

    python -m beatssl.methods.ecg_fm_weights mimic_iv_ecg_physionet_pretrained.pt ecg_fm.safetensors

converts the released checkpoint once; `--trust` where it holds more than tensors.
"""

import argparse
import hashlib
import os
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from beatssl.cache import replacing
from beatssl.methods.base import Entry, OwnNetwork, RunSettings
from beatssl.methods.w2v import EcgFm, W2VConfig, W2VEncoder

RELEASED_ECG_FM = "BEATSSL_ECG_FM"  # environment variable: file of the released weights


class CheckpointError(ValueError):
    """A file that is no ECG-FM checkpoint, or that cannot be read safely."""


def load_ecg_fm(path: Path, config: W2VConfig | None = None) -> W2VEncoder:
    """The encoder of a checkpoint, pretrained or finetuned, `.pt` or `.safetensors`.

    Both spellings of weight norm are known; the pretraining heads and the classifier are left out.

    Args: config: its sizes; default the published ones.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: unsafe or damaged file, tensors missing, too many, or of another shape.
    """
    tensors = read_checkpoint(path)
    finetuned = any(name.startswith("encoder.feature_extractor.") for name in tensors)
    inner = "encoder." if finetuned else ""
    with torch.device("meta"):
        encoder = W2VEncoder(config or W2VConfig())
    modules = {name.split(".")[0] for name in encoder.state_dict()}
    own = {k.removeprefix(inner): t.float() for k, t in tensors.items() if k.startswith(inner)}
    own = {name: t for name, t in own.items() if name.split(".")[0] in modules}
    try:
        encoder.load_state_dict(own, assign=True)
    except RuntimeError as error:  # names every tensor that is missing, unknown or misshapen
        raise CheckpointError(
            f"the tensors of {path.name} are not those of this encoder. Check that it is an "
            f"ECG-FM checkpoint and that its sizes are those of the W2VConfig given. {error}"
        ) from error
    return encoder.eval()


def read_checkpoint(path: Path, trust: bool = False) -> dict[str, Tensor]:
    """All tensors of the model in a checkpoint, under the names in the file.

    Args:
        path: `.safetensors`, or what torch.save wrote: a state dict, bare or under `model`.
        trust: allow unpickling, which runs code that the file brings.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not readable, not readable safely, or no tensors in it.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint at {path.parent.name}/{path.name}: the released one is at "
            "huggingface.co/wanglab/ecg-fm (mimic_iv_ecg_physionet_pretrained.pt)"
        )
    try:
        tensors_only = path.suffix == ".safetensors"
        content = (
            load_file(path) if tensors_only else torch.load(path, "cpu", weights_only=not trust)
        )
    except Exception as error:  # torch, pickle and safetensors raise many kinds
        raise CheckpointError(_why_unreadable(path, error, trust)) from error
    state = content.get("model", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path.name} holds a {type(state).__name__}, not a state dict")
    if tensors := {name: t for name, t in state.items() if isinstance(t, Tensor)}:
        return tensors
    raise CheckpointError(f"{path.name} holds no tensors, neither at its top nor under `model`")


def _why_unreadable(path: Path, error: Exception, trust: bool) -> str:
    if isinstance(error, pickle.UnpicklingError) and not trust:
        return (
            f"{path.name} cannot be read safely: it holds more than tensors (fairseq keeps its "
            "training settings in the same file), or is damaged. Unpickling it runs whatever code "
            "it brings. If you trust its source, convert it once, on a machine where you may: "
            f"`python -m beatssl.methods.ecg_fm_weights --trust {path.name} "
            f"{path.stem}.safetensors`, and use the .safetensors file from then on"
        )
    if isinstance(error, ImportError | AttributeError):  # only when trusted: a class is not here
        return (
            f"{path.name} holds objects of a package that is not installed here ({error}): install "
            "it for the conversion only (the released files: omegaconf)"
        )
    return f"{path.name} is damaged or no checkpoint ({error}): fetch it again"


def convert(path: Path, target: Path, trust: bool = False) -> str:
    """Write the tensors of a checkpoint as safetensors, unchanged and with their names.

    Returns: what was read and written, in words.

    Raises:
        FileNotFoundError, CheckpointError: as `read_checkpoint`; also a target of another suffix.
    """
    if target.suffix != ".safetensors":
        raise CheckpointError(f"the output is named {target.name}: end it in .safetensors")
    tensors = {name: t.clone().contiguous() for name, t in read_checkpoint(path, trust).items()}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with replacing(target) as part:
        save_file(tensors, part, metadata={"source": path.name, "source_sha256": digest})
    parameters = sum(tensor.numel() for tensor in tensors.values())
    written = f"{len(tensors)} tensors, {parameters} parameters"
    return f"{path.name}: sha256 {digest}\n{target.name}: {written}"


@dataclass(frozen=True)
class Released(OwnNetwork, RunSettings):
    """The published network with its published weights: nothing is trained."""

    network = W2VConfig()  # no field: it is no setting


def released(sampling_rate: int) -> EcgFm:
    """ECG-FM with its released weights, from the file that BEATSSL_ECG_FM names.

    Raises:
        FileNotFoundError: the variable is not set, or there is no such file.
        CheckpointError: see `load_ecg_fm`.
    """
    if not os.environ.get(RELEASED_ECG_FM):
        raise FileNotFoundError(
            f"method ecg_fm needs the released weights: name the file with `make ... ECG_FM=file` "
            f"or the environment variable {RELEASED_ECG_FM}"
        )
    return EcgFm(load_ecg_fm(Path(os.environ[RELEASED_ECG_FM])), sampling_rate).eval()


ENTRY = Entry("ECG-FM", Released, load=released)


def main(words: list[str] | None = None) -> int:
    """Convert an ECG-FM checkpoint to safetensors; the exit status is 0, or 1 with the reason."""
    parser = argparse.ArgumentParser(
        "python -m beatssl.methods.ecg_fm_weights", description=main.__doc__
    )
    parser.add_argument("path", type=Path, help="the released .pt file")
    parser.add_argument("target", type=Path, help="the .safetensors file to write")
    parser.add_argument("--trust", action="store_true", help="unpickle it: runs any code in it")
    try:
        print(convert(**vars(parser.parse_args(words))))
    except (FileNotFoundError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
