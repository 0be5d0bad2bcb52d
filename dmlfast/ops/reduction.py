"""How the terms of a loss become one number, and how many of them there are."""

import torch

REDUCTIONS = ("nonzero", "mean", "sum")


def class_sizes(
    row_labels: torch.Tensor,
    column_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many positives and negatives each row has among the columns, (N,) int64 each.

    Without ``column_labels`` the rows face themselves.
    """
    own = row_labels.long()
    others = own if column_labels is None else column_labels.long()
    ordered = others.sort().values
    first, end = (torch.searchsorted(ordered, own, right=right) for right in (False, True))
    positives, negatives = end - first, len(others) - (end - first)
    if column_labels is None:
        return positives - 1, negatives
    if self_index is not None and len(others):
        there = (self_index >= 0) & (self_index < len(others))
        itself = others[self_index.long().clamp(0, len(others) - 1)]
        positives = positives - (there & (itself == own)).long()
    return positives, negatives
