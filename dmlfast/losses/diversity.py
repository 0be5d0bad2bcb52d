"""Losses that make learners differ (Opitz et al., BIER, ICCV 2017; A-BIER, TPAMI 2018).

They act on what the embedding layer makes of an image's features, without its bias and without
normalisation, and train that layer alone.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import nn

HIDDEN = 512  # outputs of a regressor's first layer
NORM_AXES = ("output", "input")


def activation_loss(outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """(), the mean square of all products of two learners' components, summed over their pairs.

    outputs: (B, d_m) of each learner. (f_i f_j)^2 summed over components is |f_i|^2 |f_j|^2, so
    that nothing of size B x d_i x d_j is made.
    """
    means = [each.square().mean(1) for each in outputs]  # |f|^2 / d
    pairs = [_mean(a * b) for a, b in combinations(means, 2)]
    return torch.stack(pairs).sum() if pairs else outputs[0].new_zeros(())


def norm_loss(weights: Sequence[torch.Tensor], axis: str) -> torch.Tensor:
    """(), how far the norms of each learner's weights (d_m, F) are from 1, summed over learners.

    axis: "output", of the weights of each component; "input", of those of each feature.
    """
    dim = 1 if axis == "output" else 0
    return torch.stack([(w.square().sum(dim) - 1).square().mean() for w in weights]).sum()


def _mean(values: torch.Tensor) -> torch.Tensor:
    """The mean; 0 of an empty batch."""
    return values.sum() / max(values.numel(), 1)


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient changes its sign."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return -grads[0]


class AdversarialLoss(nn.Module):
    """Regressors that find a learner in a later one, while the learners defend themselves.

    Args:
        groups: the sizes of the learners.
        norm_weight: the weight of what keeps the norms of the regressors' weights near 1, and
            those of their biases from exceeding it.

    Attributes:
        regressors: one for each pair of learners i < j, from j to i, in the order of the pairs.
    """

    def __init__(self, groups: Sequence[int], norm_weight: float) -> None:
        super().__init__()
        self.norm_weight = norm_weight
        self.regressors = nn.ModuleList(
            nn.Sequential(nn.Linear(later, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, earlier))
            for earlier, later in combinations(groups, 2)
        )

    def forward(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """The loss, (), from the learners' outputs (B, d_m), whose gradient is reversed.

        Raises:
            TypeError: the regressors have another dtype.
        """
        total = outputs[0].new_zeros(())
        dtype = next(self.parameters(), total).dtype
        if dtype != total.dtype:
            raise TypeError(
                f"the regressors of this loss must be {total.dtype}, in which learners are "
                f"compared, not {dtype}"
            )
        found = combinations([_Reversed.apply(each) for each in outputs], 2)
        for regressor, (earlier, later) in zip(self.regressors, found, strict=True):
            total = total - _mean((earlier * regressor(later)).square())
            total = total + self.norm_weight * self._norms(regressor)
        return total

    @staticmethod
    def _norms(regressor: nn.Module) -> torch.Tensor:
        terms = []
        for layer in regressor.children():
            if isinstance(layer, nn.Linear):
                terms.append(norm_loss([layer.weight], "input"))
                terms.append((layer.bias.square().sum() - 1).relu())
        return torch.stack(terms).sum()
