"""The lifted structured loss on the CPU kernels of csrc/cpu: loss and gradients in one call."""

import ctypes

import torch

from dmlfast.ops import native


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
    """Loss () and its gradients for rows (N, D) and columns (M, D), float32; None where not wanted."""
    rows, columns = native.float_rows(rows), native.float_rows(columns)
    row_labels, column_labels = native.int_labels(row_labels), native.int_labels(column_labels)
    self_index = native.int_labels(self_index)
    loss = torch.empty(())
    d_rows = torch.empty_like(rows) if want_rows else None
    d_columns = torch.empty_like(columns) if want_columns else None
    problem = native.Pairs(
        rows.data_ptr(),
        native.address(columns),
        rows.shape[0],
        (rows if columns is None else columns).shape[0],
        rows.shape[1],
        row_labels.data_ptr(),
        native.address(column_labels),
        native.address(self_index),
        torch.get_num_threads(),
    )
    status = native.cpu_library().dml_cpu_lifted(
        ctypes.byref(problem),
        margin,
        loss.data_ptr(),
        native.address(d_rows),
        native.address(d_columns),
    )
    native.check(status, "lifted_structured_loss")
    return loss, d_rows, d_columns
