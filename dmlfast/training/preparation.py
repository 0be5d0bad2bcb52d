"""What the settings of a run say about its images, batches and its network's beginning."""

from typing import Any

import numpy as np

from dmlfast.data import (
    ClassBalancedSampler,
    Dataset,
    HardNeighbourSampler,
    PairSampler,
    Sampler,
)
from dmlfast.data.loading import Pictures
from dmlfast.data.transforms import transform_size
from dmlfast.errors import UserError
from dmlfast.losses import compares_with_classes, takes
from dmlfast.models import backbone_preprocessing, has_default_weights
from dmlfast.ops.boosted import group_sizes
from dmlfast.training.config import TrainConfig

SIZE_OF_ANY = 64  # pixels, of images for a backbone that is made for no size


def image_transform(config: TrainConfig, dataset: Pictures) -> dict[str, Any] | None:
    """The arguments of `dmlfast.data.create_transform` that a run's pictures become images by.

    None stands for images that go in as they are: those of a data set in memory, where neither the
    backbone nor the settings ask for a size.
    """
    preprocessing = backbone_preprocessing(config.backbone)
    name = config.transform
    if name == "none":
        return None
    if name == "auto":
        sizes = (preprocessing.image_size, config.image_size)
        if isinstance(dataset, Dataset) and sizes == (None, None):
            return None
        name = "weights"
    if name != "weights":
        return {"name": name, "size": config.image_size or transform_size(name)}
    return {
        "name": name,
        "size": config.image_size or preprocessing.image_size or SIZE_OF_ANY,
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop_pct,
    }


def build_sampler(config: TrainConfig, labels: np.ndarray) -> Sampler:
    """What makes a run's batches of images with these labels, (N,) integers.

    Raises:
        UserError: where they cannot fill a batch, or none would hold two images of one class.
    """
    sampler: Sampler
    if config.sampler == "balanced":
        sampler = ClassBalancedSampler(
            labels, config.batch_size, config.images_per_class, config.seed
        )
    elif config.sampler == "pairs":
        sampler = PairSampler(labels, config.batch_size, config.seed)
    else:
        sampler = HardNeighbourSampler(labels, config.batch_size, config.candidates, config.seed)
    if not (compares_with_classes(config.loss) or sampler.has_positive_pairs):
        balanced = isinstance(sampler, ClassBalancedSampler)
        reason = "images-per-class must be at least 2" if balanced else "no class has two"
        raise UserError(
            f"the {config.loss} loss compares images of the same class, and no batch would hold "
            f"two: {reason}"
        )
    of_one_class = config.sampler == "balanced" and config.batch_size == config.images_per_class
    if of_one_class and not compares_with_classes(config.loss):
        raise UserError(
            f"the {config.loss} loss compares images of several classes, and a batch would hold "
            "only one: batch-size must be at least twice images-per-class"
        )
    return sampler


def model_arguments(
    config: TrainConfig, channels: int, transform: dict[str, Any] | None
) -> dict[str, Any]:
    """The arguments of `dmlfast.models.create_model` for a run's network."""
    sized = transform is not None and "/" in config.backbone
    return {
        "name": config.backbone,
        "channels": channels,
        "embedding_dim": config.embedding_dim,
        "head": config.head,
        "normalize": config.normalize,
        "dropout": config.head_dropout,
        "transform": transform,
        "weights": starting_weights(config),
        "head_init": config.head_init,
        "groups": learner_groups(config),
        "weighting": config.weighting,
        **({"image_size": transform["size"]} if sized and transform else {}),
    }


def learner_groups(config: TrainConfig) -> list[int] | None:
    """The widths of the learners of a boosted loss; None where the loss has none.

    Raises:
        UserError: the embedding cannot be cut so, or there is no boosted loss for given widths.
    """
    if not takes(config.loss, "groups"):
        if config.groups:
            raise UserError(f"groups work only with boosted losses, not with {config.loss}")
        return None
    try:
        return list(config.groups or group_sizes(config.embedding_dim, config.learners))
    except ValueError as error:
        raise UserError(f"learners: {error}") from None


def starting_weights(config: TrainConfig) -> str:
    """What the run's backbone starts from: "none", "default" or a file."""
    if config.weights is not None:
        return config.weights
    return "default" if has_default_weights(config.backbone) else "none"
