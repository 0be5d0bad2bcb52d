"""Data sets, the sampler that makes batches for losses over pairs, and augmentation."""

from dmlfast.data.augmentation import AffineJitter
from dmlfast.data.dataset import Dataset
from dmlfast.data.prepare import prepare_images
from dmlfast.data.registry import create_augmentation, create_dataset, dataset_names
from dmlfast.data.sampler import ClassBalancedSampler
from dmlfast.data.transforms import Transform, create_transform, transform_names

__all__ = [
    "AffineJitter",
    "ClassBalancedSampler",
    "Dataset",
    "Transform",
    "create_augmentation",
    "create_dataset",
    "create_transform",
    "dataset_names",
    "prepare_images",
    "transform_names",
]
