"""Rows and classes of a call: how they are cut, prepared, scored and multiplied."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from dmlfast.ops.norm_softmax.triton.product import add_product
from dmlfast.ops.norm_softmax.triton.rows import inverse_lengths, scaled
from dmlfast.ops.norm_softmax.triton.scores import (
    Classes,
    Exponentials,
    Rows,
    add_up,
    padded,
    score,
)
from dmlfast.ops.triton import configs
from dmlfast.ops.triton.side import TILE
from dmlfast.ops.triton.tile import LOG2E

KEPT = 2000 << 20  # bytes of exponentials that are kept of a chunk of rows with all classes
BLOCK = 38 << 20  # bytes of a block of classes, which a second-level cache holds
SUMS = 2 << 20  # bytes of sums over tiles of classes
LOW = 50 << 20  # bytes of a block and of the copies of all rows where memory is low
LOW_BLOCK = 16 << 20  # but at least of a block
ROWS = 4096  # rows of a chunk at most
LEAST = 512  # and at least: fewer at a time read and write the gradient of the classes too often
SAFE = 115.0  # powers of two that exponentials and their sums may span upwards, or downwards


class Plan(NamedTuple):
    """Rows of a chunk and classes of a block, in whole tiles.

    kept: a block is all classes, and what the sums were taken of is kept for the gradients.
    running: exponents span so much that each row needs a shift of its own.
    """

    rows: int
    classes: int
    kept: bool
    running: bool


def plan_of(
    n: int,
    classes: int,
    width: int,
    itemsize: int,
    scale: float,
    low_memory: bool,
    layout_bytes: int = 0,
) -> Plan:
    """For n rows of ``width`` components and exponentials of ``itemsize`` bytes.

    ``layout_bytes``: of a row or class in another layout, where there is one.
    """
    running = scale * LOG2E.value + math.log2(classes) > SAFE
    classes = padded(classes)
    rows = min(ROWS, padded(n))
    room = BLOCK
    if low_memory:
        copies = padded(n) * (3 * width * itemsize + layout_bytes)
        room = max(LOW_BLOCK, min(BLOCK, LOW - copies))
    elif not running:
        fitting = KEPT // (classes * itemsize) // TILE * TILE
        if fitting >= min(rows, LEAST):
            return Plan(min(rows, fitting), classes, True, False)
    each = rows * itemsize + 4 * width + layout_bytes  # exponentials of a class, gradient, itself
    block = max(TILE, room // each // TILE * TILE)
    return Plan(rows, min(block, classes), classes <= block and not running, running)


class Sides:
    """Rows and classes of a call, and how they are taken.

    given: (n, d). inverse: (n,), 1 / their lengths. labels: (n,). poison: (), 0 or NaN where a row
    or a class is not finite. far: (), 1 where any class has a length far from 1, else 0.

    Exponentials are Triton's; another backend has a subclass with a `score` of its own.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        scale: float,
        low_memory: bool,
    ):
        (n, d), m = rows.shape, len(weight)
        self.given, self.labels, self.scale = rows, labels, scale
        self.products = configs.products_of(weight.dtype, d)
        self.kept_dtype = configs.weights_dtype(self.products)
        self.tile = configs.tiles_of(self.kept_dtype).product
        size = self.products.DP, self.kept_dtype.itemsize
        self.plan = plan_of(n, m, *size, scale, low_memory, self.layout_bytes(d))
        scores = configs.tiles_of(weight.dtype).scores
        self.how = Exponentials(scale, self.products, scores, self.plan.running)
        self.poison, self.far = rows.new_zeros(2, dtype=torch.float32)
        self.inverse = inverse_lengths(rows, self.poison)
        self.classes = Classes(0, weight, inverse_lengths(weight, self.poison, self.far))
        self.copy = rows.new_empty(padded(n), self.products.DP, dtype=weight.dtype)
        rounded = weight.dtype == torch.float32 and self.products.PRECISION == "tf32"
        scaled(rows, self.inverse, None, self.copy, rounded)

    def chunks(self) -> Iterator[tuple[slice, slice, Rows]]:
        """Which rows a chunk has, without and with the padding, and what kernels take of them."""
        for first in range(0, len(self.given), self.plan.rows):
            some = slice(first, min(first + self.plan.rows, len(self.given)))
            all_of_it = slice(first, first + padded(some.stop - first))
            of_them = self.copy[all_of_it], self.inverse[some], self.labels[some]
            yield some, all_of_it, Rows(first, *of_them)

    def layout_bytes(self, d: int) -> int:
        """Bytes of a row of d components in a layout of the backend's own, 0 without one."""
        return 0

    @property
    def summed(self) -> int:
        """Classes whose sums are taken at a time."""
        BN = self.how.tile.BN
        return max(TILE // BN, SUMS // (4 * self.plan.rows)) * BN // TILE * TILE

    def slots(self, x: Rows, part: Classes) -> int:
        """How many sums of a row over some classes there are, to be added up."""
        return part.padded // self.how.tile.BN

    def score(
        self,
        x: Rows,
        part: Classes,
        *,
        sums: torch.Tensor | None = None,
        kept: torch.Tensor | None = None,
        shift: torch.Tensor | None = None,
    ) -> None:
        """Fills ``sums`` (slots, padded) with the logarithms of sums of exponentials, and ``kept``
        (padded, classes padded) with these over the lengths of the classes, up to the powers of
        these. ``shift``: (n,), powers of two.
        """
        score(x, part, self.how, sums=sums, kept=kept, shift=shift)

    def log_sums(self, x: Rows, kept: torch.Tensor | None) -> torch.Tensor:
        """(n,) log-sum-exps over all classes; fills ``kept`` (rows, classes padded), if given."""
        parts = list(self.classes.parts(self.summed))
        slots = [self.slots(x, part) for part in parts]
        size = len(x.scaled)
        most = max(*slots, min(sum(slots), SUMS // (4 * size)))  # that there is room for
        sums = self.given.new_empty(most, size, dtype=torch.float32)
        found = torch.empty_like(x.inverse)
        taken, fresh = 0, True
        for part, more in zip(parts, slots, strict=True):
            if taken + more > most:
                add_up(sums[:taken], found, fresh)
                taken, fresh = 0, False
            keep = None if kept is None else kept[:, part.first : part.first + part.padded]
            self.score(x, part, sums=sums[taken : taken + more], kept=keep)
            taken += more
        add_up(sums[:taken], found, fresh)
        return found

    def block(self, classes: int) -> torch.Tensor:
        """(rows, classes) for exponentials."""
        return self.given.new_empty(self.plan.rows, classes, dtype=self.kept_dtype)

    def weighted(self) -> torch.Tensor:
        """(n padded, DP) for rows times what exponentials lack."""
        return torch.empty_like(self.copy, dtype=self.kept_dtype)

    def weigh(self, some: slice, out: torch.Tensor, factor: torch.Tensor) -> None:
        """Fills ``out`` with some rows times a ``factor`` (n,)."""
        n, d = self.given.shape
        rounded = self.products.WEIGHTS == "tf32"
        scaled(self.copy[:n, :d][some], self.inverse[some], factor, out, rounded)

    def add_to_rows(
        self, out: torch.Tensor, block: torch.Tensor, part: Classes, again: bool
    ) -> None:
        add_product(
            out, block, part.weight, part.inverse, self.far, again, self.products, self.tile
        )

    def add_to_classes(
        self, out: torch.Tensor, block: torch.Tensor, weighted: torch.Tensor, again: bool
    ) -> None:
        others = weighted[:, : self.given.shape[1]]
        add_product(out, block, others, None, None, again, self.products, self.tile)
