"""The kernels' part of the normalised softmax in Triton.

../README.md has the maths, docs/triton_kernels.md the structure.
"""

import torch

from dmlfast.ops.gpu import on_its_device
from dmlfast.ops.norm_softmax.triton.own import own_losses, own_pairs
from dmlfast.ops.norm_softmax.triton.rows import through_norm
from dmlfast.ops.norm_softmax.triton.scores import Classes
from dmlfast.ops.norm_softmax.triton.sides import SAFE, Sides
from dmlfast.ops.triton.tile import LN2, LOG2E

__all__ = ["forward", "gradients", "own_losses", "own_pairs"]


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
    everyone: torch.Tensor | None = None,
    sides_of: type[Sides] = Sides,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Log-sum-exps and gradients, as `dmlfast.ops.norm_softmax.assembly` asks for them.

    Args:
        rows: (N, D), of the dtype of ``weight`` or float32 of values that it has.
        weight: (C, D) of any dtype and strides.
        labels: (N,) int64, -1 where none.
        target, row_weights: (N,) float32.
        scale: above 0.
        low_memory: take a scratch of some 32 MiB, rather than 2 GiB.
        everyone: (D,) float32, a gradient that is added to that of each class at length 1, or None.
        sides_of: whose exponentials are taken.

    Returns:
        (N,), (N, D) and (C, D) float32, the gradients None where not wanted. All NaN where a row or
        a class is not finite.
    """
    n = len(rows)
    found = rows.new_empty(n, dtype=torch.float32)
    wants = want_rows, want_weight
    d_rows, d_weight = _empty(rows, weight, wants, torch.float32)
    if not n:
        return found, d_rows, None if d_weight is None else d_weight.zero_()
    sides = sides_of(rows, weight, labels, scale, low_memory)
    plan = sides.plan
    keeps = plan.kept and any(wants)
    kept = sides.block(plan.classes) if keeps else None
    weighted = sides.weighted() if keeps and want_weight else None
    factors = torch.empty_like(found)
    for some, place, x in sides.chunks():
        block = None if kept is None else kept[: len(x.scaled)]
        L = sides.log_sums(x, block)
        found[some] = L
        if block is None:
            continue
        factor, _ = _factors(L, target[some], row_weights[some], scale, False)
        factors[some] = factor
        if d_rows is not None:
            sides.add_to_rows(d_rows[some], block, sides.classes, False)
        if d_weight is not None and weighted is not None:
            sides.weigh(some, weighted[place], factor)
            sides.add_to_classes(d_weight, block, weighted[place], some.start > 0)
    if kept is None:
        _in_blocks(sides, found, target, row_weights, everyone, d_rows, d_weight)
    else:
        del kept, block
        if d_rows is not None:
            through_norm(d_rows, rows, sides.inverse, factors, sides.poison)
        if d_weight is not None:
            lengths = sides.classes.inverse
            through_norm(d_weight, weight, lengths, None, sides.poison, everyone)
    return found + sides.poison, d_rows, d_weight


@on_its_device
def gradients(
    rows: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    target: torch.Tensor,
    row_weights: torch.Tensor,
    logsumexp: torch.Tensor,
    scale: float,
    want_rows: bool,
    want_weight: bool,
    everyone: torch.Tensor | None,
    dtype: torch.dtype,
    sides_of: type[Sides] = Sides,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients of `forward`, N above 0, where memory is low and its log-sum-exps are known:
    of rows in float32, of classes in ``dtype``, rounded once.
    """
    d_rows, d_weight = _empty(rows, weight, (want_rows, want_weight), dtype)
    sides = sides_of(rows, weight, labels, scale, True)
    _in_blocks(sides, logsumexp, target, row_weights, everyone, d_rows, d_weight)
    return d_rows, d_weight


def _empty(
    rows: torch.Tensor, weight: torch.Tensor, wants: tuple[bool, bool], dtype: torch.dtype
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(N, D) float32 and (C, D) of a dtype for gradients, None where not wanted."""
    return (
        rows.new_empty(rows.shape, dtype=torch.float32) if wants[0] else None,
        rows.new_empty(weight.shape, dtype=dtype) if wants[1] else None,
    )


def _in_blocks(
    sides: Sides,
    L: torch.Tensor,
    target: torch.Tensor,
    row_weights: torch.Tensor,
    everyone: torch.Tensor | None,
    d_rows: torch.Tensor | None,
    d_weight: torch.Tensor | None,
) -> None:
    """Fills the gradients, those that are wanted, one block of classes with all rows after another.

    That of a block of classes is done with the block: no more of them is ever there in float32.
    """
    if d_rows is None and d_weight is None:
        return
    factor, shift = _factors(L, target, row_weights, sides.scale, sides.plan.running)
    weighted = None
    if d_weight is not None:
        weighted = sides.weighted()
        sides.weigh(slice(None), weighted, factor)
    for part in sides.classes.parts(sides.plan.classes):
        found = _block(sides, part, shift, weighted, d_rows, d_weight)
        if d_weight is not None and found is not None:
            out = part.of(d_weight)
            through_norm(found, part.weight, part.inverse, None, sides.poison, everyone, out)
        del found  # before the next is allocated
    if d_rows is not None:
        through_norm(d_rows, sides.given, sides.inverse, factor, sides.poison)


def _block(
    sides: Sides,
    part: Classes,
    shift: torch.Tensor | None,
    weighted: torch.Tensor | None,
    d_rows: torch.Tensor | None,
    d_weight: torch.Tensor | None,
) -> torch.Tensor | None:
    """The gradient of a block of classes at length 1, float32, in its place in ``d_weight`` if that
    is; None without. Adds to ``d_rows`` what the block gives, without the factors of the rows.
    """
    kept = sides.block(part.padded)
    found = None
    if d_weight is not None:
        found = part.of(d_weight)
        if found.dtype != torch.float32:
            found = torch.empty_like(found, dtype=torch.float32)
    for some, place, x in sides.chunks():
        block = kept[: len(x.scaled)]
        sides.score(x, part, kept=block, shift=None if shift is None else shift[some])
        if d_rows is not None:
            sides.add_to_rows(d_rows[some], block, part, part.first > 0)
        if found is not None and weighted is not None:
            sides.add_to_classes(found, block, weighted[place], some.start > 0)
    return found


def _factors(
    L: torch.Tensor, target: torch.Tensor, row_weights: torch.Tensor, scale: float, running: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(n,) row_weight scale sigmoid(L - target) exp(shift - L), which a gradient made of exp(s -
    shift) lacks; and the shift, (n,) powers of two, None where it is 0.
    """
    exponent, shift = torch.logaddexp(L, target).neg_(), None
    if running:
        shift = L.masked_fill(L.isneginf(), 0)
        exponent, shift = exponent + shift, shift * LOG2E.value
    exponent = exponent.clamp_max(SAFE * LN2.value)  # L may be -inf
    return row_weights * scale * exponent.exp(), shift
