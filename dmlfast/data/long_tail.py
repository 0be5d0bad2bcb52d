"""`glyphs-lt`: a long-tailed cut of the glyphs, with all classes in every part."""

import dataclasses

import numpy as np

from dmlfast.data.glyphs import load_glyphs
from dmlfast.data.listing import TEST, TRAIN, VAL, Listing
from dmlfast.errors import UserError

TEST_IMAGES, VAL_IMAGES, LARGEST = 4, 2, 10  # of a class; LARGEST is the most to train on
LEFT_OUT = -1


def load_glyphs_lt(data_dir: str | None = None, imbalance: float | str = 10) -> Listing:
    """Glyphs of the characters with 16 drawings or more, closed-set.

    Args:
        data_dir: as of `load_glyphs`.
        imbalance: a number from 1 to 10, how many times as many images the largest class has to
            train on as the smallest. In between, the number falls exponentially.
    """
    try:
        ratio = float(str(imbalance))  # float(True) is 1
    except ValueError:
        ratio = np.nan
    if not 1 <= ratio <= LARGEST:
        raise UserError(f"imbalance must be a number from 1 to {LARGEST}, not {imbalance}")
    glyphs = load_glyphs(data_dir)
    drawings = np.bincount(glyphs.labels)
    classes = np.flatnonzero(drawings >= TEST_IMAGES + VAL_IMAGES + LARGEST)
    parts = _cut(glyphs.labels, classes, class_sizes(len(classes), LARGEST, ratio))
    rows = np.flatnonzero(parts != LEFT_OUT)
    cut = glyphs.with_rows(rows, "all")
    dataset = dataclasses.replace(
        cut,
        name="glyphs-lt",
        labels=np.searchsorted(classes, cut.labels),
        class_names=[glyphs.class_names[label] for label in classes],
        closed_set=True,
    )
    return Listing(dataset, parts[rows])


def class_sizes(count: int, largest: int, imbalance: float) -> np.ndarray:
    """The sizes of classes with an exponential long tail, (count,) int64, the largest first.

    Class i has largest * imbalance ** (-i / (count - 1)), rounded, as the long-tailed cuts of CIFAR
    have it (Cui et al., CVPR 2019), which round down.
    """
    return np.rint(largest * imbalance ** -np.linspace(0, 1, count)).astype(np.int64)


def _cut(labels: np.ndarray, classes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The part of each image, (N,); which classes are large and which images are taken is drawn.

    The drawing is always the same, as it is part of what the data set is.
    """
    generator = np.random.default_rng(0)
    parts = np.full(len(labels), LEFT_OUT)
    for label, size in zip(generator.permutation(classes), sizes, strict=True):
        test, val, train = np.split(
            generator.permutation(np.flatnonzero(labels == label)),
            [TEST_IMAGES, TEST_IMAGES + VAL_IMAGES],
        )
        parts[test], parts[val], parts[train[:size]] = TEST, VAL, TRAIN
    return parts
