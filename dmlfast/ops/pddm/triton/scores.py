"""Scores of tiles of pairs: of rows and columns, or of a list."""

import triton
import triton.language as tl

from dmlfast.ops.pddm.triton.layers import (
    difference_branch,
    inverse,
    mean_branch,
    operand,
    scored,
    turned_weights,
)

ALL, UPPER, LISTED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def upper_square(t):
    """The t-th square on or above the diagonal, column by column: its row and its column."""
    column = ((tl.sqrt(8.0 * t.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    column += ((column + 1) * (column + 2) // 2 <= t).to(tl.int32)
    column -= (column * (column + 1) // 2 > t).to(tl.int32)
    return t - column * (column + 1) // 2, column


@triton.jit
def pairs_of(t, form, n, m, first, second, count, BI: tl.constexpr, BJ: tl.constexpr):
    """Of the pairs of tile t, (BI BJ,): rows and columns, int64; whether they are asked for, others
    being pairs of some rows that are there; where their scores go; and whether they go to the place
    on the other side of the diagonal too.
    """
    t = tl.cast(t, tl.int32)
    p = tl.arange(0, BI * BJ)
    across = tl.cdiv(m, BJ)
    row, column = t // across * BI, t % across
    if form == UPPER:
        square, column = upper_square(t // (BJ // BI))
        row = square * BJ + t % (BJ // BI) * BI
    i = row.to(tl.int64) + p // BJ
    j = column.to(tl.int64) * BJ + p % BJ
    forms = p * 0 + form
    place = t.to(tl.int64) * (BI * BJ) + p
    listed = (forms == LISTED) & (place < count)
    own = tl.load(first + place, mask=listed, other=0)
    other = tl.load(second + place, mask=listed, other=0)
    asked = (i < n) & (j < m) & ((forms == ALL) | ((forms == UPPER) & (i <= j)))
    i = tl.where(forms == LISTED, own, tl.minimum(i, n - 1))
    j = tl.where(forms == LISTED, other, tl.minimum(j, m - 1))
    at = tl.where(forms == LISTED, place, i * m + j)
    mirrored = asked & (forms == UPPER)
    return i, j, asked | listed, at, mirrored


@triton.jit
def narrow_scores(
    x, y, i, j, x_mean, y_mean, unit, NORMALIZE: tl.constexpr, DP: tl.constexpr,
    HDP: tl.constexpr, HMP: tl.constexpr, HP: tl.constexpr, WEIGHTS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
    BH: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Scores (BP,) without bias, where either branch is one block."""
    u, apart, along = difference_branch(
        x, y, i, j, unit, 0, NORMALIZE, DP, WEIGHTS, OPERAND, PRECISION, BP, BK, BH
    )  # fmt: skip
    of_u = inverse(tl.sum(u * u, 1))
    u = operand(u, WEIGHTS, OPERAND)
    v = mean_branch(
        x, y, i, j, x_mean, y_mean, unit, 0, apart, along, NORMALIZE, DP, HMP, WEIGHTS, OPERAND,
        PRECISION, BP, BK, BH,
    )  # fmt: skip
    of_v = inverse(tl.sum(v * v, 1))
    of_v = tl.where(of_v > 0.0, of_v, 1.0)
    v = operand(v, WEIGHTS, OPERAND)
    score = tl.zeros((BP,), tl.float32)
    k = tl.arange(0, BH)
    for first in range(0, HP, BC):
        h = first + tl.arange(0, BC)
        acc = tl.zeros((BP, BC), tl.float32)
        w = turned_weights(unit.joint, HDP + HMP, h, k, OPERAND)
        acc = tl.dot(u, w, acc, input_precision=PRECISION)
        acc *= (of_u / of_v)[:, None]
        w = turned_weights(unit.joint, HDP + HMP, h, HDP + k, OPERAND)
        acc = tl.dot(v, w, acc, input_precision=PRECISION)
        score += scored(acc * of_v[:, None], unit, h)
    return score


@triton.jit
def joint_products(
    acc, scratch, weight, h, first, end, PITCH: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, BP: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Adds the products of the joint units h with the components [first, end) in the scratch."""
    p = tl.arange(0, BP)
    for start in range(first, end, BH):
        k = start + tl.arange(0, BH)
        a = tl.load(scratch + p[:, None] * PITCH + k[None, :]).to(OPERAND)
        w = turned_weights(weight, PITCH, h, k, OPERAND)
        acc = tl.dot(a, w, acc, input_precision=PRECISION)
    return acc


@triton.jit
def wide_scores(
    x, y, i, j, x_mean, y_mean, unit, scratch, NORMALIZE: tl.constexpr, DP: tl.constexpr,
    HDP: tl.constexpr, HMP: tl.constexpr, HP: tl.constexpr, WEIGHTS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
    BH: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Scores (BP,) without bias; both branches lie in the ``scratch`` (BP, HDP + HMP)."""
    PITCH: tl.constexpr = HDP + HMP
    h = tl.arange(0, BH)
    into = scratch + tl.arange(0, BP)[:, None] * PITCH + h[None, :]
    of_u = tl.zeros((BP,), tl.float32)
    of_v = tl.zeros((BP,), tl.float32)
    apart = tl.zeros((BP,), tl.float32)
    along = tl.zeros((BP,), tl.float32)
    tl.debug_barrier()  # the pairs before are done
    for first in range(0, HDP, BH):
        u, apart, along = difference_branch(
            x, y, i, j, unit, first, NORMALIZE, DP, WEIGHTS, OPERAND, PRECISION, BP, BK, BH
        )  # fmt: skip
        of_u += tl.sum(u * u, 1)
        tl.store(into + first, operand(u, WEIGHTS, OPERAND).to(scratch.dtype.element_ty))
    for first in range(0, HMP, BH):
        v = mean_branch(
            x, y, i, j, x_mean, y_mean, unit, first, apart, along, NORMALIZE, DP, HMP, WEIGHTS,
            OPERAND, PRECISION, BP, BK, BH,
        )  # fmt: skip
        of_v += tl.sum(v * v, 1)
        tl.store(into + HDP + first, operand(v, WEIGHTS, OPERAND).to(scratch.dtype.element_ty))
    tl.debug_barrier()  # it is read in another layout
    of_u, of_v = inverse(of_u), inverse(of_v)
    of_v = tl.where(of_v > 0.0, of_v, 1.0)
    score = tl.zeros((BP,), tl.float32)
    for first in range(0, HP, BC):
        c = first + tl.arange(0, BC)
        acc = tl.zeros((BP, BC), tl.float32)
        acc = joint_products(
            acc, scratch, unit.joint, c, 0, HDP, PITCH, OPERAND, PRECISION, BP, BH
        )  # fmt: skip
        acc *= (of_u / of_v)[:, None]
        acc = joint_products(
            acc, scratch, unit.joint, c, HDP, PITCH, PITCH, OPERAND, PRECISION, BP, BH
        )  # fmt: skip
        score += scored(acc * of_v[:, None], unit, c)
    return score


@triton.jit(
    do_not_specialize=["n", "m", "count", "tiles", "form"],
    do_not_specialize_on_alignment=["first", "second"],
)
def scores_kernel(
    x, y, x_mean, y_mean, unit, out, n, m, first, second, count, tiles, form, scratch,
    NORMALIZE: tl.constexpr, NARROW: tl.constexpr, DP: tl.constexpr, HDP: tl.constexpr,
    HMP: tl.constexpr, HP: tl.constexpr, WEIGHTS: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
    BH: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Scores of the tiles of pairs that are a program's.

    form: ALL pairs, ``out`` (n, m); UPPER, each unordered pair of rows once, into both of its
    places; or LISTED, ``first`` and ``second`` (count,), ``out`` (count,). It is asked for at run
    time: one binary takes all, so that a pair has the same bits in each. scratch: (programs, BI BJ,
    HDP + HMP), where the unit is not NARROW.
    """
    BP: tl.constexpr = BI * BJ
    scratch += tl.program_id(0).to(tl.int64) * (BP * (HDP + HMP))
    for t in range(tl.program_id(0), tiles, tl.num_programs(0)):
        i, j, asked, at, mirrored = pairs_of(t, form, n, m, first, second, count, BI, BJ)
        if NARROW:
            score = narrow_scores(
                x, y, i, j, x_mean, y_mean, unit, NORMALIZE, DP, HDP, HMP, HP, WEIGHTS, OPERAND,
                PRECISION, BP, BK, BH, BC,
            )  # fmt: skip
        else:
            score = wide_scores(
                x, y, i, j, x_mean, y_mean, unit, scratch, NORMALIZE, DP, HDP, HMP, HP, WEIGHTS,
                OPERAND, PRECISION, BP, BK, BH, BC,
            )  # fmt: skip
        score += tl.load(unit.score_bias)
        score += score * 0.0  # NaN where it is infinite
        tl.store(out + at, score, mask=asked)
        tl.store(out + j * m + i, score, mask=mirrored)
