"""Rows at length 1 as Triton kernels, one launch each."""

import torch
import triton
import triton.language as tl

from dmlfast.ops.gpu import on_its_device
from dmlfast.ops.triton.configs import FUSED
from dmlfast.ops.triton.rows import blocks_of, load_given, power_and_length


@triton.jit(do_not_specialize=["n"])
def normalize_kernel(
    given, row_stride, column_stride, out, n, d, BM: tl.constexpr, BD: tl.constexpr
):
    """Fills ``out`` (n, d), contiguous, with BM rows at length 1."""
    i = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    own = tl.minimum(i, n - 1)
    power, length = power_and_length(given, own, row_stride, column_stride, d, BM, BD)
    for first in range(0, d, BD):
        k = first + tl.arange(0, BD)
        x = load_given(given, own, k, row_stride, column_stride, d)
        unit = tl.div_rn(x * power[:, None], length[:, None])
        at, there = i[:, None] * d + k[None, :], (i < n)[:, None] & (k < d)[None, :]
        tl.store(out + at, unit.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["n"])
def normalize_grad_kernel(
    grad, grad_row_stride, grad_column_stride, given, row_stride, column_stride, out, n, d,
    BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Fills ``out`` (n, d), contiguous, with the gradient of BM rows from that of their units."""
    i = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    own = tl.minimum(i, n - 1)
    power, length = power_and_length(given, own, row_stride, column_stride, d, BM, BD)
    inverse = tl.div_rn(power, length)
    along = tl.zeros((BM,), tl.float32)
    for first in range(0, d, BD):
        k = first + tl.arange(0, BD)
        x = load_given(given, own, k, row_stride, column_stride, d)
        unit = tl.div_rn(x * power[:, None], length[:, None])
        along += tl.sum(unit * load_given(grad, own, k, grad_row_stride, grad_column_stride, d), 1)
    for first in range(0, d, BD):
        k = first + tl.arange(0, BD)
        x = load_given(given, own, k, row_stride, column_stride, d)
        unit = tl.div_rn(x * power[:, None], length[:, None])
        g = load_given(grad, own, k, grad_row_stride, grad_column_stride, d)
        across = (g - along[:, None] * unit) * inverse[:, None]
        at, there = i[:, None] * d + k[None, :], (i < n)[:, None] & (k < d)[None, :]
        tl.store(out + at, across.to(out.dtype.element_ty), mask=there)


@on_its_device
def forward(rows: torch.Tensor) -> torch.Tensor:
    """Rows (N, D) divided by their lengths, in their dtype."""
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    if len(rows):
        grid, blocks = blocks_of(*rows.shape)
        normalize_kernel[grid](rows, *rows.stride(), out, *rows.shape, **blocks, **FUSED)
    return out


@on_its_device
def gradient(grad: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """That of rows (N, D) from that of the rows at length 1, in their dtype."""
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    if len(rows):
        grid, blocks = blocks_of(*rows.shape)
        normalize_grad_kernel[grid](
            grad, *grad.stride(), rows, *rows.stride(), out, *rows.shape, **blocks, **FUSED
        )
    return out
