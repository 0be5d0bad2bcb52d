"""Boosted losses in plain PyTorch, with the whole matrix of pairs: the definition of right."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812

from dmlfast.ops.boosted.settings import (
    NEGATIVES,
    SHRINKAGE,
    START,
    Settings,
    learners_of,
    shrinkage,
)
from dmlfast.ops.numerics import computed, nan_unless_finite, pair_products


def boosted_loss(
    rows: torch.Tensor, labels: torch.Tensor, groups: Sequence[int], settings: Settings
) -> torch.Tensor:
    """(M,) the loss of each learner, see :func:`dmlfast.ops.boosted_deviance_loss`."""
    same, one = labels[:, None] == labels, computed(rows).new_ones(())
    share = torch.where(same, one / same.sum(), one / (~same).sum()).fill_diagonal_(0)
    sign = torch.where(same, one, -settings.negative_cost * one)
    weight, carry = torch.ones_like(share), torch.full_like(share, START)
    losses = []
    for m, x in enumerate(learners_of(rows, groups), start=1):
        s = pair_products(x, x)
        losses.append((share * weight * _base_loss(s, same, sign, settings)).sum() / len(groups))
        weight, carry = _boosted(s.detach(), carry, m, same, sign, settings)
    return torch.stack(losses) + nan_unless_finite(rows)


def _base_loss(
    s: torch.Tensor, same: torch.Tensor, sign: torch.Tensor, settings: Settings
) -> torch.Tensor:
    if settings.base == "deviance":
        return F.softplus(-settings.beta1 * (s - settings.beta2) * sign)
    return torch.where(same, (1 - s).square(), (s - settings.margin).relu().square())


def _boosted(
    s: torch.Tensor,
    carry: torch.Tensor,
    m: int,
    same: torch.Tensor,
    sign: torch.Tensor,
    settings: Settings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights of the next learner, and the prediction that is carried on."""
    eta = shrinkage(m)
    z = settings.beta1 * (s - settings.beta2) * sign
    if settings.boosting == "none":
        return torch.ones_like(s), carry
    if settings.base == "contrastive":
        carry = (1 - eta) * carry + eta * s
        return torch.where(same, 2 * (1 - carry), 2 * (carry - settings.margin).relu()), carry
    if settings.boosting == "eta":
        carry = (1 - eta) * carry + eta * z
        return torch.sigmoid(-carry), carry
    if settings.boosting == "additive":
        carry = carry + SHRINKAGE * z
        return torch.sigmoid(-carry) * torch.where(same, 1.0, NEGATIVES), carry
    carry = (1 - eta) * carry + eta * s
    slope = settings.beta1 * sign
    return slope.abs() * torch.sigmoid(-slope * (carry - settings.beta2)), carry


def boosted_triplet_loss(
    rows: torch.Tensor, labels: torch.Tensor, groups: Sequence[int], margin: float, boosting: str
) -> torch.Tensor:
    """(M,) the loss of each learner, see :func:`dmlfast.ops.boosted_triplet_loss`."""
    same = labels[:, None] == labels
    others = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    triplets = others[:, :, None] & ~same[:, None, :]
    share = triplets.to(computed(rows).dtype) / triplets.sum().clamp_min(1)
    carry = torch.zeros(same.shape, dtype=share.dtype, device=rows.device)
    weight, losses = torch.ones_like(share), []
    for m, x in enumerate(learners_of(rows, groups), start=1):
        s = pair_products(x, x)
        hinge = (s[:, None, :] - s[:, :, None] + margin).relu()
        losses.append((share * weight * hinge).sum() / len(groups))
        if boosting != "none":
            eta = shrinkage(m)
            carry = (1 - eta) * carry + eta * s.detach()
            weight = (carry[:, None, :] - carry[:, :, None] + margin > 0).to(share.dtype)
    return torch.stack(losses) + nan_unless_finite(rows)
