"""The contrastive loss (Hadsell, Chopra and LeCun, CVPR 2006)."""

import torch

from dmlfast import ops
from dmlfast.losses.base import PairLoss
from dmlfast.ops.contrastive.op import checked_settings


class ContrastiveLoss(PairLoss):
    """The contrastive loss over all pairs of a batch.

    Args:
        pos_margin: distance up to which positive pairs are near enough.
        neg_margin: distance from which negative pairs are far enough.
        squared: take half the square of each hinge, as the paper does.
        reduction: "nonzero", the mean over pairs that are not 0, "mean" or "sum"; for positive and
            negative pairs separately.
        normalize_embeddings: divide every row by its L2 norm first.
        impl: "auto" or the name of a backend.
    """

    settings = ("pos_margin", "neg_margin", "squared", "reduction")
    margin_argument = "neg_margin"

    def __init__(
        self,
        pos_margin: float = 0.0,
        neg_margin: float = 1.0,
        *,
        squared: bool = False,
        reduction: str = "nonzero",
        normalize_embeddings: bool = False,
        impl: str = "auto",
    ) -> None:
        super().__init__(normalize_embeddings=normalize_embeddings, impl=impl)
        self.pos_margin, self.neg_margin, self.squared, self.reduction = checked_settings(
            pos_margin, neg_margin, squared, reduction
        )

    def compute(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        ref_emb: torch.Tensor | None,
        ref_labels: torch.Tensor | None,
        self_index: torch.Tensor | None,
    ) -> torch.Tensor:
        """The loss, (), see :func:`dmlfast.ops.contrastive_loss`."""
        return ops.contrastive_loss(
            embeddings,
            labels,
            ref_emb,
            ref_labels,
            pos_margin=self.pos_margin,
            neg_margin=self.neg_margin,
            squared=self.squared,
            reduction=self.reduction,
            self_index=self_index,
            impl=self.impl,
        )
