"""The normalised, temperature-scaled cross-entropy over pairs (Sohn, NeurIPS 2016; Chen et al.,
ICML 2020), also called InfoNCE.
"""

from functools import partial

import torch

from dmlfast import ops
from dmlfast.losses.base import PairLoss
from dmlfast.ops import checks

NOTHING = -1e30  # stands for the log-sum-exp over no negatives: its softplus is 0


class NTXentLoss(PairLoss):
    """NT-Xent over cosines s, in which every two images of a class are a positive pair.

    The mean, over all pairs of a row a with one of its positives p, of
    log(1 + sum_n exp((s_an - s_ap) / temperature)), with the row's negatives n. A pair whose row
    has no negatives adds 0, but counts. In ``self_index`` no two rows may name the same column.

    Args:
        temperature: what cosines are divided by.
        impl: "auto" or the name of a backend.
    """

    settings = ("temperature",)

    def __init__(self, temperature: float = 0.07, *, impl: str = "auto") -> None:
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
        reduce = partial(ops.pair_reduce, score="dot", impl=self.impl)
        pairs = (embeddings, labels, ref_emb, ref_labels)
        negatives = reduce(*pairs, select="negative", scale=scale, self_index=self_index)
        count, _ = ops.pair_counts(labels, ref_labels, self_index=self_index)
        # positive pairs from their other side, where what belongs to a row is a column's bias
        if ref_emb is None:
            turned = partial(reduce, embeddings, labels)
        else:
            itself = None if self_index is None else _inverse(self_index, len(ref_emb))
            turned = partial(reduce, ref_emb, ref_labels, embeddings, labels, self_index=itself)
        bias = negatives.clamp_min(NOTHING)
        positives = turned(select="positive", scale=-scale, column_bias=bias, reduce="softplus")
        return positives.sum() / count.sum().clamp_min(1)


def _inverse(places: torch.Tensor, m: int) -> torch.Tensor:
    """(M,) which row stands at each of M places, -1 for none, from the places (N,) of the rows."""
    nowhere = (places < 0) | (places >= m)
    rows = torch.arange(len(places), device=places.device)
    found = rows.new_full((m + 1,), -1)
    return found.scatter(0, places.long().where(~nowhere, m), rows)[:m]
