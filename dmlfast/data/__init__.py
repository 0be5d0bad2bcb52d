"""Data sets, the sampler that makes batches for losses over pairs, and augmentation."""

from dmlfast.data.augmentation import AffineJitter
from dmlfast.data.dataset import Dataset
from dmlfast.data.images import ImageDataset
from dmlfast.data.registry import (
    AnyDataset,
    create_augmentation,
    create_dataset,
    dataset_names,
    dataset_notes,
    parse_options,
)
from dmlfast.data.sampler import ClassBalancedSampler

__all__ = [
    "AffineJitter",
    "AnyDataset",
    "ClassBalancedSampler",
    "Dataset",
    "ImageDataset",
    "create_augmentation",
    "create_dataset",
    "dataset_names",
    "dataset_notes",
    "parse_options",
]
