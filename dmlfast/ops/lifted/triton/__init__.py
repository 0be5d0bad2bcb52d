"""The lifted structured loss as Triton kernels: loss and gradients in one call.

Small batches take one launch of one program. Others take the reduction and the gradient of the pair
primitive, with a pass over the positive pairs between them. README.md has the maths.
"""

import torch

from dmlfast.ops.gpu import on_its_device
from dmlfast.ops.lifted.triton import one_launch
from dmlfast.ops.lifted.triton.positives import mean_of, positive_pairs
from dmlfast.ops.pairs.term import PairTerm
from dmlfast.ops.pairs.triton.gradient import gradient_of
from dmlfast.ops.pairs.triton.reduction import reduce_pairs
from dmlfast.ops.pairs.triton.sides import pairs_of
from dmlfast.ops.pairs.triton.statistics import combined


@on_its_device
def forward(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    row_labels: torch.Tensor,
    column_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
    margin: float,
    want_rows: bool,
    want_columns: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Loss () and gradients for rows (N, D) and columns (M, D), float32; None where not wanted."""
    if one_launch.fits(rows, columns):
        return *one_launch.forward(rows, row_labels, margin, want_rows), None
    term = PairTerm("distance", "negative", "logsumexp", -1.0, margin)
    positive = term._replace(select="positive")  # it is they that leave out the row itself
    pairs = pairs_of(rows, columns, row_labels, column_labels, self_index, None, positive)
    partials = reduce_pairs(pairs, term, with_columns=True)
    x, r = pairs.x, pairs.r
    xs = combined(x, r, partials[0])
    rs = xs if columns is None else combined(r, x, partials[1])
    mean = positive_pairs(pairs, x, r, xs, rs)
    if not want_rows and not want_columns:
        return mean_of(mean, x, r), None, None
    if columns is not None:
        positive_pairs(pairs, r, x, rs, xs)
    factor = -2.0 if columns is None else -1.0  # every pair of a batch counts twice
    made = [
        gradient_of(pairs, *sides, term, factor, mean) if want else None
        for sides, want in (((x, r, xs, rs), want_rows), ((r, x, rs, xs), want_columns))
    ]
    return mean.loss, made[0], made[1]
