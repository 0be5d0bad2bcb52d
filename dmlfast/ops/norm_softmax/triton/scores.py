"""The exponentials of a block of rows and classes, and their sums."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from dmlfast.ops.norm_softmax.triton.rows import class_power
from dmlfast.ops.triton import configs
from dmlfast.ops.triton.rows import mantissa_of
from dmlfast.ops.triton.side import TILE
from dmlfast.ops.triton.tile import LN2, LOG2E, NOTHING, rounded_to_tf32, rounded_weights


class Rows(NamedTuple):
    """A chunk of n rows, from ``first`` on.

    scaled: (padded, DP), the rows times a power of two. inverse: (n,), 1 / length before that.
    labels: (n,) int64.
    """

    first: int
    scaled: torch.Tensor
    inverse: torch.Tensor
    labels: torch.Tensor


class Classes(NamedTuple):
    """Classes from ``first`` on. weight: (n, d) of any strides. inverse: (n,), 1 / length."""

    first: int
    weight: torch.Tensor
    inverse: torch.Tensor

    @property
    def padded(self) -> int:
        return padded(len(self.weight))

    def parts(self, count: int) -> "Iterator[Classes]":
        """``count`` of them at a time."""
        for first in range(0, len(self.weight), count):
            some = slice(first, first + count)
            yield Classes(self.first + first, self.weight[some], self.inverse[some])

    def of(self, all_classes: torch.Tensor) -> torch.Tensor:
        """The rows of these."""
        return all_classes[self.first : self.first + len(self.weight)]


class Exponentials(NamedTuple):
    """How exponentials are taken: of ``scale`` times the cosine, less a shift. running: each row of
    a tile has a shift of its own, where none is given.
    """

    scale: float
    products: configs.Products
    tile: configs.ScoresTile
    running: bool


def padded(n: int) -> int:
    """n in whole tiles."""
    return -(-n // TILE) * TILE


@triton.jit(do_not_specialize=["n", "m", "first"])
def scores_kernel(
    rows, row_inverse, labels, n, padded, weight, class_stride, component_stride, inverse, m, d,
    first, sums, kept, pitch, shift, scale, RUNNING: tl.constexpr, ROUNDED: tl.constexpr,
    WEIGHTS: tl.constexpr, DP: tl.constexpr, BD: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """exp2(scale cosine - shift) of a tile of rows and classes, 0 for a row's own class.

    sums: (m / BN, padded), logarithms of the sums over a tile's classes. kept: (padded, pitch), the
    exponentials over the lengths of the classes, up to the powers of these. Either may be missing.
    shift: (n,), 0 where missing, or with RUNNING the greatest exponent.
    """
    tiles = padded // BM
    i = tl.program_id(0) % tiles * BM + tl.arange(0, BM)
    tile = tl.program_id(0) // tiles
    j = tile * BN + tl.arange(0, BN)
    own = tl.minimum(j, m - 1)
    s = tl.zeros((BM, BN), tl.float32)
    for start in range(0, DP, BD):
        k = start + tl.arange(0, BD)
        x = tl.load(rows + i[:, None] * DP + k[None, :])
        at = own.to(tl.int64)[:, None] * class_stride + k.to(tl.int64)[None, :] * component_stride
        w = tl.load(weight + at, mask=(k < d)[None, :], other=0.0)
        if ROUNDED:
            w = rounded_to_tf32(w)
        s = tl.dot(x.to(OPERAND), tl.trans(w.to(OPERAND)), s, input_precision=PRECISION)
    by_row = scale * mantissa_of(tl.load(row_inverse + i, mask=i < n, other=0.0))
    by_class = tl.load(inverse + own)
    t = s * by_row[:, None] * by_class[None, :]
    label = (tl.load(labels + i, mask=i < n, other=-1) - first).to(tl.int32)
    there = (j < m)[None, :] & (j[None, :] != label[:, None])
    top = tl.zeros((BM,), tl.float32)
    if shift is not None:
        top = tl.load(shift + i, mask=i < n, other=0.0)
    elif RUNNING:
        top = tl.max(tl.where(there, t, NOTHING), 1)
    e = tl.exp2(tl.where(there, t - top[:, None], NOTHING))
    if sums is not None:
        total = tl.sum(e, 1)
        some = total != 0.0
        log = (top + tl.log2(tl.where(some, total, 1.0))) * LN2
        tl.store(sums + tile * padded + i, tl.where(some, log, -float("inf")))
    if kept is not None:
        e = rounded_weights(e * (by_class / class_power(by_class))[None, :], WEIGHTS)
        tl.store(kept + i.to(tl.int64)[:, None] * pitch + j[None, :], e)


@triton.jit(do_not_specialize=["slots", "n", "fresh"])
def add_up_kernel(sums, slots, padded, found, n, fresh, BS: tl.constexpr, BM: tl.constexpr):
    """The logarithm of the sum of the slots of BM rows, and of what they have ``found`` already
    unless it is ``fresh``.

    sums: (slots, padded), logarithms. found: (n,).
    """
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    before = tl.load(found + i, mask=(i < n) & (i * 0 + fresh < 1), other=-float("inf"))
    tops = tl.full((BS, BM), NOTHING, tl.float32)
    totals = tl.zeros((BS, BM), tl.float32)
    for start in range(0, slots, BS):
        slot = start + tl.arange(0, BS)
        at = sums + slot.to(tl.int64)[:, None] * padded + i[None, :]
        log = tl.load(at, mask=(slot < slots)[:, None], other=-float("inf"))
        higher = tl.maximum(tops, log)
        totals = totals * tl.exp(tops - higher) + tl.exp(log - higher)
        tops = higher
    top = tl.maximum(tl.max(tops, 0), before)
    total = tl.sum(totals * tl.exp(tops - top[None, :]), 0) + tl.exp(before - top)
    some = total != 0.0
    log = tl.where(some, top + tl.log(tl.where(some, total, 1.0)), -float("inf"))
    tl.store(found + i, log, mask=i < n)


def add_up(sums: torch.Tensor, found: torch.Tensor, fresh: bool) -> None:
    """Makes ``found`` (n,) the log-sum-exps of ``sums`` (slots, padded) over the slots, and of what
    it holds already unless it is ``fresh``.
    """
    BM = 16
    add_up_kernel[(-(-len(found) // BM),)](
        sums, *sums.shape, found, len(found), int(fresh), BS=128, BM=BM, **configs.FUSED
    )


def score(
    rows: Rows,
    classes: Classes,
    how: Exponentials,
    *,
    sums: torch.Tensor | None = None,
    kept: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
) -> None:
    """Fills ``sums`` (slots, padded), a slot for every ``BN`` classes of a tile, and ``kept``
    (padded, classes padded), as the kernel has it. ``shift``: (n,), powers of two.
    """
    n, size = len(rows.labels), len(rows.scaled)
    tile, products = how.tile, how.products
    scores_kernel[(size // tile.BM * (classes.padded // tile.BN),)](
        rows.scaled, rows.inverse, rows.labels, n, size, classes.weight, *classes.weight.stride(),
        classes.inverse, *classes.weight.shape, classes.first, sums, kept,
        0 if kept is None else kept.stride(0), shift, how.scale * LOG2E.value, RUNNING=how.running,
        ROUNDED=classes.weight.dtype == torch.float32 and products.PRECISION == "tf32",
        WEIGHTS=products.WEIGHTS, BM=tile.BM, BN=tile.BN, **products.scores,
        **configs.launch(tile),
    )  # fmt: skip
