"""The proxy-anchor loss (Kim, Kim, Cho, Kwak, CVPR 2020), with its proxies."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import softplus

from dmlfast import ops
from dmlfast.losses.base import moved, refuse
from dmlfast.losses.classes import known_classes, places_of
from dmlfast.ops import checks, dispatch


class ProxyAnchorLoss(nn.Module):
    """The proxy-anchor loss: each class has a learned proxy, which is compared with the rows of a
    batch by their cosines s.

    The mean, over the proxies p of classes in the batch, of log(1 + sum_x exp(-alpha (s_xp -
    margin))) over their rows x; plus the mean, over all proxies, of log(1 + sum_x exp(alpha (s_xp +
    margin))) over the rows of other classes. Cosines are taken in the dtype of the embeddings.

    Args:
        num_classes: C, for labels from 0 to C - 1; or the labels, (C,) integers, each once.
        embedding_dim: D.
        margin: a row's cosine with its own proxy should be above this, and with others below minus
            this.
        alpha: how steeply rows count, above 0.
        impl: "auto" or the name of a backend.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value.

    Attributes:
        weight: (C, D), one proxy a class; their lengths do not matter.
        classes: (C,) int64, their labels, ascending.
    """

    classes: torch.Tensor

    def __init__(
        self,
        num_classes: torch.Tensor | np.ndarray | Sequence[int] | int,
        embedding_dim: int,
        margin: float = 0.1,
        alpha: float = 32.0,
        *,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        known = known_classes(num_classes)
        embedding_dim = checks.whole_number("embedding_dim", embedding_dim, 1)
        self.margin = checks.finite("margin", margin)
        self.alpha = checks.above_zero("alpha", alpha)
        self.impl = dispatch.checked_impl(impl)
        spread = (2 / len(known)) ** 0.5  # as the paper's code starts them
        self.weight = nn.Parameter(torch.empty(len(known), embedding_dim).normal_(std=spread))
        self.register_buffer("classes", known)

    def forward(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        indices_tuple: Any = None,
        ref_emb: torch.Tensor | None = None,
        ref_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss, ().

        Args:
            embeddings: (N, D); their lengths do not matter.
            labels: (N,) integers, each one of the classes. On a GPU, where a check would make the
                host wait, any other gives a loss of NaN.
            indices_tuple, ref_emb, ref_labels: must be None.

        Raises:
            TypeError, ValueError: an argument has the wrong type or shape, a label is no class, or
                what must be None was given.
        """
        refuse(self, "compares with classes", indices_tuple, ref_emb, ref_labels)
        checks.embeddings("embeddings", embeddings)
        checks.embeddings("weight", self.weight, like=embeddings)
        labels = moved("labels", labels, embeddings)
        checks.labels("labels", labels, embeddings)
        alpha, margin = checks.above_zero("alpha", self.alpha), checks.finite("margin", self.margin)
        C = len(self.classes)
        own, each = places_of(labels, self.classes), torch.arange(C, device=labels.device)
        normalize = partial(ops.normalize, impl=self.impl)
        proxies = normalize(self.weight).to(embeddings.dtype)
        pairs = (proxies, each, normalize(embeddings), own)
        reduce = partial(
            ops.pair_reduce, *pairs, score="dot", offset=alpha * margin, impl=self.impl
        )
        positives = reduce(select="positive", scale=-alpha)
        negatives = reduce(select="negative", scale=alpha)
        present = (ops.pair_counts(each, own)[0] > 0).sum()
        loss = softplus(positives).sum() / present.clamp_min(1) + softplus(negatives).mean()
        return loss.where((own < C).all(), torch.nan)

    def extra_repr(self) -> str:
        settings = [f"{name}={getattr(self, name)!r}" for name in ("margin", "alpha", "impl")]
        return ", ".join([f"{len(self.classes)}, {self.weight.shape[1]}", *settings])
