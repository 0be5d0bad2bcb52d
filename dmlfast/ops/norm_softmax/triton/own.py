"""Rows and their own classes: the logits of these, the losses of rows, and their gradients by the
angles.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from dmlfast.ops.gpu import on_its_device
from dmlfast.ops.norm_softmax import settings
from dmlfast.ops.norm_softmax.settings import Settings
from dmlfast.ops.norm_softmax.triton.rows import inverse_length
from dmlfast.ops.triton.configs import FUSED
from dmlfast.ops.triton.rows import blocks_of, load_given
from dmlfast.ops.triton.tile import log1p

PARALLEL = tl.constexpr(settings.PARALLEL)


class Logit(NamedTuple):
    """``Settings.logit``: how a row's logit of its own class and its loss are made of the angle."""

    scale: Any
    cosine_margin: Any
    margin_cosine: Any
    margin_sine: Any
    smoothing: Any


class Ends(NamedTuple):
    """One end of each pair: rows, int64, of a matrix (., d), and 1 / their lengths."""

    matrix: Any
    stride: Any
    step: Any
    rows: Any
    inverse: Any


@triton.jit
def _units(ends, k, d):
    """Components k of the ends at length 1."""
    x = load_given(ends.matrix, ends.rows, k, ends.stride, ends.step, d)
    return x * ends.inverse[:, None]


@triton.jit
def _angle_of(apart, joined):
    """Cosine, sine and 1 - cosine of angles, from the squared lengths of difference and sum; a
    right one where one side is zeros. The last keeps its digits where the angle is small.
    """
    both = apart + joined  # 4, less where one is 0
    some = both != 0.0
    inverse = 1.0 / tl.where(some, both, 1.0)
    sine = tl.where(some, 2.0 * tl.sqrt(apart * joined) * inverse, 1.0)
    return (joined - apart) * inverse, sine, tl.where(some, 2.0 * apart * inverse, 1.0)


@triton.jit
def _measured(matrix, stride, step, rows, d, BM: tl.constexpr, BD: tl.constexpr):
    return Ends(matrix, stride, step, rows, inverse_length(matrix, rows, stride, step, d, BM, BD))


@triton.jit
def _turn(a, b, versine, g, out, i, n, d, ADD: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr):
    """Writes or adds to ``out`` (n, d) the gradient of ends ``a`` from g, minus that of their
    angles with ``b``: along b - cosine a, made of small differences where the angle is small.
    """
    squared = tl.zeros((BM,), tl.float32)
    for first in range(0, d, BD):
        k = first + tl.arange(0, BD)
        x, y = _units(a, k, d), _units(b, k, d)
        towards = y - x + versine[:, None] * x
        squared += tl.sum(towards * towards, 1)
    sine = tl.sqrt(squared)
    by = tl.where(sine < PARALLEL, 0.0, g / sine) * a.inverse
    for first in range(0, d, BD):
        k = first + tl.arange(0, BD)
        x, y = _units(a, k, d), _units(b, k, d)
        found = by[:, None] * (y - x + versine[:, None] * x)
        at, there = i[:, None] * d + k[None, :], (i < n)[:, None] & (k < d)[None, :]
        if ADD:
            found += tl.load(out + at, mask=there, other=0.0)
        tl.store(out + at, found, mask=there)


