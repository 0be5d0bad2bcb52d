"""Boosted losses of learners on groups of components, with losses that make them differ (Opitz,
Waltner, Possegger and Bischof, BIER, ICCV 2017; A-BIER, TPAMI 2018).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dmlfast import ops
from dmlfast.losses.base import moved, refuse
from dmlfast.losses.diversity import NORM_AXES, AdversarialLoss, activation_loss, norm_loss
from dmlfast.ops import checks, dispatch
from dmlfast.ops.boosted.settings import BOOSTINGS
from dmlfast.ops.checks import choice, finite, whole_numbers
from dmlfast.ops.numerics import computed

BASES = {"deviance": 0.5, "contrastive": 0.5, "triplet": 0.2}  # with their margins
DIVERSITIES = ("none", "activation", "adversarial")
STAGES = ("training", "init", "both")


class BIERLoss(nn.Module):
    """The boosted losses of all learners, and a loss that makes the learners differ.

    Args:
        groups: how many components each learner has, in their order.
        base: loss of a learner: "deviance" (binomial), "contrastive" or "triplet", all on cosines.
        margin: for the deviance, the cosine that separates positive from negative pairs (the
            paper's beta2); for the others, their margin. By default 0.5, and 0.2 for triplets.
        beta1: scale of the deviance.
        negative_cost: how much steeper the deviance of negative pairs is.
        boosting: "eta", "additive", "derivative" or "none", see
            :func:`dmlfast.ops.boosted_deviance_loss`; for other bases "eta" or "none".
        diversity: "none", "activation" or "adversarial".
        diversity_weight: the weight of the loss that makes learners differ.
        norm_weight: within that loss, the weight of what keeps the embedding layer's weights, and
            the regressors', near norm 1.
        norm_axis: "output", the norms of the weights of each component; "input", those of each
            feature. By default, as in the released program, "input" with regressors, else "output".
        stage: when learners are made to differ: in "training"; in "init", the steps of the head
            alone before it, which then have no other loss; or in "both".
        impl: "auto" or the name of a backend.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value, or they do not go together.
    """

    margin_argument = "margin"

    def __init__(
        self,
        groups: Sequence[int],
        *,
        base: str = "deviance",
        margin: float | None = None,
        beta1: float = 2.0,
        negative_cost: float = 25.0,
        boosting: str = "eta",
        diversity: str = "none",
        diversity_weight: float = 1.0,
        norm_weight: float = 100.0,
        norm_axis: str | None = None,
        stage: str = "training",
        impl: str = "auto",
    ) -> None:
        super().__init__()
        choice("base", base, tuple(BASES))
        choice("boosting", boosting, BOOSTINGS if base == "deviance" else ("eta", "none"))
        choice("diversity", diversity, DIVERSITIES)
        choice("stage", stage, STAGES)
        if stage != "training" and diversity == "none":
            raise ValueError(f"stage {stage!r} needs a diversity, and there is none")
        default_axis = "input" if diversity == "adversarial" else "output"
        self.norm_axis = default_axis if norm_axis is None else norm_axis
        choice("norm_axis", self.norm_axis, NORM_AXES)
        self.groups = whole_numbers("groups", groups)
        if min(self.groups, default=0) < 1:
            raise ValueError(f"groups must be positive, not {self.groups}")
        self.base = base
        self.margin = finite("margin", BASES[base] if margin is None else margin)
        self.beta1 = finite("beta1", beta1)
        self.negative_cost = finite("negative_cost", negative_cost)
        self.boosting = boosting
        self.diversity = diversity
        self.diversity_weight = finite("diversity_weight", diversity_weight)
        self.norm_weight = finite("norm_weight", norm_weight)
        self.stage = stage
        self.impl = dispatch.checked_impl(impl)
        self.adversary = (
            AdversarialLoss(self.groups, norm_weight) if diversity == "adversarial" else None
        )

    @property
    def needs_features(self) -> bool:
        """Whether training needs the input of the embedding layer, and its weights."""
        return self.diversity != "none"

    @property
    def needs_head_steps(self) -> bool:
        """Whether the steps of the head alone have something of their own to do."""
        return self.stage != "training"

    def forward(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        indices_tuple: Any = None,
        ref_emb: torch.Tensor | None = None,
        ref_labels: torch.Tensor | None = None,
        *,
        features: torch.Tensor | None = None,
        weight: torch.Tensor | None = None,
        initializing: bool = False,
    ) -> torch.Tensor:
        """The loss, ().

        Args:
            embeddings: (N, D); the lengths of a learner's rows do not matter.
            labels: (N,) integers; moved to the device of the embeddings.
            indices_tuple, ref_emb, ref_labels: must be None.
            features: (B, F), the input of the embedding layer; they get no gradient. Where learners
                are made to differ, training needs them.
            weight: (D, F), the embedding layer's.
            initializing: whether these are the steps of the head alone.

        Raises:
            TypeError, ValueError: what must be None was given, features are missing, or a type or
                shape is wrong.
        """
        refuse(self, "weighs every pair of the batch", indices_tuple, ref_emb, ref_labels)
        alone = initializing and self.stage in ("init", "both")
        applies = self.stage == "both" or initializing == (self.stage == "init")
        # 0 has a graph: whatever made the embeddings has a gradient as in every step
        loss = 0.0 * computed(embeddings).sum() if alone else self.metric_loss(embeddings, labels)
        if not (self.needs_features and applies and (self.training or features is not None)):
            return loss + self._idle()
        if features is None or weight is None:
            name = type(self).__name__
            raise ValueError(f"{name} needs features and weight where it makes learners differ")
        if weight.shape != (sum(self.groups), features.shape[-1]) or features.dim() != 2:
            raise ValueError(
                f"features must have shape (B, F) and weight ({sum(self.groups)}, F), not "
                f"{tuple(features.shape)} and {tuple(weight.shape)}"
            )
        return loss + self.diversity_weight * self.diversity_loss(features, weight)

    def metric_loss(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The boosted losses of all learners, ()."""
        checks.embeddings("embeddings", embeddings)
        given = embeddings, moved("labels", labels, embeddings), self.groups
        boosting, impl = self.boosting, self.impl
        if self.base != "deviance":
            loss = {
                "contrastive": ops.boosted_contrastive_loss,
                "triplet": ops.boosted_triplet_loss,
            }[self.base]
            return loss(*given, margin=self.margin, boosting=boosting, impl=impl)
        return ops.boosted_deviance_loss(
            *given,
            beta1=self.beta1,
            beta2=self.margin,
            negative_cost=self.negative_cost,
            boosting=boosting,
            impl=impl,
        )

    def diversity_loss(self, features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The loss that makes learners differ, (), from features (B, F) and weights (D, F); in
        float32 at least.
        """
        with torch.autocast(features.device.type, enabled=False):  # float16 would overflow
            weight = computed(weight)
            made = nn.functional.linear(features.detach().to(weight.dtype), weight)
            outputs, weights = made.split(self.groups, 1), weight.split(self.groups)
            differ = activation_loss(outputs) if self.adversary is None else self.adversary(outputs)
            return differ + self.norm_weight * norm_loss(weights, self.norm_axis)

    def _idle(self) -> torch.Tensor | float:
        """0 of the regressors: they have a gradient in every step, as several processes expect."""
        if self.adversary is None:
            return 0.0
        return 0.0 * torch.stack([w.sum() for w in self.adversary.parameters()]).sum()

    def extra_repr(self) -> str:
        names = ["groups", "base", "margin", "beta1", "negative_cost", "boosting", "diversity"]
        names += ["diversity_weight", "norm_weight", "norm_axis", "stage", "impl"]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class ABIERLoss(BIERLoss):
    """`BIERLoss` with the adversarial loss during training, weighted as in the released program."""

    def __init__(
        self,
        groups: Sequence[int],
        *,
        base: str = "deviance",
        margin: float | None = None,
        beta1: float = 2.0,
        negative_cost: float = 25.0,
        boosting: str = "eta",
        diversity: str = "adversarial",
        diversity_weight: float = 5e-5,
        norm_weight: float = 1e5,
        norm_axis: str | None = None,
        stage: str = "training",
        impl: str = "auto",
    ) -> None:
        super().__init__(
            groups,
            base=base,
            margin=margin,
            beta1=beta1,
            negative_cost=negative_cost,
            boosting=boosting,
            diversity=diversity,
            diversity_weight=diversity_weight,
            norm_weight=norm_weight,
            norm_axis=norm_axis,
            stage=stage,
            impl=impl,
        )
