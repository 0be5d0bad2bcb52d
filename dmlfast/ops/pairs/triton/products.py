"""What a block of weights gives for the gradient: its product with rows of the other side."""

import triton
import triton.language as tl

from dmlfast.ops.pairs.triton.statistics import pairs_in, store_mean
from dmlfast.ops.pairs.triton.weights import add_near
from dmlfast.ops.triton.side import Side
from dmlfast.ops.triton.tile import poison_of


@triton.jit
def _add_to_gradient(
    acc, out, x, r, xs, rs, sums, flags, band, k, first_i, first_j, columns, pitch, sums_pitch,
    again, factor, mean, scale, offset, TURNED: tl.constexpr, DISTANCE: tl.constexpr,
    REDUCE: tl.constexpr, INSIDE: tl.constexpr, APART: tl.constexpr, POSITIVES: tl.constexpr,
    NEAR: tl.constexpr, DP: tl.constexpr, T: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Adds to ``out`` (n, d) what the product ``acc`` of weights and rows, (BM, BK), stands for.

    sums: of the weights, a row of sums_pitch for each tile of columns. flags: of the tiles with
    near pairs, None where these are added elsewhere. again: something is in ``out`` already.
    """
    own = band * BM + tl.arange(0, BM)
    i = first_i + own
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


@triton.jit(do_not_specialize=["n", "m", "again"])
def product_kernel(
    x, r, n, m, xs, rs, out, weights, sums, flags, first_i, first_j, columns, pitch, sums_pitch,
    again, factor, mean, scale, offset, TURNED: tl.constexpr, DISTANCE: tl.constexpr,
    REDUCE: tl.constexpr, INSIDE: tl.constexpr, APART: tl.constexpr, POSITIVES: tl.constexpr,
    NEAR: tl.constexpr, DP: tl.constexpr, OPERAND: tl.constexpr, W_OPERAND: tl.constexpr,
    W_PRECISION: tl.constexpr, T: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """Adds to ``out`` what a block of weights gives for BK components of a band of x.

    weights: pitch to a row, tiles of T x T; TURNED, its columns are the rows of x.
    """
    x, r = Side(n, *x), Side(m, *r)
    band = tl.program_id(0)
    own = band * BM + tl.arange(0, BM)
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
    _add_to_gradient(
        acc, out, x, r, xs, rs, sums, flags, band, k, first_i, first_j, columns, pitch, sums_pitch,
        again, factor, mean, scale, offset, TURNED, DISTANCE, REDUCE, INSIDE, APART, POSITIVES,
        NEAR, DP, T, BM, BK,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n", "m", "again"])
def add_kernel(
    x, r, n, m, xs, rs, out, product, sums, flags, first_i, first_j, columns, pitch, sums_pitch,
    again, factor, mean, scale, offset, TURNED: tl.constexpr, DISTANCE: tl.constexpr,
    REDUCE: tl.constexpr, INSIDE: tl.constexpr, APART: tl.constexpr, POSITIVES: tl.constexpr,
    NEAR: tl.constexpr, DP: tl.constexpr, T: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The same from the ``product`` (rows of a block, DP) of its weights and r."""
    band = tl.program_id(0)
    own = band * BM + tl.arange(0, BM)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    acc = tl.load(product + own[:, None] * DP + k[None, :], mask=(k < DP)[None, :], other=0.0)
    _add_to_gradient(
        acc, out, Side(n, *x), Side(m, *r), xs, rs, sums, flags, band, k, first_i, first_j, columns,
        pitch, sums_pitch, again, factor, mean, scale, offset, TURNED, DISTANCE, REDUCE, INSIDE,
        APART, POSITIVES, NEAR, DP, T, BM, BK,
    )  # fmt: skip
