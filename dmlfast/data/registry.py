"""The data sets by name: how each is loaded, split and augmented."""

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dmlfast.data.augmentation import AffineJitter
from dmlfast.data.dataset import Dataset
from dmlfast.data.digits import load_digits
from dmlfast.data.glyphs import load_glyphs
from dmlfast.data.images import ON_ERROR, ImageDataset
from dmlfast.data.listing import PARTS, TEST, TRAIN, VAL, Listing
from dmlfast.data.long_tail import load_glyphs_lt
from dmlfast.data.readers.cars196 import load_cars196
from dmlfast.data.readers.cub200 import load_cub200
from dmlfast.data.readers.folder import load_folder
from dmlfast.data.readers.inshop import load_inshop
from dmlfast.data.readers.long_tailed import load_imagenet_lt, load_places_lt
from dmlfast.data.readers.sop import load_sop
from dmlfast.data.readers.table import load_csv
from dmlfast.data.readers.vehicleid import load_vehicleid
from dmlfast.errors import UserError, unknown_name
from dmlfast.options import parse_name_values
from dmlfast.text import counted

AnyDataset = Dataset | ImageDataset  # images in memory, or in files

logger = logging.getLogger(__name__)


class _Entry(NamedTuple):
    load: Callable[..., Listing]
    augmentation: AffineJitter | None
    notes: str

    @property
    def options(self) -> list[str]:
        """What `create_dataset` takes for this data set besides the arguments of all."""
        names = list(inspect.signature(self.load).parameters)[1:]
        return names if self.augmentation else [*names, "on_error"]


def _halves(load: Callable[[str | None], Dataset], data_dir: str | None) -> Listing:
    """A data set in memory, of which the first half of the classes trains."""
    dataset = load(data_dir)
    training = dataset.labels < len(dataset.class_names) // 2
    return Listing(dataset, np.where(training, TRAIN, TEST))


GLYPHS_JITTER = AffineJitter(8, 0.06, 0.12, 0.2)

_DATASETS = {
    "cars196": _Entry(load_cars196, None, "cars; the first 98 classes train, the others test"),
    "csv": _Entry(load_csv, None, "your images, listed as open-metric-learning does"),
    "cub200": _Entry(load_cub200, None, "birds; the first 100 classes train, the others test"),
    "digits": _Entry(
        functools.partial(_halves, load_digits),
        AffineJitter(10, 0.06, 0.1, 0.1),
        "scikit-learn's handwritten digits",
    ),
    "folder": _Entry(load_folder, None, "your images, a folder per class"),
    "glyphs": _Entry(
        functools.partial(_halves, load_glyphs),
        GLYPHS_JITTER,
        "the characters of matplotlib's typefaces",
    ),
    "glyphs-lt": _Entry(
        load_glyphs_lt, GLYPHS_JITTER, "a long-tailed cut of the glyphs; closed-set"
    ),
    "imagenet-lt": _Entry(load_imagenet_lt, None, "long-tailed ImageNet; closed-set"),
    "inshop": _Entry(load_inshop, None, "DeepFashion In-Shop; queries and a gallery"),
    "places-lt": _Entry(load_places_lt, None, "long-tailed Places; closed-set"),
    "sop": _Entry(load_sop, None, "Stanford Online Products"),
    "vehicleid": _Entry(load_vehicleid, None, "PKU VehicleID; the test list is the subset"),
}


def _entry(name: str) -> _Entry:
    if name not in _DATASETS:
        raise unknown_name("data set", name, _DATASETS)
    return _DATASETS[name]


def dataset_names() -> list[str]:
    """The names that `create_dataset` knows."""
    return sorted(_DATASETS)


def dataset_notes() -> dict[str, str]:
    """What each data set is, in a few words, by name."""
    return {name: _DATASETS[name].notes for name in dataset_names()}


def create_dataset(
    name: str,
    split: str = "train",
    data_dir: str | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    **options: Any,
) -> AnyDataset:
    """One split of a data set. No image is in two splits, and no class, unless it is closed-set.

    Args:
        name: one of `dataset_names()`.
        split: "test" and "train" are as the data set's authors have it, or halves of the classes;
            "val" is part of "train", unless the data set comes with its own.
        data_dir: where the data set's files are, or are kept; one that needs none chooses a place.
        val_fraction: the share of the training classes in "val", at least two of them, so that
            there is something to be confused with; 0 leaves "val" empty. Of a closed-set data set
            it is the share of each class's training images.
        seed: draws the classes of "val".
        options: what the data set takes besides: `crop` (True crops to the boxes), `subset`,
            `imbalance`, `on_error` ("stop" or "skip" at an image that cannot be read), ...
            (docs/data.md).

    Raises:
        UserError: for an unknown name, split or option, a `val_fraction` or `seed` out of range,
            and for files that are missing or not the data set's.
    """
    entry = _entry(name)
    if split not in PARTS:
        raise unknown_name("split", split, PARTS)
    _check_options(name, entry, options)
    on_error = options.pop("on_error", "stop")
    dataset, parts = entry.load(data_dir, **options)
    if isinstance(dataset, ImageDataset):
        dataset.on_error = on_error
    closed_set = dataset.closed_set
    if closed_set:
        logger.warning("%s is closed-set: its splits share classes", name)
    rows = split_rows(dataset.labels, parts, split, val_fraction, seed, closed_set=closed_set)
    if split == "test" and not len(rows):
        raise UserError(f"{name} in {data_dir} has no test images")
    return dataset.with_rows(rows, split)


