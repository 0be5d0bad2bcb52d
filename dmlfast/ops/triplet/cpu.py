"""The triplet loss on the CPU kernels of csrc/cpu: loss and gradients in one call."""

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
    mining: str,
    reduction: str,
    want_rows: bool,
    want_columns: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Loss () and gradients for rows (N, D) and columns (M, D), float32; None where not wanted."""
    pairs = native.Pairs(rows, columns, row_labels, column_labels, self_index)
    loss = native.empty()
    d_rows = native.empty(pairs.n, pairs.d) if want_rows else None
    d_columns = native.empty(pairs.m, pairs.d) if want_columns else None
    status = native.cpu_library().dml_cpu_triplet(
        ctypes.byref(pairs),
        margin,
        native.MININGS[mining],
        native.LOSS_REDUCTIONS[reduction],
        *map(native.address, (loss, d_rows, d_columns)),
    )
    native.check(status, "triplet_loss")
    return loss, d_rows, d_columns
