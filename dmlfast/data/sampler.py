"""Batches for losses over pairs: some images of each of many classes."""

import copy

import numpy as np

from dmlfast.errors import UserError


class ClassBalancedSampler:
    """Draws batches of as many distinct classes as fit, with `images_per_class` images of each.

    The classes come in a random order, a new one every epoch of `steps_per_epoch` batches, in which
    each class has its turn; the last batch of an epoch is filled up with classes of the first. The
    images of a class are drawn without replacement, and with replacement where the class has too
    few.

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
        _, sizes = np.unique(labels, return_counts=True)
        if images_per_class < 1:
            raise UserError(f"images per class must be at least 1, not {images_per_class}")
        if batch_size < 1 or batch_size % images_per_class:
            raise UserError(
                f"a batch size of {batch_size} is no multiple of images per class, "
                f"{images_per_class}"
            )
        largest = min(len(sizes), len(labels) // images_per_class) * images_per_class
        hint = f": try --batch-size {largest}" if largest else ""
        if batch_size > len(labels):
            raise UserError(
                f"a batch size of {batch_size} is more than the {len(labels)} images there are"
                f"{hint}"
            )
        num_classes = batch_size // images_per_class
        if num_classes > len(sizes):
            raise UserError(
                f"a batch size of {batch_size} with {images_per_class} images per class needs "
                f"{num_classes} classes, and there are {len(sizes)}{hint}"
            )
        if seed < 0:
            raise UserError(f"the seed must not be negative, as {seed} is")
        self.batch_size = batch_size
        self.images_per_class = images_per_class
        self.seed = seed
        self._num_classes = num_classes
        self._by_class = np.argsort(labels, kind="stable")  # indices, one class after the other
        self._starts = np.cumsum(sizes) - sizes
        self._sizes = sizes
        self._part = slice(None)

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in which every class has its turn."""
        return -(-len(self._sizes) // self._num_classes)

    @property
    def has_positive_pairs(self) -> bool:
        """Whether a batch can hold two different images of one class."""
        return self.images_per_class > 1 and bool(self._sizes.max() > 1)

    def batch(self, step: int) -> np.ndarray:
        """The batch of step 0, 1, ...: indices, (batch_size,) int64, those of a class together."""
        classes = self._classes(step)
        generator = np.random.default_rng((self.seed, 1, step))
        chosen = _choose(self._sizes[classes], self.images_per_class, generator)
        return self._by_class[(self._starts[classes, None] + chosen).ravel()[self._part]]

    def shard(self, rank: int, world_size: int) -> "ClassBalancedSampler":
        """The sampler for one of `world_size` processes, whose batches are equal parts of these.

        The parts, joined in the order of the ranks, are the whole batch. A class stays in one part
        where a part is a multiple of `images_per_class`.

        Raises:
            UserError: where the batch cannot be divided equally, or there is no such rank.
        """
        if not 0 <= rank < world_size:
            raise UserError(f"there is no rank {rank} among {world_size} processes")
        if self.batch_size % world_size:
            raise UserError(
                f"a batch size of {self.batch_size} cannot be divided among {world_size} processes"
            )
        size = self.batch_size // world_size
        shard = copy.copy(self)
        shard._part = slice(rank * size, (rank + 1) * size)
        return shard

    def _classes(self, step: int) -> np.ndarray:
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self._sizes))
        turns = np.arange(position * self._num_classes, (position + 1) * self._num_classes)
        return order.take(turns, mode="wrap")


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
