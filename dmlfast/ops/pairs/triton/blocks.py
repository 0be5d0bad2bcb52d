"""The gradient of wide rows: weights of a block of pairs in scratch memory, then their products.

A program cannot hold the gradient of a band of rows as wide as these. So the pairs are taken block
by block: one kernel writes the weights of a block, which stay in the second-level cache, and
another multiplies them with the rows of either side. Blocks follow each other in a fixed order.
"""

import torch
import triton
import triton.language as tl

from dmlfast.ops.pairs.term import PairTerm
from dmlfast.ops.pairs.triton.sides import Pairs
from dmlfast.ops.pairs.triton.statistics import Mean, Stats, pairs_in, store_mean
from dmlfast.ops.pairs.triton.weights import (
    add_close,
    factor_of,
    free_weights,
    middle_of,
    pair_weights,
)
from dmlfast.ops.triton import configs
from dmlfast.ops.triton.side import Side
from dmlfast.ops.triton.tile import (
    LOG2E,
    bands,
    first_chunk,
    free_count,
    products,
    rounded_weights,
    scores,
    total_of,
)


@triton.jit
def weights_kernel(
    x, r, xs, rs, weights, flags, first_i, first_j, stride, scale, offset,
    DISTANCE: tl.constexpr, LOGSUMEXP: tl.constexpr, INSIDE: tl.constexpr, APART: tl.constexpr,
    POSITIVES: tl.constexpr, DP: tl.constexpr, BD: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, WEIGHTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BS: tl.constexpr,
):  # fmt: skip
    """Weights (BM, BN) of a tile of pairs, and whether it has close ones, which weigh nothing."""
    a, b = tl.program_id(0), tl.program_id(1)
    i = first_i + a * BM + tl.arange(0, BM)
    middle, wide = middle_of(xs, rs, LOGSUMEXP)
    tile = first_j // BN + b
    m0, m1, f1, _ = bands(x, r, i, tile, tile + 1, wide, INSIDE, BM, BN)
    at = weights + (a * BM + tl.arange(0, BM)).to(tl.int64)[:, None] * stride + b * BN
    x_chunk = first_chunk(x, i, DP, BD, OPERAND, BM)
    xn = tl.load(x.norm + i)
    flag = 0
    if free_count(tile, m0, m1, f1, INSIDE) > 0:
        j = tile * BN + tl.arange(0, BN)
        s = products(x_chunk, x, r, i, j, DP, BD, OPERAND, PRECISION, BM, BN)
        score, excess = scores(s, xn, tl.load(r.norm + j), DISTANCE)
        inverse = 1.0
        if DISTANCE:
            flag = (tl.min(tl.min(excess, 1), 0) <= 0.0).to(tl.int32)
            inverse = tl.rsqrt(score)
            score = score * inverse
        row_factor = factor_of(xs, i, middle, LOGSUMEXP)
        w = free_weights(score, x, r, i, j, row_factor, rs, middle, scale, offset, LOGSUMEXP)
        if DISTANCE:
            w = tl.where(excess > 0.0, w * inverse, 0.0)
        tl.store(at + tl.arange(0, BN)[None, :], rounded_weights(w, WEIGHTS))
    else:
        for piece in range(0, BN, BS):
            j = tile * BN + piece + tl.arange(0, BS)
            s = products(x_chunk, x, r, i, j, DP, BD, OPERAND, PRECISION, BM, BS)
            score, excess = scores(s, xn, tl.load(r.norm + j), DISTANCE)
            if DISTANCE:
                score = tl.sqrt(tl.maximum(score, 0.0))
            w = pair_weights(
                score, x, r, i, j, xs, rs, scale, offset, LOGSUMEXP, INSIDE, APART, POSITIVES
            )
            if DISTANCE:
                close = (w != 0.0) & (excess <= 0.0)
                flag = tl.maximum(flag, tl.max(tl.max(close.to(tl.int32), 1), 0))
                w = tl.where(excess > 0.0, w / score, 0.0)
            tl.store(at + (piece + tl.arange(0, BS))[None, :], rounded_weights(w, WEIGHTS))
    tl.store(flags + a * tl.num_programs(1) + b, flag)


