"""The kernels' part of the normalised softmax in Triton.

../README.md has the maths, docs/triton_kernels.md the structure.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from dmlfast.ops.gpu import on_its_device
from dmlfast.ops.norm_softmax.triton.product import add_product
from dmlfast.ops.norm_softmax.triton.rows import FAR, inverse_lengths, scaled, through_norm
from dmlfast.ops.norm_softmax.triton.scores import Classes, Exponentials, Rows, padded, score
from dmlfast.ops.triton import configs
from dmlfast.ops.triton.side import TILE
from dmlfast.ops.triton.tile import LN2, LOG2E

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
    laid_out: int = 0,
) -> Plan:
    """For n rows of ``width`` components and exponentials of ``itemsize`` bytes.

    ``laid_out``: bytes of a row or class in another layout, where there is one.
    """
    running = scale * LOG2E.value + math.log2(classes) > SAFE
    classes = padded(classes)
    rows = min(ROWS, padded(n))
    room = BLOCK
    if low_memory:
        copies = padded(n) * (3 * width * itemsize + laid_out)
        room = max(LOW_BLOCK, min(BLOCK, LOW - copies))
    elif not running:
        fitting = KEPT // (classes * itemsize) // TILE * TILE
        if fitting >= min(rows, LEAST):
            return Plan(min(rows, fitting), classes, True, False)
    each = rows * itemsize + 4 * width + laid_out  # exponentials of a class, its gradient, itself
    block = max(TILE, room // each // TILE * TILE)
    return Plan(rows, min(block, classes), classes <= block and not running, running)


class Sides:
    """Rows and classes of a call, and how they are taken.

    given: (n, d). inverse: (n,), 1 / their lengths. labels: (n,). poison: (), 0 or NaN where a row
    or a class is not finite. far: (), whether any class has a length far from 1.

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
        self.plan = plan_of(n, m, *size, scale, low_memory, self.laid_out(d))
        scores = configs.tiles_of(weight.dtype).scores
        self.how = Exponentials(scale, self.products, scores, self.plan.running)
        self.inverse, lengths = inverse_lengths(rows), inverse_lengths(weight)
        self.classes = Classes(0, weight, lengths)
        self.poison = (self.inverse * 0).sum() + (lengths * 0).sum()
        far = (lengths > FAR.value) | ((lengths < 1 / FAR.value) & (lengths > 0))
        self.far = far.any()
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

    def laid_out(self, d: int) -> int:
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
        found = []
        for part in self.classes.parts(self.summed):
            sums = self.given.new_empty(self.slots(x, part), len(x.scaled), dtype=torch.float32)
            keep = None if kept is None else kept[:, part.first : part.first + part.padded]
            self.score(x, part, sums=sums, kept=keep)
            found.append(sums[:, : len(x.labels)].logsumexp(0))
        return torch.stack(found).logsumexp(0)

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


