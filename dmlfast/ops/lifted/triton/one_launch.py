"""The lifted structured loss of a small batch as one Triton program: nothing is computed twice."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from dmlfast.ops.pairs.triton.weights import hinge
from dmlfast.ops.triton import configs
from dmlfast.ops.triton.tile import CLOSE, LOG2E, NOTHING, rounded_to_tf32, rounded_weights

MAX_ROWS, MAX_WIDTH = 128, 512


class Batch(NamedTuple):
    """The rows (n, d) as they were given."""

    n: Any
    rows: Any
    row_stride: Any
    column_stride: Any
    d: Any


@triton.jit
def _given(x, i, k):
    """Components k of the rows i as they were given, float32; 0 where there are none."""
    at = i.to(tl.int64)[:, None] * x.row_stride + k.to(tl.int64)[None, :] * x.column_stride
    known = (i < x.n)[:, None] & (k < x.d)[None, :]
    return tl.load(x.rows + at, mask=known, other=0.0).to(tl.float32)


@triton.jit
def _component(x, i, k):
    """Component k of rows i, float32 (BM,)."""
    at = i.to(tl.int64) * x.row_stride + tl.cast(k, tl.int64) * x.column_stride
    return tl.load(x.rows + at, mask=i < x.n, other=0.0).to(tl.float32)


@triton.jit
def _prepared(x, j, k, mean, ROUNDED: tl.constexpr):
    """Components k of rows j, minus the mean where there is one and rounded where asked for."""
    rows = _given(x, j, k)
    if mean is not None:
        rows = tl.where((j < x.n)[:, None], rows - tl.load(mean + k)[None, :], 0.0)
    if ROUNDED:
        rows = rounded_to_tf32(rows)
    return rows


@triton.jit
def _distances(
    x, mean, distances, i, j, ROUNDED: tl.constexpr, DP: tl.constexpr, BD: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Keeps the distances of the pairs (i, j), those of close pairs with a minus, NaN where a value
    of the rows i is not finite.
    """
    s = tl.zeros((BM, BN), tl.float32)
    row_norm = tl.zeros((BM,), tl.float32)
    column_norm = tl.zeros((BN,), tl.float32)
    for first in range(0, DP, BD):
        k = first + tl.arange(0, BD)
        rows = _prepared(x, i, k, mean, ROUNDED)
        columns = _prepared(x, j, k, mean, ROUNDED)
        row_norm += tl.sum(rows * rows, 1)
        column_norm += tl.sum(columns * columns, 1)
        rows, columns = rows.to(OPERAND), columns.to(OPERAND)
        s = tl.dot(rows, tl.trans(columns), s, input_precision=PRECISION)
    norms = row_norm[:, None] + column_norm[None, :]
    squared = norms - 2.0 * s
    close = (squared <= norms * CLOSE) & (i[:, None] != j[None, :])
    close &= (i < x.n)[:, None] & (j < x.n)[None, :]
    if tl.max(close.to(tl.int32)) > 0:
        direct = tl.zeros((BM, BN), tl.float32)
        for k in range(x.d):
            difference = _component(x, i, k)[:, None] - _component(x, j, k)[None, :]
            direct += difference * difference
        squared = tl.where(close, direct, squared)
    distance = tl.sqrt(tl.maximum(squared, 0.0))
    distance = tl.where(close, -distance, distance) + tl.sum(row_norm * 0.0, 0)
    tl.store(distances + i[:, None] * BM + j[None, :], distance)


@triton.jit
def _piece(x, labels, distances, i, j, BM: tl.constexpr):
    """Signed distances of the pairs (i, j), and which of them are positive and negative."""
    distance = tl.load(distances + i[:, None] * BM + j[None, :])
    pairs = (i < x.n)[:, None] & (j < x.n)[None, :] & (i[:, None] != j[None, :])
    own = tl.load(labels + i, mask=i < x.n, other=0)
    other = tl.load(labels + j, mask=j < x.n, other=0)
    same = own[:, None] == other[None, :]
    return distance, pairs & same, pairs & ~same


@triton.jit
def _weights(x, labels, distances, stats, grads, i, j, margin, BM: tl.constexpr):
    """-d loss / d distance over twice its share, by the distance, signed like it."""
    distance, positive, negative = _piece(x, labels, distances, i, j, BM)
    size = tl.abs(distance)
    row, column = tl.load(stats + i), tl.load(stats + j)
    t = tl.where(negative, (margin - size) * LOG2E, NOTHING)
    never_row = tl.where(row > NOTHING * 0.5, row, -NOTHING)
    never_column = tl.where(column > NOTHING * 0.5, column, -NOTHING)
    w = tl.exp2(tl.minimum(t - never_row[:, None], 0.0)) * tl.load(grads + i)[:, None]
    w += tl.exp2(tl.minimum(t - never_column[None, :], 0.0)) * tl.load(grads + j)[None, :]
    w -= tl.where(positive, hinge(size, row, column), 0.0)
    return tl.where(distance != 0.0, w / size, 0.0), distance < 0.0


