"""Batches for losses over pairs. Seed and step alone determine each, so there is no state."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TypeVar

import numpy as np

from dmlfast.errors import UserError
from dmlfast.text import counted

S = TypeVar("S", bound="Sampler")


class Sampler(ABC):
    """Batches of images by step, for one process or in equal parts for several.

    Args:
        labels: (N,) integers, of the images.
        batch_size: images in a batch that are trained on.
        seed: at least 0; with the other arguments and the step it determines a batch.

    Raises:
        UserError: where the labels cannot fill such a batch.
        ValueError: where labels have another shape.
    """

    def __init__(self, labels: np.ndarray, batch_size: int, seed: int) -> None:
        if seed < 0:
            raise UserError(f"the seed must be at least 0, not {seed}")
        _, sizes = _counted_labels(labels)
        self.batch_size = batch_size
        self.seed = seed
        self._by_class = np.argsort(labels, kind="stable")  # indices, one class after the other
        self._starts = np.cumsum(sizes) - sizes
        self._sizes = sizes
        self._rank, self._world_size = 0, 1
        self._epoch = 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[np.ndarray]:
        """The batches of an epoch, and of the next one the next time, for a torch `DataLoader`."""
        first = self._epoch * self.steps_per_epoch
        self._epoch += 1
        return map(self.batch, range(first, first + self.steps_per_epoch))

    def set_epoch(self, epoch: int) -> None:
        """The epoch, from 0, that is gone through next."""
        self._epoch = epoch

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """The number of batches that an epoch is."""

    @property
    def has_positive_pairs(self) -> bool:
        """Whether a batch can hold two different images of one class."""
        return bool(self._sizes.max() > 1)

    @property
    def rows(self) -> int:
        """Images that are drawn for a step, by all processes together."""
        return self.batch_size

    @property
    def group(self) -> int:
        """How many rows go to one process together."""
        return 1

    @abstractmethod
    def _batch(self, step: int) -> np.ndarray:
        """The whole batch of a step: (rows,) int64."""

    def batch(self, step: int) -> np.ndarray:
        """The batch of step 0, 1, ...: indices, (rows,) int64, or this process's part of them."""
        return self._batch(step)[self.part]

    @property
    def part(self) -> slice:
        """Which rows of the whole batch are this process's."""
        size = self.rows // self._world_size
        return slice(self._rank * size, (self._rank + 1) * size)

    def shard(self: S, rank: int, world_size: int) -> S:
        """The sampler for one of `world_size` processes, whose batches are equal parts of these.

        The parts, joined in the order of the ranks, are the whole batch.

        Raises:
            UserError: where the batch cannot be divided equally, or there is no such rank.
        """
        if not 0 <= rank < world_size:
            raise UserError(f"there is no rank {rank} among {world_size} processes")
        if self.rows // self.group % world_size:
            raise UserError(
                f"a batch size of {self.batch_size} cannot be divided evenly among {world_size} "
                "processes"
            )
        shard = copy.copy(self)
        shard._rank, shard._world_size = rank, world_size
        return shard


