"""Lifted structured embedding (Oh Song, Xiang, Jegelka, Savarese, CVPR 2016)."""

import torch

from dmlfast import ops
from dmlfast.losses.base import PairLoss


class LiftedStructuredLoss(PairLoss):
    """The smooth lifted structured loss, equation 4 of the paper, over all pairs of a batch.

    The paper uses margin 1 on embeddings that are not normalised.

    Args:
        margin: in units of Euclidean distance.
        normalize_embeddings: divide every row by its L2 norm first; the paper does not.
        impl: "auto" or the name of a backend.
    """

    def __init__(
        self, margin: float = 1.0, *, normalize_embeddings: bool = False, impl: str = "auto"
    ) -> None:
        super().__init__(normalize_embeddings=normalize_embeddings, impl=impl)
        self.margin = margin

    def compute(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        ref_emb: torch.Tensor | None,
        ref_labels: torch.Tensor | None,
        self_index: torch.Tensor | None,
    ) -> torch.Tensor:
        """The loss, (), see :func:`dmlfast.ops.lifted_structured_loss`."""
        return ops.lifted_structured_loss(
            embeddings,
            labels,
            ref_emb,
            ref_labels,
            margin=self.margin,
            self_index=self_index,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        normalize, impl = self.normalize_embeddings, self.impl
        return f"margin={self.margin}, normalize_embeddings={normalize}, impl='{impl}'"
