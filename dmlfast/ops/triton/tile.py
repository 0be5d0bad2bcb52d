"""What the Triton kernels do with one tile of pairs: products, distances, selection, terms.

``x`` is the side of the rows of a tile and ``r`` that of its columns, each a `Side` of
`dmlfast.ops.triton.side`. ``i`` and ``j`` are positions in them, int32 (BM,) and (BN,). Terms and
statistics of a log-sum-exp are powers of two: `LOG2E` goes into scale, offset and bias.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

# Rows of a side are padded to whole tiles of this size.
TILE_SIZE = tl.constexpr(128)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NOTHING = tl.constexpr(-1e30)  # stands for -inf: its differences are defined
SAFE_SPAN = tl.constexpr(100.0)  # powers of two that terms may span without a running maximum
# |x|^2 + |r|^2 - 2 <x, r> loses a squared distance below this share of the norms to cancellation:
# such pairs are close, and computed from the differences of the rows as given.
CLOSE = tl.constexpr(1.0 / 1024)
TINY = tl.constexpr(1.2e-38)  # a GPU's approximate roots take less for 0


@triton.jit
def log1p(e):
    """log(1 + e) for e from 0 to 1 to the last digits of e: 2 atanh(e / (2 + e)), whose series is
    replaced by the polynomial that errs least, 8e-9 of the result.
    """
    t = e / (2.0 + e)
    u = t * t
    p = 0.28174657 * u + 0.27961418
    p = p * u + 0.40024853
    p = p * u + 0.66666317
    return t * (p * u + 2.0)


@triton.jit
def load_rows(side, i, k, DP: tl.constexpr, OPERAND: tl.constexpr):
    """Components k of the prepared rows i, as operands of a product."""
    return tl.load(side.rows + i.to(tl.int64)[:, None] * DP + k[None, :]).to(OPERAND)


@triton.jit
def first_chunk(
    side, i, DP: tl.constexpr, BD: tl.constexpr, OPERAND: tl.constexpr, BM: tl.constexpr
):
    """The rows i, where they fit in one chunk; anything else is loaded chunk by chunk."""
    if DP == BD:
        chunk = load_rows(side, i, tl.arange(0, BD), DP, OPERAND)
    else:
        chunk = tl.zeros((BM, 1), OPERAND)
    return chunk


@triton.jit
def products(
    x_chunk, x, r, i, j, DP: tl.constexpr, BD: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """(BM, BN) inner products. ``x_chunk``: `first_chunk` of the rows i."""
    k = tl.arange(0, BD)
    s = tl.zeros((BM, BN), tl.float32)
    if DP == BD:
        r_chunk = load_rows(r, j, k, DP, OPERAND)
        s = tl.dot(x_chunk, tl.trans(r_chunk), s, input_precision=PRECISION)
    else:
        for first in range(0, DP, BD):
            x_part = load_rows(x, i, first + k, DP, OPERAND)
            r_part = load_rows(r, j, first + k, DP, OPERAND)
            s = tl.dot(x_part, tl.trans(r_part), s, input_precision=PRECISION)
    return s


@triton.jit
def given_row(side, i, k):
    """Components k of the rows at positions i as they were given, float32."""
    row = tl.load(side.order + i).to(tl.int64)
    at = row * side.row_stride + tl.cast(k, tl.int64) * side.column_stride
    return tl.load(side.given + at).to(tl.float32)


@triton.jit
def squared_differences(x, r, i, j, BM: tl.constexpr, BN: tl.constexpr):
    """(BM, BN) squared distances from the differences of the rows as they were given."""
    squared = tl.zeros((BM, BN), tl.float32)
    for k in range(x.d):
        difference = given_row(x, i, k)[:, None] - given_row(r, j, k)[None, :]
        squared += difference * difference
    return squared


@triton.jit
def selected(x, r, i, j, INSIDE: tl.constexpr, APART: tl.constexpr, UPPER: tl.constexpr):
    """(BM, BN) mask of the selected pairs.

    INSIDE: the row's own label is asked for, else any other. APART: both sides are the same rows,
    and none meets itself. UPPER: only above the diagonal.
    """
    low, high = tl.load(x.low + i), tl.load(x.high + i)
    inside = (j[None, :] >= low[:, None]) & (j[None, :] < high[:, None])
    if INSIDE:
        mask = inside
    else:
        mask = ~inside
    mask &= (i[:, None] < x.n) & (j[None, :] < r.n)
    if UPPER:
        mask &= i[:, None] < j[None, :]
    elif APART:
        mask &= i[:, None] != j[None, :]
    if INSIDE:
        own, other = x.itself, r.itself
    else:
        own, other = x.left_out, r.left_out
    if own is not None:
        mask &= tl.load(own + i)[:, None] != j[None, :]
    if other is not None:
        mask &= tl.load(other + j)[None, :] != i[:, None]
    return mask


@triton.jit
def term(score, x, r, i, j, scale, offset):
    """scale * score + offset + bias, the bias where a side has one."""
    t = score * scale + offset
    if x.bias is not None:
        t += tl.load(x.bias + i)[:, None]
    if r.bias is not None:
        t += tl.load(r.bias + j)[None, :]
    return t


@triton.jit
def hinge_of(t, REDUCE: tl.constexpr):
    """max(0, t), its square, or log(1 + exp(t))."""
    hinge = tl.maximum(t, 0.0)
    if REDUCE == "squared_hinge":
        hinge *= hinge
    elif REDUCE == "softplus":
        hinge += log1p(tl.exp2((t - 2.0 * hinge) * LOG2E))
    return hinge


@triton.jit
def slope_of(t, REDUCE: tl.constexpr):
    """d hinge / d term."""
    if REDUCE == "hinge":
        slope = tl.where(t > 0.0, 1.0, 0.0)
    elif REDUCE == "softplus":
        e = tl.exp2((t - 2.0 * tl.maximum(t, 0.0)) * LOG2E)
        slope = tl.where(t > 0.0, 1.0, e) / (1.0 + e)
    else:
        slope = 2.0 * tl.maximum(t, 0.0)
    return slope


@triton.jit
def greatest(values, padded):
    """The greatest of the floats of all tiles of a side."""
    count = padded // TILE_SIZE
    found = tl.full((256,), -float("inf"), tl.float32)
    k = tl.arange(0, 256)
    for first in range(0, count, 256):
        value = tl.load(values + first + k, mask=first + k < count, other=-float("inf"))
        found = tl.maximum(found, value)
    return tl.max(found, 0)


@triton.jit
def total_of(values, count):
    """The sum of ``count`` floats, in a fixed order."""
    found = tl.zeros((256,), tl.float32)
    k = tl.arange(0, 256)
    for first in range(0, count, 256):
        found += tl.load(values + first + k, mask=first + k < count, other=0.0)
    return tl.sum(found, 0)


@triton.jit
def count_of(values, count):
    """The sum of ``count`` int64."""
    found = tl.zeros((256,), tl.int64)
    k = tl.arange(0, 256)
    for first in range(0, count, 256):
        found += tl.load(values + first + k, mask=first + k < count, other=0)
    return tl.sum(found, 0)


@triton.jit
def poison_of(x, r):
    """NaN where a value of either side is not finite, else 0."""
    return total_of(x.poison, x.padded // TILE_SIZE) + total_of(r.poison, r.padded // TILE_SIZE)


@triton.jit
def term_bounds(x, r, scale, offset, DISTANCE: tl.constexpr):
    """The least and the greatest term that the lengths of the rows allow."""
    longest_x, longest_r = greatest(x.lengths, x.padded), greatest(r.lengths, r.padded)
    if DISTANCE:
        one, other = scale * 0.0, scale * (longest_x + longest_r)
    else:
        one, other = -scale * longest_x * longest_r, scale * longest_x * longest_r
    low, high = tl.minimum(one, other) + offset, tl.maximum(one, other) + offset
    if r.bias is not None:
        high += greatest(r.bias_highest, r.padded)
        low -= greatest(r.bias_lowest, r.padded)  # held with the opposite sign
    return low, high


@triton.jit
def rounded_to_tf32(x):
    """The nearest values with ten bits of mantissa, which a tf32 product takes as they are."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0xFFF + ((bits >> 13) & 1)) & -8192
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)  # a NaN remains one


