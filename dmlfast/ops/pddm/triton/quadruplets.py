"""The double-header hinges of quadruplets and their gradients, a tile of them a program.

A tile is BQ quadruplets of four slots each: the pairs (i, j), (i, k) and (j, l), and one that stays
empty. What a layer leaves is in memory between two stages of a program, and serves the gradients of
the weights afterwards.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from dmlfast.ops.pddm.triton.layers import inverse
from dmlfast.ops.pddm.triton.slots import (
    along,
    components,
    inputs_of,
    layer,
    part,
    scaled,
    through_layer,
)


class Kept(NamedTuple):
    """What a launch leaves of P slots, float32; B = H_d + H_m.

    inputs: (2, P, D), |x - y| and (x + y) / 2, at length 1 where they are to be. joined: (P, B),
    both branches at length 1. joint: (P, H), in the end its gradient before the ReLU. d_joined:
    (P, B), those of the branches. ends: (P, 2, D), those of both rows of a pair. sums: (tiles,
    B + 2 H + 1), those of the biases of the branches and of the joint layer, of the weights of the
    score and of its bias. losses: (programs,), parts of the loss, NaN where what a program looked
    at is not finite.
    """

    inputs: Any
    joined: Any
    joint: Any
    d_joined: Any
    ends: Any
    sums: Any
    losses: Any


@triton.jit
def _scores(joint, unit, slot, H: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr):
    score = tl.zeros((BP,), tl.float32) + tl.load(unit.score_bias).to(tl.float32)
    for first in tl.range(0, H, BK, disable_licm=True):
        c = first + tl.arange(0, BK)
        at, known = part(joint, slot, H, c, H)
        w = tl.load(unit.score_weight + c, mask=c < H, other=0.0).to(tl.float32)
        score += tl.sum(tl.load(at, mask=known, other=0.0) * w[None, :], 1)
    return score


@triton.jit
def _slot(values, s: tl.constexpr, BQ: tl.constexpr):
    """Of the values (4 BQ,) of slots those of slot s of each quadruplet, (BQ,)."""
    own = tl.arange(0, 4)[None, :] == s
    return tl.sum(tl.where(own, tl.reshape(values, (BQ, 4)), 0.0), 1)


@triton.jit
def _slots(first, second, third, BQ: tl.constexpr):
    """The values (BQ,) of three slots, (4 BQ,)."""
    s = tl.arange(0, 4)[None, :]
    found = tl.where(s == 1, second[:, None], tl.where(s == 2, third[:, None], 0.0))
    return tl.reshape(tl.where(s == 0, first[:, None], found), (4 * BQ,))


@triton.jit
def _hinges(
    score, distance, some, score_margin, embedding_margin, embedding_weight, ENDS: tl.constexpr,
    BQ: tl.constexpr,
):  # fmt: skip
    """The hinges of each quadruplet (BQ,), 0 where there are none, and their derivatives by the
    scores and the distances of its slots, (4 BQ,).
    """
    s, d = _slot(score, 0, BQ), _slot(distance, 0, BQ)
    total = tl.zeros((BQ,), tl.float32)
    by_s, by_d = total, total
    s_1, d_1, s_2, d_2 = total, total, total, total
    for end in tl.static_range(1, ENDS + 1):
        on_score = score_margin + _slot(score, end, BQ) - s
        on_distance = embedding_margin + d - _slot(distance, end, BQ)
        total += tl.maximum(on_score, 0.0) + embedding_weight * tl.maximum(on_distance, 0.0)
        over_s = tl.where(some & (on_score > 0.0), 1.0, 0.0)
        over_d = tl.where(some & (on_distance > 0.0), embedding_weight, 0.0)
        by_s, by_d = by_s - over_s, by_d + over_d
        if end == 1:
            s_1, d_1 = over_s, -over_d
        else:
            s_2, d_2 = over_s, -over_d
    return tl.where(some, total, 0.0), _slots(by_s, s_1, s_2, BQ), _slots(by_d, d_1, d_2, BQ)


@triton.jit
def _through_joint(g, joint, unit, slot, sums, B: tl.constexpr, H: tl.constexpr, BK: tl.constexpr):
    """Turns the joint layer into its gradient before the ReLU; adds up those of its bias and of the
    score's weights.
    """
    for first in tl.range(0, H, BK, disable_licm=True):
        c = first + tl.arange(0, BK)
        at, known = part(joint, slot, H, c, H)
        value = tl.load(at, mask=known, other=0.0)
        w = tl.load(unit.score_weight + c, mask=c < H, other=0.0).to(tl.float32)
        gradient = tl.where(value > 0.0, g[:, None] * w[None, :], 0.0)
        tl.store(at, gradient, mask=known)
        tl.store(sums + B + c, tl.sum(gradient, 0), mask=c < H)
        tl.store(sums + B + H + c, tl.sum(g[:, None] * value, 0), mask=c < H)
    tl.store(sums + B + 2 * H, tl.sum(g, 0))


@triton.jit
def _through_branch(
    joined, d_joined, length, slot, sums, width, B: tl.constexpr, BP: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """Turns the gradient of a branch at length 1 into that before its ReLU; adds up its bias's.
    length: its inverse lengths, (BP,).
    """
    shared = along(joined, B, d_joined, B, slot, width, BP, BK)
    tl.debug_barrier()
    for first in tl.range(0, width, BK, disable_licm=True):
        h = first + tl.arange(0, BK)
        at, known = part(joined, slot, B, h, width)
        unit = tl.load(at, mask=known, other=0.0)
        at, known = part(d_joined, slot, B, h, width)
        gradient = tl.load(at, mask=known, other=0.0) - shared[:, None] * unit
        gradient = tl.where(unit > 0.0, gradient * length[:, None], 0.0)
        tl.store(at, gradient, mask=known)
        tl.store(sums + h, tl.sum(gradient, 0), mask=h < width)


@triton.jit
def _ends(
    x, row_stride, column_stride, i, j, slot, kept, apart, middle, along_x, u, v,
    NORMALIZE: tl.constexpr, D: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Turns the gradients of u and v into those of both rows. along_x: that of the distance, as a
    multiple of x - y.
    """
    along_u = tl.zeros((BP,), tl.float32)
    along_v = tl.zeros((BP,), tl.float32)
    if NORMALIZE:
        along_u = along(u, D, kept.ends, 2 * D, slot, D, BP, BK)
        along_v = along(v, D, kept.ends + D, 2 * D, slot, D, BP, BK)
        tl.debug_barrier()
    for first in tl.range(0, D, BK, disable_licm=True):
        k = first + tl.arange(0, BK)
        own, other = components(x, row_stride, column_stride, i, j, k, D)
        one, known = part(kept.ends, slot, 2 * D, k, D)
        two, known = part(kept.ends + D, slot, 2 * D, k, D)
        d_u = tl.load(one, mask=known, other=0.0)
        d_v = tl.load(two, mask=known, other=0.0)
        if NORMALIZE:
            at, known = part(u, slot, D, k, D)
            d_u -= along_u[:, None] * tl.load(at, mask=known, other=0.0)
            at, known = part(v, slot, D, k, D)
            d_v -= along_v[:, None] * tl.load(at, mask=known, other=0.0)
            d_u, d_v = d_u * inverse(apart)[:, None], d_v * inverse(middle)[:, None]
        difference = own - other
        d_u = tl.where(difference > 0.0, d_u, tl.where(difference < 0.0, -d_u, 0.0))
        d_u += along_x[:, None] * difference
        tl.store(one, d_v * 0.5 + d_u, mask=known)
        tl.store(two, d_v * 0.5 - d_u, mask=known)


