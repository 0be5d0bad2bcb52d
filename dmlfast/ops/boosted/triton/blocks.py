"""The pairs of a block of rows and a block of columns: losses, weights, and their products.

A program takes a tile of pairs from learner to learner and carries along what the next one is
boosted by. It leaves the derivative of each learner's loss by the products of packed rows, and a
second kernel multiplies these with the packed rows of either side.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from dmlfast.ops.boosted.settings import Settings
from dmlfast.ops.boosted.triton.rows import FIELDS, Packed
from dmlfast.ops.boosted.triton.terms import (
    Constants,
    base_loss,
    boost,
    carried,
    slope_of,
    start_of,
)
from dmlfast.ops.boosted.triton.tiles import Tiles, launch
from dmlfast.ops.triton import configs
from dmlfast.ops.triton.tile import rounded_weights


class Pairs(NamedTuple):
    """classes: (padded,) int32. same: () int64, pairs of one class, those of the diagonal included.

    n: rows without the padding.
    """

    n: int
    packed: Packed
    classes: torch.Tensor
    same: torch.Tensor
    settings: Settings
    products: configs.Products
    tiles: Tiles


class Block(NamedTuple):
    """Rows and columns, whole tiles, from positions on; off the diagonal it stands for its mirror
    image too.
    """

    first_i: int
    first_j: int
    height: int
    width: int

    @property
    def sides(self) -> int:
        return 1 if self.first_i == self.first_j else 2


@triton.jit
def _share(same, there, pairs, n):
    """What pairs weigh before boosting, one over how many are of one class or of two, less than 0
    of the latter: one register holds both.
    """
    positives = tl.load(pairs)
    negatives = n.to(tl.int64) * n - positives
    positive = 1.0 / tl.maximum(positives, 1).to(tl.float32)
    negative = 1.0 / tl.maximum(negatives, 1).to(tl.float32)
    return tl.where(there, tl.where(same, positive, -negative), 0.0)


@triton.jit(do_not_specialize=["n", "learners", "across", "sides", "slots"])
def weights_kernel(
    packed, row_pitch, rest, padded, classes, pairs, table, parts, n, learners, first_i, first_j,
    across, sides, weights, pitch, area, sums, slots, c, BASE: tl.constexpr, BOOSTING: tl.constexpr,
    FACTORS: tl.constexpr, WEIGHTS: tl.constexpr, CHUNK: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Losses and weights of a tile of pairs, learner by learner.

    sums: (M, slots) float64, the losses are added to the slot of the program. weights: (M, area)
    of the given pitch to a row, missing where no gradient is wanted. FACTORS: of products, see
    rows.py, where they are not 1.
    """
    program = tl.program_id(0)
    own_i = program // across * BM + tl.arange(0, BM)
    own_j = program % across * BN + tl.arange(0, BN)
    i, j = first_i + own_i, first_j + own_j
    there = (i < n)[:, None] & (j < n)[None, :] & (i[:, None] != j[None, :])
    same = tl.load(classes + i)[:, None] == tl.load(classes + j)[None, :]
    share = _share(same, there, pairs, n)
    x_rows = packed + i.to(tl.int64)[:, None] * row_pitch
    r_rows = packed + j.to(tl.int64)[:, None] * row_pitch
    carry = tl.full((BM, BN), start_of(BASE, BOOSTING), tl.float32)
    for m in range(learners):
        s = tl.zeros((BM, BN), tl.float32)
        chunk, end = tl.load(table + m * FIELDS + 2), tl.load(table + m * FIELDS + 3)
        for step in range(chunk, end):
            k = (step * CHUNK + tl.arange(0, CHUNK))[None, :]
            x, r = tl.load(x_rows + k).to(OPERAND), tl.load(r_rows + k).to(OPERAND)
            s = tl.dot(x, tl.trans(r), s, input_precision=PRECISION)
        factors = rest + tl.cast(m, tl.int64) * padded
        if FACTORS:
            s *= tl.load(factors + i)[:, None]
            s *= tl.load(factors + j)[None, :]
        # loaded anew, so that nothing else of a pair waits in registers for the next learner
        part = share * tl.load(parts + m)
        same = part > 0.0
        slope = slope_of(same, c)
        z = slope * (s - c.beta2)
        loss, by_score = base_loss(s, z, same, slope, c, BASE)
        weight = tl.abs(part)
        if BOOSTING != "none":
            weight *= boost(carry, same, c, m, BASE, BOOSTING)
            carry = carried(carry, s, z, m, BASE, BOOSTING)
        loss *= weight
        if weights is not None:
            w = weight * by_score
            if FACTORS:
                w *= tl.load(factors + i)[:, None]
                w *= tl.load(factors + j)[None, :]
            into = weights + tl.cast(m, tl.int64) * area + own_i * pitch
            tl.store(into[:, None] + own_j[None, :], rounded_weights(w, WEIGHTS))
        # of rows first, which takes fewer registers
        total = tl.sum(tl.sum(loss, 1, keep_dims=True)).to(tl.float64) * sides
        slot = sums + m * slots + program
        tl.store(slot, tl.load(slot) + total)


