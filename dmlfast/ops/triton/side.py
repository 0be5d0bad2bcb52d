"""One side of the pairs as the Triton kernels take it, and the kernel that prepares it."""

from typing import Any, Literal, NamedTuple

import torch
import triton
import triton.language as tl

from dmlfast.ops.triton.configs import FUSED
from dmlfast.ops.triton.tile import TILE_SIZE, rounded_to_tf32

TILE = int(TILE_SIZE.value)
SAMPLE = tl.constexpr(64)  # rows whose mean is taken for the centre
COUNTED = 4096  # rows up to which a place is found by counting; above, by sorting


class Side(NamedTuple):
    """One side of the pairs, its rows in the order of their labels and padded to whole tiles.

    n, given, row_stride, column_stride, d: the rows as they were given, (n, d).
    rows: (padded, DP) the same by position, minus a centre where that helps; zero in the padding.
    norm: (padded,) squared lengths of ``rows``. order: (padded,) which given row is at a position.
    low, high: (padded,) the columns of the row's own label are those at positions [low, high).
    itself, left_out: (padded,) the position of the row itself on the other side, or -1; None where
        it is the row's own position or nowhere. ``itself`` is no pair of one label, ``left_out`` no
        pair at all.
    bias: (padded,) added to the terms of the row, or None.
    lengths, bias_highest, bias_lowest, poison: (tiles,) the greatest length, bias and opposite bias
        in a tile; NaN where a value is not finite, else 0.
    """

    n: Any
    given: Any
    row_stride: Any
    column_stride: Any
    d: Any
    padded: Any
    rows: Any
    norm: Any
    order: Any
    low: Any
    high: Any
    itself: Any
    left_out: Any
    bias: Any
    lengths: Any
    bias_highest: Any
    bias_lowest: Any
    poison: Any

    @property
    def tiles(self) -> int:
        return int(self.padded // TILE)


def arguments(*sides: Side) -> tuple[Any, ...]:
    """What a kernel takes of some sides: all but n of each, then n of each.

    A kernel is compiled anew for a number in a tuple that is 1 or divisible by 16.
    """
    return *(side[1:] for side in sides), *(side.n for side in sides)


NO_SIDE = Side(*[None] * len(Side._fields))  # a kernel can ask a field whether it is None


@triton.jit
def _count_below(values, count, value, i):
    """How many of the values are less, how many equal, and how many equal ones come before i."""
    below, equal, before = i * 0, i * 0, i * 0
    k = tl.arange(0, 64)
    for first in range(0, count, 64):
        there = first + k < count
        other = tl.load(values + first + k, mask=there, other=0)
        same = (other[None, :] == value[:, None]) & there[None, :]
        below += tl.sum(((other[None, :] < value[:, None]) & there[None, :]).to(tl.int32), 1)
        equal += tl.sum(same.to(tl.int32), 1)
        before += tl.sum((same & ((first + k)[None, :] < i[:, None])).to(tl.int32), 1)
    return below, equal, before


@triton.jit(do_not_specialize=["n", "centre_n", "other_n"])
def _prepare(
    side, centre, n, centre_n, labels, other_labels, other_n, place, own_low, own_high, given_bias,
    unit, RANGE: tl.constexpr, ROUNDED: tl.constexpr, DP: tl.constexpr, BD: tl.constexpr,
    BM: tl.constexpr,
):  # fmt: skip
    side, centre = Side(n, *side), Side(centre_n, *centre)
    tile = tl.program_id(0)
    i = tile * BM + tl.arange(0, BM)
    there = i < side.n
    low, high, position = i * 0, i * 0, i
    if RANGE == "itself":
        high, low = i + 1, i
    elif RANGE == "counted":
        value = tl.load(labels + i, mask=there, other=0)
        below, equal, before = _count_below(labels, side.n, value, i)
        position = below + before
        if other_labels is not None:
            below, equal, before = _count_below(other_labels, other_n, value, i)
        low, high = below, below + equal
    elif RANGE == "sorted":
        position = tl.load(place + i, mask=there, other=0).to(tl.int32)
        low = tl.load(own_low + i, mask=there, other=0).to(tl.int32)
        high = tl.load(own_high + i, mask=there, other=0).to(tl.int32)
    position = tl.where(there, position, i)
    tl.store(side.order + position, tl.where(there, i, 0))
    tl.store(side.low + position, tl.where(there, low, 0))
    tl.store(side.high + position, tl.where(there, high, 0))

    norm = tl.zeros((BM,), tl.float32)
    poison = tl.zeros((BM,), tl.float32)
    for first in range(0, DP, BD):
        k = first + tl.arange(0, BD)
        known = there[:, None] & (k < side.d)[None, :]
        columns = k.to(tl.int64)[None, :]
        at = i.to(tl.int64)[:, None] * side.row_stride + columns * side.column_stride
        x = tl.load(side.given + at, mask=known, other=0.0)
        if centre.given is not None:
            s = (tl.arange(0, SAMPLE).to(tl.int64) * centre.n) // SAMPLE
            at = s[:, None] * centre.row_stride + columns * centre.column_stride
            some = tl.load(centre.given + at, mask=(k < side.d)[None, :], other=0.0)
            some = some.to(tl.float32)  # a sum of half-precision numbers is one of them
            x = tl.where(known, x - (tl.sum(some, 0) / SAMPLE)[None, :], 0.0)
        if ROUNDED:
            x = rounded_to_tf32(x.to(tl.float32))
        tl.store(side.rows + position.to(tl.int64)[:, None] * DP + k[None, :], x)
        x = x.to(tl.float32)
        norm += tl.sum(x * x, 1)
        poison += tl.sum(x * 0.0, 1)
    tl.store(side.norm + position, norm)
    poison += norm * 0.0
    if given_bias is not None:
        bias = tl.load(given_bias + i, mask=there, other=0.0).to(tl.float32) * unit
        tl.store(side.bias + position, bias)
        poison += bias * 0.0
        lowest = tl.where(there, bias, float("inf"))
        highest = tl.where(there, bias, -float("inf"))
        tl.store(side.bias_lowest + tile, tl.max(-lowest, 0))
        tl.store(side.bias_highest + tile, tl.max(highest, 0))
    tl.store(side.lengths + tile, tl.sqrt(tl.max(norm, 0)))
    tl.store(side.poison + tile, tl.sum(poison, 0))


def prepare(
    given: torch.Tensor,
    *,
    dtype: torch.dtype,
    width: int,
    chunk: int,
    centre: Side | Literal[True] | None,
    rounded: bool,
    labels: torch.Tensor | None = None,
    other_labels: torch.Tensor | None = None,
    itself: bool = False,
    bias: torch.Tensor | None = None,
    unit: float = 1.0,
) -> Side:
    """Prepares one side.

    Args:
        given: (n, d) float32, float16 or bfloat16 of any strides, n > 0.
        dtype: of the prepared rows.
        width: DP, the number of components with padding; ``chunk``, BD, divides it.
        centre: the side whose mean is subtracted, True for this one, None for neither.
        rounded: round to tf32.
        labels: (n,) int64, where pairs are selected by label.
        other_labels: (m,) int64 of the other side, None where both sides are the same.
        itself: the columns of a row's own label are the row itself alone.
        bias: (n,) floats, multiplied by ``unit``.
    """
    n, d = given.shape
    padded = -(-n // TILE) * TILE
    tiles = padded // TILE
    integers = given.new_empty(3, padded, dtype=torch.int32)
    with_bias = bias is not None
    side = Side(
        n=n,
        given=given,
        row_stride=given.stride(0),
        column_stride=given.stride(1),
        d=d,
        padded=padded,
        rows=given.new_empty(padded, width, dtype=dtype),
        norm=given.new_empty(padded, dtype=torch.float32),
        order=integers[0],
        low=integers[1],
        high=integers[2],
        itself=None,
        left_out=None,
        bias=given.new_empty(padded, dtype=torch.float32) if with_bias else None,
        lengths=given.new_empty(tiles, dtype=torch.float32),
        bias_highest=given.new_empty(tiles, dtype=torch.float32) if with_bias else None,
        bias_lowest=given.new_empty(tiles, dtype=torch.float32) if with_bias else None,
        poison=given.new_empty(tiles, dtype=torch.float32),
    )
    place = low = high = None
    kind = "itself" if itself else "nothing"
    if labels is not None:
        others = labels if other_labels is None else other_labels
        kind = "counted" if max(n, len(others)) <= COUNTED else "sorted"
        if kind == "sorted":
            place, low, high = _sorted_ranges(labels, other_labels)
    middle = side if centre is True else NO_SIDE if centre is None else centre
    _prepare[(tiles,)](
        *arguments(side, middle),
        labels,
        other_labels,
        0 if other_labels is None else len(other_labels),
        place,
        low,
        high,
        bias,
        unit,
        RANGE=kind,
        ROUNDED=rounded,
        DP=width,
        BD=min(chunk, 64),
        BM=TILE,
        num_warps=8,
        **FUSED,
    )
    return side


def _sorted_ranges(
    labels: torch.Tensor, other_labels: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where each row goes, and where its label begins and ends among those of the other side."""
    ordered, order = labels.sort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    others = ordered if other_labels is None else other_labels.sort().values
    return (
        place,
        torch.searchsorted(others, labels),
        torch.searchsorted(others, labels, right=True),
    )


def positions_of(self_index: torch.Tensor, x: Side, r: Side) -> torch.Tensor:
    """(padded,) int32: by position of a row in ``x``, the position of its own column in ``r``."""
    place = torch.empty_like(r.order)
    place[r.order[: r.n].long()] = torch.arange(r.n, dtype=torch.int32, device=place.device)
    valid = (self_index >= 0) & (self_index < r.n)
    found = torch.where(valid, place[self_index.clamp(0, r.n - 1)], -1)
    itself = torch.full_like(x.order, -1)
    itself[: x.n] = found[x.order[: x.n].long()]
    return itself
