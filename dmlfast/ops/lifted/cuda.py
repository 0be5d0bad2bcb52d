"""The lifted structured loss on the CUDA kernels of csrc/cuda: loss and gradients in one call.

Batches that fit on chip take one launch. Others take the reduction and the gradient of the pair
primitive, with a pass over the positive pairs between them. README.md has the maths.
"""

from ctypes import byref
from functools import partial

import torch

from dmlfast.ops.cuda import stats
from dmlfast.ops.cuda.library import Rows, address, launch, library
from dmlfast.ops.cuda.side import Pairs, Side, pairs_of
from dmlfast.ops.cuda.stats import Stats
from dmlfast.ops.gpu import on_its_device
from dmlfast.ops.pairs.cuda import gradient_of, reduce
from dmlfast.ops.pairs.term import PairTerm


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
    if columns is None and library().dml_cuda_one_pass_fits(*rows.shape):
        return *_one_pass(rows, row_labels, margin, want_rows), None
    term = PairTerm("distance", "negative", "logsumexp", -1.0, margin)
    pairs = pairs_of(
        rows, columns, row_labels, column_labels, self_index, None, term, select="positive"
    )
    x, r = pairs.x, pairs.r
    xs = Stats(_statistics(pairs, x, r))
    rs = xs if columns is None else Stats(_statistics(pairs, r, x))
    squares, counts, x_grad = _positive_pairs(pairs, x, r, xs, rs)
    loss, share = x.norm.new_empty(2)
    launch(
        "lifted_structured_loss",
        "dml_cuda_mean",
        loss,
        byref(x.struct),
        byref(r.struct),
        *map(address, (squares, counts, loss, share)),
    )
    if not want_rows and not want_columns:
        return loss, None, None
    xs = xs._replace(grad=x_grad)
    rs = xs if columns is None else rs._replace(grad=_positive_pairs(pairs, r, x, rs, xs)[2])
    middle, xs, rs = stats.with_factors(pairs, xs, rs)
    factor = -2.0 if columns is None else -1.0  # every pair of a batch counts twice
    sides = ((x, r, xs, rs), want_rows), ((r, x, rs, xs), want_columns)
    made = [
        gradient_of(pairs, *of, middle, factor, share, lifted=True) if want else None
        for of, want in sides
    ]
    return loss, made[0], made[1]


def _one_pass(
    rows: torch.Tensor, labels: torch.Tensor, margin: float, want_rows: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Loss () and gradient (N, D), float32, of a batch that fits on chip."""
    floats = partial(torch.empty, dtype=torch.float32, device=rows.device)
    loss, scratch = floats(()), floats(library().dml_cuda_one_pass_scratch(len(rows)))
    d_rows = floats(rows.shape) if want_rows else None
    labels = labels.to(torch.int64).contiguous()
    launch(
        "lifted_structured_loss",
        "dml_cuda_lifted_one_pass",
        rows,
        byref(Rows(rows)),
        labels.data_ptr(),
        margin,
        *map(address, (loss, d_rows, scratch)),
    )
    return loss, d_rows


def _statistics(pairs: Pairs, x: Side, r: Side) -> torch.Tensor:
    """Of the rows of ``x`` over the negatives among ``r``, powers of two by position, (padded,)."""
    value = torch.empty_like(x.norm)
    reduce(pairs, x, r, value, None)
    return value


def _positive_pairs(
    pairs: Pairs, x: Side, r: Side, xs: Stats, rs: Stats
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """By position in ``x``, over positive pairs: sums of squared hinges, numbers of pairs, and the
    gradients of the statistics of ``x``, (padded,) each.
    """
    squares, grad = x.norm.new_empty(2, x.padded)
    counts = x.norm.new_empty(x.padded, dtype=torch.int32)
    launch(
        "lifted_structured_loss",
        "dml_cuda_positives",
        grad,
        byref(x.struct),
        byref(r.struct),
        byref(pairs.task()),
        byref(xs.struct),
        byref(rs.struct),
        *map(address, (squares, counts, grad)),
    )
    return squares, counts, grad
