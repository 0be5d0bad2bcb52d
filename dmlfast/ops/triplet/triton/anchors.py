"""The triplets of one anchor a program: sums of hinges, and their derivatives by distance."""

import triton
import triton.language as tl

from dmlfast.ops.triton.side import Side

NOBODY = tl.constexpr(2147483647)


@triton.jit
def _negatives(distances, r, low, high, j):
    """Distances of the columns j, infinity of those that are no negatives, (1, BN); and which are
    negatives, (BN,).
    """
    negative = (j < r.n) & ((j < low) | (j >= high))
    d = tl.abs(tl.load(distances + j, mask=negative, other=float("inf")))
    return d[None, :], negative


@triton.jit
def _lower(best, who, d, index):
    """The least values (BQ,) so far and the lowest index of each, with those of d (BQ, BN)."""
    least = tl.min(d, 1)
    first = tl.min(tl.where(d == least[:, None], index, NOBODY), 1)
    who = tl.where(least == best, tl.minimum(who, first), tl.where(least < best, first, who))
    return tl.minimum(best, least), who


@triton.jit
def _take_all(distances, weights, r, low, high, itself, margin, BQ: tl.constexpr, BN: tl.constexpr):
    """Every positive, BQ at a time, with each negative."""
    total = tl.zeros((BQ,), tl.float32)
    above = tl.zeros((BQ,), tl.int64)
    for first in range(low, high, BQ):
        q = first + tl.arange(0, BQ)
        positive = (q < high) & (q != itself)
        threshold = tl.abs(tl.load(distances + q, mask=positive, other=0.0)) + margin
        threshold = tl.where(positive, threshold, -float("inf"))
        exceeded = tl.zeros((BQ,), tl.float32)
        for first_j in range(0, r.n, BN):
            j = first_j + tl.arange(0, BN)
            d, negative = _negatives(distances, r, low, high, j)
            hinge = tl.maximum(threshold[:, None] - d, 0.0)
            one = (hinge > 0.0).to(tl.float32)
            total += tl.sum(hinge, 1)
            exceeded += tl.sum(one, 1)
            before = tl.load(weights + j, mask=negative, other=0.0)
            tl.store(weights + j, before - tl.sum(one, 0), mask=negative)
        tl.store(weights + q, exceeded, mask=positive)
        above += exceeded.to(tl.int64)
        tl.debug_barrier()  # the next positives add to the weights of negatives
    return tl.sum(total, 0), tl.sum(above, 0)


@triton.jit
def _take_semihard(
    distances, weights, r, place, low, high, itself, margin, BQ: tl.constexpr, BN: tl.constexpr
):
    """Each positive with the nearest negative beyond it, or the furthest where there is none."""
    furthest = tl.full((1,), float("inf"), tl.float32)  # with the opposite sign
    last = tl.full((1,), NOBODY, tl.int32)
    for first_j in range(0, r.n, BN):
        j = first_j + tl.arange(0, BN)
        d, negative = _negatives(distances, r, low, high, j)
        index = tl.load(r.order + j, mask=negative, other=NOBODY)[None, :]
        d = tl.where(negative[None, :], -d, float("inf"))
        furthest, last = _lower(furthest, last, d, index)
    total = tl.zeros((BQ,), tl.float32)
    above = tl.zeros((BQ,), tl.int64)
    for first in range(low, high, BQ):
        q = first + tl.arange(0, BQ)
        positive = (q < high) & (q != itself)
        own = tl.abs(tl.load(distances + q, mask=positive, other=0.0))
        nearest = tl.full((BQ,), float("inf"), tl.float32)
        who = tl.full((BQ,), NOBODY, tl.int32)
        for first_j in range(0, r.n, BN):
            j = first_j + tl.arange(0, BN)
            d, negative = _negatives(distances, r, low, high, j)
            beyond = negative[None, :] & (d > own[:, None])
            index = tl.load(r.order + j, mask=negative, other=NOBODY)[None, :]
            index = tl.where(beyond, index, NOBODY)
            nearest, who = _lower(nearest, who, tl.where(beyond, d, float("inf")), index)
        some = who != NOBODY
        hinge = own - tl.where(some, nearest, -furthest) + margin
        taken = positive & (hinge > 0.0)
        total += tl.where(taken, hinge, 0.0)
        above += taken.to(tl.int64)
        tl.store(weights + q, taken.to(tl.float32), mask=positive)
        at = tl.load(place + tl.where(some, who, last), mask=taken, other=0)
        # several positives may meet one negative; counts are exact, whatever their order
        tl.atomic_add(weights + at, tl.full((BQ,), -1.0, tl.float32), mask=taken)
    return tl.sum(total, 0), tl.sum(above, 0)


