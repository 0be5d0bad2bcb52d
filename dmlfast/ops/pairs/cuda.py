"""The pair primitive on the CUDA kernels of csrc/cuda: the two raw block functions."""

from ctypes import byref

import torch

from dmlfast.ops.cuda import blocks, stats
from dmlfast.ops.cuda.library import address, launch, library
from dmlfast.ops.cuda.side import BAND, Pairs, Side, near_of, pairs_of
from dmlfast.ops.cuda.stats import NO_STATS, Stats
from dmlfast.ops.gpu import on_its_device
from dmlfast.ops.pairs import empty
from dmlfast.ops.pairs.term import PairTerm

KEPT = 2  # chunks of a gradient that a block of threads makes at a time


@on_its_device
def reduce_block(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    row_labels: torch.Tensor | None,
    column_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
    column_bias: torch.Tensor | None,
    row_floor: None,
    term: PairTerm,
) -> torch.Tensor:
    """The statistic of each row over these columns, (N,) float32."""
    if empty.is_empty(rows, columns):
        return empty.statistics(rows, term)
    pairs = pairs_of(rows, columns, row_labels, column_labels, self_index, column_bias, term)
    result = pairs.x.norm.new_empty(len(rows))
    reduce(pairs, pairs.x, pairs.r, None, result)
    return result


@on_its_device
def grad_block(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    row_labels: torch.Tensor | None,
    column_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
    column_bias: torch.Tensor | None,
    row_floor: None,
    row_stat: torch.Tensor,
    row_grad: torch.Tensor,
    column_stat: torch.Tensor | None,
    column_grad: torch.Tensor | None,
    term: PairTerm,
    wants: tuple[bool, bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients for rows (N, D), columns (M, D) and bias (M,), float32, None where not wanted."""
    if empty.is_empty(rows, columns):
        return empty.gradients(rows, columns, wants)
    pairs = pairs_of(rows, columns, row_labels, column_labels, self_index, column_bias, term)
    x, r = pairs.x, pairs.r
    xs = stats.given(pairs, x, row_stat, row_grad)
    rs = stats.given(pairs, r, column_stat, column_grad)
    middle, xs, rs = stats.with_factors(pairs, xs, rs)
    d_rows = d_columns = d_bias = None

    def gradient(one: Side, other: Side, of_one: Stats, of_other: Stats) -> torch.Tensor:
        return gradient_of(pairs, one, other, of_one, of_other, middle, term.scale)

    if wants[0] and columns is None and column_bias is None:
        d_rows = gradient(x, r, xs, xs)
    elif wants[0]:
        d_rows = gradient(x, r, xs, rs)
        if columns is None:  # every row is a column too, with a bias as which its terms differ
            d_rows += gradient(r, x, NO_STATS, xs)
    if wants[1]:
        d_columns = gradient(r, x, rs, xs)
    if wants[2]:
        d_bias = _bias_gradient(pairs, xs)
    return d_rows, d_columns, d_bias


def reduce(
    pairs: Pairs, x: Side, r: Side, value: torch.Tensor | None, result: torch.Tensor | None
) -> None:
    """Statistics of the rows of ``x`` over the columns ``r``: to ``value`` (padded,) by position,
    of logarithms powers of two; to ``result`` (n,) by row.
    """
    splits = pairs._replace(x=x, r=r).splits(x.padded // BAND)
    given = byref(x.struct), byref(r.struct), byref(pairs.task(splits))
    slots = library().dml_cuda_reduce_slots(*given)
    shared = x.norm.new_zeros(slots, x.padded) if slots else None
    parts = x.norm.new_empty(2, splits, x.padded)
    arguments = map(address, (parts, shared, value, result))
    launch("pair_reduce", "dml_cuda_reduce", parts, *given, *arguments)


def gradient_of(
    pairs: Pairs,
    x: Side,
    r: Side,
    xs: Stats,
    rs: Stats,
    middle: torch.Tensor,
    factor: float,
    share: torch.Tensor | None = None,
    *,
    lifted: bool = False,
) -> torch.Tensor:
    """The gradient (n, d), float32, of the rows of ``x``, one of the sides of ``pairs``.

    ``share``: () a further factor. ``lifted``: pairs of one label weigh their hinge.
    """
    pairs = pairs._replace(x=x, r=r)
    if blocks.fit(pairs):
        return blocks.gradient_of(pairs, xs, rs, middle, factor, share, lifted=lifted)
    slices = -(-x.chunks // KEPT)
    part_bytes = 4 * x.given.numel()
    splits = pairs.splits(x.padded // BAND * slices, part_bytes=part_bytes)
    out = x.norm.new_zeros(splits, *x.given.shape)
    launch(
        "pair_grad",
        "dml_cuda_gradient",
        out,
        byref(x.struct),
        byref(r.struct),
        byref(pairs.task(splits)),
        byref(xs.struct),
        byref(rs.struct),
        address(middle),
        near_of(pairs.dtype),
        lifted,
        factor,
        *map(address, (share, out)),
    )
    return out[0] if splits == 1 else out.sum(0)


def _bias_gradient(pairs: Pairs, xs: Stats) -> torch.Tensor:
    """The gradient (m,), float32, of the bias of the columns."""
    out = pairs.r.norm.new_empty(pairs.r.padded)
    launch(
        "pair_grad",
        "dml_cuda_bias_gradient",
        out,
        byref(pairs.r.struct),
        byref(pairs.x.struct),
        byref(pairs.task()),
        byref(NO_STATS.struct),
        byref(xs.struct),
        address(out),
    )
    return pairs.r.by_row(out) + pairs.poison