@triton.jit(do_not_specialize=["n", "c", "ignore_index"])
def own_pairs_kernel(
    rows, row_stride, row_step, weight, class_stride, class_step, labels, ignore_index, logit,
    known, out, n, c, d, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Fills ``known`` (n,) and ``out`` (5, n) of BM rows, as `own_pairs` returns them."""
    i = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    own, there = tl.minimum(i, n - 1), i < n
    given = tl.load(labels + own).to(tl.int64)
    label = tl.where((given != ignore_index) & (given >= 0) & (given < c), given, 0)
    tl.store(known + i, tl.where(given != ignore_index, label, -1), mask=there)
    row = _measured(rows, row_stride, row_step, own, d, BM, BD)
    class_ = _measured(weight, class_stride, class_step, label, d, BM, BD)
    apart = tl.zeros((BM,), tl.float32)
    joined = tl.zeros((BM,), tl.float32)
    for first in range(0, d, BD):
        k = first + tl.arange(0, BD)
        x, p = _units(row, k, d), _units(class_, k, d)
        apart += tl.sum((x - p) * (x - p), 1)
        joined += tl.sum((x + p) * (x + p), 1)
    cosine, sine, _ = _angle_of(apart, joined)
    cosine = cosine * logit.margin_cosine - sine * logit.margin_sine
    target = logit.scale * (cosine - logit.cosine_margin)
    given = tl.load(labels + own).to(tl.int64)  # again, rather than kept in registers
    unknown = (given != ignore_index) & ((given < 0) | (given >= c))
    tl.store(out + i, row.inverse, mask=there)
    tl.store(out + n + i, class_.inverse, mask=there)
    tl.store(out + 2 * n + i, apart, mask=there)
    tl.store(out + 3 * n + i, joined, mask=there)
    tl.store(out + 4 * n + i, tl.where(unknown, float("nan"), target), mask=there)


@triton.jit(do_not_specialize=["n"])
def own_losses_kernel(
    rows, row_stride, row_step, weight, class_stride, class_step, known, pairs, logsumexp,
    row_weights, others, logit, share, losses, d_rows, d_own, n, d, BM: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """Fills ``losses`` (n,) of BM rows, adds to ``d_rows`` (n, d), and fills ``d_own`` (n, d), the
    gradients of rows and of their classes by the angles; either may be missing, and so ``others``.
    """
    i = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    own = tl.minimum(i, n - 1)
    label = tl.load(known + own)
    counts = label >= 0
    cosine, sine, versine = _angle_of(tl.load(pairs + 2 * n + own), tl.load(pairs + 3 * n + own))
    target = tl.load(pairs + 4 * n + own)
    above = tl.load(logsumexp + own) - target
    e = tl.exp(-tl.abs(above))
    loss = tl.maximum(above, 0.0) + log1p(e)
    if others is not None:
        everyone = logit.scale * (tl.load(others + own) - cosine) + target
        loss += logit.smoothing * target - share * everyone
    # a row that does not count is NaN all the same where a class is not finite
    tl.store(losses + i, tl.where(counts | (above != above), loss, 0.0), mask=i < n)
    if d_rows is not None or d_own is not None:
        # of all other classes together the probability, less what smoothing gives the own one
        d_target = tl.where(above < 0.0, e, 1.0) / (1.0 + e) - (logit.smoothing - share)
        margined = sine * logit.margin_cosine + cosine * logit.margin_sine
        g = logit.scale * tl.load(row_weights + own) * (share * sine - d_target * margined)
        row = Ends(rows, row_stride, row_step, own, tl.load(pairs + own))
        label = tl.where(counts, label, 0)
        class_ = Ends(weight, class_stride, class_step, label, tl.load(pairs + n + own))
        if d_rows is not None:
            _turn(row, class_, versine, g, d_rows, i, n, d, True, BM, BD)
        if d_own is not None:
            _turn(class_, row, versine, g, d_own, i, n, d, False, BM, BD)


@on_its_device
def own_pairs(
    rows: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :class:`dmlfast.ops.norm_softmax.assembly.Kernels`."""
    n, d = rows.shape
    pairs = rows.new_empty(5, n, dtype=torch.float32)
    known = rows.new_empty(n, dtype=torch.int64)
    grid, blocks = blocks_of(n, d)
    own_pairs_kernel[grid](
        rows, *rows.stride(), weight, *weight.stride(), labels.contiguous(), settings.ignore_index,
        Logit(*settings.logit), known, pairs, n, len(weight), d, **blocks, **FUSED,
    )  # fmt: skip
    return known, pairs


@on_its_device
def own_losses(
    rows: torch.Tensor,
    weight: torch.Tensor,
    known: torch.Tensor,
    pairs: torch.Tensor,
    logsumexp: torch.Tensor,
    row_weights: torch.Tensor,
    others: torch.Tensor | None,
    settings: Settings,
    d_rows: torch.Tensor | None,
    want_classes: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See :class:`dmlfast.ops.norm_softmax.assembly.Kernels`."""
    n, d = rows.shape
    losses = rows.new_empty(n, dtype=torch.float32)
    d_own = rows.new_empty(n, d, dtype=torch.float32) if want_classes else None
    share = settings.label_smoothing / len(weight)
    grid, blocks = blocks_of(n, d, 1024)  # of rows and of classes: twice as much takes stack
    own_losses_kernel[grid](
        rows, *rows.stride(), weight, *weight.stride(), known, pairs, logsumexp, row_weights,
        others, Logit(*settings.logit), share, losses, d_rows, d_own, n, d, **blocks, **FUSED,
    )  # fmt: skip
    return losses, d_own
