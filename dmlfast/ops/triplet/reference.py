"""The triplet loss in plain PyTorch, anchor by anchor where triplets are many: the definition of
right.
"""

import torch

from dmlfast.ops.numerics import computed, nan_unless_finite
from dmlfast.ops.pairs.reference import pair_distances, select_pairs

MOST_TRIPLETS = 2**24  # that are held at a time


def triplet_loss(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    row_labels: torch.Tensor,
    column_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
    margin: float,
    mining: str,
    reduction: str,
) -> torch.Tensor:
    """See :func:`dmlfast.ops.triplet_loss`."""
    x = computed(rows)
    r = x if columns is None else computed(columns)
    if columns is None:
        column_labels, self_index = row_labels, torch.arange(len(x), device=x.device)
    pairs = (row_labels, column_labels, self_index, (len(x), len(r)), x.device)
    distance = pair_distances(x, r)
    positive, negative = select_pairs("positive", *pairs), select_pairs("negative", *pairs)
    total = above = count = distance.sum() * 0
    if len(r):
        height = max(1, MOST_TRIPLETS // len(r) ** 2)
        parts = (t.split(height) for t in (distance, positive, negative))
        for d, same, others in zip(*parts, strict=True):
            hinges, chosen = MININGS[mining](d, same, others, margin)
            hinges = torch.where(chosen, hinges, 0).relu()
            total = total + hinges.sum()
            above = above + (hinges > 0).sum()
            count = count + chosen.sum()
    if reduction != "sum":
        total = total / (above if reduction == "nonzero" else count).clamp_min(1)
    return total + nan_unless_finite(x, r)


# Each takes distances and masks of positives and negatives (B, M), and returns hinges before they
# are cut at 0, with a mask of those that are triplets.


def all_triplets(
    distance: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, margin: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each positive with each negative, (B, M, M)."""
    hinges = distance[:, :, None] - distance[:, None, :] + margin
    return hinges, positive[:, :, None] & negative[:, None, :]


def semihard(
    distance: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, margin: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each positive with the nearest negative beyond it, or the furthest where there is none;
    (B, M).
    """
    beyond = negative[:, None, :] & (distance[:, None, :] > distance[:, :, None])
    nearest = distance[:, None, :].masked_fill(~beyond, torch.inf).argmin(2)
    furthest = distance.masked_fill(~negative, -torch.inf).argmax(1)
    chosen = torch.where(beyond.any(2), nearest, furthest[:, None])
    return distance - distance.gather(1, chosen) + margin, positive & negative.any(1)[:, None]


def hardest(
    distance: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, margin: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The furthest positive with the nearest negative, (B, 1)."""
    furthest = distance.masked_fill(~positive, -torch.inf).argmax(1, keepdim=True)
    nearest = distance.masked_fill(~negative, torch.inf).argmin(1, keepdim=True)
    hinges = distance.gather(1, furthest) - distance.gather(1, nearest) + margin
    return hinges, positive.any(1, keepdim=True) & negative.any(1, keepdim=True)


MININGS = {"all": all_triplets, "semihard": semihard, "hardest": hardest}
