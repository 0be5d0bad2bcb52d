"""What is done with each row of each learner alone: its length, a packed copy, and its gradient
through the norm.

The inverse length of a row is taken in two factors. Packed rows of half precision are multiplied by
the first, a power of two, which is exact; products of them by the second, from 1 to 2. Those of
float32 are packed at length 1, and their second factor is 1.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from dmlfast.ops.boosted import settings
from dmlfast.ops.triton.configs import FUSED
from dmlfast.ops.triton.rows import mantissa_of, power_of
from dmlfast.ops.triton.tile import rounded_to_tf32

SHORTEST = tl.constexpr(settings.SHORTEST)
LONGEST = tl.constexpr(1 / settings.SHORTEST)  # inverse of a length
FIELDS = tl.constexpr(4)  # of a learner in the table
BLOCK = {"BM": 32, "BD": 64}  # rows and components that a program takes at once


class Packed(NamedTuple):
    """Rows of each learner, zero in the padding.

    table: (M, 4) int32: a learner's first component and their number; its first chunk of ``rows``
    and their end. parts: (M,), 1 / M. rows: (padded, chunks * chunk). power, rest: (M, padded), the
    two factors of the inverse lengths. poison: (), NaN where a value is not finite, else 0.
    """

    table: torch.Tensor
    parts: torch.Tensor
    rows: torch.Tensor
    power: torch.Tensor
    rest: torch.Tensor
    poison: torch.Tensor
    chunk: int

    @property
    def learners(self) -> int:
        return len(self.table)


@triton.jit
def _learner(m, GROUPS: tl.constexpr, CHUNK: tl.constexpr):
    """The row of the table of one of the learners that have so many components each."""
    first, size, chunk, end = m * 0, m * 0, m * 0, m * 0
    for each in tl.static_range(len(GROUPS)):
        first += tl.where(each < m, GROUPS[each], 0)
        size += tl.where(each == m, GROUPS[each], 0)
        chunk += tl.where(each < m, tl.cdiv(GROUPS[each], CHUNK), 0)
        end += tl.where(each <= m, tl.cdiv(GROUPS[each], CHUNK), 0)
    return first, size, chunk, end


@triton.jit
def _given(given, own, there, k, size, row_stride, column_stride):
    """Components k of rows, float32; 0 where there are none."""
    at = own[:, None] * row_stride + k.to(tl.int64)[None, :] * column_stride
    return tl.load(given + at, mask=there[:, None] & (k < size)[None, :], other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["n"])
def pack_kernel(
    given, row_stride, column_stride, n, table, parts, packed, pitch, power, rest, padded, poison,
    GROUPS: tl.constexpr, UNIT: tl.constexpr, ROUNDED: tl.constexpr, CHUNK: tl.constexpr,
    BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Packs BM rows of a learner, of which there are GROUPS. UNIT: at length 1, ROUNDED to tf32 or
    not. The first rows make the table of learners, and what part of the loss each has.
    """
    tile, m = tl.program_id(0), tl.program_id(1)
    i = tile.to(tl.int64) * BM + tl.arange(0, BM)
    there = i < n
    start, size, chunk, end = _learner(m, GROUPS, CHUNK)
    if tile == 0:
        table += m * FIELDS
        tl.store(table, start)
        tl.store(table + 1, size)
        tl.store(table + 2, chunk)
        tl.store(table + 3, end)
        tl.store(parts + m, 1.0 / len(GROUPS))
    given += start.to(tl.int64) * column_stride
    largest = tl.zeros((BM,), tl.float32)
    wrong = tl.zeros((BM,), tl.float32)
    for first in range(0, size, BD):
        k = first + tl.arange(0, BD)
        x = _given(given, i, there, k, size, row_stride, column_stride)
        largest = tl.maximum(largest, tl.max(tl.abs(x), 1))
        wrong += tl.sum(x * 0.0, 1)
    unit = power_of(largest)
    unit = tl.where(unit > 0.0, unit, 1.0)  # a power of two, so that no square overflows
    total = tl.zeros((BM,), tl.float32)
    for first in range(0, size, BD):
        k = first + tl.arange(0, BD)
        x = _given(given, i, there, k, size, row_stride, column_stride)
        x = tl.div_rn(x, unit[:, None])
        total += tl.sum(x * x, 1)
    length = tl.maximum(tl.sqrt_rn(total) * unit, SHORTEST)
    inverse = tl.div_rn(1.0, length)
    by, other = inverse, tl.full((BM,), 1.0, tl.float32)
    if not UNIT:
        by, other = power_of(inverse), mantissa_of(inverse)
    own = m.to(tl.int64) * padded + i
    tl.store(power + own, by)
    tl.store(rest + own, other)
    tl.store(poison + m * tl.num_programs(0) + tile, tl.sum(wrong, 0))
    for step in range(chunk, end):
        inside = tl.arange(0, CHUNK)
        k = (step - chunk) * CHUNK + inside
        x = _given(given, i, there, k, size, row_stride, column_stride)
        if UNIT:
            x = tl.div_rn(x, length[:, None])
        else:
            x = x * by[:, None]
        if ROUNDED:
            x = rounded_to_tf32(x)
        tl.store(packed + i[:, None] * pitch + (step * CHUNK + inside)[None, :], x)


