"""Statistics and gradients where a side is empty, and no kernel is launched."""

import torch

from dmlfast.ops.numerics import nan_unless_finite
from dmlfast.ops.pairs.term import PairTerm


def is_empty(rows: torch.Tensor, columns: torch.Tensor | None) -> bool:
    """Whether rows (N, D) and columns (M, D), the rows themselves where None, have no pair."""
    return not len(rows) or (columns is not None and not len(columns))


def statistics(rows: torch.Tensor, term: PairTerm) -> torch.Tensor:
    """(N,) float32, of hinges (2, N): of rows over no columns, NaN where any is not finite."""
    shape = (2, len(rows)) if term.is_hinge else (len(rows),)
    nothing = rows.new_full(shape, term.over_nothing, dtype=torch.float32)
    return nothing + nan_unless_finite(rows)


def gradients(
    rows: torch.Tensor, columns: torch.Tensor | None, wants: tuple[bool, bool, bool]
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Zeros for rows (N, D), columns (M, D) and bias (M,), float32, None where not wanted."""
    columns = rows if columns is None else columns
    d_rows, d_columns, d_bias = (
        rows.new_zeros(shape, dtype=torch.float32) if want else None
        for shape, want in zip((rows.shape, columns.shape, columns.shape[:1]), wants, strict=True)
    )
    return d_rows, d_columns, d_bias
