"""What the embedding model knows about a backbone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Preprocessing:
    """How images were made into numbers when a backbone's weights were trained.

    Attributes:
        mean: of the images in [0, 1], subtracted; one number for each channel, or one for all.
        std: what they were then divided by, likewise.
        image_size: height and width in pixels; None where images of any size will do.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos", of images that are resized.
        crop_pct: the side of the central crop as a share of the short side it is cut from.
    """

    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    image_size: int | None = None
    interpolation: str = "bilinear"
    crop_pct: float = 0.875


@dataclass(frozen=True)
class Backbone:
    """A network that makes features of images, and what is known about it.

    Attributes:
        network: (B, C, H, W) float -> (B, out_features).
        out_features: the number of features of an image.
        pooling: how features are made of the last maps, in a word or two; None where that is not
            known.
        options: what the network was made from besides its name and the channels.
        classifier: how the names of those weights begin that files of this network may hold and
            features do not need.
    """

    network: nn.Module
    out_features: int
    pooling: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    classifier: tuple[str, ...] = ()


def average_pooling(network: nn.Module) -> str | None:
    """The last average over cells of the maps among a network's modules, in a few words."""
    found = [module for module in network.modules() if isinstance(module, nn.AdaptiveAvgPool2d)]
    if not found:
        return None
    size = found[-1].output_size
    height, width = size if isinstance(size, tuple) else (size, size)
    return "average" if height == width == 1 else f"average of each of {height} x {width} cells"
