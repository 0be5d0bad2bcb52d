"""Rows at length 1 on the CPU kernels of csrc/cpu."""

import torch

from dmlfast.ops import native


def forward(rows: torch.Tensor) -> torch.Tensor:
    """Rows (N, D) divided by their lengths, in their dtype."""
    out = native.empty(*rows.shape)
    given = native.float_rows(rows)
    status = native.cpu_library().dml_cpu_normalize(
        native.address(given), *rows.shape, torch.get_num_threads(), native.address(out)
    )
    native.check(status, "normalize")
    return out.to(rows.dtype)


def gradient(grad: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """That of rows (N, D) from that of the rows at length 1, in their dtype."""
    out = native.empty(*rows.shape)
    given = native.float_rows(grad), native.float_rows(rows)
    status = native.cpu_library().dml_cpu_normalize_grad(
        *map(native.address, given), *rows.shape, torch.get_num_threads(), native.address(out)
    )
    native.check(status, "normalize")
    return out.to(rows.dtype)
