"""Weights of backbones in files, whichever program wrote them."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dmlfast.errors import UserError
from dmlfast.models import caffe

NESTED = ("state_dict", "model", "model_state_dict")  # where training scripts put the tensors


def load_weights(network: nn.Module, path: str | Path, ignored: tuple[str, ...] = ()) -> None:
    """Loads all of a network's tensors from a file.

    Args:
        network: whose tensors have the names of those in the file.
        path: `.safetensors`; Caffe's `.caffemodel`, `.h5` or `.npz`; any other is read as torch's,
            without executing anything. A run's `model.safetensors` will do: its head is left out.
        ignored: how the names of tensors begin that the file may hold and the network does not.

    Raises:
        UserError: where the file cannot be read, and where its tensors are not the network's.
    """
    tensors = _of_backbone(read_weights(path))
    expected = network.state_dict()
    known = {
        name: tensor
        for name, tensor in tensors.items()
        if name in expected or not name.startswith(ignored)
    }
    problems = _differences(expected, known)
    if problems:
        raise UserError(f"{path} does not fit the backbone: {'; '.join(problems)}")
    network.load_state_dict(known, strict=False)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name; one that holds none raises a `UserError`."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if path.suffix in caffe.SUFFIXES:
            return caffe.read_googlenet(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or not a safetensors file: {error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged, or holds more than tensors") from error
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The mapping of names to tensors in what was read, perhaps under one of the usual keys."""
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no named tensors")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no named tensors")
    return tensors


def _of_backbone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's tensors under its own names, whatever module they were saved in."""
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    ours = {name: tensor for name, tensor in tensors.items() if name.startswith("backbone.")}
    return {name.removeprefix("backbone."): ours[name] for name in ours} if ours else tensors


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with the tensors that were found, each kind in a few words."""
    counters = {name for name in expected if name.endswith(".num_batches_tracked")}
    missing = [name for name in expected if name not in found and name not in counters]
    unknown = [name for name in found if name not in expected]
    shapes = [
        f"{name} {tuple(found[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    kinds = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    return [f"{kind} {_first(names)}" for kind, names in kinds.items() if names]


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
