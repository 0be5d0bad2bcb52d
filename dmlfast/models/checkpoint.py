"""Models on the disk: `model.json` says what they are, `model.safetensors` holds their tensors."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from dmlfast.errors import UserError
from dmlfast.files import atomic_write_path
from dmlfast.models.model import EmbeddingModel, create_model

SPEC_FILE = "model.json"
TENSORS_FILE = "model.safetensors"


def save_model(model: EmbeddingModel, folder: str | Path) -> None:
    """Writes the model into `folder`, which is made if need be; each file appears whole or not.

    A model that is wrapped, as by `torch.compile` or `DistributedDataParallel`, is taken out.

    Raises:
        UserError: where the folder cannot be written.
        TypeError: where it is no `EmbeddingModel`.
    """
    model = _unwrapped(model)
    if not hasattr(model, "spec"):
        raise TypeError(f"model must be an EmbeddingModel, not {type(model).__name__}")
    spec = json.dumps(model.spec, indent=2) + "\n"
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with atomic_write_path(folder / TENSORS_FILE) as path:
        path.write_bytes(safetensors.torch.save(tensors))
    with atomic_write_path(folder / SPEC_FILE) as path:
        path.write_text(spec)


def _unwrapped(model: nn.Module) -> Any:
    parts = model._modules
    inner = parts.get("_orig_mod", parts.get("module"))
    return model if inner is None else _unwrapped(inner)


def load_model(folder: str | Path) -> EmbeddingModel:
    """The model that `save_model` has written into `folder`, on the CPU and in eval mode.

    Raises:
        UserError: where a file is missing, damaged or something else, and where the tensors are
            those of another model.
    """
    spec_path, tensors_path = Path(folder) / SPEC_FILE, Path(folder) / TENSORS_FILE
    try:
        spec = json.loads(spec_path.read_bytes())
        tensors = safetensors.torch.load(tensors_path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{spec_path} is damaged or not that of a model: {error}") from error
    except SafetensorError as error:
        raise UserError(f"{tensors_path} is damaged or not that of a model: {error}") from error
    try:
        model = create_model(**{**spec, "weights": "none"})
    except Exception as error:  # whatever the numbers and types of a foreign file lead to
        reason = str(error).partition("\n")[0]
        raise UserError(f"{spec_path} does not describe a model: {reason}") from error
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{tensors_path} is a checkpoint of another model, not that of {spec_path}"
        ) from error
    return model.eval()
