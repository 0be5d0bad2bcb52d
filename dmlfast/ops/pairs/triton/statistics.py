"""Statistics of rows: partial ones added up, and given ones brought in order."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from dmlfast.ops.pairs.term import PairTerm
from dmlfast.ops.triton.configs import FUSED
from dmlfast.ops.triton.side import TILE, Side, arguments
from dmlfast.ops.triton.tile import LN2, LOG2E, NOTHING, count_of, poison_of, total_of


class Partial(NamedTuple):
    """Partial statistics exp2(top) total, (slots, padded).

    Of sums, total alone; of maxima, top alone. Of hinges top is the number of those above 0.
    """

    top: torch.Tensor
    total: torch.Tensor


class Stats(NamedTuple):
    """Statistics of one side and the gradients with respect to them, by position.

    value: (padded,) powers of two, `NOTHING` where nothing was selected; None for sums.
    grad: (padded,). highest, lowest: the greatest value in each tile, and the greatest opposite
    one. floor: (padded,) what terms must be above, or None.
    """

    value: Any
    grad: Any
    highest: Any
    lowest: Any
    padded: Any
    floor: Any = None


class Mean(NamedTuple):
    """A loss that is half the mean of the terms of some pairs, from its sums over bands of rows.

    losses: sums of terms. counts: int64 numbers of pairs. padded: rows of all bands; height: of
    each. loss: ().
    """

    losses: Any
    counts: Any
    padded: Any
    height: Any
    loss: Any


@triton.jit
def pairs_in(mean):
    """How many pairs a mean is of, at least 1."""
    return tl.maximum(count_of(mean.counts, mean.padded // mean.height), 1).to(tl.float32)


@triton.jit
def store_mean(mean, x, r):
    total = total_of(mean.losses, mean.padded // mean.height)
    tl.store(mean.loss, 0.5 * total / pairs_in(mean) + poison_of(x, r))


# A kernel can ask a field whether it is None, not a tuple.
NO_STATS = Stats(None, None, None, None, 0)
NO_MEAN = Mean(None, None, 0, 0, None)


@triton.jit(do_not_specialize=["n", "m", "slots"])
def combine_kernel(
    x, r, n, m, tops, totals, slots, result, stats, REDUCE: tl.constexpr, BM: tl.constexpr
):
    """Adds up the slots. ``result`` (n,) gets natural logarithms in the order of the given rows,
    ``stats`` powers of two by position and their range; each may be missing. Of sums and maxima
    there is the result only, of hinges (2, n), their sums and numbers.
    """
    x, r = Side(n, *x), Side(m, *r)
    tile = tl.program_id(0)
    i = tile * BM + tl.arange(0, BM)
    top = tl.zeros((BM,), tl.float32)
    if REDUCE == "logsumexp":
        top += NOTHING
    elif REDUCE == "max":
        top -= float("inf")
    total = tl.zeros((BM,), tl.float32)
    for slot in range(slots):
        at = tl.cast(slot, tl.int64) * x.padded + i
        if REDUCE == "logsumexp":
            part_top = tl.load(tops + at)
            higher = tl.maximum(top, part_top)
            total = total * tl.exp2(top - higher) + tl.load(totals + at) * tl.exp2(
                part_top - higher
            )
            top = higher
        elif REDUCE == "max":
            top = tl.maximum(top, tl.load(tops + at))
        else:
            total += tl.load(totals + at)
            if REDUCE != "sum":
                top += tl.load(tops + at)
    some = (total > 0.0) & (i < x.n)
    if REDUCE == "logsumexp":
        found = top + tl.log2(tl.where(some, total, 1.0))
    elif REDUCE == "max":
        found = top
    else:
        found = total
    if result is not None:
        value = found
        if REDUCE == "logsumexp":
            value = tl.where(some, found * LN2, -float("inf"))
        at = result + tl.load(x.order + i)
        tl.store(at, value + poison_of(x, r), mask=i < x.n)
        if REDUCE != "sum" and REDUCE != "logsumexp" and REDUCE != "max":
            tl.store(at + x.n, top, mask=i < x.n)
    if stats.value is not None:
        tl.store(stats.value + i, tl.where(some, found, NOTHING))
        tl.store(stats.lowest + tile, tl.max(tl.where(some, -found, -float("inf")), 0))
        tl.store(stats.highest + tile, tl.max(tl.where(some, found, -float("inf")), 0))


@triton.jit(do_not_specialize=["n"])
def stats_kernel(side, n, stats, given_value, given_grad, REDUCE: tl.constexpr, BM: tl.constexpr):
    """Brings statistics and their gradients, as they were given, in the order of a side."""
    side = Side(n, *side)
    tile = tl.program_id(0)
    i = tile * BM + tl.arange(0, BM)
    there = i < side.n
    row = tl.load(side.order + i)
    grad = tl.load(given_grad + row, mask=there, other=0.0)
    if REDUCE == "logsumexp":
        value = tl.load(given_value + row, mask=there, other=-float("inf"))
        some = there & (value != -float("inf"))
        value *= LOG2E
        grad = tl.where(some, grad, 0.0)
        tl.store(stats.value + i, tl.where(some, value, NOTHING))
        tl.store(stats.highest + tile, tl.max(tl.where(some, value, -float("inf")), 0))
        tl.store(stats.lowest + tile, tl.max(tl.where(some, -value, -float("inf")), 0))
    tl.store(stats.grad + i, grad)


def empty_stats(side: Side, logsumexp: bool = True) -> Stats:
    """Memory for the statistics of a side."""
    value, grad, highest, lowest = side.norm.new_empty(4, side.padded)
    if logsumexp:
        return Stats(value, grad, highest, lowest, side.padded)
    return Stats(None, grad, None, None, side.padded)


def stats_of(
    side: Side, value: torch.Tensor | None, grad: torch.Tensor | None, term: PairTerm
) -> Stats:
    """The statistics of a side and their gradients, (n,) each, if there are any."""
    if value is None or grad is None:
        return NO_STATS
    logsumexp = term.reduce == "logsumexp"
    stats = empty_stats(side, logsumexp)
    stats_kernel[(side.tiles,)](
        *arguments(side),
        stats,
        value.to(torch.float32).contiguous(),
        grad.to(torch.float32).contiguous(),
        REDUCE=term.reduce,
        BM=TILE,
        **FUSED,
    )
    return stats


def combined(x: Side, r: Side, partial: Partial) -> Stats:
    stats = empty_stats(x)
    combine_kernel[(x.tiles,)](
        *arguments(x, r),
        *partial,
        len(partial.top),
        None,
        stats,
        REDUCE="logsumexp",
        BM=TILE,
        **FUSED,
    )
    return stats
