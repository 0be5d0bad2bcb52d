"""The triplet loss (Schroff et al., CVPR 2015; Hermans et al., 2017)."""

import torch

from dmlfast import ops
from dmlfast.losses.base import PairLoss
from dmlfast.ops.triplet.op import checked_settings


class TripletLoss(PairLoss):
    """The triplet loss, with the triplets found in the batch.

    Args:
        margin: in units of Euclidean distance.
        mining: which triplets count: "all"; "semihard", each positive with the nearest negative
            beyond it; "hardest", the furthest positive of each row with its nearest negative.
        reduction: "nonzero", the mean over triplets that are not 0, "mean" or "sum".
        normalize_embeddings: divide every row by its L2 norm first.
        impl: "auto" or the name of a backend.
    """

    settings = ("margin", "mining", "reduction")

    def __init__(
        self,
        margin: float = 0.2,
        *,
        mining: str = "all",
        reduction: str = "nonzero",
        normalize_embeddings: bool = False,
        impl: str = "auto",
    ) -> None:
        super().__init__(normalize_embeddings=normalize_embeddings, impl=impl)
        self.margin, self.mining, self.reduction = checked_settings(margin, mining, reduction)

    def compute(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        ref_emb: torch.Tensor | None,
        ref_labels: torch.Tensor | None,
        self_index: torch.Tensor | None,
    ) -> torch.Tensor:
        """The loss, (), see :func:`dmlfast.ops.triplet_loss`."""
        return ops.triplet_loss(
            embeddings,
            labels,
            ref_emb,
            ref_labels,
            margin=self.margin,
            mining=self.mining,
            reduction=self.reduction,
            self_index=self_index,
            impl=self.impl,
        )
