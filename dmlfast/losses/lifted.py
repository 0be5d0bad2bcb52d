"""Lifted structured embedding (Oh Song, Xiang, Jegelka, Savarese, CVPR 2016), and its generalised
form (Hermans, Beyer, Leibe, 2017).
"""

from functools import partial

import torch

from dmlfast import ops
from dmlfast.losses.base import PairLoss
from dmlfast.ops.checks import finite


class LiftedStructuredLoss(PairLoss):
    """The smooth lifted structured loss, equation 4 of the paper, over all pairs of a batch.

    The paper uses margin 1 on embeddings that are not normalised.

    Args:
        margin: in units of Euclidean distance.
        normalize_embeddings: divide every row by its L2 norm first; the paper does not.
        impl: "auto" or the name of a backend.
    """

    settings = ("margin",)

    def __init__(
        self, margin: float = 1.0, *, normalize_embeddings: bool = False, impl: str = "auto"
    ) -> None:
        super().__init__(normalize_embeddings=normalize_embeddings, impl=impl)
        self.margin = finite("margin", margin)

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


class GeneralizedLiftedStructuredLoss(PairLoss):
    """The generalised lifted structured loss (Hermans, Beyer and Leibe, "In Defense of the Triplet
    Loss for Person Re-Identification", 2017).

    The mean over all rows a of max(0, log sum_p exp(D_ap) + log sum_n exp(margin - D_an)), with the
    row's positives p and negatives n. A row without positives or without negatives adds 0, but
    counts.

    Args:
        margin: in units of Euclidean distance.
        normalize_embeddings: divide every row by its L2 norm first.
        impl: "auto" or the name of a backend.
    """

    settings = ("margin",)

    def __init__(
        self, margin: float = 1.0, *, normalize_embeddings: bool = False, impl: str = "auto"
    ) -> None:
        super().__init__(normalize_embeddings=normalize_embeddings, impl=impl)
        self.margin = finite("margin", margin)

    def compute(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        ref_emb: torch.Tensor | None,
        ref_labels: torch.Tensor | None,
        self_index: torch.Tensor | None,
    ) -> torch.Tensor:
        """The loss, (), from two reductions of :func:`dmlfast.ops.pair_reduce`."""
        pairs = (embeddings, labels, ref_emb, ref_labels)
        reduce = partial(ops.pair_reduce, *pairs, self_index=self_index, impl=self.impl)
        positives = reduce(select="positive")
        negatives = reduce(select="negative", scale=-1.0, offset=self.margin)
        return (positives + negatives).relu().sum() / max(len(embeddings), 1)
