"""The normalised softmax in plain PyTorch, with all logits: the definition of right."""

import math

import torch
import torch.nn.functional as F  # noqa: N812

from dmlfast.ops.norm_softmax.settings import PARALLEL, Settings
from dmlfast.ops.numerics import computed, nan_unless_finite, pair_products, unit_rows


def angles(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(N,) radians between unit rows, pi / 2 where one or both are 0; with a gradient of 0 where
    they are as good as parallel.
    """
    difference, total = (torch.linalg.vector_norm(t, dim=1) for t in (a - b, a + b))
    nothing = difference + total == 0
    angle = 2 * torch.atan2(torch.where(nothing, 1, difference), torch.where(nothing, 1, total))
    return torch.where(torch.minimum(angle, math.pi - angle) < PARALLEL, angle.detach(), angle)


def norm_softmax_loss(
    rows: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    settings: Settings,
    reduction: str,
) -> torch.Tensor:
    """See :func:`dmlfast.ops.norm_softmax_loss`."""
    valid = labels != settings.ignore_index
    labels = torch.where(valid, labels, 0).long()
    x = unit_rows(torch.where(valid[:, None], computed(rows), 0))
    p = unit_rows(computed(weight))
    logits = pair_products(x, p)
    own = p[labels]
    if settings.angular_margin:
        target = torch.cos(angles(x, own) + settings.angular_margin)
    else:
        target = (x * own).sum(1)
    target = target - settings.cosine_margin
    logits = logits.scatter(1, labels[:, None], target[:, None]) / settings.temperature
    losses = F.cross_entropy(
        logits, labels, reduction="none", label_smoothing=settings.label_smoothing
    )
    losses = torch.where(valid, losses, 0) + nan_unless_finite(x, weight)
    if reduction == "none":
        return losses
    return losses.sum() / (valid.sum().clamp_min(1) if reduction == "mean" else 1)