@on_its_device
def forward(
    rows: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    target: torch.Tensor,
    row_weights: torch.Tensor,
    scale: float,
    low_memory: bool,
    want_rows: bool,
    want_weight: bool,
    everyone: torch.Tensor | None = None,
    sides_of: type[Sides] = Sides,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Log-sum-exps and gradients, as `dmlfast.ops.norm_softmax.assembly` asks for them.

    Args:
        rows: (N, D), of the dtype of ``weight`` or float32 of values that it has.
        weight: (C, D) of any dtype and strides.
        labels: (N,) int64, -1 where none.
        target, row_weights: (N,) float32.
        scale: above 0.
        low_memory: take a scratch of some 32 MiB, rather than 2 GiB.
        everyone: (D,) float32, a gradient that is added to that of each class at length 1, or None.
        sides_of: whose exponentials are taken.

    Returns:
        (N,), (N, D) and (C, D) float32, the gradients None where not wanted. All NaN where a row or
        a class is not finite.
    """
    n = len(rows)
    found = rows.new_empty(n, dtype=torch.float32)
    wants = want_rows, want_weight
    d_rows, d_weight = _empty(rows, weight, wants, torch.float32)
    if not n:
        return found, d_rows, None if d_weight is None else d_weight.zero_()
    sides = sides_of(rows, weight, labels, scale, low_memory)
    plan = sides.plan
    keeps = plan.kept and any(wants)
    kept = sides.block(plan.classes) if keeps else None
    weighted = sides.weighted() if keeps and want_weight else None
    factors = torch.empty_like(found)
    for some, place, x in sides.chunks():
        block = None if kept is None else kept[: len(x.scaled)]
        L = sides.log_sums(x, block)
        found[some] = L
        if block is None:
            continue
        factor, _ = _factors(L, target[some], row_weights[some], scale, False)
        factors[some] = factor
        if d_rows is not None:
            sides.add_to_rows(d_rows[some], block, sides.classes, False)
        if d_weight is not None and weighted is not None:
            sides.weigh(some, weighted[place], factor)
            sides.add_to_classes(d_weight, block, weighted[place], some.start > 0)
    if kept is None:
        _in_blocks(sides, found, target, row_weights, everyone, d_rows, d_weight)
    else:
        del kept, block
        if d_rows is not None:
            through_norm(d_rows, rows, sides.inverse, factors, sides.poison)
        if d_weight is not None:
            lengths = sides.classes.inverse
            through_norm(d_weight, weight, lengths, None, sides.poison, everyone)
    return found + sides.poison, d_rows, d_weight


@on_its_device
def gradients(
    rows: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    target: torch.Tensor,
    row_weights: torch.Tensor,
    logsumexp: torch.Tensor,
    scale: float,
    want_rows: bool,
    want_weight: bool,
    everyone: torch.Tensor | None,
    dtype: torch.dtype,
    sides_of: type[Sides] = Sides,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients of `forward`, N above 0, where memory is low and its log-sum-exps are known:
    of rows in float32, of classes in ``dtype``, rounded once.
    """
    d_rows, d_weight = _empty(rows, weight, (want_rows, want_weight), dtype)
    sides = sides_of(rows, weight, labels, scale, True)
    _in_blocks(sides, logsumexp, target, row_weights, everyone, d_rows, d_weight)
    return d_rows, d_weight


def _empty(
    rows: torch.Tensor, weight: torch.Tensor, wants: tuple[bool, bool], dtype: torch.dtype
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(N, D) float32 and (C, D) of a dtype for gradients, None where not wanted."""
    return (
        rows.new_empty(rows.shape, dtype=torch.float32) if wants[0] else None,
        rows.new_empty(weight.shape, dtype=dtype) if wants[1] else None,
    )


def _in_blocks(
    sides: Sides,
    L: torch.Tensor,
    target: torch.Tensor,
    row_weights: torch.Tensor,
    everyone: torch.Tensor | None,
    d_rows: torch.Tensor | None,
    d_weight: torch.Tensor | None,
) -> None:
    """Fills the gradients, those that are wanted, one block of classes with all rows after another.

    That of a block of classes is done with the block: no more of them is ever there in float32.
    """
    if d_rows is None and d_weight is None:
        return
    factor, shift = _factors(L, target, row_weights, sides.scale, sides.plan.running)
    weighted = None
    if d_weight is not None:
        weighted = sides.weighted()
        sides.weigh(slice(None), weighted, factor)
    for part in sides.classes.parts(sides.plan.classes):
        found = _block(sides, part, shift, weighted, d_rows, d_weight)
        if d_weight is not None and found is not None:
            out = part.of(d_weight)
            through_norm(found, part.weight, part.inverse, None, sides.poison, everyone, out)
        del found  # before the next is allocated
    if d_rows is not None:
        through_norm(d_rows, sides.given, sides.inverse, factor, sides.poison)


def _block(
    sides: Sides,
    part: Classes,
    shift: torch.Tensor | None,
    weighted: torch.Tensor | None,
    d_rows: torch.Tensor | None,
    d_weight: torch.Tensor | None,
) -> torch.Tensor | None:
    """The gradient of a block of classes at length 1, float32, in its place in ``d_weight`` if that
    is; None without. Adds to ``d_rows`` what the block gives, without the factors of the rows.
    """
    kept = sides.block(part.padded)
    found = None
    if d_weight is not None:
        found = part.of(d_weight)
        if found.dtype != torch.float32:
            found = torch.empty_like(found, dtype=torch.float32)
    for some, place, x in sides.chunks():
        block = kept[: len(x.scaled)]
        sides.score(x, part, kept=block, shift=None if shift is None else shift[some])
        if d_rows is not None:
            sides.add_to_rows(d_rows[some], block, part, part.first > 0)
        if found is not None and weighted is not None:
            sides.add_to_classes(found, block, weighted[place], some.start > 0)
    return found


def _factors(
    L: torch.Tensor, target: torch.Tensor, row_weights: torch.Tensor, scale: float, running: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(n,) row_weight scale sigmoid(L - target) exp(shift - L), which a gradient made of exp(s -
    shift) lacks; and the shift, (n,) powers of two, None where it is 0.
    """
    shift = L.masked_fill(L.isneginf(), 0) if running else torch.zeros_like(L)
    exponent = (shift - torch.logaddexp(L, target)).clamp_max(SAFE * LN2.value)  # L may be -inf
    return row_weights * scale * exponent.exp(), shift * LOG2E.value if running else None
