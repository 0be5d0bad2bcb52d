"""What results have to be compared by: how a network was made, shown images, and trained."""

import platform
from importlib import metadata
from typing import Any

import torch

from dmlfast import __version__
from dmlfast.data import create_transform, parse_options
from dmlfast.models import EmbeddingModel
from dmlfast.training.checkpoint import Checkpoint
from dmlfast.training.config import TrainConfig
from dmlfast.training.preparation import starting_weights


def network_card(config: TrainConfig, model: EmbeddingModel) -> dict[str, Any]:
    """What a run's network is, as plain values: weights, pooling and batch_norm.

    What is not known is left out.
    """
    frozen = config.freeze_bn or not config.backbone_lr_multiplier
    values = {
        "weights": starting_weights(config),
        "pooling": model.pooling,
        "batch_norm": ("frozen" if frozen else "trained") if model.has_batch_norm else "none",
    }
    return {name: value for name, value in values.items() if value is not None}


def images_card(config: TrainConfig, transform: dict[str, Any] | None) -> dict[str, Any]:
    """How a run's images were chosen and prepared, as plain values: dataset_options, and with a
    transform image_size, crop, crop_pct, pictures, train_crop, test_crop and bounding_boxes.

    Without a transform they went in as they are. What is not known is left out.
    """
    values: dict[str, Any] = {"dataset_options": config.dataset_options}
    if transform is not None:
        made = create_transform(**transform)
        values |= {
            "image_size": transform["size"],
            "crop": transform["name"],
            "crop_pct": transform.get("crop_pct"),
            "pictures": str(made.resize),
            "train_crop": made.crop.describe(train=config.augment),
            "test_crop": made.crop.describe(train=False),
            "bounding_boxes": "cut out" if boxes_cut_out(config) else "not used",
        }
    return {name: value for name, value in values.items() if value is not None}


def boxes_cut_out(config: TrainConfig) -> bool:
    """Whether a run's pictures were cropped to their bounding boxes."""
    return bool(parse_options(config.dataset_options).get("crop", False))


def training_card(config: TrainConfig, checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """How the checkpoint that a run has under a name, "best" or "last", came about, as plain
    values: loss, its options, batch_size, sampler, step, selection, selected_on, trained_with.
    """
    state, best = checkpoint.state, checkpoint.state["best"]
    values = {
        "loss": config.loss,
        **({"margin": config.margin} if config.margin is not None else {}),
        **({"loss_options": config.loss_options} if config.loss_options else {}),
        **({"ce_weight": config.ce_weight} if config.ce_weight else {}),
        "batch_size": config.batch_size,
        "sampler": config.sampler,
        **_settings_of_sampler(config),
        "step": checkpoint.step,
        "selection": "last step",
    }
    if name == "best" and best and best["step"] == checkpoint.step:
        values["selected_on"] = state["selected_on"]
        values["selection"] = f"best MAP at R on {state['selected_on']}"
    if "versions" in state:
        known = state["versions"].items()
        values["trained_with"] = ", ".join(f"{name} {version}" for name, version in known)
    return values


def _settings_of_sampler(config: TrainConfig) -> dict[str, Any]:
    names = {"balanced": "images_per_class", "hard-neighbours": "candidates"}
    name = names.get(config.sampler)
    return {name: getattr(config, name)} if name else {}


def versions(backbone: str) -> dict[str, str]:
    """The versions of what a network with this backbone is trained with here."""
    library, slash, _ = backbone.partition("/")
    return {
        "dmlfast": __version__,
        "torch": torch.__version__,
        **({library: metadata.version(library)} if slash else {}),
        "Python": platform.python_version(),
    }