def _counted_labels(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C,) the labels there are, and how often each is there."""
    if np.ndim(labels) != 1:
        raise ValueError(f"labels must have shape (N,), not {np.shape(labels)}")
    return np.unique(labels, return_counts=True)


class ClassBalancedSampler(Sampler):
    """Draws batches of as many distinct classes as fit, with `images_per_class` images of each.

    The classes come in a random order, a new one every epoch of `steps_per_epoch` batches, in which
    each class has its turn, however many images it has: papers on long tails call this class-aware
    sampling. The last batch of an epoch is filled up with classes of the first. The images of a
    class are drawn without replacement, and with replacement where the class has too few. A class
    stays in one process's part where that is a multiple of `images_per_class`.

    Args:
        labels: (N,) integers.
        batch_size: a multiple of `images_per_class`.
        images_per_class: at least 1.
        seed: at least 0; with the other arguments and the step it determines a batch.

    Raises:
        UserError: where the labels cannot fill such a batch.
    """

    def __init__(
        self, labels: np.ndarray, batch_size: int, images_per_class: int, seed: int
    ) -> None:
        _, sizes = _counted_labels(labels)
        if images_per_class < 1:
            raise UserError(f"images per class must be at least 1, not {images_per_class}")
        if batch_size < 1 or batch_size % images_per_class:
            raise UserError(
                f"a batch size of {batch_size} is not a multiple of images per class, "
                f"{images_per_class}"
            )
        largest = min(len(sizes), len(labels) // images_per_class) * images_per_class
        hint = f": try --batch-size {largest}" if largest else ""
        if batch_size > len(labels):
            raise UserError(
                f"a batch size of {batch_size} is more than the {counted(len(labels), 'image')} "
                f"there {_are(len(labels))}{hint}"
            )
        num_classes = batch_size // images_per_class
        if num_classes > len(sizes):
            raise UserError(
                f"a batch size of {batch_size} with {counted(images_per_class, 'image')} per class "
                f"needs {counted(num_classes, 'class', 'classes')}, and there "
                f"{_are(len(sizes))} {len(sizes):,}{hint}, or more --images-per-class"
            )
        super().__init__(labels, batch_size, seed)
        self.images_per_class = images_per_class
        self._num_classes = num_classes

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in which every class has its turn."""
        return -(-len(self._sizes) // self._num_classes)

    @property
    def has_positive_pairs(self) -> bool:
        """Whether a batch can hold two different images of one class."""
        return self.images_per_class > 1 and super().has_positive_pairs

    def _batch(self, step: int) -> np.ndarray:
        """The images of a class are neighbours."""
        classes = self._classes(step)
        generator = np.random.default_rng((self.seed, 1, step))
        chosen = _choose(self._sizes[classes], self.images_per_class, generator)
        return self._by_class[(self._starts[classes, None] + chosen).ravel()]

    def _classes(self, step: int) -> np.ndarray:
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self._sizes))
        turns = np.arange(position * self._num_classes, (position + 1) * self._num_classes)
        return order.take(turns, mode="wrap")


