"""Scores of tiles of pairs: of rows and columns, or of a list."""

import triton
import triton.language as tl

from dmlfast.ops.pddm.triton.layers import (
    difference_branch,
    inverse,
    mean_branch,
    operand,
    relu,
    turned_weights,
)

ALL, UPPER, LISTED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def upper_square(t):
    """The t-th square on or above the diagonal, column by column: its row and its column."""
    column = ((tl.sqrt(8.0 * t.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int64)
    column += ((column + 1) * (column + 2) // 2 <= t).to(tl.int64)
    column -= (column * (column + 1) // 2 > t).to(tl.int64)
    row = t - column * (column + 1) // 2
    return row.to(tl.int32), column.to(tl.int32)


@triton.jit
def pairs_of(t, form, n, m, first, second, count, BI: tl.constexpr, BJ: tl.constexpr):
    """Of the pairs of tile t, (BI BJ,): rows and columns; whether they are asked for, others
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
    i, j = row + p // BJ, column * BJ + p % BJ
    forms = p * 0 + form
    place = t.to(tl.int64) * (BI * BJ) + p
    listed = (forms == LISTED) & (place < count)
    own = tl.load(first + place, mask=listed, other=0).to(tl.int32)
    other = tl.load(second + place, mask=listed, other=0).to(tl.int32)
    asked = (i < n) & (j < m) & ((forms == ALL) | ((forms == UPPER) & (i <= j)))
    i = tl.where(forms == LISTED, own, tl.minimum(i, n - 1))
    j = tl.where(forms == LISTED, other, tl.minimum(j, m - 1))
    at = tl.where(forms == LISTED, place, i.to(tl.int64) * m + j)
    mirrored = asked & (forms == UPPER)
    return i, j, asked | listed, at, mirrored


@triton.jit
def mean_products(
    x, y, i, j, x_mean, y_mean, unit, c, apart, along, NORMALIZE: tl.constexpr, DP: tl.constexpr,
    HDP: tl.constexpr, HMP: tl.constexpr, WEIGHTS: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """Products of the joint units c with v', (BP, BC), and the squared lengths of v', (BP,)."""
    acc = tl.zeros((BP, BC), tl.float32)
    squared = tl.zeros((BP,), tl.float32)
    for first in tl.range(0, HMP, BV, disable_licm=True):
        k = first + tl.arange(0, BV)
        v = mean_branch(
            x, y, i, j, x_mean, y_mean, unit, k, apart, along, NORMALIZE, DP, HMP, WEIGHTS,
            OPERAND, PRECISION, BP, BK, BV,
        )  # fmt: skip
        squared += tl.sum(v * v, 1)
        w = turned_weights(unit.joint, HDP + HMP, c, HDP + k, OPERAND)
        acc = tl.dot(operand(v, WEIGHTS, OPERAND), w, acc, input_precision=PRECISION)
    return acc, squared


@triton.jit
def kept_products(
    acc, scratch, weight, c, HDP: tl.constexpr, HMP: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, BP: tl.constexpr, BU: tl.constexpr,
):  # fmt: skip
    """Adds the products of the joint units c with u', which is in the ``scratch`` (BP, HDP)."""
    p = tl.arange(0, BP)
    for first in tl.range(0, HDP, BU, disable_licm=True):
        k = first + tl.arange(0, BU)
        u = tl.load(scratch + p[:, None] * HDP + k[None, :]).to(OPERAND)
        w = turned_weights(weight, HDP + HMP, c, k, OPERAND)
        acc = tl.dot(u, w, acc, input_precision=PRECISION)
    return acc


@triton.jit
def pair_scores(
    x, y, i, j, x_mean, y_mean, unit, scratch, NORMALIZE: tl.constexpr, NARROW: tl.constexpr,
    DP: tl.constexpr, HDP: tl.constexpr, HMP: tl.constexpr, HP: tl.constexpr,
    WEIGHTS: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, BP: tl.constexpr,
    BK: tl.constexpr, BH: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Scores (BP,). u' is one block and stays here, or lies in the ``scratch`` (BP, HDP)."""
    BU: tl.constexpr = min(BH, BV)
    h = tl.arange(0, BH)
    if NARROW:
        u, apart, along = difference_branch(
            x, y, i, j, unit, h, NORMALIZE, DP, WEIGHTS, OPERAND, PRECISION, BP, BK, BH
        )  # fmt: skip
        of_u = tl.sum(u * u, 1)
        u = operand(u, WEIGHTS, OPERAND)
    else:
        of_u = tl.zeros((BP,), tl.float32)
        apart = tl.zeros((BP,), tl.float32)
        along = tl.zeros((BP,), tl.float32)
        into = scratch + tl.arange(0, BP)[:, None] * HDP + h[None, :]
        tl.debug_barrier()  # the pairs before are done
        for first in tl.range(0, HDP, BH, disable_licm=True):
            u, apart, along = difference_branch(
                x, y, i, j, unit, first + h, NORMALIZE, DP, WEIGHTS, OPERAND, PRECISION, BP, BK, BH
            )  # fmt: skip
            of_u += tl.sum(u * u, 1)
            tl.store(into + first, operand(u, WEIGHTS, OPERAND).to(scratch.dtype.element_ty))
        tl.debug_barrier()  # it is read in another layout
    of_u = inverse(of_u)
    of_u = tl.where(of_u > 0.0, of_u, 1.0)
    score = tl.zeros((BP,), tl.float32) + tl.load(unit.score_bias).to(tl.float32)
    for first in tl.range(0, HP, BC, disable_licm=True):
        c = first + tl.arange(0, BC)
        acc, squared = mean_products(
            x, y, i, j, x_mean, y_mean, unit, c, apart, along, NORMALIZE, DP, HDP, HMP, WEIGHTS,
            OPERAND, PRECISION, BP, BK, BV, BC,
        )  # fmt: skip
        acc *= (inverse(squared) / of_u)[:, None]
        if NARROW:
            w = turned_weights(unit.joint, HDP + HMP, c, h, OPERAND)
            acc = tl.dot(u, w, acc, input_precision=PRECISION)
        else:
            acc = kept_products(acc, scratch, unit.joint, c, HDP, HMP, OPERAND, PRECISION, BP, BU)
        bias = tl.load(unit.joint_bias + c).to(tl.float32)
        joint = relu(acc * of_u[:, None] + bias[None, :])
        score += tl.sum(joint * tl.load(unit.score + c).to(tl.float32)[None, :], 1)
    return score + score * 0.0  # NaN where it is infinite


@triton.jit
def score_tile(
    t, x, y, x_mean, y_mean, unit, out, n, m, first, second, count, form, scratch,
    NORMALIZE: tl.constexpr, NARROW: tl.constexpr, DP: tl.constexpr, HDP: tl.constexpr,
    HMP: tl.constexpr, HP: tl.constexpr, WEIGHTS: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
    BH: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Scores of tile t, see the kernel."""
    i, j, asked, at, mirrored = pairs_of(t, form, n, m, first, second, count, BI, BJ)
    score = pair_scores(
        x, y, i, j, x_mean, y_mean, unit, scratch, NORMALIZE, NARROW, DP, HDP, HMP, HP, WEIGHTS,
        OPERAND, PRECISION, BI * BJ, BK, BH, BV, BC,
    )  # fmt: skip
    tl.store(out + at, score, mask=asked)
    tl.store(out + (j.to(tl.int64) * m + i), score, mask=mirrored)


@triton.jit(
    do_not_specialize=["n", "m", "count", "tiles", "form"],
    do_not_specialize_on_alignment=["first", "second"],
)
def pair_scores_kernel(
    x, y, x_mean, y_mean, unit, out, n, m, first, second, count, tiles, form, scratch,
    NORMALIZE: tl.constexpr, NARROW: tl.constexpr, DP: tl.constexpr, HDP: tl.constexpr,
    HMP: tl.constexpr, HP: tl.constexpr, WEIGHTS: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
    BH: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Scores of the tiles of pairs that are a program's.

    form: ALL pairs, ``out`` (n, m); UPPER, each unordered pair of rows once, into both of its
    places; or LISTED, ``first`` and ``second`` (count,), ``out`` (count,). It is asked for at run
    time: one binary takes all, so that a pair has the same bits in each. A unit that is not NARROW
    has fewer programs than tiles, and a scratch of (programs, BI BJ, HDP).
    """
    program = tl.program_id(0)
    if NARROW:
        score_tile(
            program, x, y, x_mean, y_mean, unit, out, n, m, first, second, count, form, scratch,
            NORMALIZE, NARROW, DP, HDP, HMP, HP, WEIGHTS, OPERAND, PRECISION, BI, BJ, BK, BH, BV,
            BC,
        )  # fmt: skip
    else:
        scratch += program.to(tl.int64) * (BI * BJ * HDP)
        for t in tl.range(program, tiles, tl.num_programs(0), disable_licm=True):
            score_tile(
                t, x, y, x_mean, y_mean, unit, out, n, m, first, second, count, form, scratch,
                NORMALIZE, NARROW, DP, HDP, HMP, HP, WEIGHTS, OPERAND, PRECISION, BI, BJ, BK, BH,
                BV, BC,
            )  # fmt: skip
