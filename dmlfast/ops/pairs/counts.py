"""How many columns a row selects by its label."""

import torch

from dmlfast.ops import checks


def pair_counts(
    labels: torch.Tensor,
    ref_labels: torch.Tensor | None = None,
    *,
    self_index: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts the positives and the negatives of each row, for losses that are means over them.

    It takes O((N + M) log M) time, and the host does not wait for a GPU.

    Args:
        labels: (N,) integers of any dtype and value.
        ref_labels: (M,) integers, those of the columns; the batch itself where None.
        self_index: (N,) the column that is row i itself, -1 for none; with ``ref_labels`` only.

    Returns:
        (N,) int64 each: how many columns :func:`pair_reduce` selects as "positive", and how many as
        "negative".

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or device.
    """
    checks.labels("labels", labels, labels)
    if ref_labels is not None:
        checks.labels("ref_labels", ref_labels, ref_labels)
        checks.device("ref_labels", ref_labels, labels)
    if self_index is not None:
        if ref_labels is None:
            raise ValueError("self_index was given without ref_labels")
        checks.labels("self_index", self_index, labels)
        self_index = self_index.long()
    own = labels.long()
    others = own if ref_labels is None else ref_labels.long()
    ordered = others.sort().values
    first, end = (torch.searchsorted(ordered, own, right=right) for right in (False, True))
    positives, negatives = end - first, len(others) - (end - first)
    if ref_labels is None:
        return positives - 1, negatives
    if self_index is not None and len(others):
        there = (self_index >= 0) & (self_index < len(others))
        itself = others[self_index.clamp(0, len(others) - 1)]
        positives = positives - (there & (itself == own)).long()
    return positives, negatives
