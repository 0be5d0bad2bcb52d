"""The weight of a pair in the gradient."""

import triton
import triton.language as tl

from dmlfast.ops.triton.tile import (
    LN2,
    NOTHING,
    SAFE_SPAN,
    given_rows,
    selected,
    slope_of,
    squared_differences,
    statistic,
    statistic_range,
    term,
)


@triton.jit
def hinge(distance, row, column):
    """max(0, D + log(exp(row) + exp(column))) of (BM,) and (BN,) statistics; 0 where both are
    nothing.
    """
    high = tl.maximum(row[:, None], column[None, :])
    low = tl.minimum(row[:, None], column[None, :])
    joint = distance + LN2 * (high + tl.log2(1.0 + tl.exp2(low - high)))
    return tl.where(high > NOTHING * 0.5, tl.maximum(joint, 0.0), 0.0)


@triton.jit
def pair_weights(
    score, x, r, i, j, xs, rs, scale, offset, REDUCE: tl.constexpr, INSIDE: tl.constexpr,
    APART: tl.constexpr, POSITIVES: tl.constexpr,
):  # fmt: skip
    """d loss / d score over scale, for terms and statistics of any span; 0 where not selected.

    POSITIVES: less the hinge of the pairs of one label, of the lifted loss.
    """
    mask = selected(x, r, i, j, INSIDE, APART, False)
    t = tl.where(mask, term(score, x, r, i, j, scale, offset), NOTHING)
    w = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
    if xs.grad is not None:
        part = tl.load(xs.grad + i)[:, None]
        if REDUCE == "logsumexp":
            part = tl.exp2(tl.minimum(t - statistic(xs, i)[:, None], 0.0)) * part
        if xs.floor is not None:
            part = tl.where(t > tl.load(xs.floor + i)[:, None], part, 0.0)
        w += part
    if rs.grad is not None:
        part = tl.load(rs.grad + j)[None, :]
        if REDUCE == "logsumexp":
            part = tl.exp2(tl.minimum(t - statistic(rs, j)[None, :], 0.0)) * part
        if rs.floor is not None:
            part = tl.where(t > tl.load(rs.floor + j)[None, :], part, 0.0)
        w += part
    if REDUCE != "logsumexp" and REDUCE != "sum":
        w *= slope_of(t, REDUCE)
    w = tl.where(mask, w, 0.0)
    if POSITIVES:
        positive = selected(x, r, i, j, True, APART, False)
        h = hinge(score, tl.load(xs.value + i), tl.load(rs.value + j))
        w -= tl.where(positive, h, 0.0)
    return w


@triton.jit
def middle_of(xs, rs, REDUCE: tl.constexpr):
    """The middle of all statistics, and whether no tile is free: they span too much for one
    exponential a pair, or terms have floors.
    """
    middle, wide = 0.0, False
    if REDUCE == "logsumexp":
        lowest, highest = statistic_range(xs, rs)
        middle = 0.5 * (lowest + highest)
        wide = (highest - lowest <= SAFE_SPAN) == 0
    if xs.floor is not None or rs.floor is not None:
        wide = True
    return middle, wide


@triton.jit
def factor_of(stats, i, middle, REDUCE: tl.constexpr):
    """Gradient times exp2(middle - statistic) of some rows; 0 where there are no statistics."""
    factor = i * 0.0
    if stats.grad is not None:
        factor = tl.load(stats.grad + i)
        if REDUCE == "logsumexp":
            factor *= tl.exp2(middle - statistic(stats, i))
    return factor


@triton.jit
def free_weights(score, x, r, i, j, row_factor, rs, middle, scale, offset, REDUCE: tl.constexpr):
    """The same as `pair_weights` by at most one exponential, where all pairs are selected."""
    w = row_factor[:, None] + factor_of(rs, j, middle, REDUCE)[None, :]
    if REDUCE == "logsumexp":
        w *= tl.exp2(term(score, x, r, i, j, scale, offset) - middle)
    elif REDUCE != "sum":
        w *= slope_of(term(score, x, r, i, j, scale, offset), REDUCE)
    return w


