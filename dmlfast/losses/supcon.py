"""Supervised contrastive learning (Khosla et al., NeurIPS 2020)."""

from functools import partial

import torch

from dmlfast import ops
from dmlfast.losses.base import PairLoss
from dmlfast.ops import checks


class SupConLoss(PairLoss):
    """The supervised contrastive loss, L_out of the paper, over cosines s.

    The mean, over all rows a that have positives p, of log sum_j exp(s_aj / temperature), over all
    columns j but the row itself, minus the mean of s_ap / temperature over the row's positives.
    Where every row has one positive, as with two views of each image, it is NT-Xent.

    Args:
        temperature: what cosines are divided by.
        impl: "auto" or the name of a backend.
    """

    settings = ("temperature",)

    def __init__(self, temperature: float = 0.1, *, impl: str = "auto") -> None:
        super().__init__(normalize_embeddings=True, impl=impl)
        self.temperature = checks.above_zero("temperature", temperature)

    def compute(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        ref_emb: torch.Tensor | None,
        ref_labels: torch.Tensor | None,
        self_index: torch.Tensor | None,
    ) -> torch.Tensor:
        """The loss, (), from two reductions of :func:`dmlfast.ops.pair_reduce`."""
        scale = 1 / checks.above_zero("temperature", self.temperature)
        pairs = (embeddings, labels, ref_emb, ref_labels)
        reduce = partial(
            ops.pair_reduce, *pairs, score="dot", scale=scale, self_index=self_index, impl=self.impl
        )
        alike, everyone = reduce(select="positive", reduce="sum"), reduce(select="other")
        count, _ = ops.pair_counts(labels, ref_labels, self_index=self_index)
        some = count > 0  # and where there are none the sum is 0
        losses = torch.where(some, everyone - alike / count.clamp_min(1), alike)
        return losses.sum() / some.sum().clamp_min(1)
