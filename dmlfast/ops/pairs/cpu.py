"""The pair primitive on the CPU kernels of csrc/cpu: the two raw block functions."""

import ctypes

import torch

from dmlfast.ops import native
from dmlfast.ops.pairs.term import PairTerm


def _term(
    term: PairTerm, column_bias: torch.Tensor | None, row_floor: torch.Tensor | None
) -> native.Term:
    return native.Term(
        native.SCORES[term.score],
        native.SELECTIONS[term.select],
        native.REDUCTIONS[term.reduce],
        term.scale,
        term.offset,
        native.address(column_bias),
        native.address(row_floor),
    )


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
    pairs = native.Pairs(rows, columns, row_labels, column_labels, self_index)
    given = native.float_rows(column_bias), native.float_rows(row_floor)
    result = native.empty(2, pairs.n) if term.is_hinge else native.empty(pairs.n)
    status = native.cpu_library().dml_cpu_pair_reduce(
        ctypes.byref(pairs), ctypes.byref(_term(term, *given)), result.data_ptr(), None
    )
    native.check(status, "pair_reduce")
    return result


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
    pairs = native.Pairs(rows, columns, row_labels, column_labels, self_index)
    given = native.float_rows(column_bias), native.float_rows(row_floor)
    stats = [native.float_rows(s) for s in (row_stat, row_grad, column_stat, column_grad)]
    shapes = (pairs.n, pairs.d), (pairs.m, pairs.d), (pairs.m,)
    gradients = [native.empty(*s) if want else None for s, want in zip(shapes, wants, strict=True)]
    status = native.cpu_library().dml_cpu_pair_grad(
        ctypes.byref(pairs),
        ctypes.byref(_term(term, *given)),
        *map(native.address, [*stats, *gradients]),
    )
    native.check(status, "pair_grad")
    return gradients[0], gradients[1], gradients[2]
