"""The contrastive loss in plain PyTorch, on all pairs at once: the definition of right."""

import torch

from dmlfast.ops.numerics import computed, nan_unless_finite
from dmlfast.ops.pairs.reference import pair_distances, select_pairs


def contrastive_loss(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    row_labels: torch.Tensor,
    column_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
    pos_margin: float,
    neg_margin: float,
    squared: bool,
    reduction: str,
) -> torch.Tensor:
    """See :func:`dmlfast.ops.contrastive_loss`."""
    x = computed(rows)
    r = x if columns is None else computed(columns)
    if columns is None:
        column_labels, self_index = row_labels, torch.arange(len(x), device=x.device)
    pairs = (row_labels, column_labels, self_index, (len(x), len(r)), x.device)
    distance = pair_distances(x, r)
    parts = []
    for select, term in (("positive", distance - pos_margin), ("negative", neg_margin - distance)):
        chosen = select_pairs(select, *pairs)
        hinge = torch.where(chosen, term, 0).relu()
        total = (hinge.square() / 2 if squared else hinge).sum()
        if reduction != "sum":
            counted = hinge > 0 if reduction == "nonzero" else chosen
            total = total / counted.sum().clamp_min(1)
        parts.append(total)
    return parts[0] + parts[1] + nan_unless_finite(x, r)