@triton.jit
def _take_hardest(
    distances, weights, r, place, low, high, itself, margin, BN: tl.constexpr
):  # fmt: skip
    """The furthest positive with the nearest negative."""
    furthest = tl.full((1,), float("inf"), tl.float32)  # with the opposite sign
    last = tl.full((1,), NOBODY, tl.int32)
    for first in range(low, high, BN):
        q = first + tl.arange(0, BN)
        positive = (q < high) & (q != itself)
        d = -tl.abs(tl.load(distances + q, mask=positive, other=float("inf")))
        d = tl.where(positive, d, float("inf"))
        index = tl.load(r.order + q, mask=positive, other=NOBODY)
        furthest, last = _lower(furthest, last, d[None, :], index[None, :])
    nearest = tl.full((1,), float("inf"), tl.float32)
    first_one = tl.full((1,), NOBODY, tl.int32)
    for first_j in range(0, r.n, BN):
        j = first_j + tl.arange(0, BN)
        d, negative = _negatives(distances, r, low, high, j)
        index = tl.load(r.order + j, mask=negative, other=NOBODY)
        nearest, first_one = _lower(nearest, first_one, d, index[None, :])
    hinge = margin - furthest - nearest
    taken = hinge > 0.0
    one = tl.full((1,), 1.0, tl.float32)
    tl.store(weights + tl.load(place + last, mask=taken, other=0), one, mask=taken)
    tl.store(weights + tl.load(place + first_one, mask=taken, other=0), -one, mask=taken)
    return tl.sum(tl.where(taken, hinge, 0.0), 0), tl.sum(taken.to(tl.int64), 0)


@triton.jit(do_not_specialize=["n", "m"])
def anchors_kernel(
    x, r, n, m, distances, weights, sums, above, counts, place, first_i, pitch, margin,
    MINING: tl.constexpr, APART: tl.constexpr, BQ: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Of the anchor at a position: the sum of its hinges, how many are above 0, and its triplets.

    distances, weights: the rows (pitch,) of the anchors from first_i on. The weights, d sum / d
    distance, are zeros before. place: the positions of the columns as they were given.
    """
    x, r = Side(n, *x), Side(m, *r)
    own = tl.program_id(0)
    i = first_i + own
    distances += own.to(tl.int64) * pitch
    weights += own.to(tl.int64) * pitch
    low, high = tl.load(x.low + i), tl.load(x.high + i)
    itself = i * 0 - 1
    if APART:
        itself = i
    elif x.itself is not None:
        itself = tl.load(x.itself + i)
    positives = high - low - ((itself >= low) & (itself < high)).to(tl.int32)
    negatives = r.n - (high - low)
    total = low * 0.0
    exceeding = (low * 0).to(tl.int64)
    count = (low * 0).to(tl.int64)
    if (positives > 0) & (negatives > 0):
        if MINING == "all":
            count += positives.to(tl.int64) * negatives
            total, exceeding = _take_all(
                distances, weights, r, low, high, itself, margin, BQ, BN
            )  # fmt: skip
        elif MINING == "semihard":
            count += positives
            total, exceeding = _take_semihard(
                distances, weights, r, place, low, high, itself, margin, BQ, BN
            )  # fmt: skip
        else:
            count += 1
            total, exceeding = _take_hardest(
                distances, weights, r, place, low, high, itself, margin, BN
            )  # fmt: skip
    tl.store(sums + i, total)
    tl.store(above + i, exceeding)
    tl.store(counts + i, count)