@triton.jit
def _locate(table, tile, learners, CHUNK: tl.constexpr, BK: tl.constexpr):
    """The learner whose components a tile has, its first chunk and end, and which of its tiles it
    is.
    """
    learner, chunk, end, inside = 0, 0, 0, 0
    before = 0
    for m in range(learners):
        first, last = tl.load(table + m * FIELDS + 2), tl.load(table + m * FIELDS + 3)
        after = before + tl.cdiv((last - first) * CHUNK, BK)
        if (tile >= before) & (tile < after):
            learner, chunk, end, inside = m, first, last, tile - before
        before = after
    return learner, chunk, end, inside


@triton.jit
def _multiply(
    acc, weights, step_i, step_j, first, packed, row_pitch, own, k, known, count,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Adds the product of ``count`` weights of each own row, and packed rows from ``first`` on."""
    for start in range(0, count, BC):
        j = start + tl.arange(0, BC)
        w = tl.load(weights + own[:, None] * step_i + j[None, :] * step_j)
        at = (first + j).to(tl.int64)[:, None] * row_pitch + k[None, :]
        x = tl.load(packed + at, mask=known[None, :], other=0.0)
        acc = tl.dot(w.to(OPERAND), x.to(OPERAND), acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=["learners", "tiles", "down"])
def product_kernel(
    gradient, packed, row_pitch, table, learners, tiles, weights, pitch, area, first_i, first_j,
    height, width, down, CHUNK: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Adds to a tile of ``gradient``, that of the packed rows, what the weights of a block give.

    The first ``down`` bands are of its rows; others are of its columns, whose weights are turned.
    """
    program = tl.program_id(0)
    band = program // tiles
    m, chunk, end, inside = _locate(table, program % tiles, learners, CHUNK, BK)
    k = chunk * CHUNK + inside * BK + tl.arange(0, BK)
    known = k < end * CHUNK
    weights += tl.cast(m, tl.int64) * area
    acc = tl.zeros((BM, BK), tl.float32)
    if band < down:
        own = band * BM + tl.arange(0, BM)
        rows = first_i + own
        acc = _multiply(
            acc, weights, pitch, 1, first_j, packed, row_pitch, own, k, known, width, OPERAND,
            PRECISION, BC,
        )  # fmt: skip
    else:
        own = (band - down) * BM + tl.arange(0, BM)
        rows = first_j + own
        acc = _multiply(
            acc, weights, 1, pitch, first_i, packed, row_pitch, own, k, known, height, OPERAND,
            PRECISION, BC,
        )  # fmt: skip
    at = gradient + rows.to(tl.int64)[:, None] * row_pitch + k[None, :]
    acc += tl.load(at, mask=known[None, :], other=0.0)
    tl.store(at, acc, mask=known[None, :])


def weigh(pairs: Pairs, block: Block, sums: torch.Tensor, weights: torch.Tensor | None) -> None:
    """Adds the losses of a block to ``sums`` (M, slots), float64, a slot for each of its tiles, and
    fills ``weights`` (M, rows, columns) of at least the size of the block.
    """
    packed, tile, how, given = pairs.packed, pairs.tiles.weights, pairs.products, pairs.settings
    if given.boosting == "derivative":  # it takes more registers than the others
        tile = tile._replace(warps=8)
    down, across = block.height // tile.BM, block.width // tile.BN
    pitch, area = (0, 0) if weights is None else (weights.stride(1), weights.stride(0))
    constants = Constants(given.beta1, given.beta2, given.negative_cost, given.margin)
    weights_kernel[(down * across,)](
        packed.rows, packed.rows.stride(0), packed.rest, packed.rest.shape[1], pairs.classes,
        pairs.same, packed.table, packed.parts, pairs.n, packed.learners, block.first_i,
        block.first_j, across, block.sides, weights, pitch, area, sums, sums.shape[1],
        constants, BASE=given.base, BOOSTING=given.boosting,
        FACTORS=packed.rows.dtype != torch.float32, WEIGHTS=how.WEIGHTS,
        CHUNK=packed.chunk, OPERAND=how.OPERAND, PRECISION=how.PRECISION, BM=tile.BM, BN=tile.BN,
        **launch(tile),
    )  # fmt: skip


def add_products(
    pairs: Pairs, block: Block, weights: torch.Tensor, gradient: torch.Tensor, widths: list[int]
) -> None:
    """Adds to ``gradient``, that of the packed rows, what the weights of a block give both sides.

    widths: of the packed rows of each learner.
    """
    packed, tile, how = pairs.packed, pairs.tiles.product, pairs.products
    tiles = sum(-(-width // tile.BK) for width in widths)
    down = block.height // tile.BM
    bands = down if block.sides == 1 else down + block.width // tile.BM
    product_kernel[(bands * tiles,)](
        gradient, packed.rows, packed.rows.stride(0), packed.table, packed.learners, tiles, weights,
        weights.stride(1), weights.stride(0), block.first_i, block.first_j, block.height,
        block.width, down, CHUNK=packed.chunk, OPERAND=how.W_OPERAND, PRECISION=how.W_PRECISION,
        BM=tile.BM, BK=tile.BK, BC=tile.BC, **launch(tile),
    )  # fmt: skip
