"""The data sets by name: how each is loaded, split and augmented."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dmlfast.data.augmentation import AffineJitter
from dmlfast.data.dataset import Dataset
from dmlfast.data.digits import load_digits
from dmlfast.data.glyphs import load_glyphs
from dmlfast.errors import UserError, unknown_name

SPLITS = ("train", "val", "test")


class _Entry(NamedTuple):
    load: Callable[[str | None], Dataset]
    augmentation: AffineJitter


_DATASETS = {
    "digits": _Entry(load_digits, AffineJitter(10, 0.06, 0.1, 0.1)),
    "glyphs": _Entry(load_glyphs, AffineJitter(8, 0.06, 0.12, 0.2)),
}


def _entry(name: str) -> _Entry:
    if name not in _DATASETS:
        raise unknown_name("data set", name, _DATASETS)
    return _DATASETS[name]


def dataset_names() -> list[str]:
    """The names that `create_dataset` knows."""
    return sorted(_DATASETS)


def create_dataset(
    name: str,
    split: str = "train",
    data_dir: str | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """One split of a data set. No class is in two splits.

    Args:
        name: one of `dataset_names()`.
        split: "test" is the second half of the classes; the first half is "train", less "val".
        data_dir: where the data set's files are kept; by default it chooses a place itself.
        val_fraction: the share of the training classes in "val", at least two of them, so that
            there is something to be confused with; 0 leaves "val" empty.
        seed: draws the classes of "val".

    Raises:
        UserError: for an unknown name or split, and for a `val_fraction` or `seed` out of range.
    """
    load = _entry(name).load
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    dataset = load(data_dir)
    classes = split_classes(len(dataset.class_names), val_fraction, seed)
    return dataset.with_classes(classes[split], split)


def split_classes(num_classes: int, val_fraction: float, seed: int) -> dict[str, np.ndarray]:
    """The labels of the classes of each split, disjoint and in ascending order."""
    if not 0 <= val_fraction < 1:
        raise UserError(f"val_fraction must be at least 0 and below 1, not {val_fraction}")
    if seed < 0:
        raise UserError(f"the seed must not be negative, as {seed} is")
    training, test = np.split(np.arange(num_classes), [num_classes // 2])
    size = max(2, round(val_fraction * len(training))) if val_fraction else 0
    if size >= len(training):
        raise UserError(f"a val_fraction of {val_fraction} leaves no class to train on")
    order = np.random.default_rng(seed).permutation(training)
    classes = {"train": np.sort(order[size:]), "val": np.sort(order[:size]), "test": test}
    assert len(np.unique(np.concatenate(list(classes.values())))) == num_classes
    return classes


def create_augmentation(name: str) -> AffineJitter:
    """The augmentation that suits the data set of that name."""
    return _entry(name).augmentation
