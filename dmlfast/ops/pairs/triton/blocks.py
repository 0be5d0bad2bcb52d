"""The gradient of wide rows: weights of a block of pairs in scratch memory, then their products.

A program cannot hold the gradient of a band of rows as wide as these. So the pairs are taken block
by block: one kernel writes the weights of a block, which stay in the second-level cache, and
another multiplies them with the rows of either side. Blocks follow each other in a fixed order.
"""

import torch
import triton
import triton.language as tl

from dmlfast.ops.gpu import multiprocessors
from dmlfast.ops.pairs.term import PairTerm
from dmlfast.ops.pairs.triton.sides import Pairs, unit_of
from dmlfast.ops.pairs.triton.statistics import NO_MEAN, Mean, Stats, pairs_in, store_mean
from dmlfast.ops.pairs.triton.weights import (
    add_near,
    careful_weights,
    factor_of,
    free_weights,
    middle_of,
)
from dmlfast.ops.triton import configs
from dmlfast.ops.triton.side import Side, arguments
from dmlfast.ops.triton.tile import (
    bands,
    first_chunk,
    free_count,
    poison_of,
    products,
    rounded_weights,
    scores,
)

MULTIPROCESSORS = 2  # where kernels are interpreted, so that some programs take two tiles


@triton.jit(do_not_specialize=["n", "m", "count"])
def weights_kernel(
    x, r, n, m, xs, rs, weights, row_sums, column_sums, flags, first_i, first_j, count, height,
    pitch, scale, offset, DISTANCE: tl.constexpr, REDUCE: tl.constexpr, INSIDE: tl.constexpr,
    APART: tl.constexpr, POSITIVES: tl.constexpr, NEAR: tl.constexpr, DP: tl.constexpr,
    BD: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, WEIGHTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Weights of ``count`` tiles of pairs beside each other in a block (height, pitch), and their
    sums.

    row_sums: (pitch / BN, height), of each tile in a row. column_sums: (height / BM, pitch).
    The flag of a tile says that it has near pairs, which weigh nothing.
    """
    x, r = Side(n, *x), Side(m, *r)
    a = tl.program_id(0)
    own = a * BM + tl.arange(0, BM)
    i = first_i + own
    middle, wide = middle_of(xs, rs, REDUCE)
    first_b = tl.program_id(1) * count
    for b in tl.range(first_b, first_b + count, disable_licm=True):
        x_chunk = first_chunk(x, i, DP, BD, OPERAND, BM)
        xn = tl.load(x.norm + i)
        tile = first_j // BN + b
        free = free_count(bands(x, r, i, tile, tile + 1, wide, INSIDE, BM, BN), INSIDE)
        at = weights + own.to(tl.int64)[:, None] * pitch + b * BN
        row_sum = row_sums + b * height + own
        column_sum = column_sums + a * pitch + b * BN
        flag = 0
        careful = free == 0
        if free > 0:
            j = tile * BN + tl.arange(0, BN)
            s = products(x_chunk, x, r, i, j, DP, BD, OPERAND, PRECISION, BM, BN)
            score, excess = scores(s, xn, tl.load(r.norm + j), DISTANCE)
            inverse = 1.0
            if DISTANCE:
                close = tl.min(tl.min(excess, 1), 0) <= 0.0
                careful = close
                # 0 of close pairs, which weigh nothing here
                inverse = tl.where(excess > 0.0, tl.rsqrt(score), 0.0)
                score = score * inverse
            row_factor = factor_of(xs, i, middle, REDUCE)
            w = free_weights(score, x, r, i, j, row_factor, rs, middle, scale, offset, REDUCE)
            if DISTANCE:
                w *= inverse
            w = rounded_weights(w, WEIGHTS)
            tl.store(at + tl.arange(0, BN)[None, :], w)
            tl.store(row_sum, tl.sum(w.to(tl.float32), 1))
            tl.store(column_sum + tl.arange(0, BN), tl.sum(w.to(tl.float32), 0))
        if careful:
            tl.debug_barrier()
            total = tl.zeros((BM,), tl.float32)
            for piece in range(0, BN, BS):
                j = tile * BN + piece + tl.arange(0, BS)
                s = products(x_chunk, x, r, i, j, DP, BD, OPERAND, PRECISION, BM, BS)
                score, excess = scores(s, xn, tl.load(r.norm + j), DISTANCE)
                w, near = careful_weights(
                    score, excess, xn, x, r, i, j, xs, rs, scale, offset, DISTANCE, REDUCE, INSIDE,
                    APART, POSITIVES, NEAR,
                )  # fmt: skip
                if DISTANCE:
                    flag = tl.maximum(flag, near)
                own_j = piece + tl.arange(0, BS)
                w = rounded_weights(w, WEIGHTS)
                tl.store(at + own_j[None, :], w)
                total += tl.sum(w.to(tl.float32), 1)
                tl.store(column_sum + own_j, tl.sum(w.to(tl.float32), 0))
            tl.store(row_sum, total)
        if DISTANCE:
            tl.store(flags + a * (pitch // BN) + b, flag)


@triton.jit(do_not_specialize=["n", "m", "again"])
def product_kernel(
    x, r, n, m, xs, rs, out, weights, sums, flags, first_i, first_j, columns, pitch, sums_pitch,
    again, factor, mean, scale, offset, TURNED: tl.constexpr, DISTANCE: tl.constexpr,
    REDUCE: tl.constexpr, INSIDE: tl.constexpr, APART: tl.constexpr, POSITIVES: tl.constexpr,
    NEAR: tl.constexpr, DP: tl.constexpr, OPERAND: tl.constexpr, W_OPERAND: tl.constexpr,
    W_PRECISION: tl.constexpr, T: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """Adds to ``out`` (n, d) what a block of weights gives for BK components of a band of x.

    weights: pitch to a row, tiles of T x T; TURNED, its columns are the rows of x. sums: a row of
    sums_pitch for each tile of columns. flags: of the tiles with near pairs, None where these are
    added elsewhere. again: something is in ``out`` already.
    """
    x, r = Side(n, *x), Side(m, *r)
    band = tl.program_id(0)
    own = band * BM + tl.arange(0, BM)
    i = first_i + own
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    acc = tl.zeros((BM, BK), tl.float32)
    for c in range(0, columns, BC):
        j = c + tl.arange(0, BC)
        if TURNED:
            w = tl.load(weights + own[:, None] + j.to(tl.int64)[None, :] * pitch)
        else:
            w = tl.load(weights + own.to(tl.int64)[:, None] * pitch + j[None, :])
        at = (first_j + j).to(tl.int64)[:, None] * DP + k[None, :]
        rows = tl.load(r.rows + at, mask=(k < DP)[None, :], other=0.0).to(OPERAND)
        acc = tl.dot(w.to(W_OPERAND), rows.to(W_OPERAND), acc, input_precision=W_PRECISION)
    if mean.loss is not None:
        factor = factor / pairs_in(mean)
        if band + tl.program_id(1) == 0:
            store_mean(mean, x, r)
    known = (i < x.n)[:, None] & (k < x.d)[None, :]
    if DISTANCE:
        weight = tl.zeros((BM,), tl.float32)
        for tile in range(columns // T):
            weight += tl.load(sums + tile * sums_pitch + own)
        at = i.to(tl.int64)[:, None] * DP + k[None, :]
        rows = tl.load(x.rows + at, mask=(k < DP)[None, :], other=0.0).to(tl.float32)
        acc = weight[:, None] * rows - acc
    at = out + tl.load(x.order + i).to(tl.int64)[:, None] * x.d + k[None, :]
    acc = factor * acc + poison_of(x, r)
    if again > 0:
        acc += tl.load(at, mask=known, other=0.0)
    tl.store(at, acc, mask=known)
    if flags is not None:
        tl.debug_barrier()
        first_k = tl.program_id(1) * BK
        S: tl.constexpr = BM if BM < T else T
        for row in range(band * BM, (band + 1) * BM, S):
            for tile in range(columns // T):
                if TURNED:
                    flag = tl.load(flags + tile * (pitch // T) + row // T)
                else:
                    flag = tl.load(flags + row // T * (pitch // T) + tile)
                if flag > 0:
                    add_near(
                        out, first_k, first_k + BK, factor, x, r, first_i + row,
                        first_j + tile * T, xs, rs, scale, offset, REDUCE, INSIDE, APART,
                        POSITIVES, NEAR, S, T,
                    )  # fmt: skip


def tiles_at_once(down: int, across: int, programs: int) -> int:
    """How many tiles beside each other a program takes, a divisor of ``across``.

    What it does before the first is worth doing once, as long as there are about as many
    ``programs`` as the GPU has multiprocessors.
    """
    most = -(-down * across // programs)
    return max(count for count in range(1, min(most, across) + 1) if across % count == 0)


def gradient_of(
    pairs: Pairs,
    x: Side,
    r: Side,
    xs: Stats,
    rs: Stats,
    term: PairTerm,
    factor: float,
    mean: Mean,
) -> torch.Tensor:
    """The gradient (n, d), float32, of the rows of ``x``, one of the sides of ``pairs``.

    Where both sides have the same rows and statistics, the weights of a block serve both.
    """
    out = x.norm.new_empty(x.n, x.d)
    how = pairs.products
    tile, product = pairs.tiles.weights, pairs.tiles.product
    if term.is_hinge and tile.T > 64:  # they take more registers than exponentials
        tile = tile._replace(T=64, warps=4)
    if x.d % 16:  # stored one by one: addresses take the registers of half a tile
        product = product._replace(BK=product.BK // 2)
    mutual = x.rows is r.rows and xs is rs and x.bias is None and r.bias is None
    rows, columns = min(tile.block, x.padded), min(tile.block, r.padded)
    down, across = rows // tile.T, columns // tile.T
    weights = x.norm.new_empty(rows, columns, dtype=configs.weights_dtype(how))
    row_sums, column_sums = x.norm.new_empty(across, rows), x.norm.new_empty(down, columns)
    flags = x.order.new_empty(down, across) if term.score == "distance" else None
    unit = unit_of(term)
    scaled = term.scale * unit, term.offset * unit
    kind = {
        **pairs.asks(term),
        "POSITIVES": mean is not NO_MEAN,
        "NEAR": configs.near_of(pairs.dtype),
    }
    begun: set[int] = set()

    def multiply(first_i: int, first_j: int, height: int, width: int, turned: bool) -> None:
        """Adds what the block gives for the rows from first_i on."""
        a, b, a_stats, b_stats = (r, x, rs, xs) if turned else (x, r, xs, rs)
        sums = column_sums if turned else row_sums
        product_kernel[(height // product.BM, -(-a.d // product.BK))](
            *arguments(a, b), a_stats, b_stats, out, weights, sums, flags, first_i, first_j, width,
            columns, sums.shape[1], int(first_i in begun), factor, mean, *scaled, TURNED=turned,
            **kind, DP=how.DP, OPERAND=how.OPERAND, W_OPERAND=how.W_OPERAND,
            W_PRECISION=how.W_PRECISION, T=tile.T, **product.blocks, **configs.launch(product),
        )  # fmt: skip
        begun.add(first_i)

    for first_i in range(0, x.padded, rows):
        height = min(rows, x.padded - first_i)
        for first_j in range(first_i if mutual else 0, r.padded, columns):
            width = min(columns, r.padded - first_j)
            down, across = height // tile.T, width // tile.T
            count = tiles_at_once(down, across, multiprocessors(MULTIPROCESSORS))
            weights_kernel[(down, across // count)](
                *arguments(x, r), xs, rs, weights, row_sums, column_sums, flags, first_i, first_j,
                count, rows, columns, *scaled, **kind, **how.scores, WEIGHTS=how.WEIGHTS, BM=tile.T,
                BN=tile.T, BS=tile.BS, **configs.launch(tile),
            )  # fmt: skip
            multiply(first_i, first_j, height, width, turned=False)
            if mutual and first_j > first_i:
                multiply(first_j, first_i, width, height, turned=True)
    return out
