"""The normalised softmax loss (Zhai and Wu, BMVC 2019), with its weights."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from dmlfast import ops
from dmlfast.losses.base import moved, refuse, refuse_recomputation
from dmlfast.losses.classes import known_classes, places_of
from dmlfast.ops import checks, dispatch
from dmlfast.ops.norm_softmax.op import checked_settings
from dmlfast.ops.numerics import computed, pair_products


class NormSoftmaxLoss(nn.Module):
    """Cross-entropy over the cosines of embeddings with learned weights of the classes.

    Where classes are sampled, a step compares with the batch's own classes and random others. Only
    these get a gradient, which is then a sparse tensor: the optimiser must accept such gradients,
    as `RowSGD` and `RowAdamW` of `dmlfast.training.row_optimizers` do. What is drawn depends on
    `seed` and on the number of earlier draws, which the state dict keeps.

    Args:
        num_classes: C, for labels from 0 to C - 1; or the labels, (C,) integers, each once.
        embedding_dim: D.
        temperature: what cosines are divided by.
        cosine_margin: subtracted from the cosine with the own class (CosFace).
        angular_margin: added to the angle with the own class, in radians (ArcFace).
        label_smoothing: share of the target that is spread over all classes.
        class_fraction: share of the classes that a step compares with, in training mode; 1 is all.
        class_count: how many, instead of a share; at most all, at least the batch's own.
        low_memory: compute cosines twice rather than keeping some.
        seed: the seed of the draws.
        impl: "auto" or the name of a backend.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value.

    Attributes:
        weight: (C, D), one row a class.
        classes: (C,) int64, their labels, ascending.
    """

    margin_argument = "cosine_margin"
    classes: torch.Tensor

    def __init__(
        self,
        num_classes: torch.Tensor | np.ndarray | Sequence[int] | int,
        embedding_dim: int,
        temperature: float = 0.05,
        *,
        cosine_margin: float = 0.0,
        angular_margin: float = 0.0,
        label_smoothing: float = 0.0,
        class_fraction: float = 1.0,
        class_count: int | None = None,
        low_memory: bool = False,
        seed: int = 0,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        known = known_classes(num_classes)
        embedding_dim = checks.whole_number("embedding_dim", embedding_dim, 1)
        class_fraction = checks.finite("class_fraction", class_fraction)
        if not 0 < class_fraction <= 1:
            raise ValueError(f"class_fraction must be above 0 and at most 1, not {class_fraction}")
        if class_count is not None:
            class_count = checks.whole_number("class_count", class_count, 1)
            if class_fraction != 1:
                raise ValueError("class_fraction and class_count cannot both be given")
        self.temperature, self.cosine_margin, self.angular_margin, self.label_smoothing = (
            checked_settings(temperature, cosine_margin, angular_margin, label_smoothing)
        )
        self.sample_size = class_count or math.ceil(class_fraction * len(known))
        self.low_memory = checks.flag("low_memory", low_memory)
        self.seed = checks.whole_number("seed", seed, 0)
        self.impl = dispatch.checked_impl(impl)
        bound = embedding_dim**-0.5  # as the paper's code starts them
        self.weight = nn.Parameter(torch.empty(len(known), embedding_dim).uniform_(-bound, bound))
        self.register_buffer("classes", known)
        self.draws = 0

    @property
    def samples(self) -> bool:
        """Whether a training step compares with only some of the classes."""
        return self.sample_size < len(self.classes)

    def forward(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        indices_tuple: Any = None,
        ref_emb: torch.Tensor | None = None,
        ref_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss, (), a mean over the rows.

        Args:
            embeddings: (N, D); their lengths do not matter.
            labels: (N,) integers, each one of the classes.
            indices_tuple, ref_emb, ref_labels: must be None.

        Raises:
            TypeError, ValueError: an argument has the wrong type or shape, a label is no class, or
                what must be None was given.
        """
        refuse(self, "compares with classes", indices_tuple, ref_emb, ref_labels)
        checks.embeddings("embeddings", embeddings)
        labels = moved("labels", labels, embeddings)
        checks.labels("labels", labels, embeddings)
        own = places_of(labels, self.classes)
        if self.training and self.samples:
            drawn = self.draw(own)
            weight = nn.functional.embedding(drawn, self.weight, sparse=True)
            own = torch.searchsorted(drawn, own)
        else:
            weight = self.weight
        return ops.norm_softmax_loss(
            embeddings,
            own,
            weight,
            temperature=self.temperature,
            cosine_margin=self.cosine_margin,
            angular_margin=self.angular_margin,
            label_smoothing=self.label_smoothing,
            low_memory=self.low_memory,
            impl=self.impl,
        )

    def get_logits(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Cosines with the classes, divided by the temperature, (N, C), without margins; float32,
        or float64 where both sides are. Row i is most like the class
        ``classes[logits[i].argmax()]``.

        Args:
            embeddings: (N, D); their lengths do not matter.

        Raises:
            TypeError, ValueError: embeddings have the wrong type, shape or device.
        """
        checks.embeddings("embeddings", embeddings)
        checks.embeddings("weight", self.weight, like=embeddings)
        sides = (ops.normalize(computed(side)) for side in (embeddings, self.weight))
        return pair_products(*sides) / self.temperature

    def draw(self, own: torch.Tensor) -> torch.Tensor:
        """(S,) row numbers of `weight`, ascending: those of the batch, and random others up to the
        sample size. The host waits for a GPU only where the batch has more rows than that.

        Raises:
            RuntimeError: a backward pass computes the loss again, which would draw others.
        """
        refuse_recomputation(self, "sampled classes are drawn once")
        seed = np.random.SeedSequence((self.seed, self.draws)).generate_state(1, np.uint64)[0]
        self.draws += 1
        generator = torch.Generator(own.device).manual_seed(int(seed) >> 1)
        C, size = len(self.classes), min(self.sample_size, len(self.classes))
        own = own.clamp_max(C - 1)
        if len(own) > size:
            size = max(size, len(own.unique()))
        order = torch.rand(C, generator=generator, dtype=torch.float64, device=own.device)
        order.index_fill_(0, own, -1.0)  # the batch's own classes come first
        return order.topk(size, largest=False, sorted=False).indices.sort().values

    def get_extra_state(self) -> torch.Tensor:
        """How often classes were drawn, () int64: safetensors holds nothing but tensors."""
        return torch.tensor(self.draws)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.draws = int(state)

    def extra_repr(self) -> str:
        names = ["temperature"]
        for name in ("cosine_margin", "angular_margin", "label_smoothing", "low_memory"):
            names += [name] if getattr(self, name) else []
        names += ["sample_size", "seed"] if self.samples else []
        settings = [f"{name}={getattr(self, name)!r}" for name in (*names, "impl")]
        return ", ".join([f"{len(self.classes)}, {self.weight.shape[1]}", *settings])
