"""The reduction over the selected columns of each row.

Every kernel here and in gradient.py visits the tiles of a band of rows in two ways. Tiles in which
every pair is selected take a short body of large tiles; the others, few where rows are ordered by
label, take a careful one. Neither counts close pairs: a band that has met one is looked through
again for them.
"""

import torch
import triton
import triton.language as tl

from dmlfast.ops.pairs.term import PairTerm
from dmlfast.ops.pairs.triton.sides import Pairs, unit_of
from dmlfast.ops.pairs.triton.statistics import Partial
from dmlfast.ops.triton import configs
from dmlfast.ops.triton.side import TILE, Side, arguments
from dmlfast.ops.triton.tile import (
    NOTHING,
    SAFE_SPAN,
    bands,
    first_chunk,
    free_count,
    free_tile,
    hinge_of,
    masked_count,
    masked_tile,
    products,
    scores,
    selected,
    squared_differences,
    term,
    term_bounds,
)

BLOCKS = 32  # blocks of rows in a reduction, at most: partial statistics are (BLOCKS, N)


@triton.jit
def _add(top, total, t, taken, AXIS: tl.constexpr, REDUCE: tl.constexpr):
    """Statistics exp2(top) total, or total, with the terms of a tile added along an axis; of hinges
    top is the number, of maxima it is all.
    """
    if REDUCE == "logsumexp":
        t = tl.where(taken, t, NOTHING)
        high = tl.maximum(top, tl.max(t, AXIS))
        part = tl.exp2(t - tl.expand_dims(high, AXIS))
        total = total * tl.exp2(top - high) + tl.sum(tl.where(taken, part, 0.0), AXIS)
        top = high
    elif REDUCE == "max":
        top = tl.maximum(top, tl.max(tl.where(taken, t, -float("inf")), AXIS))
    elif REDUCE == "sum":
        total += tl.sum(tl.where(taken, t, 0.0), AXIS)
    else:
        t = tl.where(taken, hinge_of(t, REDUCE), 0.0)
        top += tl.sum((t > 0.0).to(tl.float32), AXIS)
        total += tl.sum(t, AXIS)
    return top, total


