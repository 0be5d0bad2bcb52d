"""Loss modules on top of :mod:`dmlfast.ops`, called the way the field calls them."""

from collections.abc import Callable
from typing import Any

import torch

from dmlfast.errors import unknown_name
from dmlfast.losses.base import PairLoss
from dmlfast.losses.contrastive import ContrastiveLoss
from dmlfast.losses.lifted import GeneralizedLiftedStructuredLoss, LiftedStructuredLoss
from dmlfast.losses.triplet import TripletLoss

__all__ = [
    "ContrastiveLoss",
    "GeneralizedLiftedStructuredLoss",
    "LiftedStructuredLoss",
    "PairLoss",
    "TripletLoss",
    "create_loss",
    "loss_names",
]


def _contrastive(margin: float | None = None, **kwargs: Any) -> ContrastiveLoss:
    """``margin``: that of negative pairs, which no contrastive loss can do without."""
    if margin is not None:
        kwargs["neg_margin"] = margin
    return ContrastiveLoss(**kwargs)


_LOSSES: dict[str, Callable[..., torch.nn.Module]] = {
    "contrastive": _contrastive,
    "generalized-lifted": GeneralizedLiftedStructuredLoss,
    "lifted": LiftedStructuredLoss,
    "triplet": TripletLoss,
}


def loss_names() -> list[str]:
    """The names that :func:`create_loss` knows."""
    return sorted(_LOSSES)


def create_loss(name: str, **kwargs: Any) -> torch.nn.Module:
    """The loss module called ``name``; keyword arguments go to its constructor, of which every one
    takes ``margin``.

    Raises:
        UserError: no loss has this name.
    """
    if name not in _LOSSES:
        raise unknown_name("loss", name, _LOSSES)
    return _LOSSES[name](**kwargs)
