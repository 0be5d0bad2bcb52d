"""What a boosted pair loss is made with besides rows and labels."""

from typing import NamedTuple

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
