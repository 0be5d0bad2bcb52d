"""Embedding models: preprocessing, a backbone and a linear head."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from dmlfast.errors import UserError, unknown_name
from dmlfast.models.convnet import ConvNet

_BACKBONES = {"convnet": ConvNet}


class Preprocess(nn.Module):
    """Brings images to the numbers a backbone takes: (x - mean) / std, with x in [0, 1].

    Args:
        mean, std: one number for each channel, or one for all.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W), uint8 or float in [0, 1] -> float of the same shape."""
        largest = 255 if images.dtype == torch.uint8 else 1
        return (images.to(self.mean.dtype) / largest - self.mean) / self.std


class EmbeddingModel(nn.Module):
    """Maps images to embeddings. Made by `create_model`, which takes `spec` as its arguments."""

    def __init__(
        self, preprocess: Preprocess, backbone: ConvNet, head: nn.Linear, spec: dict[str, Any]
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.backbone = backbone
        self.head = head
        self.spec = spec

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W), uint8 or float in [0, 1] -> (B, embedding_dim)."""
        embeddings = self.head(self.backbone(self.preprocess(images)))
        return F.normalize(embeddings) if self.spec["normalize"] else embeddings


def model_names() -> list[str]:
    """The names that `create_model` knows."""
    return sorted(_BACKBONES)


def create_model(
    name: str,
    channels: int = 1,
    embedding_dim: int = 64,
    *,
    normalize: bool = False,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    **options: Any,
) -> EmbeddingModel:
    """A new model with random weights, drawn from torch's global generator.

    Args:
        name: of the backbone, one of `model_names()`.
        channels: of the images.
        embedding_dim: of the embeddings.
        normalize: scale every embedding to length 1.
        mean: subtracted from the images in [0, 1]; one number for each channel, or one for all.
        std: what they are then divided by, likewise.
        options: of the backbone; "convnet" takes `widths`.

    Raises:
        UserError: for an unknown name and for numbers that make no model.
    """
    if name not in _BACKBONES:
        raise unknown_name("model", name, _BACKBONES)
    if channels < 1 or embedding_dim < 1:
        raise UserError(
            f"channels and embedding_dim must be at least 1, not {channels} and {embedding_dim}"
        )
    if len(mean) not in (1, channels) or len(std) not in (1, channels) or 0 in std:
        raise UserError(f"mean and std must be 1 or {channels} numbers, and no std 0")
    backbone = _BACKBONES[name](channels, **options)
    spec = {
        "name": name,
        "channels": channels,
        "embedding_dim": embedding_dim,
        "normalize": normalize,
        "mean": list(mean),
        "std": list(std),
        **backbone.options,
    }
    head = nn.Linear(backbone.out_features, embedding_dim)
    return EmbeddingModel(Preprocess(mean, std), backbone, head, spec)