@triton.jit(do_not_specialize=["n"])
def one_launch_kernel(
    x, n, labels, loss, out, mean, distances, close_weights, stats, grads, margin,
    ROUNDED: tl.constexpr, DP: tl.constexpr, BD: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, WEIGHTS: tl.constexpr, W_OPERAND: tl.constexpr,
    W_PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The loss and, where ``out`` is not None, its gradient (n, d).

    The mean of the rows (DP,), None where they are not centred, the distances (BM, BM), which
    become weights, those of close pairs on their own, and what each row comes to, ``stats`` and
    ``grads`` (BM,), stay in memory that the one program writes and reads, BN columns at a time.
    """
    x = Batch(n, *x)
    i = tl.arange(0, BM)
    if mean is not None:
        for first in range(0, DP, BD):
            k = first + tl.arange(0, BD)
            tl.store(mean + k, tl.sum(_given(x, i, k), 0) / x.n)
        tl.debug_barrier()
    for first in range(0, BM, BN):
        j = first + tl.arange(0, BN)
        _distances(
            x, mean, distances, i, j, ROUNDED, DP, BD, OPERAND, PRECISION, BM, BN
        )  # fmt: skip
    tl.debug_barrier()
    top = tl.full((BM,), NOTHING, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    for first in range(0, BM, BN):
        distance, _, negative = _piece(x, labels, distances, i, first + tl.arange(0, BN), BM)
        t = tl.where(negative, (margin - tl.abs(distance)) * LOG2E, NOTHING)
        high = tl.maximum(top, tl.max(t, 1))
        part = tl.where(negative, tl.exp2(t - high[:, None]), 0.0)
        total = total * tl.exp2(top - high) + tl.sum(part, 1)
        top = high
    stat = tl.where(total > 0.0, top + tl.log2(tl.maximum(total, 1e-37)), NOTHING)
    tl.store(stats + i, stat)
    tl.debug_barrier()
    squares = tl.zeros((BM,), tl.float32)
    grad = tl.zeros((BM,), tl.float32)
    count = tl.zeros((BM,), tl.int32)
    for first in range(0, BM, BN):
        j = first + tl.arange(0, BN)
        distance, positive, _ = _piece(x, labels, distances, i, j, BM)
        other = tl.load(stats + j)
        h = tl.where(positive, hinge(tl.abs(distance), stat, other), 0.0)
        above = tl.minimum(other[None, :] - stat[:, None], 126.0)
        grad += tl.sum(h / (1.0 + tl.exp2(above)), 1)
        squares += tl.sum(h * h, 1)
        count += tl.sum(positive.to(tl.int32), 1)
    tl.store(grads + i, grad)
    tl.debug_barrier()
    share = 1.0 / tl.maximum(tl.sum(count, 0), 1).to(tl.float32)
    poison = tl.load(distances) * 0.0
    tl.store(loss, 0.5 * share * tl.sum(squares, 0) + poison)
    if out is not None:
        weight = tl.zeros((BM,), tl.float32)
        some_close = 0
        for first in range(0, BM, BN):
            j = first + tl.arange(0, BN)
            w, close = _weights(x, labels, distances, stats, grads, i, j, margin, BM)
            some_close += tl.max(close.to(tl.int32))
            at = i[:, None] * BM + j[None, :]
            tl.store(close_weights + at, tl.where(close, w, 0.0))
            w = rounded_weights(tl.where(close, 0.0, w), WEIGHTS).to(tl.float32)
            tl.store(distances + at, w)
            weight += tl.sum(w, 1)
        tl.debug_barrier()
        for first_k in range(0, DP, BD):
            k = first_k + tl.arange(0, BD)
            product = tl.zeros((BM, BD), tl.float32)
            for first in range(0, BM, BN):
                j = first + tl.arange(0, BN)
                w = tl.load(distances + i[:, None] * BM + j[None, :])
                rows = _prepared(x, j, k, mean, ROUNDED)
                rows = rows.to(OPERAND).to(W_OPERAND)
                product = tl.dot(w.to(W_OPERAND), rows, product, input_precision=W_PRECISION)
            gradient = weight[:, None] * _prepared(x, i, k, mean, ROUNDED) - product
            if some_close > 0:
                for column in range(x.n):
                    j = column + tl.zeros((1,), tl.int32)
                    w = tl.load(close_weights + i * BM + column)
                    gradient += w[:, None] * (_given(x, i, k) - _given(x, j, k))
            at = i.to(tl.int64)[:, None] * x.d + k[None, :]
            known = (i < x.n)[:, None] & (k < x.d)[None, :]
            tl.store(out + at, poison - 2.0 * share * gradient, mask=known)


def fits(rows: torch.Tensor, columns: torch.Tensor | None) -> bool:
    return columns is None and rows.shape[0] <= MAX_ROWS and rows.shape[1] <= MAX_WIDTH


def forward(
    rows: torch.Tensor, labels: torch.Tensor, margin: float, want_rows: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Loss () and gradient (N, D), float32, of a batch that `fits`, N > 0."""
    n, d = rows.shape
    loss = rows.new_empty((), dtype=torch.float32)
    out = rows.new_empty(n, d, dtype=torch.float32) if want_rows else None
    how = configs.products_of(rows.dtype, d)
    full = rows.dtype == torch.float32
    tile = configs.tiles_of(rows.dtype).small
    size, chunk = (max(16, triton.next_power_of_2(length)) for length in (n, d))
    chunk = min(chunk, tile.BD if d <= 128 else tile.BW)
    width = -(-d // chunk) * chunk
    piece = min(size, tile.BN)
    if full and how.PRECISION == "ieee":  # without the matrix unit a thread takes more registers
        piece = 16
    kept = rows.new_empty(2 * size + 2, size, dtype=torch.float32)
    one_launch_kernel[(1,)](
        Batch(n, rows, rows.stride(0), rows.stride(1), d)[1:],
        n,
        labels.to(torch.int64).contiguous(),
        loss,
        out,
        rows.new_empty(width) if full else None,
        kept[:size],
        kept[size:-2],
        kept[-2],
        kept[-1],
        margin,
        ROUNDED=full and how.PRECISION == "tf32",
        **how._replace(DP=width, BD=chunk)._asdict(),
        BM=size,
        BN=piece,
        **configs.launch(tile if size > 64 else tile._replace(warps=4)),
    )
    return loss, out
