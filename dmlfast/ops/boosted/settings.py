"""What a boosted pair loss is made with besides rows and labels."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

from dmlfast.ops.numerics import computed

BASES = ("deviance", "contrastive")
BOOSTINGS = ("eta", "additive", "derivative", "none")
SHORTEST = 1e-5  # a learner's rows are divided by their norm, or by this where that is less
START = 0.5  # additive boosting: of the prediction,
SHRINKAGE = 0.06  # the share of each learner in it,
NEGATIVES = 2.0  # and how much more negative pairs weigh
REDUCTIONS = ("sum", "none")


class Settings(NamedTuple):
    """Of a base loss over pairs and of its boosting; README.md has the maths.

    `beta1`, `beta2` and `negative_cost` are those of the binomial deviance, `margin` of the
    contrastive loss.
    """

    base: str
    boosting: str
    beta1: float
    beta2: float
    negative_cost: float
    margin: float


def shrinkage(learner: int) -> float:
    """eta of the learner 1, 2, ...: its share in the prediction of those so far."""
    return 2 / (learner + 1)


def learners_of(rows: torch.Tensor, groups: Sequence[int]) -> list[torch.Tensor]:
    """The rows of each learner at length 1."""
    parts = computed(rows).split(list(groups), dim=1)
    return [F.normalize(part, dim=1, eps=SHORTEST) for part in parts]
