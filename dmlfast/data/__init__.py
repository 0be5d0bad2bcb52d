"""Data sets, the sampler that makes batches for losses over pairs, and augmentation."""

from dmlfast.data.augmentation import AffineJitter
from dmlfast.data.dataset import Dataset
from dmlfast.data.registry import create_augmentation, create_dataset, dataset_names
from dmlfast.data.sampler import ClassBalancedSampler

__all__ = [
    "AffineJitter",
    "ClassBalancedSampler",
    "Dataset",
    "create_augmentation",
    "create_dataset",
    "dataset_names",
]
