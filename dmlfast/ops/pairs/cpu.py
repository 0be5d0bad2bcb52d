"""The pair primitive on the CPU kernels of csrc/cpu: the two raw block functions."""

import ctypes

import torch

from dmlfast.ops import native
from dmlfast.ops.pairs.term import PairTerm


def _problem(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    row_labels: torch.Tensor | None,
    column_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
) -> native.Pairs:
    return native.Pairs(
        rows.data_ptr(),
        native.address(columns),
        rows.shape[0],
        (rows if columns is None else columns).shape[0],
        rows.shape[1],
        native.address(row_labels),
        native.address(column_labels),
        native.address(self_index),
        torch.get_num_threads(),
    )


def _term(term: PairTerm, column_bias: torch.Tensor | None) -> native.Term:
    return native.Term(
        native.SCORES[term.score],
        native.SELECTIONS[term.select],
        native.REDUCTIONS[term.reduce],
        term.scale,
        term.offset,
        native.address(column_bias),
    )


def reduce_block(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    row_labels: torch.Tensor | None,
    column_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
    column_bias: torch.Tensor | None,
    term: PairTerm,
) -> torch.Tensor:
    """The statistic of each row over these columns, (N,) float32."""
    rows, columns = native.float_rows(rows), native.float_rows(columns)
    labels = native.int_labels(row_labels), native.int_labels(column_labels)
    self_index, column_bias = native.int_labels(self_index), native.float_rows(column_bias)
    result = torch.empty(rows.shape[0])
    problem = _problem(rows, columns, *labels, self_index)
    status = native.cpu_library().dml_cpu_pair_reduce(
        ctypes.byref(problem), ctypes.byref(_term(term, column_bias)), result.data_ptr(), None
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
    row_stat: torch.Tensor,
    row_grad: torch.Tensor,
    column_stat: torch.Tensor | None,
    column_grad: torch.Tensor | None,
    term: PairTerm,
    wants: tuple[bool, bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients for rows (N, D), columns (M, D) and column bias (M,), float32, None where not wanted."""
    rows, columns = native.float_rows(rows), native.float_rows(columns)
    labels = native.int_labels(row_labels), native.int_labels(column_labels)
    self_index, column_bias = native.int_labels(self_index), native.float_rows(column_bias)
    row_stat, row_grad = native.float_rows(row_stat), native.float_rows(row_grad)
    column_stat, column_grad = native.float_rows(column_stat), native.float_rows(column_grad)
    width = rows if columns is None else columns
    d_rows = torch.empty_like(rows) if wants[0] else None
    d_columns = torch.empty_like(width) if wants[1] else None
    d_bias = torch.empty(width.shape[0]) if wants[2] else None
    problem = _problem(rows, columns, *labels, self_index)
    outputs = (row_stat, row_grad, column_stat, column_grad, d_rows, d_columns, d_bias)
    status = native.cpu_library().dml_cpu_pair_grad(
        ctypes.byref(problem),
        ctypes.byref(_term(term, column_bias)),
        *(native.address(tensor) for tensor in outputs),
    )
    native.check(status, "pair_grad")
    return d_rows, d_columns, d_bias