class PairSampler(Sampler):
    """Draws batches of pairs, each as likely positive as negative, as the lifted loss's code does.

    A positive pair is drawn from all pairs within classes and from each image with itself, which
    training shows in two random variants: classes of many images have the more pairs. A negative
    pair is an image and one of those of other classes, all equally likely. What is drawn for one
    pair does not depend on the others. The images of a pair are neighbours. An epoch is as many
    images as there are.

    Source: Oh Song et al., CVPR 2016, whose released code goes through a shuffled list of all
    positive and about as many random negative pairs instead.

    Args:
        labels: (N,) integers, of at least two classes.
        batch_size: an even number.
        seed: at least 0.

    Raises:
        UserError: where the labels cannot fill such a batch.
    """

    _name, _multiple, _with_itself = "pairs", 2, True

    def __init__(self, labels: np.ndarray, batch_size: int, seed: int) -> None:
        if batch_size < 1 or batch_size % self._multiple:
            raise UserError(
                f"sampler {self._name} needs a batch size that is a multiple of {self._multiple}, "
                f"not {batch_size}"
            )
        super().__init__(labels, batch_size, seed)
        if len(self._sizes) < 2:
            raise UserError(f"sampler {self._name} needs images of at least two classes")
        pairs = self._sizes * (self._sizes + (1 if self._with_itself else -1)) // 2
        self._last_pairs = np.cumsum(pairs)
        if not self._last_pairs[-1]:
            raise UserError(f"sampler {self._name} needs a class of at least two images")

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches that hold as many images as there are."""
        return -(-len(self._by_class) // self.batch_size)

    def _batch(self, step: int) -> np.ndarray:
        generator = np.random.default_rng((self.seed, 3, step))
        count = self.batch_size // 2
        positive = generator.random(count) < 0.5
        pairs = np.where(
            positive[:, None],
            self._positive_pairs(count, generator),
            self._negative_pairs(count, generator),
        )
        return self._by_class[pairs.ravel()]

    def _positive_pairs(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Pairs within classes, all equally likely: (count, 2) places in the order of classes."""
        drawn = generator.integers(self._last_pairs[-1], size=count)
        classes = np.searchsorted(self._last_pairs, drawn, side="right")
        sizes = self._sizes[classes]
        one = generator.integers(sizes)
        if self._with_itself:
            other = generator.integers(sizes + 1)
            # of size x (size + 1) outcomes two are each pair, and two are each image with itself
            other = np.where(other == sizes, one, other)
        else:
            other = (one + 1 + generator.integers(sizes - 1)) % sizes
        return self._starts[classes, None] + np.stack([one, other], axis=1)

    def _negative_pairs(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Images with one of another class each: (count, 2) places in the order of classes."""
        images = len(self._by_class)
        one = generator.integers(images, size=count)
        classes = np.searchsorted(self._starts, one, side="right") - 1
        starts, sizes = self._starts[classes], self._sizes[classes]
        other = generator.integers(images - sizes)
        return np.stack([one, np.where(other < starts, other, other + sizes)], axis=1)


class HardNeighbourSampler(PairSampler):
    """Draws positive pairs, and the candidates among which training finds their hard neighbours.

    Half of a batch are positive pairs of two images, all pairs within classes equally likely; for
    the other half training takes, of the candidates, the nearest of other classes
    (`dmlfast.training.neighbours`). Candidates are images that differ, all equally likely. A batch
    here is of groups, (batch_size // 4, 2 + 2 * candidates): a pair, then its share of candidates.
    An epoch is as many images trained on as there are.

    Args:
        labels: (N,) integers, of at least two classes, one of them with two images.
        batch_size: of what is trained on, a multiple of 4.
        candidates: drawn for each that is taken, at least 1.
        seed: at least 0.

    Raises:
        UserError: where the labels cannot fill such a batch.
    """

    _name, _multiple, _with_itself = "hard-neighbours", 4, False

    def __init__(self, labels: np.ndarray, batch_size: int, candidates: int, seed: int) -> None:
        super().__init__(labels, batch_size, seed)
        self.candidates = candidates
        needed = batch_size // 2 * candidates
        if candidates < 1:
            raise UserError(f"candidates must be at least 1, not {candidates}")
        if needed > len(labels):
            raise UserError(
                f"a batch size of {batch_size} with {counted(candidates, 'candidate')} for each "
                f"neighbour needs {counted(needed, 'image')}, and there "
                f"{_are(len(labels))} {len(labels):,}: try fewer --candidates"
            )

    @property
    def group(self) -> int:
        """Rows of a positive pair with its share of candidates, which go to one process."""
        return 2 + 2 * self.candidates

    @property
    def rows(self) -> int:
        """Images that are drawn for a step, by all processes together."""
        return self.batch_size // 4 * self.group

    def _batch(self, step: int) -> np.ndarray:
        generator = np.random.default_rng((self.seed, 4, step))
        groups = self.batch_size // 4
        pairs = self._positive_pairs(groups, generator)
        shape = (groups, 2 * self.candidates)
        candidates = generator.choice(len(self._by_class), shape, replace=False)
        return self._by_class[np.concatenate([pairs, candidates], axis=1).ravel()]


def _choose(sizes: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """For each of K sizes, `count` numbers from 0 to size - 1, distinct if there are so many.

    Floyd's sampling algorithm for all K at once; returns (K, count) int64.
    """
    uniform = generator.random((count, len(sizes)))
    distinct = np.empty((count, len(sizes)), dtype=np.int64)
    for i in range(count):
        last = sizes - count + i
        drawn = (uniform[i] * (last + 1)).astype(np.int64)
        taken = (distinct[:i] == drawn).any(axis=0)
        distinct[i] = np.where(taken, last, drawn)
    repeated = (uniform * sizes).astype(np.int64)
    return np.where(sizes >= count, distinct, repeated).T


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
