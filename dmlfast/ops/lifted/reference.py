"""The lifted structured loss in plain PyTorch, on all pairs at once: the definition of right."""

import torch

from dmlfast.ops.numerics import computed, nan_unless_finite
from dmlfast.ops.pairs.reference import masked_logsumexp, pair_distances, select_pairs


def joint_logsumexp(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """(N, M) log(exp(row_i) + exp(column_j)); -inf, with a zero gradient, where both are."""
    row, column = torch.broadcast_tensors(row[:, None], column[None, :])
    defined = (row > -torch.inf) | (column > -torch.inf)
    return torch.where(
        defined,
        torch.logaddexp(torch.where(defined, row, 0), torch.where(defined, column, 0)),
        -torch.inf,
    )


def lifted_structured_loss(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    row_labels: torch.Tensor,
    column_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
    margin: float,
) -> torch.Tensor:
    """See :func:`dmlfast.ops.lifted_structured_loss`."""
    x = computed(rows)
    r = x if columns is None else computed(columns)
    if columns is None:
        column_labels, self_index = row_labels, torch.arange(len(x), device=x.device)
    pairs = (row_labels, column_labels, self_index, (len(x), len(r)), x.device)
    negative, positive = select_pairs("negative", *pairs), select_pairs("positive", *pairs)
    if columns is None:
        positive = positive.triu(1)  # every unordered pair once
    distance = pair_distances(x, r)
    row_stat = masked_logsumexp(margin - distance, negative, 1)
    column_stat = row_stat if columns is None else masked_logsumexp(margin - distance, negative, 0)
    hinge = (distance + joint_logsumexp(row_stat, column_stat)).relu()
    total = torch.where(positive, hinge.square(), 0).sum()
    return total / (2 * positive.sum().clamp_min(1)) + nan_unless_finite(x, r)
