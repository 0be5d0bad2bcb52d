"""The pair primitive as Triton kernels.

README.md has the maths, docs/triton_kernels.md the structure.
"""

import torch

from dmlfast.ops.gpu import on_its_device
from dmlfast.ops.pairs import empty
from dmlfast.ops.pairs.term import PairTerm
from dmlfast.ops.pairs.triton.gradient import bias_gradient_of, gradient_of
from dmlfast.ops.pairs.triton.reduction import reduce_pairs
from dmlfast.ops.pairs.triton.sides import floors_of, pairs_of
from dmlfast.ops.pairs.triton.statistics import NO_STATS, combine_kernel, stats_of
from dmlfast.ops.triton.configs import FUSED
from dmlfast.ops.triton.side import TILE, arguments


@on_its_device
def reduce_block(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    row_labels: torch.Tensor | None,
    column_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
    column_bias: torch.Tensor | None,
    row_floor: torch.Tensor | None,
    term: PairTerm,
) -> torch.Tensor:
    """The statistic of each row over these columns, (N,) float32; of hinges (2, N): their sums and
    the numbers of those above 0.
    """
    if empty.is_empty(rows, columns):
        return empty.statistics(rows, term)
    shape = (2, len(rows)) if term.is_hinge else (len(rows),)
    result = rows.new_empty(shape, dtype=torch.float32)
    pairs = pairs_of(rows, columns, row_labels, column_labels, self_index, column_bias, term)
    floor = floors_of(pairs.x, row_floor, term)
    partial, _ = reduce_pairs(pairs, term, with_columns=False, floor=floor)
    combine_kernel[(pairs.x.tiles,)](
        *arguments(pairs.x, pairs.r),
        *partial,
        len(partial.top),
        result,
        NO_STATS,
        REDUCE=term.reduce,
        BM=TILE,
        **FUSED,
    )
    return result


@on_its_device
def grad_block(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    row_labels: torch.Tensor | None,
    column_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
    column_bias: torch.Tensor | None,
    row_floor: torch.Tensor | None,
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
    xs = stats_of(x, row_stat, row_grad, term)._replace(floor=floors_of(x, row_floor, term))
    rs = NO_STATS if columns is None else stats_of(r, column_stat, column_grad, term)
    d_rows = d_columns = d_bias = None
    if wants[0] and (columns is not None or column_bias is not None):
        d_rows = gradient_of(pairs, x, r, xs, rs, term, term.scale)
        if columns is None:  # every row is a column too, with a bias as which its terms differ
            d_rows += gradient_of(pairs, r, x, NO_STATS, xs, term, term.scale)
    elif wants[0]:
        d_rows = gradient_of(pairs, x, r, xs, xs, term, term.scale)
    if wants[1]:
        d_columns = gradient_of(pairs, r, x, rs, xs, term, term.scale)
    if wants[2]:
        d_bias = bias_gradient_of(pairs, xs, term)
    return d_rows, d_columns, d_bias
