"""The kernels' part of the normalised softmax in Triton.

../README.md has the maths, docs/triton_kernels.md the structure.
"""

import math
from typing import NamedTuple

import torch

from dmlfast.ops.gpu import on_its_device
from dmlfast.ops.norm_softmax.triton.product import add_product
from dmlfast.ops.norm_softmax.triton.rows import FAR, inverse_lengths, scaled, through_norm
from dmlfast.ops.norm_softmax.triton.scores import Classes, Exponentials, Rows, padded, score
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
        rows: (N, D) float32, of values that ``weight``'s dtype has.
        weight: (C, D) of any dtype and strides.
        labels: (N,) int64, -1 where none.
        target, row_weights: (N,) float32.
        scale: above 0.
        low_memory: take at most 64 MiB of scratch, rather than 2 GiB.

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
    products = configs.products_of(weight.dtype, d)
    kept_dtype = configs.weights_dtype(products)
    product = configs.tiles_of(kept_dtype).product
    plan = plan_of(n, m, products.DP, kept_dtype.itemsize, scale, low_memory)
    how = Exponentials(scale, products, configs.tiles_of(weight.dtype).scores, plan.running)
    inverse, lengths = inverse_lengths(rows), inverse_lengths(weight)
    classes = Classes(0, weight, lengths)
    poison = (inverse * 0).sum() + (lengths * 0).sum()
    far = ((lengths > FAR.value) | ((lengths < 1 / FAR.value) & (lengths > 0))).any()

    wants = want_rows or want_weight
    rounded = weight.dtype == torch.float32 and products.PRECISION == "tf32"
    sums = rows.new_empty(max(TILE // how.tile.BN, SUMS // (4 * plan.rows)), plan.rows)
    kept = rows.new_empty(plan.rows, plan.classes if wants else 0, dtype=kept_dtype)
    copy = rows.new_empty(plan.rows, products.DP, dtype=weight.dtype)
    weighted = rows.new_empty(plan.rows if want_weight else 0, products.DP, dtype=kept_dtype)
    for first in range(0, n, plan.rows):
        some = slice(first, first + plan.rows)
        given, size = rows[some], padded(len(rows[some]))
        x = Rows(copy[:size], inverse[some], labels[some])
        scaled(given, x.inverse, None, x.scaled, rounded)
        L = _log_sums(x, classes, how, sums, kept if wants and plan.kept else None)
        found[some] = L + poison
        if not wants:
            continue
        factor, shift = _factors(L, target[some], row_weights[some], scale, plan.running)
        if want_weight:
            own = x.scaled[: len(given), :d]
            scaled(own, x.inverse, factor, weighted[:size], products.WEIGHTS == "tf32")
        for part in classes.parts(plan.classes):
            block = kept[:size, : part.padded]
            if not plan.kept:
                score(x, part, how, kept=block, shift=shift)
            if d_rows is not None:
                own, again = d_rows[some], part.first > 0
                add_product(own, block, part.weight, part.inverse, far, again, products, product)
            if d_weight is not None:
                own, again, others = part.of(d_weight), first > 0, weighted[:size, :d]
                add_product(own, block, others, None, None, again, products, product)
        if d_rows is not None:
            through_norm(d_rows[some], given, x.inverse, factor, poison)
    if d_weight is not None:
        through_norm(d_weight, weight, lengths, None, poison)
    return found, d_rows, d_weight


def _log_sums(
    x: Rows, classes: Classes, how: Exponentials, sums: torch.Tensor, kept: torch.Tensor | None
) -> torch.Tensor:
    """(n,) log-sum-exps over all classes, with ``sums`` (slots, rows) as scratch; fills ``kept``
    (rows, classes padded), if it is given.
    """
    n, size = len(x.labels), len(x.scaled)
    found = []
    for part in classes.parts(len(sums) * how.tile.BN // TILE * TILE):
        slots = sums.view(-1)[: part.padded // how.tile.BN * size].view(-1, size)
        keep = None if kept is None else kept[:size, part.first : part.first + part.padded]
        score(x, part, how, sums=slots, kept=keep)
        found.append(slots[:, :n].logsumexp(0))
    return torch.stack(found).logsumexp(0)


def _factors(
    L: torch.Tensor, target: torch.Tensor, row_weights: torch.Tensor, scale: float, running: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(n,) row_weight scale sigmoid(L - target) exp(shift - L), which a gradient made of exp(s -
    shift) lacks; and the shift, (n,) powers of two, None where it is 0.
    """
    shift = L.masked_fill(L.isneginf(), 0) if running else torch.zeros_like(L)
    exponent = (shift - torch.logaddexp(L, target)).clamp_max(SAFE * LN2.value)  # L may be -inf
    return row_weights * scale * exponent.exp(), shift * LOG2E.value if running else None
