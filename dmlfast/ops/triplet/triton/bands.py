"""The pairs of a band of anchors with all columns: their distances, which become their weights."""

import triton
import triton.language as tl

from dmlfast.ops.pairs.triton.weights import add_differences
from dmlfast.ops.triton.side import Side
from dmlfast.ops.triton.tile import (
    first_chunk,
    products,
    rounded_weights,
    scores,
    squared_differences,
)


@triton.jit(do_not_specialize=["n", "m"])
def distances_kernel(
    x, r, n, m, distances, weights, first_i, pitch, APART: tl.constexpr, DP: tl.constexpr,
    BD: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Distances of a tile, those of close pairs from differences and with a minus; and zeros."""
    x, r = Side(n, *x), Side(m, *r)
    own = tl.program_id(1) * BM + tl.arange(0, BM)
    i = first_i + own
    first_j = tl.program_id(0) * BN
    j = first_j + tl.arange(0, BN)
    x_chunk = first_chunk(x, i, DP, BD, OPERAND, BM)
    xn = tl.load(x.norm + i)
    s = products(x_chunk, x, r, i, j, DP, BD, OPERAND, PRECISION, BM, BN)
    squared, excess = scores(s, xn, tl.load(r.norm + j), True)
    close = (excess <= 0.0) & (i < x.n)[:, None] & (j < r.n)[None, :]
    if APART:
        close &= i[:, None] != j[None, :]
    start = own.to(tl.int64)[:, None] * pitch
    distance = tl.where(close, -1.0, tl.sqrt(tl.maximum(squared, 0.0)))
    tl.store(distances + start + j[None, :], distance)
    tl.store(weights + start + j[None, :], tl.zeros((BM, BN), tl.float32))
    if tl.max(close.to(tl.int32)) > 0:
        tl.debug_barrier()
        for piece in range(0, BN, BS):
            other = first_j + piece + tl.arange(0, BS)
            at = distances + start + other[None, :]
            found = tl.load(at)
            if tl.min(found) < 0.0:
                direct = tl.sqrt(squared_differences(x, r, i, other, BM, BS))
                tl.store(at, tl.where(found < 0.0, -direct, found))


@triton.jit
def weigh_kernel(
    distances, sums, weights, row_sums, column_sums, flags, height, pitch, WEIGHTS: tl.constexpr,
    T: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Turns ``sums``, d loss / d distance, of a tile T x T into weights over distances.

    Those of close pairs weigh nothing in ``weights`` and take the place of their ``distances``,
    which are 0 elsewhere in tiles that have a flag. row_sums: (pitch / T, height). column_sums:
    (height / T, pitch).
    """
    a, b = tl.program_id(1), tl.program_id(0)  # a GPU takes 65,535 of the former at most
    own = a * T + tl.arange(0, T)
    total = tl.zeros((T,), tl.float32)
    flag = 0
    for piece in range(0, T, BS):
        j = b * T + piece + tl.arange(0, BS)
        at = own.to(tl.int64)[:, None] * pitch + j[None, :]
        distance, w = tl.load(distances + at), tl.load(sums + at)
        counts = (w != 0.0) & (distance != 0.0)
        w = tl.where(counts, w / tl.abs(distance), 0.0)
        close = counts & (distance < 0.0)
        flag = tl.maximum(flag, tl.max(close.to(tl.int32)))
        tl.store(distances + at, tl.where(close, w, 0.0))
        w = rounded_weights(tl.where(close, 0.0, w), WEIGHTS)
        tl.store(weights + at, w)
        total += tl.sum(w.to(tl.float32), 1)
        tl.store(column_sums + a * pitch + j, tl.sum(w.to(tl.float32), 0))
    tl.store(row_sums + b * height + own, total)
    tl.store(flags + a * (pitch // T) + b, flag)


@triton.jit(do_not_specialize=["n", "m", "tiles"])
def apart_kernel(
    x, r, n, m, out, apart, flags, first_i, first_j, tiles, pitch, TURNED: tl.constexpr,
    T: tl.constexpr,
):  # fmt: skip
    """Adds to ``out`` (n, d) what close pairs give for a tile of T rows of x, by differences.

    TURNED: the columns of the band are the rows of x.
    """
    x, r = Side(n, *x), Side(m, *r)
    a = tl.program_id(0)
    P: tl.constexpr = 32
    for b in range(tiles):
        if TURNED:
            flag = tl.load(flags + b * (pitch // T) + a)
        else:
            flag = tl.load(flags + a * (pitch // T) + b)
        if flag > 0:
            for piece in range((T // P) * (T // P)):
                own = a * T + piece // (T // P) * P + tl.arange(0, P)
                other = b * T + piece % (T // P) * P + tl.arange(0, P)
                if TURNED:
                    w = tl.load(apart + own[:, None] + other.to(tl.int64)[None, :] * pitch)
                else:
                    w = tl.load(apart + own.to(tl.int64)[:, None] * pitch + other[None, :])
                if tl.max(tl.abs(w)) > 0.0:
                    add_differences(out, 0, x.d, 1.0, x, r, first_i + own, first_j + other, w, P)