@triton.jit
def _tile(
    tile, x, row_stride, column_stride, quadruplets, first, count, tiles, share, unit, kept,
    score_margin, embedding_margin, embedding_weight, NORMALIZE: tl.constexpr,
    SQUARED: tl.constexpr, ENDS: tl.constexpr, WANT: tl.constexpr, SHAPE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile's part in the loss; the gradients where they are wanted."""
    D: tl.constexpr = SHAPE[0]  # widths of rows, of both branches and of the joint layer; blocks
    HD: tl.constexpr = SHAPE[1]
    HM: tl.constexpr = SHAPE[2]
    H: tl.constexpr = SHAPE[3]
    BQ: tl.constexpr = SHAPE[4]
    BK: tl.constexpr = SHAPE[5]
    B: tl.constexpr = HD + HM
    BP: tl.constexpr = 4 * BQ
    p = tl.arange(0, BP)
    slot = tile.to(tl.int64) * BP + p
    q, s = first + tile * BQ + p // 4, p % 4
    given = quadruplets + tl.where(q < count, q, 0).to(tl.int64) * 4
    i = tl.maximum(tl.load(given + (s == 2).to(tl.int32)), 0)
    j = tl.maximum(tl.load(given + tl.where(s < 3, s + 1, 0)), 0)
    u, v = kept.inputs, kept.inputs + tl.cast(tiles, tl.int64) * BP * D
    joined_v, d_joined_v = kept.joined + HD, kept.d_joined + HD

    apart, middle = inputs_of(
        x, row_stride, column_stride, i, j, slot, u, v, NORMALIZE, D, BP, BK
    )  # fmt: skip
    tl.debug_barrier()  # between stages: what one reads another wrote, or writes, in other threads
    of_u = layer(
        u, slot, D, unit.difference_weight, unit.difference_bias, kept.joined, B, D, HD, PRECISION,
        BP, BK,
    )  # fmt: skip
    of_v = layer(
        v, slot, D, unit.mean_weight, unit.mean_bias, joined_v, B, D, HM, PRECISION, BP, BK
    )  # fmt: skip
    of_u, of_v = inverse(of_u), inverse(of_v)
    tl.debug_barrier()
    scaled(kept.joined, B, of_u, slot, HD, BK)
    scaled(joined_v, B, of_v, slot, HM, BK)
    tl.debug_barrier()
    layer(
        kept.joined, slot, B, unit.joint_weight, unit.joint_bias, kept.joint, H, B, H, PRECISION,
        BP, BK,
    )  # fmt: skip
    tl.debug_barrier()
    score = _scores(kept.joint, unit, slot, H, BP, BK)

    distance = apart
    if not SQUARED:
        distance = tl.sqrt_rn(apart)
    own = first + tile * BQ + tl.arange(0, BQ)
    known = own < count
    some = tl.load(quadruplets + own.to(tl.int64) * 4, mask=known, other=-1) >= 0
    hinges, g, by_distance = _hinges(
        score, distance, some, score_margin, embedding_margin, embedding_weight, ENDS, BQ
    )  # fmt: skip
    if WANT:
        g, by_distance = g * share, by_distance * share
        sums = kept.sums + tile.to(tl.int64) * (B + 2 * H + 1)
        tl.debug_barrier()
        _through_joint(g, kept.joint, unit, slot, sums, B, H, BK)
        tl.debug_barrier()
        through_layer(
            kept.joint, slot, H, unit.joint_weight, B, kept.d_joined, B, B, H, PRECISION, BP, BK
        )  # fmt: skip
        tl.debug_barrier()
        _through_branch(kept.joined, kept.d_joined, of_u, slot, sums, HD, B, BP, BK)
        _through_branch(joined_v, d_joined_v, of_v, slot, sums + HD, HM, B, BP, BK)
        tl.debug_barrier()
        through_layer(
            kept.d_joined, slot, B, unit.difference_weight, D, kept.ends, 2 * D, D, HD, PRECISION,
            BP, BK,
        )  # fmt: skip
        through_layer(
            d_joined_v, slot, B, unit.mean_weight, D, kept.ends + D, 2 * D, D, HM, PRECISION, BP, BK
        )  # fmt: skip
        tl.debug_barrier()
        along_x = 2.0 * by_distance
        if not SQUARED:
            along_x = by_distance * inverse(apart)
        _ends(
            x, row_stride, column_stride, i, j, slot, kept, apart, middle, along_x, u, v, NORMALIZE,
            D, BP, BK,
        )  # fmt: skip
    return tl.sum(hinges, 0) * share + tl.sum(score * 0.0, 0)


@triton.jit
def _share(quadruplets, count):
    """Of each quadruplet that there is in their mean."""
    found = tl.zeros((256,), tl.int32)
    for first in tl.range(0, count, 256, disable_licm=True):
        q = first + tl.arange(0, 256)
        i = tl.load(quadruplets + q.to(tl.int64) * 4, mask=q < count, other=-1)
        found += (i >= 0).to(tl.int32)
    return 1.0 / tl.maximum(tl.sum(found, 0), 1).to(tl.float32)


@triton.jit(
    do_not_specialize=["n", "first", "count", "tiles"],
    do_not_specialize_on_alignment=["quadruplets"],
)
def quadruplets_kernel(
    x, row_stride, column_stride, n, quadruplets, first, count, tiles, unit, kept,
    score_margin, embedding_margin, embedding_weight, NORMALIZE: tl.constexpr,
    SQUARED: tl.constexpr, ENDS: tl.constexpr, WANT: tl.constexpr, SHAPE: tl.constexpr,
    PRECISION: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Of quadruplets (count, 4), from the ``first`` on, a tile each; and whether BR rows of x are
    finite, (n, D). ENDS: those of a positive pair that have a negative.
    """
    program = tl.program_id(0)
    D: tl.constexpr = SHAPE[0]
    BK: tl.constexpr = SHAPE[5]
    row = program.to(tl.int64) * BR + tl.arange(0, BR)
    wrong = tl.zeros((BR,), tl.float32)
    for start in range(0, D, BK):
        k = start + tl.arange(0, BK)
        at = row[:, None] * row_stride + k.to(tl.int64)[None, :] * column_stride
        value = tl.load(x + at, mask=(row < n)[:, None] & (k < D)[None, :], other=0.0)
        wrong += tl.sum(value.to(tl.float32) * 0.0, 1)
    loss = tl.sum(wrong, 0)
    if program < tiles:
        loss += _tile(
            program, x, row_stride, column_stride, quadruplets, first, count, tiles,
            _share(quadruplets, count), unit, kept, score_margin, embedding_margin,
            embedding_weight, NORMALIZE, SQUARED, ENDS, WANT, SHAPE, PRECISION,
        )  # fmt: skip
    tl.store(kept.losses + program, loss)