@triton.jit
def _reduce_tile(
    x_chunk, xn, x, r, i, j, floor, top, total, nearest, column_top, column_total, scale, offset,
    DISTANCE: tl.constexpr, REDUCE: tl.constexpr, INSIDE: tl.constexpr, APART: tl.constexpr,
    HALF: tl.constexpr, COLUMNS: tl.constexpr, AGAIN: tl.constexpr, DP: tl.constexpr,
    BD: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """Adds the selected pairs of a tile: those that are not close, or AGAIN those that are.

    floor: (padded,) what terms must be above to count for a row, or None.
    """
    s = products(x_chunk, x, r, i, j, DP, BD, OPERAND, PRECISION, BM, BN)
    score, excess = scores(s, xn, tl.load(r.norm + j), DISTANCE)
    mask = selected(x, r, i, j, INSIDE, APART, HALF)
    if AGAIN:
        taken = mask & (excess <= 0.0)
        some = tl.max(taken.to(tl.int32)) > 0
    else:
        taken = mask & (excess > 0.0)
        nearest = tl.minimum(nearest, tl.min(tl.where(mask, excess, 1.0), 1))
        some = True
    if some:
        if AGAIN:
            score = squared_differences(x, r, i, j, BM, BN)
        if DISTANCE:
            score = tl.sqrt(tl.maximum(score, 0.0))
        t = term(score, x, r, i, j, scale, offset)
        of_rows = taken
        if floor is not None:
            of_rows &= t > tl.load(floor + i)[:, None]
        top, total = _add(top, total, t, of_rows, 1, REDUCE)
        if COLUMNS:
            of_columns = taken
            if floor is not None:
                of_columns &= t > tl.load(floor + j)[None, :]
            before_top = tl.load(column_top + j)
            before = tl.load(column_total + j)
            new_top, new = _add(before_top, before, t, of_columns, 0, REDUCE)
            tl.store(column_top + j, new_top)
            tl.store(column_total + j, new)
    return top, total, nearest


@triton.jit
def _start(x, r, scale, offset, DISTANCE: tl.constexpr, REDUCE: tl.constexpr):
    """The exponent that statistics start with, and whether it has to follow the terms."""
    start, running = 0.0, False
    if REDUCE == "logsumexp":
        lowest, highest = term_bounds(x, r, scale, offset, DISTANCE)
        running = (highest - lowest <= SAFE_SPAN) == 0
        start = tl.where(running, NOTHING, highest)
    elif REDUCE == "max":
        start = -float("inf")
    return start, running


@triton.jit(do_not_specialize=["n", "m"])
def reduce_kernel(
    x, r, n, m, floor, row_top, row_total, column_top, column_total, row_block, column_block, scale,
    offset, DISTANCE: tl.constexpr, REDUCE: tl.constexpr, INSIDE: tl.constexpr,
    APART: tl.constexpr, HALF: tl.constexpr, COLUMNS: tl.constexpr, DP: tl.constexpr,
    BD: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Partial statistics of a block of rows over a block of columns, exp2(top) total.

    Program (a, b) leaves those of the rows in slot b and, with COLUMNS, those of the columns in
    slot a. HALF: both sides are the same rows, and only a <= b is computed. floor: (padded,) of the
    rows, or None; no tile is free then.
    """
    x, r = Side(n, *x), Side(m, *r)
    a, b = tl.program_id(0), tl.program_id(1)
    if HALF:
        if b < a:
            return
    start, running = _start(x, r, scale, offset, DISTANCE, REDUCE)
    nothing = 0.0
    if floor is not None:
        running = True
    if REDUCE == "max":
        nothing = -float("inf")
    row_top += b.to(tl.int64) * x.padded
    row_total += b.to(tl.int64) * x.padded
    column_top += a.to(tl.int64) * r.padded
    column_total += a.to(tl.int64) * r.padded
    end_i = tl.minimum((a + 1) * row_block, x.padded)
    first_j, end_j = b * column_block, tl.minimum((b + 1) * column_block, r.padded)
    if COLUMNS:
        for j0 in range(first_j, end_j, BN):
            j = j0 + tl.arange(0, BN)
            tl.store(column_top + j, tl.zeros((BN,), tl.float32) + start)
            tl.store(column_total + j, tl.zeros((BN,), tl.float32))
        tl.debug_barrier()
    for i0 in range(a * row_block, end_i, BM):
        i = i0 + tl.arange(0, BM)
        x_chunk = first_chunk(x, i, DP, BD, OPERAND, BM)
        xn = tl.load(x.norm + i)
        top = tl.zeros((BM,), tl.float32) + start
        total = tl.zeros((BM,), tl.float32)
        nearest = tl.full((BM,), 1.0, tl.float32)
        first = first_j // BN
        if HALF:
            first = tl.maximum(first, i0 // BN)
        tiles = bands(x, r, i, first, end_j // BN, running, INSIDE, BM, BN)
        for k in range(free_count(tiles, INSIDE)):
            j = free_tile(tiles, k) * BN + tl.arange(0, BN)
            s = products(x_chunk, x, r, i, j, DP, BD, OPERAND, PRECISION, BM, BN)
            score, excess = scores(s, xn, tl.load(r.norm + j), DISTANCE)
            if DISTANCE:
                score = tl.sqrt(tl.maximum(score, 0.0))
                nearest = tl.minimum(nearest, tl.min(excess, 1))
            t = term(score, x, r, i, j, scale, offset)
            if REDUCE == "logsumexp":
                t = tl.exp2(t - start)
            elif REDUCE != "sum" and REDUCE != "max":
                t = hinge_of(t, REDUCE)
            if DISTANCE:
                t = tl.where(excess > 0.0, t, nothing)
            if REDUCE == "max":
                top = tl.maximum(top, tl.max(t, 1))
                if COLUMNS:
                    tl.store(column_top + j, tl.maximum(tl.load(column_top + j), tl.max(t, 0)))
            elif REDUCE != "logsumexp" and REDUCE != "sum":
                above = (t > 0.0).to(tl.float32)
                top += tl.sum(above, 1)
                if COLUMNS:
                    tl.store(column_top + j, tl.load(column_top + j) + tl.sum(above, 0))
            if REDUCE != "max":
                total += tl.sum(t, 1)
                if COLUMNS:
                    tl.store(column_total + j, tl.load(column_total + j) + tl.sum(t, 0))
        for k in range(masked_count(tiles) * (BN // BS)):
            j = masked_tile(tiles, k // (BN // BS)) * BN + k % (BN // BS) * BS
            top, total, nearest = _reduce_tile(
                x_chunk, xn, x, r, i, j + tl.arange(0, BS), floor, top, total, nearest, column_top,
                column_total, scale, offset, DISTANCE, REDUCE, INSIDE, APART, HALF, COLUMNS,
                False, DP, BD, OPERAND, PRECISION, BM, BS,
            )  # fmt: skip
        if DISTANCE:
            if tl.min(nearest, 0) <= 0.0:
                tl.debug_barrier()  # the columns of the tiles above are looked at once more
                for k in range((tiles.end - tiles.first) * (BN // BS)):
                    j = tiles.first * BN + k * BS + tl.arange(0, BS)
                    top, total, nearest = _reduce_tile(
                        x_chunk, xn, x, r, i, j, floor, top, total, nearest, column_top,
                        column_total, scale, offset, DISTANCE, REDUCE, INSIDE, APART, HALF, COLUMNS,
                        True, DP, BD, OPERAND, PRECISION, BM, BS,
                    )  # fmt: skip
        if COLUMNS:
            tl.debug_barrier()
        if HALF:
            if a == b:  # the slot has what these rows got as columns
                before = tl.load(row_total + i)
                if REDUCE == "logsumexp":
                    old = tl.load(row_top + i)
                    high = tl.maximum(top, old)
                    total = total * tl.exp2(top - high) + before * tl.exp2(old - high)
                    top = high
                elif REDUCE == "max":
                    top = tl.maximum(top, tl.load(row_top + i))
                else:
                    total += before
                    if REDUCE != "sum":
                        top += tl.load(row_top + i)
        tl.store(row_top + i, top)
        tl.store(row_total + i, total)
        if HALF:
            tl.debug_barrier()  # they may be columns of the next band


def block_of(padded: int) -> int:
    """Rows of a block: whole tiles, and at most `BLOCKS` blocks."""
    return -(-padded // (BLOCKS * TILE)) * TILE


def reduce_pairs(
    pairs: Pairs, term: PairTerm, with_columns: bool, floor: torch.Tensor | None = None
) -> tuple[Partial, Partial]:
    """Partial statistics of the rows and, if asked for, of the columns. With a floor (padded,) of
    the rows' terms only those of the rows, and of the columns where they are these rows.
    """
    x, r, how = pairs.x, pairs.r, pairs.products
    row_block, column_block = block_of(x.padded), block_of(r.padded)
    a, b = -(-x.padded // row_block), -(-r.padded // column_block)
    tile = pairs.reduce_tile
    if floor is not None:  # no tile is free, and two masks of the others take registers
        tile = tile._replace(BN=tile.BS // 2, BS=tile.BS // 2)
    elif term.is_hinge:  # whose counts take registers too
        tile = tile._replace(BN=max(tile.BS, tile.BN // 2))
    rows = Partial(*x.norm.new_empty(2, b, x.padded))
    columns = rows
    if with_columns and not pairs.half:
        columns = Partial(*x.norm.new_empty(2, a, r.padded))
    unit = unit_of(term)
    reduce_kernel[(a, b)](
        *arguments(x, r),
        floor,
        *rows,
        *columns,
        row_block,
        column_block,
        term.scale * unit,
        term.offset * unit,
        **pairs.asks(term),
        HALF=pairs.half,
        COLUMNS=with_columns or pairs.half,
        **how.scores,
        **tile.blocks,
        **configs.launch(tile),
    )
    return rows, columns