@triton.jit
def product_kernel(
    x, r, xs, rs, out, weights, flags, first_i, first_j, columns, row_step, column_step, row_flags,
    column_flags, factor, mean, scale, offset, FIRST: tl.constexpr,
    DISTANCE: tl.constexpr, LOGSUMEXP: tl.constexpr, INSIDE: tl.constexpr, APART: tl.constexpr,
    POSITIVES: tl.constexpr, DP: tl.constexpr, BD: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, W_OPERAND: tl.constexpr, W_PRECISION: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Adds to ``out`` (n, d) what a block of weights gives for BK components of a band of x.

    The weight of (i, j) lies at row_step i + column_step j, the flag of tile (a, b), BM x BM, at
    row_flags a + column_flags b. FIRST: nothing is there yet.
    """
    band = tl.program_id(0)
    own = band * BM + tl.arange(0, BM)
    i = first_i + own
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    acc = tl.zeros((BM, BK), tl.float32)
    weight = tl.zeros((BM,), tl.float32)
    for c in range(0, columns, BC):
        j = c + tl.arange(0, BC)
        w = tl.load(weights + own.to(tl.int64)[:, None] * row_step + j[None, :] * column_step)
        at = (first_j + j).to(tl.int64)[:, None] * DP + k[None, :]
        rows = tl.load(r.rows + at, mask=(k < DP)[None, :], other=0.0).to(OPERAND)
        weight += tl.sum(w.to(tl.float32), 1)
        acc = tl.dot(w.to(W_OPERAND), rows.to(W_OPERAND), acc, input_precision=W_PRECISION)
    if mean is not None:
        factor = factor / pairs_in(mean)
        if FIRST:
            if band + tl.program_id(1) == 0:
                store_mean(mean, x, r)
    known = (i < x.n)[:, None] & (k < x.d)[None, :]
    if DISTANCE:
        at = i.to(tl.int64)[:, None] * DP + k[None, :]
        rows = tl.load(x.rows + at, mask=(k < DP)[None, :], other=0.0).to(tl.float32)
        acc = weight[:, None] * rows - acc
    at = out + tl.load(x.order + i).to(tl.int64)[:, None] * x.d + k[None, :]
    if FIRST:
        acc = factor * acc + total_of(x.poison, x.tiles) + total_of(r.poison, r.tiles)
    else:
        acc = factor * acc + tl.load(at, mask=known, other=0.0)
    tl.store(at, acc, mask=known)
    if DISTANCE:
        tl.debug_barrier()
        xn = tl.load(x.norm + i)
        x_chunk = first_chunk(x, i, DP, BD, OPERAND, BM)
        for tile in range(columns // BM):
            if tl.load(flags + band * row_flags + tile * column_flags) > 0:
                for piece in range(BM // BS):
                    j = first_j + tile * BM + piece * BS + tl.arange(0, BS)
                    add_close(
                        out, tl.program_id(1) * BK, (tl.program_id(1) + 1) * BK, factor, x_chunk,
                        xn, x, r, i, j, xs, rs, scale, offset, LOGSUMEXP, INSIDE, APART, POSITIVES,
                        DP, BD, OPERAND, PRECISION, BM, BS,
                    )  # fmt: skip


def gradient_of(
    pairs: Pairs,
    x: Side,
    r: Side,
    xs: Stats | None,
    rs: Stats | None,
    term: PairTerm,
    factor: float,
    mean: Mean | None,
) -> torch.Tensor:
    """The gradient (n, d), float32, of the rows of ``x``, one of the sides of ``pairs``.

    Where both sides have the same rows and statistics, the weights of a block serve both.
    """
    out = x.norm.new_empty(x.n, x.d)
    how, tile = pairs.products, configs.block_tile(pairs.dtype)
    mutual = x.rows is r.rows and xs is rs and x.bias is None and r.bias is None
    rows, columns = min(tile.block, x.padded), min(tile.block, r.padded)
    scratch = configs.weights_dtype(how)
    weights = x.norm.new_empty(rows, columns, dtype=scratch)
    flags = x.order.new_empty(rows // tile.T, columns // tile.T)
    unit = LOG2E.value if term.reduce == "logsumexp" else 1.0
    scaled = term.scale * unit, term.offset * unit
    kind = {
        "DISTANCE": term.score == "distance",
        "LOGSUMEXP": term.reduce == "logsumexp",
        "INSIDE": term.select == "positive",
        "APART": pairs.apart,
        "POSITIVES": mean is not None,
        **how.scores,
    }
    begun: set[int] = set()

    def multiply(side, first_i, first_j, height, width, steps, flag_steps):
        a, b, a_stats, b_stats = (x, r, xs, rs) if side == 0 else (r, x, rs, xs)
        product_kernel[(height // tile.T, -(-a.d // tile.BK))](
            a, b, a_stats, b_stats, out, weights, flags, first_i, first_j, width, *steps,
            *flag_steps, factor, mean, *scaled, FIRST=first_i not in begun, **kind,
            W_OPERAND=how.W_OPERAND, W_PRECISION=how.W_PRECISION, BM=tile.T, BK=tile.BK,
            BC=tile.BC, BS=tile.BS, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        begun.add(first_i)

    for first_i in range(0, x.padded, rows):
        height = min(rows, x.padded - first_i)
        for first_j in range(first_i if mutual else 0, r.padded, columns):
            width = min(columns, r.padded - first_j)
            weights_kernel[(height // tile.T, width // tile.T)](
                x, r, xs, rs, weights, flags, first_i, first_j, columns, *scaled, **kind,
                WEIGHTS=how.WEIGHTS, BM=tile.T, BN=tile.T, BS=tile.BS, num_warps=tile.warps,
                num_stages=tile.stages,
            )  # fmt: skip
            across = width // tile.T
            multiply(0, first_i, first_j, height, width, (columns, 1), (across, 1))
            if mutual and first_j > first_i:
                multiply(1, first_j, first_i, width, height, (1, columns), (1, across))
    return out
