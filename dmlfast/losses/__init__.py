"""Loss modules on top of :mod:`dmlfast.ops`, called the way the field calls them."""

from collections.abc import Callable
from typing import Any

import torch

from dmlfast.errors import unknown_name
from dmlfast.losses.base import PairLoss
from dmlfast.losses.lifted import LiftedStructuredLoss

__all__ = ["LiftedStructuredLoss", "PairLoss", "create_loss", "loss_names"]

_LOSSES: dict[str, Callable[..., torch.nn.Module]] = {"lifted": LiftedStructuredLoss}


def loss_names() -> list[str]:
    """The names that :func:`create_loss` knows."""
    return sorted(_LOSSES)


def create_loss(name: str, **kwargs: Any) -> torch.nn.Module:
    """The loss module called ``name``; keyword arguments go to its constructor.

    Raises:
        UserError: no loss has this name.
    """
    if name not in _LOSSES:
        raise unknown_name("loss", name, _LOSSES)
    return _LOSSES[name](**kwargs)
