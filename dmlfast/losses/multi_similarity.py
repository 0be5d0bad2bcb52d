"""The multi-similarity loss (Wang, Han, Huang, Dong, Scott, CVPR 2019)."""

from functools import partial
from typing import Any

import torch
from torch.nn.functional import softplus

from dmlfast import ops
from dmlfast.losses.base import PairLoss
from dmlfast.ops import checks


class MultiSimilarityLoss(PairLoss):
    """The multi-similarity loss of the paper over the cosines s of all pairs.

    The mean over all rows a of log(1 + sum_p exp(-alpha (s_ap - base))) / alpha
    + log(1 + sum_n exp(beta (s_an - base))) / beta, with the row's positives p and negatives n. A
    row without positives, or without negatives, adds 0 for these, but counts.

    With ``epsilon`` pairs are mined first, as in the paper: only those negatives count that have
    s_an > min_p s_ap - epsilon, and only those positives that have s_ap < max_n s_an + epsilon. A
    row without positives, or without negatives, then has neither.

    Args:
        alpha: how steeply positives count, above 0.
        beta: the same for negatives.
        base: the cosine that positives should be above, and negatives below.
        epsilon: margin of mining, a cosine, 0.1 in the paper; where it is None every pair counts.
        impl: "auto" or the name of a backend.
    """

    settings = ("alpha", "beta", "base", "epsilon")
    margin_argument = "base"

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        epsilon: float | None = None,
        *,
        impl: str = "auto",
    ) -> None:
        super().__init__(normalize_embeddings=True, impl=impl)
        self.alpha, self.beta = checks.above_zero("alpha", alpha), checks.above_zero("beta", beta)
        self.base = checks.finite("base", base)
        self.epsilon = None if epsilon is None else checks.finite("epsilon", epsilon)

    def compute(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        ref_emb: torch.Tensor | None,
        ref_labels: torch.Tensor | None,
        self_index: torch.Tensor | None,
    ) -> torch.Tensor:
        """The loss, (), from two reductions of :func:`dmlfast.ops.pair_reduce`, of pairs that
        two of :func:`dmlfast.ops.pair_max` mine.
        """
        alpha, beta = checks.above_zero("alpha", self.alpha), checks.above_zero("beta", self.beta)
        base = checks.finite("base", self.base)
        pairs = (embeddings, labels, ref_emb, ref_labels)
        options: dict[str, Any] = {"score": "dot", "self_index": self_index, "impl": self.impl}
        reduce = partial(ops.pair_reduce, *pairs, **options)
        floors: tuple[torch.Tensor | None, torch.Tensor | None] = None, None
        if self.epsilon is not None:
            epsilon = checks.finite("epsilon", self.epsilon)
            greatest = partial(ops.pair_max, *pairs, **options)
            nearest = greatest(select="negative", offset=epsilon - base)
            furthest = greatest(select="positive", scale=-1.0, offset=epsilon + base)
            floors = -alpha * nearest, -beta * furthest
        positives = reduce(
            select="positive", scale=-alpha, offset=alpha * base, row_floor=floors[0]
        )
        negatives = reduce(select="negative", scale=beta, offset=-beta * base, row_floor=floors[1])
        losses = softplus(positives) / alpha + softplus(negatives) / beta
        return losses.sum() / max(len(embeddings), 1)
