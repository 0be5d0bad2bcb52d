"""The kernels' part of the normalised softmax in Triton.

../README.md has the maths, docs/triton_kernels.md the structure.
"""

import math
from typing import NamedTuple

import torch

from dmlfast.ops.gpu import on_its_device
from dmlfast.ops.norm_softmax.triton.product import add_product
from dmlfast.ops.norm_softmax.triton.rows import FAR, inverse_lengths, scaled, through_norm
from dmlfast.ops.norm_softmax.triton.scores import Classes, Rows, padded, score
from dmlfast.ops.triton import configs
from dmlfast.ops.triton.side import TILE
from dmlfast.ops.triton.tile import LN2, LOG2E

KEPT = 2000 << 20  # bytes of exponentials that are kept of a chunk of rows with all classes
BLOCK = 32 << 20  # bytes of those of a block, which a second-level cache holds
SUMS = 2 << 20  # bytes of sums over tiles of classes
COPIES = 16 << 20  # bytes of copies of a chunk of rows where memory is low
ROWS = 4096  # rows of a chunk at most
LEAST = 512  # and at least: fewer at a time read and write the gradient of the classes too often
SAFE = 115.0  # powers of two that exponentials and their sums may span upwards, or downwards


class Plan(NamedTuple):
    """Rows of a chunk and classes of a block, in whole tiles.

    kept: a block is all classes, and what the sums were taken of is kept for the gradients.
    running: exponents span so much that each row needs a shift of its own.
    """

    rows: int
    classes: int
    kept: bool
    running: bool


def plan_of(
    n: int, classes: int, width: int, itemsize: int, scale: float, low_memory: bool
) -> Plan:
    """For n rows of ``width`` components and exponentials of ``itemsize`` bytes."""
    running = scale * LOG2E.value + math.log2(classes) > SAFE
    classes = padded(classes)
    rows = min(ROWS, padded(n))
    if low_memory:
        rows = min(rows, max(TILE, COPIES // (2 * width * itemsize) // TILE * TILE))
    elif not running:
        fitting = KEPT // (classes * itemsize) // TILE * TILE
        if fitting >= min(rows, LEAST):
            return Plan(min(rows, fitting), classes, True, False)
    block = max(TILE, BLOCK // (rows * itemsize) // TILE * TILE)
    return Plan(rows, min(block, classes), classes <= block and not running, running)


@on_its_device
def forward(
    rows: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    target: torch.Tensor,
    row_weights: torch.Tensor,
    scale: float,
    low_memory: bool,
    want_rows: bool,
    want_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Log-sum-exps and gradients, as `dmlfast.ops.norm_softmax.assembly` asks for them.

    Args:
        rows: (N, D) float32, of values that ``weight``'s dtype has. weight: (C, D) of any dtype and
            strides. labels: (N,) int64, -1 where none. target, row_weights: (N,) float32.
        scale: above 0. low_memory: scratch beyond copies of some rows is at most 64 MiB, else 2 GiB.

    Returns:
        (N,), (N, D) and (C, D) float32, the gradients None where not wanted. All NaN where a row or
        a class is not finite.
    """
    (n, d), m = rows.shape, len(weight)
    found = rows.new_empty(n)
    d_rows = rows.new_empty(n, d) if want_rows else None
    d_weight = rows.new_empty(m, d) if want_weight else None
    if not n:
        return found, d_rows, None if d_weight is None else d_weight.zero_()
    how, tiles = configs.products_of(weight.dtype, d), configs.tiles_of(weight.dtype)
    tile, kept_dtype = tiles.wide_reduce, configs.weights_dtype(how)
    plan = plan_of(n, m, how.DP, kept_dtype.itemsize, scale, low_memory)
    rounded = weight.dtype == torch.float32 and how.PRECISION == "tf32"
    inverse = inverse_lengths(rows)
    classes = Classes(0, weight, inverse_lengths(weight))
    lengths = classes.inverse
    poison = (inverse * 0).sum() + (lengths * 0).sum()
    far = ((lengths > FAR.value) | ((lengths < 1 / FAR.value) & (lengths > 0))).any()
    gradients = want_rows or want_weight

    slots = min(classes.padded, max(TILE, SUMS // (4 * plan.rows) * tile.BN // TILE * TILE))
    sums = rows.new_empty(slots // tile.BN, plan.rows)
    copy = rows.new_empty(plan.rows, how.DP, dtype=weight.dtype)
    if gradients:
        kept = rows.new_empty(plan.rows, plan.classes, dtype=kept_dtype)
    if want_weight:
        weighted = rows.new_empty(plan.rows, how.DP, dtype=kept_dtype)

    for first in range(0, n, plan.rows):
        some = slice(first, first + plan.rows)
        given, own, z = rows[some], inverse[some], target[some]
        count, size = len(given), padded(len(given))
        scaled(given, own, None, copy[:size], rounded)
        x = Rows(copy[:size], own, labels[some])

        parts = []
        for part in classes.parts(slots):
            of_part = sums.view(-1)[: part.padded // tile.BN * size].view(-1, size)
            keep = kept[:size, part.first :] if gradients and plan.kept else None
            score(x, part, scale, how, tile, sums=of_part, kept=keep, running=plan.running)
            parts.append(of_part[:, :count].logsumexp(0))
        L = torch.stack(parts).logsumexp(0)
        found[some] = L + poison
        if not gradients:
            continue

        # row_weight scale sigmoid(L - z) exp(shift - L)
        shift = torch.where(L == -torch.inf, 0, L) if plan.running else torch.zeros_like(L)
        exponent = (shift - torch.logaddexp(L, z)).clamp_max(SAFE * LN2.value)
        factor = row_weights[some] * scale * exponent.exp()
        shift = shift * LOG2E.value if plan.running else None
        if want_weight:
            scaled(copy[:count, :d], own, factor, weighted[:size], how.WEIGHTS == "tf32")
        for part in classes.parts(plan.classes):
            block = kept[:size, : part.padded]
            if not plan.kept:
                score(x, part, scale, how, tile, kept=block, shift=shift, running=plan.running)
            if d_rows is not None:
                add_product(
                    d_rows[some], block, part.weight, part.inverse, far, part.first > 0, False,
                    how, tiles.product,
                )  # fmt: skip
            if d_weight is not None:
                add_product(
                    part.of(d_weight), block, weighted[:size, :d], None, None, first > 0, True,
                    how, tiles.product,
                )  # fmt: skip
        if d_rows is not None:
            through_norm(d_rows[some], given, own, factor, poison)
    if d_weight is not None:
        through_norm(d_weight, weight, lengths, None, poison)
    return found, d_rows, d_weight