@triton.jit
def rounded_weights(w, WEIGHTS: tl.constexpr):
    """The weights as they enter a product; sums of weights are taken of these."""
    if WEIGHTS == "bfloat16":
        w = w.to(tl.bfloat16)
    elif WEIGHTS == "tf32":
        w = rounded_to_tf32(w)
    return w


@triton.jit
def given_rows(side, i, k):
    """Components k of the rows at positions i as they were given, float32 (BM, BD)."""
    row = tl.load(side.order + i).to(tl.int64)
    at = row[:, None] * side.row_stride + k.to(tl.int64)[None, :] * side.column_stride
    return tl.load(side.given + at, mask=(k < side.d)[None, :], other=0.0).to(tl.float32)


@triton.jit
def statistic(stats, i):
    """Statistics at positions i, where nothing was selected so great that exp2(t - L) is 0."""
    value = tl.load(stats.value + i)
    return tl.where(value > NOTHING * 0.5, value, -NOTHING)


@triton.jit
def statistic_range(first, second):
    """The least and the greatest statistic of both sides, of which either may have none."""
    lowest, highest = float("inf"), -float("inf")
    if first.grad is not None:
        lowest = -greatest(first.lowest, first.padded)
        highest = greatest(first.highest, first.padded)
    if second.grad is not None:
        lowest = tl.minimum(lowest, -greatest(second.lowest, second.padded))
        highest = tl.maximum(highest, greatest(second.highest, second.padded))
    return lowest, highest


