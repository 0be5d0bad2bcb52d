"""What is done with each row alone: its length, a copy of it at another scale, and its gradient
through the norm.

The inverse length of a row, 0 of a row of zeros, is a power of two times a mantissa from 1 to 2.
Rows are multiplied by the power, which is exact in any dtype, and products of them by the mantissa:
nothing overflows or vanishes, whatever their lengths.
"""

import torch
import triton
import triton.language as tl

from dmlfast.ops.triton.configs import FUSED
from dmlfast.ops.triton.rows import (
    blocks_of,
    load_given,
    mantissa_of,
    power_and_length,
    power_of,
)
from dmlfast.ops.triton.tile import rounded_to_tf32

# Classes whose inverse lengths are from 1 / FAR to FAR enter products as they are.
FAR = tl.constexpr(1024.0)


@triton.jit
def _far(inverse):
    return ((inverse < 1.0 / FAR) & (inverse > 0.0)) | (inverse > FAR)


@triton.jit
def class_power(inverse):
    """What a class is multiplied by in a product: 1 unless its length is far from 1."""
    return tl.where(_far(inverse), power_of(inverse), 1.0)


@triton.jit
def inverse_length(given, own, row_stride, column_stride, d, BM: tl.constexpr, BD: tl.constexpr):
    """1 / length of BM rows, 0 of those shorter than any normal number."""
    power, length = power_and_length(given, own, row_stride, column_stride, d, BM, BD)
    return tl.div_rn(power, length)


@triton.jit(do_not_specialize=["n"])
def lengths_kernel(
    given, row_stride, column_stride, inverse, poison, far, n, d, BM: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """1 / length of BM rows. ``poison`` becomes NaN where one is not finite, and ``far``, if it is
    there, 1 where one is far from 1; all who write write the same.
    """
    i = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    own = tl.minimum(i, n - 1)
    found = inverse_length(given, own, row_stride, column_stride, d, BM, BD)
    tl.store(inverse + i, found, mask=i < n)
    broken = tl.sum(found * 0.0, 0)
    tl.store(poison, broken, mask=broken != 0.0)
    if far is not None:
        some = tl.max(_far(found).to(tl.float32), 0)
        tl.store(far, some, mask=some > 0.0)


@triton.jit(do_not_specialize=["n"])
def scaled_kernel(
    given, row_stride, column_stride, inverse, factor, out, n, d, padded, DP: tl.constexpr,
    ROUNDED: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """BM rows times the power in their inverse lengths, or times the mantissa and a factor.

    out: (padded, DP), zero in the padding.
    """
    i = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    own = tl.minimum(i, n - 1)
    there = i < n
    by = tl.load(inverse + own)
    if factor is None:
        by = power_of(by)
    else:
        by = mantissa_of(by) * tl.load(factor + own)
    for first in range(0, DP, BD):
        k = first + tl.arange(0, BD)
        x = load_given(given, own, k, row_stride, column_stride, d) * by[:, None]
        if ROUNDED:
            x = rounded_to_tf32(x)
        x = tl.where(there[:, None] & (k < d)[None, :], x, 0.0)
        at = out + i[:, None] * DP + k[None, :]
        tl.store(at, x.to(out.dtype.element_ty), mask=(i < padded)[:, None] & (k < DP)[None, :])


@triton.jit(do_not_specialize=["n"])
def through_norm_kernel(
    found, given, row_stride, column_stride, inverse, factor, everyone, poison, out, n, d,
    BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Turns the gradient ``found`` (n, d) of BM rows at length 1 into that of the rows, ``out``,
    which may be the same.

    Of rows with a factor the gradient lacks that factor; of classes it has their inverse lengths
    already, up to their powers. everyone: (d,), added to that of each class at length 1, or None.
    """
    i = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    own = tl.minimum(i, n - 1)
    inv = tl.load(inverse + own)
    if factor is None:
        one, other = tl.full((BM,), 1.0, tl.float32), class_power(inv)
    else:
        one, other = tl.load(factor + own), inv
    along = tl.zeros((BM,), tl.float32)
    for first in range(0, d, BD):
        k = first + tl.arange(0, BD)
        unit = load_given(given, own, k, row_stride, column_stride, d) * inv[:, None]
        gradient = load_given(found, own, k, d, 1, d)
        if everyone is not None:
            gradient += (inv / other)[:, None] * tl.load(everyone + k, mask=k < d, other=0.0)
        along += tl.sum(gradient * unit, 1)
    for first in range(0, d, BD):
        k = first + tl.arange(0, BD)
        unit = load_given(given, own, k, row_stride, column_stride, d) * inv[:, None]
        gradient = load_given(found, own, k, d, 1, d)
        if everyone is not None:
            gradient += (inv / other)[:, None] * tl.load(everyone + k, mask=k < d, other=0.0)
        across = (gradient - along[:, None] * unit) * one[:, None] * other[:, None]
        at = out + i[:, None] * d + k[None, :]
        across = (across + tl.load(poison)).to(out.dtype.element_ty)
        tl.store(at, across, mask=(i < n)[:, None] & (k < d)[None, :])


def inverse_lengths(
    rows: torch.Tensor, poison: torch.Tensor, far: torch.Tensor | None = None
) -> torch.Tensor:
    """(n,) float32, 1 / length of rows (n, d) of any dtype and strides, n > 0.

    0 for a row of zeros, NaN for one that is not finite. ``poison`` and ``far`` (), float32 and 0:
    what any of the rows is, see the kernel.
    """
    n, d = rows.shape
    inverse = rows.new_empty(n, dtype=torch.float32)
    grid, blocks = blocks_of(n, d)
    lengths_kernel[grid](rows, *rows.stride(), inverse, poison, far, n, d, **blocks, **FUSED)
    return inverse


def scaled(
    rows: torch.Tensor,
    inverse: torch.Tensor,
    factor: torch.Tensor | None,
    out: torch.Tensor,
    rounded: bool,
) -> None:
    """Fills ``out`` (padded, DP) with rows (n, d) times the powers in their inverse lengths (n,),
    or times the mantissas and a ``factor`` (n,); rounded to tf32 or not.
    """
    (n, d), (padded, width) = rows.shape, out.shape
    grid, blocks = blocks_of(padded, width)
    scaled_kernel[grid](
        rows, *rows.stride(), inverse, factor, out, n, d, padded, DP=width, ROUNDED=rounded,
        **blocks, **FUSED,
    )  # fmt: skip


def through_norm(
    found: torch.Tensor,
    rows: torch.Tensor,
    inverse: torch.Tensor,
    factor: torch.Tensor | None,
    poison: torch.Tensor,
    everyone: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> None:
    """Turns gradients ``found`` (n, d), float32 and contiguous, of rows at length 1 into those of
    the rows, in ``out`` of any dtype, contiguous, or where they are; see the kernel. ``poison`` (),
    0 or NaN, is added.
    """
    n, d = found.shape
    grid, blocks = blocks_of(n, d)
    through_norm_kernel[grid](
        found, rows, *rows.stride(), inverse, factor, everyone, poison,
        found if out is None else out, n, d, **blocks, **FUSED,
    )  # fmt: skip