@triton.jit(do_not_specialize=["n"])
def through_norm_kernel(
    out, d, n, table, packed, gradient, pitch, power, rest, padded, poison, CHUNK: tl.constexpr,
    BM: tl.constexpr,
):  # fmt: skip
    """Writes to ``out`` (n, d) the gradient of BM rows of a learner, of that of the packed rows.

    It is what is at right angles to the row, and all of it where the row counts as SHORTEST.
    """
    tile, m = tl.program_id(0), tl.program_id(1)
    i = tile.to(tl.int64) * BM + tl.arange(0, BM)
    table += m * FIELDS
    size, chunk, end = tl.load(table + 1), tl.load(table + 2), tl.load(table + 3)
    out += tl.load(table)
    own = m.to(tl.int64) * padded + i
    by, other = tl.load(power + own), tl.load(rest + own)
    along = tl.zeros((BM,), tl.float32)
    for step in range(chunk, end):
        at = i[:, None] * pitch + (step * CHUNK + tl.arange(0, CHUNK))[None, :]
        along += tl.sum(tl.load(gradient + at) * tl.load(packed + at).to(tl.float32), 1)
    along = tl.where(by * other < LONGEST, along * other * other, 0.0)
    by *= 2.0  # a pair and its mirror image
    wrong = tl.load(poison)
    for step in range(chunk, end):
        inside = tl.arange(0, CHUNK)
        at = i[:, None] * pitch + (step * CHUNK + inside)[None, :]
        x = tl.load(packed + at).to(tl.float32)
        across = (tl.load(gradient + at) - along[:, None] * x) * by[:, None] + wrong
        k = (step - chunk) * CHUNK + inside
        known = (i < n)[:, None] & (k < size)[None, :]
        tl.store(out + i[:, None] * d + k[None, :], across, mask=known)


def pack(rows: torch.Tensor, groups: list[int], padded: int, chunk: int, rounded: bool) -> Packed:
    """Packs rows (n, d) of any strides, n > 0, for learners of so many components each."""
    chunks = sum(-(-size // chunk) for size in groups)
    learners, tiles = len(groups), -(-padded // BLOCK["BM"])
    table = rows.new_empty(learners, FIELDS.value, dtype=torch.int32)
    parts = rows.new_empty(learners, dtype=torch.float32)
    packed = rows.new_empty(padded, chunks * chunk)
    power, rest = rows.new_empty(2, learners, padded, dtype=torch.float32)
    poison = rows.new_empty(learners, tiles, dtype=torch.float32)
    pack_kernel[(tiles, learners)](
        rows, *rows.stride(), len(rows), table, parts, packed, packed.stride(0), power, rest,
        padded, poison, GROUPS=tuple(groups), UNIT=rows.dtype == torch.float32, ROUNDED=rounded,
        CHUNK=chunk, maxnreg=255, **BLOCK, **FUSED,
    )  # fmt: skip
    return Packed(table, parts, packed, power, rest, poison.sum(), chunk)


def through_norm(out: torch.Tensor, packed: Packed, gradient: torch.Tensor) -> None:
    """Fills ``out`` (n, d), float32 and contiguous, of ``gradient``, that of the packed rows."""
    n, d = out.shape
    tiles = -(-n // BLOCK["BM"])
    padded, pitch = packed.rows.shape
    through_norm_kernel[(tiles, packed.learners)](
        out, d, n, packed.table, packed.rows, gradient, pitch, packed.power, packed.rest, padded,
        packed.poison, CHUNK=packed.chunk, BM=BLOCK["BM"], **FUSED,
    )  # fmt: skip