def parse_options(text: str | None) -> dict[str, Any]:
    """The options in "crop=true,subset=1600", as `create_dataset` takes them.

    Raises:
        UserError: for a part that is not NAME=VALUE, or names another argument.
    """
    options: dict[str, Any] = {}
    for name, value in parse_name_values(text, "data set options").items():
        if name in inspect.signature(create_dataset).parameters:
            raise UserError(f"'{name}' is not a data set option but a setting of its own")
        options[name] = {"true": True, "false": False}.get(value.lower(), value)
    return options


def _check_options(name: str, entry: _Entry, options: dict[str, Any]) -> None:
    for option, value in options.items():
        if option not in entry.options:
            if not entry.options:
                raise UserError(f"{name} takes no options, such as '{option}'")
            raise unknown_name(f"option of {name}", option, entry.options)
        if option == "crop" and not isinstance(value, bool):
            raise UserError(f"crop must be True or False, not {value!r}")
        if option == "on_error" and value not in ON_ERROR:
            raise unknown_name("on_error", value, ON_ERROR)


def split_rows(
    labels: np.ndarray,
    parts: np.ndarray,
    split: str,
    val_fraction: float,
    seed: int,
    *,
    closed_set: bool = False,
) -> np.ndarray:
    """The rows of a split, in ascending order.

    Args:
        labels: (N,) int64.
        parts: (N,) `TRAIN`, `VAL` or `TEST`; where none is `VAL`, "val" is drawn from `TRAIN`.
        split: "train", "val" or "test".
        val_fraction: the share of "val", of the training classes or of each class's images.
        seed: draws "val".
        closed_set: whether splits may share classes; otherwise a `UserError` says that they do.
    """
    if not 0 <= val_fraction < 1:
        raise UserError(f"val_fraction must be at least 0 and below 1, not {val_fraction}")
    if seed < 0:
        raise UserError(f"the seed must be at least 0, not {seed}")
    if not closed_set:
        _check_disjoint([np.unique(labels[parts == part]) for part in PARTS.values()])
    if split == "test" or (parts == VAL).any():
        return np.flatnonzero(parts == PARTS[split])
    training = parts == TRAIN
    hold_out = _hold_out_images if closed_set else _hold_out_classes
    held_out = hold_out(labels, training, val_fraction, seed)
    return np.flatnonzero(held_out if split == "val" else training & ~held_out)


def _check_disjoint(classes: list[np.ndarray]) -> None:
    shared = sum(map(len, classes)) - len(np.unique(np.concatenate(classes)))
    if shared:
        raise UserError(f"{counted(shared, 'class is', 'classes are')} in more than one split")


def _hold_out_classes(
    labels: np.ndarray, training: np.ndarray, val_fraction: float, seed: int
) -> np.ndarray:
    """Which rows are of the training classes that are held out, (N,) bool."""
    classes = np.unique(labels[training])
    size = max(2, round(val_fraction * len(classes))) if val_fraction else 0
    if size >= len(classes):
        raise UserError(f"a val_fraction of {val_fraction} leaves no class to train on")
    held_out = np.random.default_rng(seed).permutation(classes)[:size]
    return np.isin(labels, held_out)


def _hold_out_images(
    labels: np.ndarray, training: np.ndarray, val_fraction: float, seed: int
) -> np.ndarray:
    """Which training rows are held out, (N,) bool: of each class its share, rounded down."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(training))
    order = order[np.argsort(labels[order], kind="stable")]
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(starts, sizes)
    held_out = np.zeros(len(labels), dtype=bool)
    held_out[order[rank < np.repeat((val_fraction * sizes).astype(np.int64), sizes)]] = True
    return held_out


def create_augmentation(name: str) -> AffineJitter | None:
    """The augmentation that suits the data set of that name; None where its transform does it."""
    return _entry(name).augmentation
