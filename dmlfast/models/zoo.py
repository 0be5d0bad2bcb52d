"""The networks of timm and torchvision as backbones, by the names they have there."""

import difflib
from collections.abc import Iterable
from typing import Any

from torch import nn

from dmlfast.errors import UserError
from dmlfast.models.backbone import Backbone, Preprocessing, average_pooling
from dmlfast.models.optional import import_timm, import_torchvision

# What these were trained with and their constructors leave off unless they load weights themselves.
TORCHVISION_ARGUMENTS = {
    "googlenet": {"transform_input": True, "aux_logits": False, "init_weights": True},
    "inception_v3": {"transform_input": True, "aux_logits": False, "init_weights": True},
}
AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")


def timm_preprocessing(name: str) -> Preprocessing:
    """How the images were prepared for timm's default weights of that name."""
    timm = import_timm()
    _check_timm_name(timm, name)
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return Preprocessing(image_size=224)
    return Preprocessing(
        mean=tuple(config.mean),
        std=tuple(config.std),
        image_size=config.input_size[-1],
        interpolation=config.interpolation,
        crop_pct=config.crop_pct,
    )


def timm_backbone(
    name: str, channels: int, pretrained: bool, image_size: int | None = None
) -> Backbone:
    """A network of timm without its classifier.

    Args:
        name: as timm has it, with or without the tag of its weights.
        channels: of the images.
        pretrained: load timm's weights, from the network or its cache.
        image_size: of the images, for networks that are made for one size; None is the weights'.
    """
    timm = import_timm()
    _check_timm_name(timm, name)
    config = timm.get_pretrained_cfg(name)
    fixed = config is not None and config.fixed_input_size and image_size is not None
    options: dict[str, Any] = {"img_size": image_size} if fixed else {}
    try:
        network = timm.create_model(
            name, pretrained=pretrained, num_classes=0, in_chans=channels, **options
        )
    except Exception as error:  # whatever the network, the hub or the constructor raises
        raise _not_made(f"timm/{name}", pretrained, error) from error
    heads = config.classifier if config is not None and config.classifier else ()
    heads = (heads,) if isinstance(heads, str) else heads
    return Backbone(
        network,
        out_features=getattr(network, "head_hidden_size", network.num_features),
        pooling=_timm_pooling(network),
        options={"image_size": image_size} if fixed else {},
        classifier=tuple(f"{head}." for head in heads),
    )


def _check_timm_name(timm: Any, name: str) -> None:
    if not timm.is_model(name.partition(".")[0]):
        raise _unknown("timm", name, timm.list_models())


def _timm_pooling(network: nn.Module) -> str | None:
    """How a network of timm makes features of its last maps or tokens, in a few words."""
    pool = getattr(
        network, "global_pool", getattr(getattr(network, "head", None), "global_pool", "")
    )
    names = {"avg": "average", "token": "class token", "map": "attention"}
    kind = getattr(pool, "pool_type", pool)
    return names.get(kind, kind) if kind and isinstance(kind, str) else None


def torchvision_preprocessing(name: str) -> Preprocessing:
    """How the images were prepared for torchvision's default weights of that name."""
    models = _torchvision_models(name)
    weights = models.get_model_weights(name)
    transform = weights.DEFAULT.transforms()
    size = transform.crop_size[0]
    return Preprocessing(
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        image_size=size,
        interpolation=transform.interpolation.value,
        crop_pct=size / transform.resize_size[0],
    )


def torchvision_backbone(
    name: str, channels: int, pretrained: bool, image_size: int | None = None
) -> Backbone:
    """A network of torchvision whose last linear layer, its classifier, is left out.

    Args:
        name: as torchvision has it.
        channels: of the images; they must be 3.
        pretrained: load torchvision's default weights, from the network or its cache.
        image_size: of the images, for vision transformers; None is the weights'.
    """
    models = _torchvision_models(name)
    if channels != 3:
        raise UserError(f"torchvision/{name} takes images of 3 channels, not {channels}")
    fixed = name.startswith("vit_") and image_size is not None
    options: dict[str, Any] = {"image_size": image_size} if fixed else {}
    arguments = options | TORCHVISION_ARGUMENTS.get(name, {})
    if pretrained:
        arguments.pop("init_weights", None)
        arguments.pop("aux_logits", None)
    try:
        network = models.get_model(name, weights="DEFAULT" if pretrained else None, **arguments)
    except Exception as error:  # whatever the network or the constructor raises
        raise _not_made(f"torchvision/{name}", pretrained, error) from error
    for head in AUXILIARY_HEADS:
        if hasattr(network, head[:-1]):
            setattr(network, head[:-1], None)
            network.aux_logits = False
    linear = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(f"torchvision/{name} has no linear classifier to leave out")
    out_features = network.get_submodule(linear[-1]).in_features
    network.set_submodule(linear[-1], nn.Identity())
    pooling = "class token" if hasattr(network, "class_token") else average_pooling(network)
    classifier = (f"{linear[-1]}.", *AUXILIARY_HEADS)
    return Backbone(network, out_features, pooling, options, classifier)


def _torchvision_models(name: str) -> Any:
    """The module `torchvision.models`, which has a classification network of that name."""
    models = import_torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        raise _unknown("torchvision", name, known)
    return models


def _unknown(library: str, name: str, known: Iterable[str]) -> UserError:
    close = difflib.get_close_matches(name, list(known), n=3)
    hint = ": did you mean " + " or ".join(f"'{library}/{near}'" for near in close) + "?"
    return UserError(f"unknown backbone '{library}/{name}'{hint if close else ''}")


def _not_made(name: str, pretrained: bool, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
    if not pretrained:
        return UserError(f"cannot make {name}: {reason}")
    return UserError(
        f"cannot get the weights of {name} ({reason}): give a file, --weights PATH, or "
        "--weights none"
    )
