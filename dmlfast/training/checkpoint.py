"""Checkpoints: folders of safetensors and JSON, written whole or not at all."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from dmlfast.errors import UserError
from dmlfast.files import atomic_folder
from dmlfast.models import EmbeddingModel, load_model, save_model

STATE, LOSS, OPTIMIZER = "state.json", "loss.safetensors", "optimizer.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder and what its `state.json` says.

    `state` holds `step` (how many steps are done), `selected_on`, `best` (the step and the values
    of the best evaluation so far, or None) and `sha256` (of every other file).
    """

    folder: Path
    state: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> "Checkpoint":
        """Reads a checkpoint's state and checks its files; a damaged one raises a `UserError`."""
        folder = Path(folder)
        try:
            state = json.loads((folder / STATE).read_text())
            if not _is_whole(state):
                raise ValueError
            for name, digest in state["sha256"].items():
                if sha256(folder / name) != digest:
                    raise UserError(f"{folder} is damaged: {name} is not what was written")
        except OSError as error:
            raise UserError(
                f"{folder} is not a complete checkpoint: {error.filename}: {error.strerror}"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{folder} is damaged: {STATE} is not what was written") from None
        return cls(folder, state)

    @property
    def step(self) -> int:
        """How many steps of training it holds."""
        return int(self.state["step"])

    @property
    def model_sha256(self) -> str:
        """Identifies the network's weights."""
        return str(self.state["sha256"]["model.safetensors"])

    def restore(
        self, model: EmbeddingModel, loss_fn: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        """Loads all weights and the optimiser's state; another model's raise a `UserError`."""
        saved = load_model(self.folder)
        if saved.spec != model.spec:
            differing = [
                f"{name} {saved.spec.get(name)!r}, not {value!r}"
                for name, value in model.spec.items()
                if saved.spec.get(name) != value
            ]
            raise UserError(
                f"{self.folder} is a checkpoint of another model ({', '.join(differing)})"
            )
        model.load_state_dict(saved.state_dict())
        try:
            if loss_fn.state_dict():
                loss_fn.load_state_dict(load_file(self.folder / LOSS))
            _load_optimizer(optimizer, load_file(self.folder / OPTIMIZER))
        except (RuntimeError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.folder} is a checkpoint of another loss: {reason}") from None


def save_checkpoint(
    folder: Path,
    model: EmbeddingModel,
    loss_fn: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> None:
    """Writes a checkpoint that appears as `folder` when it is whole and on the disk."""
    with atomic_folder(folder) as temporary:
        save_model(model, temporary)
        if loss_fn.state_dict():
            (temporary / LOSS).write_bytes(save(_contiguous(loss_fn.state_dict())))
        (temporary / OPTIMIZER).write_bytes(save(_optimizer_tensors(optimizer)))
        digests = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
        (temporary / STATE).write_text(json.dumps({**state, "sha256": digests}, indent=2) + "\n")


def sha256(path: Path) -> str:
    """A file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_whole(state: dict[str, Any]) -> bool:
    """Whether a state holds all that is read of it; what is missing may raise a `KeyError`."""
    best = state["best"]
    return (
        _holds(state, {"step": int, "selected_on": str, "sha256": dict})
        and (best is None or _holds(best, {"step": int, "recall_at_1": float, "map_at_r": float}))
        and {"model.json", "model.safetensors", OPTIMIZER} <= state["sha256"].keys()
    )


def _holds(values: dict[str, Any], types: dict[str, type]) -> bool:
    return all(isinstance(values[name], kind) for name, kind in types.items())


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return _contiguous(
        {f"{index}.{key}": state[index][key] for index in state for key in state[index]}
    )


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensor
    # The settings of the groups follow from the run's settings and the step.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