@triton.jit
def scores(s, xn, rn, DISTANCE: tl.constexpr):
    """Squared distances with their excess over what is close, or the products and 1."""
    if DISTANCE:
        norms = xn[:, None] + rn[None, :]
        squared = norms - 2.0 * s
        excess = squared - norms * CLOSE
    else:
        squared, excess = s, s * 0.0 + 1.0
    return squared, excess


class Bands(NamedTuple):
    """Tiles of columns [first, end) as some rows take them.

    Those in [masked, masked_end) and in [last, end) have to be masked; the others are free.
    """

    first: Any
    masked: Any
    masked_end: Any
    last: Any
    end: Any


@triton.jit
def bands(
    x, r, i, first, end, all_masked, INSIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):
    """The tiles of columns [first, end) in which the rows i may have selected pairs."""
    there = i < x.n
    low = tl.min(tl.where(there, tl.load(x.low + i), 2147483647), 0)
    high = tl.max(tl.where(there, tl.load(x.high + i), 0), 0)
    end = tl.maximum(tl.minimum(end, tl.cdiv(r.n, BN)), first)
    masked = tl.minimum(tl.maximum(low // BN, first), end)
    masked_end = tl.minimum(tl.maximum(tl.cdiv(high, BN), masked), end)
    last = tl.maximum(tl.minimum(r.n // BN, end), masked_end)
    if INSIDE:
        first, last, end = masked, masked_end, masked_end
    elif x.left_out is not None or r.left_out is not None:
        masked, masked_end, last = first, end, end
    else:
        whole = all_masked | (tl.max(i, 0) >= x.n)
        masked = tl.where(whole, first, masked)
        masked_end = tl.where(whole, end, masked_end)
        last = tl.where(whole, end, last)
    return Bands(first, masked, masked_end, last, end)


@triton.jit
def free_count(tiles, INSIDE: tl.constexpr):
    if INSIDE:
        count = 0
    else:
        count = (tiles.masked - tiles.first) + (tiles.last - tiles.masked_end)
    return count


@triton.jit
def free_tile(tiles, k):
    """The k-th free tile."""
    tile = tiles.first + k
    return tl.where(tile >= tiles.masked, tile + (tiles.masked_end - tiles.masked), tile)


@triton.jit
def masked_count(tiles):
    return (tiles.masked_end - tiles.masked) + (tiles.end - tiles.last)


@triton.jit
def masked_tile(tiles, k):
    """The k-th tile that has to be masked."""
    tile = tiles.masked + k
    return tl.where(tile >= tiles.masked_end, tile + (tiles.last - tiles.masked_end), tile)