@triton.jit
def careful_weights(
    score, excess, xn, x, r, i, j, xs, rs, scale, offset, DISTANCE: tl.constexpr,
    REDUCE: tl.constexpr, INSIDE: tl.constexpr, APART: tl.constexpr, POSITIVES: tl.constexpr,
    NEAR: tl.constexpr,
):  # fmt: skip
    """What a tile of any pairs weighs in a product, and 1 if it has near ones, else 0.

    ``score``: squared distances or products. Close pairs get a distance from the differences of
    their rows. Near ones among them weigh nothing: `add_near` has to follow.
    """
    some = 0
    if DISTANCE:
        close = _met(x, r, i, j, APART) & (excess <= 0.0)
        if tl.max(close.to(tl.int32)) > 0:
            direct = squared_differences(x, r, i, j, i.shape[0], j.shape[0])
            near = close & _is_near(direct, xn, tl.load(r.norm + j), NEAR)
            score = tl.where(close, tl.where(near, 0.0, direct), score)
            some = tl.max(near.to(tl.int32))
        score = tl.sqrt(tl.maximum(score, 0.0))
    w = pair_weights(score, x, r, i, j, xs, rs, scale, offset, REDUCE, INSIDE, APART, POSITIVES)
    if DISTANCE:
        w = tl.where(score > 0.0, w / score, 0.0)
    return w, some


@triton.jit
def _met(x, r, i, j, APART: tl.constexpr):
    """(BM, BN) mask of the pairs that there are."""
    there = (i < x.n)[:, None] & (j < r.n)[None, :]
    if APART:
        there &= i[:, None] != j[None, :]
    return there


@triton.jit
def _is_near(squared, xn, rn, NEAR: tl.constexpr):
    """Whether a product would lose the gradient of a pair to cancellation."""
    return squared <= (xn[:, None] + rn[None, :]) * NEAR


@triton.jit
def add_near(
    out, first_k, end_k, factor, x, r, first_i, first_j, xs, rs, scale, offset,
    REDUCE: tl.constexpr, INSIDE: tl.constexpr, APART: tl.constexpr, POSITIVES: tl.constexpr,
    NEAR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Adds to components [first_k, end_k) of ``out`` what the near pairs of a tile (BM, BN) give,
    each from the difference of its rows.
    """
    P: tl.constexpr = BM if BM < 32 else 32
    Q: tl.constexpr = BN if BN < 32 else 32
    for piece in range((BM // P) * (BN // Q)):
        i = first_i + piece // (BN // Q) * P + tl.arange(0, P)
        j = first_j + piece % (BN // Q) * Q + tl.arange(0, Q)
        squared = squared_differences(x, r, i, j, P, Q)
        near = _met(x, r, i, j, APART)
        near &= _is_near(squared, tl.load(x.norm + i), tl.load(r.norm + j), NEAR)
        if tl.max(near.to(tl.int32)) > 0:
            distance = tl.sqrt(squared)
            w = pair_weights(
                distance, x, r, i, j, xs, rs, scale, offset, REDUCE, INSIDE, APART, POSITIVES
            )
            w = tl.where(near & (distance > 0.0), w / distance, 0.0)
            add_differences(out, first_k, end_k, factor, x, r, i, j, w, Q)


@triton.jit
def add_differences(out, first_k, end_k, factor, x, r, i, j, w, Q: tl.constexpr):
    """Adds to components [first_k, end_k) of ``out`` what pairs of weights w (P, Q) give."""
    for column in range(Q):
        chosen = tl.arange(0, Q) == column
        of_column = tl.sum(tl.where(chosen[None, :], w, 0.0), 1)
        if tl.max(tl.abs(of_column), 0) > 0.0:
            other = tl.sum(tl.where(chosen, j, 0), 0) + tl.zeros((1,), tl.int32)
            for first in range(first_k, tl.minimum(end_k, x.d), 32):
                k = first + tl.arange(0, 32)
                difference = given_rows(x, i, k) - given_rows(r, other, k)
                known = (i < x.n)[:, None] & (k < x.d)[None, :]
                at = out + tl.load(x.order + i).to(tl.int64)[:, None] * x.d + k[None, :]
                part = factor * of_column[:, None] * difference
                tl.store(at, tl.load(at, mask=known) + part, mask=known)
            tl.debug_barrier()  # the next column adds to what others have stored
