"""The products that make gradients of kept exponentials: by torch's library where that can."""

import torch
import triton
import triton.language as tl

from dmlfast.ops import matmul
from dmlfast.ops.norm_softmax.triton.rows import class_power
from dmlfast.ops.triton import configs
from dmlfast.ops.triton.tile import rounded_to_tf32

PROGRAMS = 256  # a product of few tiles is cut into parts, so that all multiprocessors have some
FEW = 64  # tiles
ALIGNED = 8  # components; rows that are not make a library slow


@triton.jit
def _added(
    acc, kept, pitch, i0, i, other, row_stride, column_stride, k, inverse, count, d, first, end,
    POWERS: tl.constexpr, TURNED: tl.constexpr, ROUNDED: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """``acc`` and the products of the steps from ``first`` to ``end``."""
    for step in range(first, end):
        j = tl.arange(0, BC)
        if TURNED:
            tile = kept + tl.cast(step, tl.int64) * BC * pitch + i0
            e = tl.load(tile + i[:, None] + j[None, :] * pitch)
        else:
            tile = kept + i0 * pitch + step * BC
            e = tl.load(tile + i[:, None] * pitch + j[None, :])
        j += step * BC
        own = tl.minimum(j, count - 1)  # what is kept beyond is 0
        at = own.to(tl.int64)[:, None] * row_stride + k.to(tl.int64)[None, :] * column_stride
        x = tl.load(other + at, mask=(k < d)[None, :], other=0.0)
        if POWERS and inverse is not None:
            x = x.to(tl.float32) * class_power(tl.load(inverse + own))[:, None]
        if ROUNDED:
            x = rounded_to_tf32(x)
        acc = tl.dot(e.to(OPERAND), x.to(OPERAND), acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=["n", "count", "steps", "all_steps", "again"])
def product_kernel(
    out, kept, pitch, other, row_stride, column_stride, inverse, far, n, count, d, steps,
    all_steps, again, MADE: tl.constexpr, TURNED: tl.constexpr, ROUNDED: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """Adds to a tile of ``out`` (parts, n, d) the product of what is kept and ``other`` (count, d).

    A part takes ``steps`` of ``all_steps`` times BC columns that are kept; TURNED, rows. inverse:
    (count,) of the classes that ``other`` is, None of rows. far: whether their powers are needed.
    again: something is in ``out`` already; MADE: the product without powers is, and is replaced.
    """
    powers = False
    if inverse is not None:
        powers = tl.load(far) > 0.0
    if MADE:
        if not powers:
            return
    across, down = tl.cdiv(d, BK), tl.cdiv(n, BM)
    program = tl.program_id(0)
    part = program // (across * down)
    i0 = (program // across % down * BM).to(tl.int64)
    i, k = tl.arange(0, BM), program % across * BK + tl.arange(0, BK)
    out += (part.to(tl.int64) * n + i0) * d
    into = out + i[:, None] * d + k[None, :]
    known = (i < n - i0)[:, None] & (k < d)[None, :]
    acc = tl.zeros((BM, BK), tl.float32)
    if again:
        acc = tl.load(into, mask=known, other=0.0)
    first, end = part * steps, tl.minimum((part + 1) * steps, all_steps)
    if powers:
        acc = _added(
            acc, kept, pitch, i0, i, other, row_stride, column_stride, k, inverse, count, d, first,
            end, True, TURNED, ROUNDED, OPERAND, PRECISION, BC,
        )  # fmt: skip
    elif not MADE:
        acc = _added(
            acc, kept, pitch, i0, i, other, row_stride, column_stride, k, inverse, count, d, first,
            end, False, TURNED, ROUNDED, OPERAND, PRECISION, BC,
        )  # fmt: skip
    tl.store(into, acc, mask=known)


def suits_library(kept: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether `matmul.add_product` takes the product, and fast."""
    return (
        kept.dtype == other.dtype == torch.bfloat16
        and other.stride(1) == 1
        and other.stride(0) % ALIGNED == other.shape[1] % ALIGNED == 0
    )


def add_product(
    out: torch.Tensor,
    kept: torch.Tensor,
    other: torch.Tensor,
    inverse: torch.Tensor | None,
    far: torch.Tensor | None,
    again: bool,
    how: configs.Products,
    tile: configs.ProductTile,
) -> None:
    """``out`` (n, d), float32 and contiguous, is or with ``again`` grows by kept times other.

    Args:
        kept: (rows, classes), both padded to whole tiles.
        other: (m, d) of any strides: classes, where ``out`` is of rows, or the padded rows.
        inverse: (m,), 1 / lengths of the classes, None where ``out`` is of classes.
        far: (), above 0 where any class of all has a length far from 1; None without ``inverse``.
    """
    turned = inverse is None
    n, d = out.shape
    # which knows of no powers: where they are needed, what it made is replaced, and not added to
    by_library = suits_library(kept, other) and (turned or not again)
    if by_library:
        block = (kept.T if turned else kept)[:n, : len(other)]
        matmul.add_product(out, block, other, again=again)
    if by_library and turned:
        return
    width = min(tile.BK, max(16, triton.next_power_of_2(d)))
    if d % 16:  # stored one by one: addresses take the registers of half a tile
        width = min(width, tile.BK // 2)
    tile = tile._replace(BK=width)
    tiles = -(-n // tile.BM) * -(-d // tile.BK)
    parts = PROGRAMS // tiles if tiles <= FEW and not by_library else 1
    all_steps = kept.shape[0 if turned else 1] // tile.BC
    steps = -(-all_steps // parts)
    parts = -(-all_steps // steps)
    into = out if parts == 1 else out.new_empty(parts, n, d)
    product_kernel[(tiles * parts,)](
        into, kept, kept.stride(0), other, *other.stride(), inverse, far, n, len(other), d,
        steps, all_steps, int(again and parts == 1), MADE=by_library, TURNED=turned,
        ROUNDED=other.dtype == torch.float32 and how.W_PRECISION == "tf32",
        OPERAND=how.W_OPERAND, PRECISION=how.W_PRECISION, **tile.blocks, **configs.launch(tile),
    )  # fmt: skip
    if parts > 1 and again:
        out += into.sum(0)
    elif parts > 1:
        torch.sum(into, 0, out=out)
