"""Data sets, samplers that make batches for losses over pairs, and augmentation."""

from dmlfast.data.augmentation import AffineJitter
from dmlfast.data.dataset import Dataset
from dmlfast.data.images import ImageDataset
from dmlfast.data.prepare import prepare_images
from dmlfast.data.registry import (
    AnyDataset,
    create_augmentation,
    create_dataset,
    dataset_names,
    dataset_notes,
    parse_options,
)
from dmlfast.data.sampler import (
    ClassBalancedSampler,
    HardNeighbourSampler,
    PairSampler,
    Sampler,
)
from dmlfast.data.transforms import Transform, create_transform, transform_names

__all__ = [
    "AffineJitter",
    "AnyDataset",
    "ClassBalancedSampler",
    "Dataset",
    "HardNeighbourSampler",
    "ImageDataset",
    "PairSampler",
    "Sampler",
    "Transform",
    "create_augmentation",
    "create_dataset",
    "create_transform",
    "dataset_names",
    "dataset_notes",
    "parse_options",
    "prepare_images",
    "transform_names",
]
