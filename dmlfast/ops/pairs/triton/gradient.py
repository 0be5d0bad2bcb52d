"""The gradient of rows that a program can hold a band of, and of the bias."""

import torch
import triton
import triton.language as tl

from dmlfast.ops.pairs.term import PairTerm
from dmlfast.ops.pairs.triton import blocks
from dmlfast.ops.pairs.triton.sides import Pairs, unit_of
from dmlfast.ops.pairs.triton.statistics import NO_MEAN, NO_STATS, Mean, Stats, pairs_in, store_mean
from dmlfast.ops.pairs.triton.weights import (
    add_near,
    careful_weights,
    factor_of,
    free_weights,
    middle_of,
    pair_weights,
)
from dmlfast.ops.triton import configs
from dmlfast.ops.triton.side import Side, arguments
from dmlfast.ops.triton.tile import (
    TINY,
    bands,
    first_chunk,
    free_count,
    free_tile,
    load_rows,
    masked_count,
    masked_tile,
    poison_of,
    products,
    rounded_weights,
    scores,
    squared_differences,
)


@triton.jit(do_not_specialize=["n", "m"])
def gradient_kernel(
    x, r, n, m, xs, rs, out, factor, mean, scale, offset, DISTANCE: tl.constexpr,
    REDUCE: tl.constexpr, INSIDE: tl.constexpr, APART: tl.constexpr, POSITIVES: tl.constexpr,
    DP: tl.constexpr, BD: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    WEIGHTS: tl.constexpr, W_OPERAND: tl.constexpr, W_PRECISION: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BS: tl.constexpr, NEAR: tl.constexpr,
):  # fmt: skip
    """The gradient (n, d) of the rows of x, a band of rows a program, over all columns.

    factor: what weights are multiplied by in the end. mean: the `Mean` that the gradient is of, if
    any; its loss is left there.
    """
    x, r = Side(n, *x), Side(m, *r)
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    k = tl.arange(0, DP)
    x_chunk = first_chunk(x, i, DP, BD, OPERAND, BM)
    xn = tl.load(x.norm + i)
    middle, wide = middle_of(xs, rs, REDUCE)
    acc = tl.zeros((BM, DP), tl.float32)
    weight = tl.zeros((BM,), tl.float32)
    nearest = tl.full((BM,), 1.0, tl.float32)
    tiles = bands(x, r, i, 0, r.padded // BN, wide, INSIDE, BM, BN)
    first_near, end_near = tiles.end, tiles.first  # the tiles in which pairs may be near
    row_factor = factor_of(xs, i, middle, REDUCE)
    for tile in range(free_count(tiles, INSIDE)):
        j = free_tile(tiles, tile) * BN + tl.arange(0, BN)
        rows = load_rows(r, j, k, DP, OPERAND)
        s = tl.dot(x_chunk, tl.trans(rows), input_precision=PRECISION)
        score, excess = scores(s, xn, tl.load(r.norm + j), DISTANCE)
        if DISTANCE:
            nearest = tl.minimum(nearest, tl.min(excess, 1))
            # 0 of close pairs, and of those at no distance, which weigh nothing here
            inverse = tl.where(excess > TINY, tl.rsqrt(score), 0.0)
            score = score * inverse
        w = free_weights(score, x, r, i, j, row_factor, rs, middle, scale, offset, REDUCE)
        if DISTANCE:
            w *= inverse
        w = rounded_weights(w, WEIGHTS)
        weight += tl.sum(w.to(tl.float32), 1)
        acc = tl.dot(w.to(W_OPERAND), rows.to(W_OPERAND), acc, input_precision=W_PRECISION)
    for piece in range(masked_count(tiles) * (BN // BS)):
        tile = masked_tile(tiles, piece // (BN // BS))
        j = tile * BN + piece % (BN // BS) * BS
        j += tl.arange(0, BS)
        rows = load_rows(r, j, k, DP, OPERAND)
        s = tl.dot(x_chunk, tl.trans(rows), input_precision=PRECISION)
        score, excess = scores(s, xn, tl.load(r.norm + j), DISTANCE)
        w, near = careful_weights(
            score, excess, xn, x, r, i, j, xs, rs, scale, offset, DISTANCE, REDUCE, INSIDE,
            APART, POSITIVES, NEAR,
        )  # fmt: skip
        if DISTANCE:
            first_near = tl.where(near > 0, tl.minimum(first_near, tile), first_near)
            end_near = tl.where(near > 0, tl.maximum(end_near, tile + 1), end_near)
        w = rounded_weights(w, WEIGHTS)
        weight += tl.sum(w.to(tl.float32), 1)
        acc = tl.dot(w.to(W_OPERAND), rows.to(W_OPERAND), acc, input_precision=W_PRECISION)
    if DISTANCE:
        if tl.min(nearest, 0) <= 0.0:
            for piece in range(free_count(tiles, INSIDE) * (BN // BS)):
                tile = free_tile(tiles, piece // (BN // BS))
                j = tile * BN + piece % (BN // BS) * BS
                j += tl.arange(0, BS)
                rows = load_rows(r, j, k, DP, OPERAND)
                s = tl.dot(x_chunk, tl.trans(rows), input_precision=PRECISION)
                score, excess = scores(s, xn, tl.load(r.norm + j), DISTANCE)
                if tl.min(excess) <= 0.0:
                    w, near = careful_weights(
                        score, excess, xn, x, r, i, j, xs, rs, scale, offset, DISTANCE, REDUCE,
                        INSIDE, APART, POSITIVES, NEAR,
                    )  # fmt: skip
                    first_near = tl.where(near > 0, tl.minimum(first_near, tile), first_near)
                    end_near = tl.where(near > 0, tl.maximum(end_near, tile + 1), end_near)
                    w = rounded_weights(tl.where(excess > 0.0, 0.0, w), WEIGHTS)
                    weight += tl.sum(w.to(tl.float32), 1)
                    acc = tl.dot(
                        w.to(W_OPERAND), rows.to(W_OPERAND), acc, input_precision=W_PRECISION
                    )

    if mean.loss is not None:
        factor = factor / pairs_in(mean)
        if tl.program_id(0) == 0:
            store_mean(mean, x, r)
    poison = poison_of(x, r)
    known = (i < x.n)[:, None] & (k < x.d)[None, :]
    at = tl.load(x.order + i).to(tl.int64)[:, None] * x.d + k[None, :]
    if DISTANCE:
        acc = weight[:, None] * load_rows(x, i, k, DP, tl.float32) - acc
    tl.store(out + at, factor * acc + poison, mask=known)
    if DISTANCE:
        if first_near < end_near:
            tl.debug_barrier()
            for tile in range(first_near, end_near):
                add_near(
                    out, 0, DP, factor, x, r, tl.program_id(0) * BM, tile * BN, xs, rs, scale,
                    offset, REDUCE, INSIDE, APART, POSITIVES, NEAR, BM, BN,
                )  # fmt: skip


def gradient_of(
    pairs: Pairs,
    x: Side,
    r: Side,
    xs: Stats,
    rs: Stats,
    term: PairTerm,
    factor: float,
    mean: Mean = NO_MEAN,
) -> torch.Tensor:
    """The gradient (n, d), float32, of the rows of ``x``, one of the sides of ``pairs``."""
    # a band of float32 rows leaves no registers for hinges and floors
    many = term.is_hinge or xs.floor is not None or rs.floor is not None
    if pairs.products.by_blocks or (many and pairs.dtype == torch.float32):
        return blocks.gradient_of(pairs, x, r, xs, rs, term, factor, mean)
    out = x.norm.new_empty(x.n, x.d)
    tile = pairs.tiles.gradient
    unit = unit_of(term)
    gradient_kernel[(x.padded // tile.BM,)](
        *arguments(x, r),
        xs,
        rs,
        out,
        factor,
        mean,
        term.scale * unit,
        term.offset * unit,
        **pairs.asks(term),
        POSITIVES=mean is not NO_MEAN,
        NEAR=configs.near_of(pairs.dtype),
        **pairs.products._asdict(),
        **tile.blocks,
        **configs.launch(tile),
    )
    return out


@triton.jit(do_not_specialize=["n", "m"])
def bias_kernel(
    x, r, n, m, xs, rs, out, scale, offset, DISTANCE: tl.constexpr, REDUCE: tl.constexpr,
    INSIDE: tl.constexpr, APART: tl.constexpr, DP: tl.constexpr, BD: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The gradient (n,) of the bias of x, from the statistics of r; xs: none."""
    x, r = Side(n, *x), Side(m, *r)
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    x_chunk = first_chunk(x, i, DP, BD, OPERAND, BM)
    xn = tl.load(x.norm + i)
    total = tl.zeros((BM,), tl.float32)
    for tile in range(tl.cdiv(r.n, BN)):
        j = tile * BN + tl.arange(0, BN)
        s = products(x_chunk, x, r, i, j, DP, BD, OPERAND, PRECISION, BM, BN)
        score, excess = scores(s, xn, tl.load(r.norm + j), DISTANCE)
        if DISTANCE:
            close = (excess <= 0.0) & (i < x.n)[:, None] & (j < r.n)[None, :]
            if tl.max(close.to(tl.int32)) > 0:
                score = tl.where(close, squared_differences(x, r, i, j, BM, BN), score)
            score = tl.sqrt(tl.maximum(score, 0.0))
        w = pair_weights(score, x, r, i, j, xs, rs, scale, offset, REDUCE, INSIDE, APART, False)
        total += tl.sum(w, 1)
    poison = poison_of(x, r)
    tl.store(out + tl.load(x.order + i), total + poison, mask=i < x.n)


def bias_gradient_of(pairs: Pairs, xs: Stats, term: PairTerm) -> torch.Tensor:
    """The gradient (m,), float32, of the bias of the columns."""
    out = pairs.r.norm.new_empty(pairs.r.n)
    tile = pairs.reduce_tile
    unit = unit_of(term)
    bias_kernel[(pairs.r.padded // tile.BM,)](
        *arguments(pairs.r, pairs.x),
        NO_STATS,
        xs,
        out,
        term.scale * unit,
        term.offset * unit,
        **pairs.asks(term),
        **pairs.products.scores,
        BM=tile.BM,
        BN=tile.BS,
        **configs.launch(tile),
    )
    return out
