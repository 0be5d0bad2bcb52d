"""Loss modules on top of :mod:`dmlfast.ops`, called the way the field calls them."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

from dmlfast.errors import UserError, unknown_name
from dmlfast.losses.base import PairLoss
from dmlfast.losses.bier import ABIERLoss, BIERLoss
from dmlfast.losses.contrastive import ContrastiveLoss
from dmlfast.losses.lifted import GeneralizedLiftedStructuredLoss, LiftedStructuredLoss
from dmlfast.losses.memory import CrossBatchMemory
from dmlfast.losses.multi_similarity import MultiSimilarityLoss
from dmlfast.losses.norm_softmax import NormSoftmaxLoss
from dmlfast.losses.ntxent import NTXentLoss
from dmlfast.losses.pddm import PDDMLoss, PDDMUnit
from dmlfast.losses.proxy_anchor import ProxyAnchorLoss
from dmlfast.losses.supcon import SupConLoss
from dmlfast.losses.triplet import TripletLoss
from dmlfast.options import parse_name_values, plain_value

__all__ = [
    "ABIERLoss",
    "BIERLoss",
    "ContrastiveLoss",
    "CrossBatchMemory",
    "GeneralizedLiftedStructuredLoss",
    "LiftedStructuredLoss",
    "MultiSimilarityLoss",
    "NTXentLoss",
    "NormSoftmaxLoss",
    "PDDMLoss",
    "PDDMUnit",
    "PairLoss",
    "ProxyAnchorLoss",
    "SupConLoss",
    "TripletLoss",
    "compares_with_classes",
    "create_loss",
    "loss_names",
    "parse_loss_options",
    "register_loss",
    "takes",
]

_LOSSES: dict[str, Callable[..., torch.nn.Module]] = {
    "a-bier": ABIERLoss,
    "bier": BIERLoss,
    "contrastive": ContrastiveLoss,
    "generalized-lifted": GeneralizedLiftedStructuredLoss,
    "lifted": LiftedStructuredLoss,
    "multi-similarity": MultiSimilarityLoss,
    "norm-softmax": NormSoftmaxLoss,
    "ntxent": NTXentLoss,
    "pddm": PDDMLoss,
    "proxy-anchor": ProxyAnchorLoss,
    "supcon": SupConLoss,
    "triplet": TripletLoss,
}


def loss_names() -> list[str]:
    """The names that :func:`create_loss` knows."""
    return sorted(_LOSSES)


def compares_with_classes(name: str) -> bool:
    """Whether a loss has weights for the classes, so that :func:`create_loss` needs ``num_classes``
    and ``embedding_dim``; pair losses compare the images of a batch.

    Raises:
        UserError: no loss has this name.
    """
    return takes(name, "num_classes")


def takes(name: str, option: str) -> bool:
    """Whether a loss has an option of this name.

    Raises:
        UserError: no loss has this name.
    """
    return option in inspect.signature(_find(name)).parameters


def register_loss(name: str, loss: Callable[..., torch.nn.Module]) -> None:
    """Makes a loss known to :func:`create_loss`, and so to training, in this process.

    Args:
        name: one that is not taken.
        loss: a class, or anything else that makes a module from the arguments ``impl``, ``margin``
            (or what its attribute ``margin_argument`` says) and options of its own.

    Raises:
        ValueError: another loss has this name.
    """
    if _LOSSES.setdefault(name, loss) is not loss:
        raise ValueError(f"there is a loss '{name}' already")


def create_loss(name: str, **options: Any) -> torch.nn.Module:
    """The loss module called ``name``; the options go to its constructor.

    Every loss but supcon and ntxent takes ``margin``: for the contrastive one it is the margin of
    negative pairs, for multi-similarity ``base``, for norm-softmax ``cosine_margin``, and for pddm
    ``score_margin``.

    Raises:
        UserError: no loss has this name, or this one does not take an option or needs another, or a
            value is of the wrong kind.
        TypeError, ValueError: the loss does not take a value.
    """
    loss = _find(name)
    margin = getattr(loss, "margin_argument", "margin")
    if "margin" in options and margin != "margin":
        if margin in options:
            raise UserError(f"the margin of the {name} loss is given twice, also as {margin}")
        options[margin] = options.pop("margin")
    known = inspect.signature(loss).parameters
    for option, value in options.items():
        if option not in known:
            raise unknown_name(f"option of the {name} loss", option, known)
        _check_option(name, option, value, known[option].annotation)
    if missing := [option for option in known if option not in options and _needed(known[option])]:
        raise UserError(f"the {name} loss needs {' and '.join(missing)}")
    return loss(**options)


def _needed(option: inspect.Parameter) -> bool:
    """Whether a loss cannot be made without it."""
    is_one = option.kind not in (option.VAR_POSITIONAL, option.VAR_KEYWORD)
    return is_one and option.default is option.empty


def _find(name: str) -> Callable[..., torch.nn.Module]:
    if name not in _LOSSES:
        raise unknown_name("loss", name, _LOSSES)
    return _LOSSES[name]


_SETTINGS = {
    "margin": "margin",
    "impl": "impl",
    "normalize_embeddings": "normalize",
    "embedding_dim": "embedding-dim",
    "seed": "seed",
    "groups": "groups",
}
_KINDS = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("a string", (str,)),
}


def _check_option(name: str, option: str, value: Any, kind: Any) -> None:
    kind = next((part for part in _KINDS if kind in (part, part | None)), kind)
    words, types = _KINDS.get(kind, ("", (object,)))
    if value is None:
        return
    if not isinstance(value, types) or (isinstance(value, bool) and kind in (int, float)):
        raise UserError(f"{option} of the {name} loss must be {words}, not {value!r}")


def parse_loss_options(text: str | None) -> dict[str, Any]:
    """The options in "mining=semihard,reduction=mean", as `create_loss` takes them.

    Raises:
        UserError: a part is not NAME=VALUE, or names a setting of its own.
    """
    options = parse_name_values(text, "loss options")
    for name, own in _SETTINGS.items():
        if name in options:
            raise UserError(f"'{name}' is not a loss option but a setting: --{own}")
    return {name: plain_value(value) for name, value in options.items()}
