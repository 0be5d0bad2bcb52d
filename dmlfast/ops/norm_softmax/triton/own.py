"""Rows and their own classes at length 1: how far apart they are, and the gradients of that."""

import torch
import triton
import triton.language as tl

from dmlfast.ops.gpu import on_its_device
from dmlfast.ops.norm_softmax import settings
from dmlfast.ops.norm_softmax.triton.rows import blocks_of, inverse_length, load_rows
from dmlfast.ops.triton.configs import FUSED

PARALLEL = tl.constexpr(settings.PARALLEL)
TINY = tl.constexpr(settings.TINY)


@triton.jit
def _pair(
    rows, own, row_step, row_inverse, weight, label, class_step, class_inverse, k, row_stride,
    class_stride, d,
):  # fmt: skip
    """Components k of rows and of their classes, at length 1."""
    x = load_rows(rows, own, k, row_stride, row_step, d) * row_inverse[:, None]
    p = load_rows(weight, label, k, class_stride, class_step, d) * class_inverse[:, None]
    return x, p


@triton.jit(do_not_specialize=["n"])
def own_pairs_kernel(
    rows, row_stride, row_step, weight, class_stride, class_step, labels, out, n, d,
    BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Fills ``out`` (4, n) of BM rows: inverse lengths of them and of their classes, the lengths of
    difference and sum of both at length 1.
    """
    i = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    own = tl.minimum(i, n - 1)
    label = tl.load(labels + own)
    row_inverse = inverse_length(rows, own, row_stride, row_step, d, BM, BD)
    class_inverse = inverse_length(weight, label, class_stride, class_step, d, BM, BD)
    apart = tl.zeros((BM,), tl.float32)
    joined = tl.zeros((BM,), tl.float32)
    for first in range(0, d, BD):
        x, p = _pair(
            rows, own, row_step, row_inverse, weight, label, class_step, class_inverse,
            first + tl.arange(0, BD), row_stride, class_stride, d,
        )  # fmt: skip
        apart += tl.sum((x - p) * (x - p), 1)
        joined += tl.sum((x + p) * (x + p), 1)
    tl.store(out + i, row_inverse, mask=i < n)
    tl.store(out + n + i, class_inverse, mask=i < n)
    tl.store(out + 2 * n + i, tl.where(apart == 0.0, TINY, tl.sqrt_rn(apart)), mask=i < n)
    tl.store(out + 3 * n + i, tl.where(joined == 0.0, TINY, tl.sqrt_rn(joined)), mask=i < n)


@triton.jit(do_not_specialize=["n"])
def own_gradients_kernel(
    rows, row_stride, row_step, weight, class_stride, class_step, labels, pairs, d_angle, d_rows,
    d_own, n, d, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Adds to ``d_rows`` (n, d), and fills ``d_own`` (n, d), the gradients of BM rows and of their
    classes from that of the angle between them; either may be missing.
    """
    i = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    own = tl.minimum(i, n - 1)
    label = tl.load(labels + own)
    row_inverse, class_inverse = tl.load(pairs + own), tl.load(pairs + n + own)
    apart, joined = tl.load(pairs + 2 * n + own), tl.load(pairs + 3 * n + own)
    apart, joined = apart * apart, joined * joined
    both = tl.where(apart + joined == 0.0, 1.0, apart + joined)  # 4, less where one is 0
    # b - cos(angle) a = b - a + (1 - cos(angle)) a, of small differences where the angle is small
    versine = (2.0 * tl.div_rn(apart, both))[:, None]
    to_class = tl.zeros((BM,), tl.float32)
    to_row = tl.zeros((BM,), tl.float32)
    for first in range(0, d, BD):
        x, p = _pair(
            rows, own, row_step, row_inverse, weight, label, class_step, class_inverse,
            first + tl.arange(0, BD), row_stride, class_stride, d,
        )  # fmt: skip
        a, b = p - x + versine * x, x - p + versine * p
        to_class += tl.sum(a * a, 1)
        to_row += tl.sum(b * b, 1)
    g = -tl.load(d_angle + own)
    to_class, to_row = tl.sqrt_rn(to_class), tl.sqrt_rn(to_row)
    by_row = tl.where(to_class < PARALLEL, 0.0, g * row_inverse / to_class)[:, None]
    by_class = tl.where(to_row < PARALLEL, 0.0, g * class_inverse / to_row)[:, None]
    if d_rows is not None:
        for first in range(0, d, BD):
            k = first + tl.arange(0, BD)
            x, p = _pair(
                rows, own, row_step, row_inverse, weight, label, class_step, class_inverse, k,
                row_stride, class_stride, d,
            )  # fmt: skip
            at, there = i[:, None] * d + k[None, :], (i < n)[:, None] & (k < d)[None, :]
            found = tl.load(d_rows + at, mask=there, other=0.0)
            tl.store(d_rows + at, found + by_row * (p - x + versine * x), mask=there)
    if d_own is not None:
        for first in range(0, d, BD):
            k = first + tl.arange(0, BD)
            x, p = _pair(
                rows, own, row_step, row_inverse, weight, label, class_step, class_inverse, k,
                row_stride, class_stride, d,
            )  # fmt: skip
            at, there = i[:, None] * d + k[None, :], (i < n)[:, None] & (k < d)[None, :]
            tl.store(d_own + at, by_class * (x - p + versine * p), mask=there)


@on_its_device
def own_pairs(rows: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """See :class:`dmlfast.ops.norm_softmax.assembly.Kernels`."""
    n, d = rows.shape
    found = rows.new_empty(4, n, dtype=torch.float32)
    grid, blocks = blocks_of(n, d)
    own_pairs_kernel[grid](
        rows, *rows.stride(), weight, *weight.stride(), labels, found, n, d, **blocks, **FUSED
    )
    return found


@on_its_device
def own_gradients(
    rows: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    pairs: torch.Tensor,
    d_angle: torch.Tensor,
    d_rows: torch.Tensor | None,
    want_classes: bool,
) -> torch.Tensor | None:
    """See :class:`dmlfast.ops.norm_softmax.assembly.Kernels`."""
    n, d = rows.shape
    d_own = rows.new_empty(n, d, dtype=torch.float32) if want_classes else None
    grid, blocks = blocks_of(n, d)
    own_gradients_kernel[grid](
        rows, *rows.stride(), weight, *weight.stride(), labels, pairs, d_angle, d_rows, d_own, n, d,
        **blocks, **FUSED,
    )  # fmt: skip
    return d_own
