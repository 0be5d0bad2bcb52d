"""Embedding models: preprocessing, a backbone and a linear head."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dmlfast.errors import UserError, unknown_name
from dmlfast.models import googlenet, zoo
from dmlfast.models.backbone import Backbone, Preprocessing, average_pooling
from dmlfast.models.convnet import ConvNet
from dmlfast.models.googlenet import BVLCGoogLeNet
from dmlfast.models.weights import load_weights
from dmlfast.ops.boosted import SHORTEST, WEIGHTINGS, score_weights

HEADS = ("linear", "layer-norm")  # how features become an embedding
HEAD_INITS = ("torch", "caffe")  # what the embedding layer starts from
NAMES = ("bvlc-googlenet", "convnet", "timm/NAME", "torchvision/NAME")


class Preprocess(nn.Module):
    """Brings images to the numbers a backbone takes: (x - mean) / std, with x in [0, 1].

    Args:
        mean, std: one number for each channel, or one for all.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.numbers = {"mean": mean, "std": std}
        for name, numbers in self.numbers.items():
            self.register_buffer(name, torch.tensor(numbers).view(-1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W), uint8 or float in [0, 1] -> float of the same shape."""
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"images must be uint8, or floats in [0, 1], not {images.dtype}")
        largest = 255 if images.dtype == torch.uint8 else 1
        return (images.to(self.mean.dtype) / largest - self.mean) / self.std

    def _load_from_state_dict(self, *args: Any) -> None:
        """Also of a model without memory, which has got some since: its buffers are in no file."""
        super()._load_from_state_dict(*args)
        for name, numbers in self.numbers.items():
            values = torch.tensor(numbers, device="cpu").view(-1, 1, 1)
            buffer = getattr(self, name)
            setattr(self, name, values if buffer.is_meta else values.to(buffer))


class EmbeddingModel(nn.Module):
    """Maps images to embeddings. Made by `create_model`, which takes `spec` as its arguments.

    What `freeze_batch_norm` and `freeze_backbone` freeze is a matter of training. `weighting`, how
    learners are weighed, and `learner`, from 1, which of them embeds alone, are matters of use.
    None of it is part of `spec`. `pooling` says in a word or two how the backbone makes features of
    its last maps, where that is known.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        backbone: nn.Module,
        head: nn.Module,
        spec: dict[str, Any],
        pooling: str | None = None,
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.backbone = backbone
        self.dropout = nn.Dropout(spec["dropout"])
        self.head = head
        self.spec = spec
        self.pooling = pooling
        self.weighting: str = spec["weighting"]
        self.learner: int | None = None
        self._frozen: tuple[type[nn.Module], ...] = ()

    def forward(self, images: torch.Tensor, with_features: bool = False) -> Any:
        """(B, C, H, W), uint8 or float in [0, 1] -> (B, embedding_dim); of one learner, its width.

        With ``with_features`` a pair of them and of what the linear layer makes them of, (B, F).
        """
        features = self.dropout(self.backbone(self.preprocess(images)))
        *before, last = self.head if isinstance(self.head, nn.Sequential) else [self.head]
        for layer in before:
            features = layer(features)
        embeddings = last(features)
        if self.spec["groups"]:
            embeddings = weighted_learners(embeddings, self.spec["groups"], self.weighting)
        if self.learner:
            parts = embeddings.split(self.spec["groups"], dim=1)
            embeddings = F.normalize(parts[self.learner - 1])
        if self.spec["normalize"]:
            embeddings = F.normalize(embeddings)
        return (embeddings, features) if with_features else embeddings

    def choose_learners(self, weighting: str | None = None, learner: int | None = None) -> None:
        """Weighs the learners otherwise than in training, or embeds with one of them alone, from 1;
        without arguments, as in training.

        Raises:
            UserError: there are no learners, or not that one or that weighting.
        """
        count = len(self.spec["groups"] or ())
        if (weighting or learner is not None) and not count:
            raise UserError("the network has no learners: only --loss bier and a-bier train them")
        if learner is not None and not 1 <= learner <= count:
            raise UserError(f"the network has no learner {learner}: its learners are 1 to {count}")
        if weighting is not None and weighting not in WEIGHTINGS:
            raise unknown_name("weighting", weighting, WEIGHTINGS)
        self.weighting = weighting or self.spec["weighting"]
        self.learner = learner

    @property
    def embedding_weight(self) -> torch.Tensor:
        """(embedding_dim, F), of the linear layer; a `UserError` where the head has none."""
        last = self.head[-1] if isinstance(self.head, nn.Sequential) else self.head
        if not isinstance(last, nn.Linear):
            raise UserError("the head has no linear layer: it is only a normalisation")
        return last.weight

    def train(self, mode: bool = True) -> "EmbeddingModel":
        """Switches to training or eval mode; what is frozen stays in eval mode."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, self._frozen):
                module.training = False
        return self

    @property
    def has_batch_norm(self) -> bool:
        """Whether the backbone has batch norms."""
        return any(isinstance(module, _BatchNorm) for module in self.backbone.modules())

    def freeze_batch_norm(self) -> None:
        """Fixes the backbone's batch norms: running statistics, scales and shifts."""
        self._freeze(_BatchNorm)

    def freeze_backbone(self) -> None:
        """Fixes all of the backbone, running statistics too."""
        self._freeze(nn.Module)

    def _freeze(self, kind: type[nn.Module]) -> None:
        self._frozen += (kind,)
        for module in self.backbone.modules():
            if isinstance(module, kind):
                module.requires_grad_(False)
        self.train(self.training)


def weighted_learners(
    embeddings: torch.Tensor, groups: Sequence[int], weighting: str
) -> torch.Tensor:
    """Embeddings (B, D) whose inner products are the weighted sum of the learners' cosines."""
    weights = score_weights(groups, weighting)
    parts = zip(embeddings.split(list(groups), dim=1), weights, strict=True)
    scaled = [F.normalize(part, eps=SHORTEST) * weight**0.5 for part, weight in parts]
    return torch.cat(scaled, dim=1)


def model_names() -> list[str]:
    """The names that `create_model` knows; NAME stands for any of the library's own names."""
    return list(NAMES)


def backbone_preprocessing(name: str) -> Preprocessing:
    """How images are prepared for the backbone of that name and its usual weights.

    Raises:
        UserError: for an unknown name, and where its library is not installed.
    """
    library, _, rest = name.partition("/")
    if library == "timm" and rest:
        return zoo.timm_preprocessing(rest)
    if library == "torchvision" and rest:
        return zoo.torchvision_preprocessing(rest)
    if name == "bvlc-googlenet":
        return googlenet.PREPROCESSING
    if name == "convnet":
        return Preprocessing()
    raise unknown_name("backbone", name, NAMES)


def has_default_weights(name: str) -> bool:
    """Whether the library of the backbone offers pretrained weights."""
    return "/" in name


def create_model(
    name: str,
    channels: int = 1,
    embedding_dim: int = 64,
    *,
    head: str = "linear",
    normalize: bool = False,
    dropout: float = 0.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    transform: Mapping[str, Any] | None = None,
    weights: str | Path = "none",
    head_init: str = "torch",
    groups: Sequence[int] | None = None,
    weighting: str = "paper",
    **options: Any,
) -> EmbeddingModel:
    """A new model; its head and what no file gives are drawn from torch's global generator.

    Args:
        name: of the backbone, one of `model_names()`.
        channels: of the images.
        embedding_dim: of the embeddings.
        head: of the features makes embeddings: "linear", a linear layer; "layer-norm", a
            normalisation of the F features of an image to mean 0 and variance 1, without scale or
            shift, and a linear layer without bias, of which there is none where `embedding_dim` is
            F (Zhai and Wu, BMVC 2019).
        normalize: scale every embedding to length 1.
        dropout: the share of the features that training leaves out before the head.
        mean: subtracted from the images in [0, 1]; one number for each channel, or one for all; by
            default that of the backbone's usual weights.
        std: what they are then divided by, likewise.
        transform: the arguments of `dmlfast.data.create_transform` by which pictures become the
            images this model takes; None where images go in as they are. Kept in the spec.
        weights: of the backbone: "none", "default" for those of its library, or a file. Not in the
            spec: a model that is rebuilt from it gets its tensors from its own file.
        head_init: of the embedding layer, with F features: "torch" draws weights and biases from
            +-1 / sqrt(F), uniformly; "caffe" weights from +-sqrt(3 / F), its xavier, and the biases
            are 0. Not in the spec either.
        groups: the widths of the learners that embeddings are made of (BIER): each learner's part
            is scaled to length 1 and weighted, so that an inner product is their weighted score.
        weighting: of the learners, see `dmlfast.ops.boosted.score_weights`.
        options: of the backbone; "convnet" takes `widths`, networks of timm and torchvision that
            are made for one size of images take `image_size`.

    Raises:
        UserError: for an unknown name, for numbers that make no model, for weights that cannot be
            had or are another network's, and where the backbone's library is not installed.
    """
    preprocessing = backbone_preprocessing(name)
    if channels < 1 or embedding_dim < 1:
        raise UserError(
            f"channels and embedding_dim must be at least 1, not {channels} and {embedding_dim}"
        )
    if head not in HEADS:
        raise unknown_name("head", head, HEADS)
    if head_init not in HEAD_INITS:
        raise unknown_name("head_init", head_init, HEAD_INITS)
    if groups and (min(groups) < 1 or sum(groups) != embedding_dim):
        raise UserError(f"groups {list(groups)} do not add up to embedding_dim, {embedding_dim}")
    if weighting not in WEIGHTINGS:
        raise unknown_name("weighting", weighting, WEIGHTINGS)
    if not 0 <= dropout < 1:
        raise UserError(f"dropout must be at least 0 and below 1, not {dropout}")
    mean = _of_channels(preprocessing.mean, channels) if mean is None else [*map(float, mean)]
    std = _of_channels(preprocessing.std, channels) if std is None else [*map(float, std)]
    if len(mean) not in (1, channels) or len(std) not in (1, channels) or 0 in std:
        raise UserError(f"mean and std must be 1 or {channels} numbers, and no std 0")
    pretrained = str(weights) == "default"
    if pretrained and not has_default_weights(name):
        raise UserError(f"{name} has no default weights: give a file, --weights PATH")
    backbone = _create_backbone(name, channels, pretrained, options)
    if str(weights) not in ("none", "default"):
        load_weights(backbone.network, weights, backbone.classifier)
    spec = {
        "name": name,
        "channels": channels,
        "embedding_dim": embedding_dim,
        "head": head,
        "normalize": normalize,
        "dropout": dropout,
        "mean": list(mean),
        "std": list(std),
        "transform": None if transform is None else dict(transform),
        "groups": list(groups) if groups else None,
        "weighting": weighting,
        **backbone.options,
    }
    layer = _create_head(head, backbone.out_features, embedding_dim, head_init)
    return EmbeddingModel(Preprocess(mean, std), backbone.network, layer, spec, backbone.pooling)


def _create_head(head: str, in_features: int, embedding_dim: int, init: str) -> nn.Module:
    if head == "layer-norm" and embedding_dim == in_features:
        return nn.LayerNorm(in_features, elementwise_affine=False)
    linear = nn.Linear(in_features, embedding_dim, bias=head == "linear")
    if init == "caffe":
        nn.init.kaiming_uniform_(linear.weight, nonlinearity="linear")
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
    if head == "linear":
        return linear
    return nn.Sequential(nn.LayerNorm(in_features, elementwise_affine=False), linear)


def _create_backbone(
    name: str, channels: int, pretrained: bool, options: dict[str, Any]
) -> Backbone:
    library, _, rest = name.partition("/")
    if library == "timm":
        return zoo.timm_backbone(rest, channels, pretrained, **options)
    if library == "torchvision":
        return zoo.torchvision_backbone(rest, channels, pretrained, **options)
    if name == "bvlc-googlenet":
        return Backbone(BVLCGoogLeNet(channels, **options), googlenet.OUT_FEATURES, "average")
    network = ConvNet(channels, **options)
    return Backbone(network, network.out_features, average_pooling(network), network.options)


def _of_channels(numbers: Sequence[float], channels: int) -> Sequence[float]:
    """The numbers where they fit the channels, else their mean for all channels."""
    return numbers if len(numbers) in (1, channels) else [sum(numbers) / len(numbers)]
