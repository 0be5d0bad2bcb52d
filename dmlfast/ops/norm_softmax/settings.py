"""The settings of a normalised softmax."""

import math
from typing import NamedTuple

PARALLEL = 1e-6  # radians between two directions that float32 cannot tell apart
REDUCTIONS = ("mean", "sum", "none")


class Settings(NamedTuple):
    """What a normalised softmax is made with besides tensors; README.md has the maths."""

    temperature: float
    cosine_margin: float
    angular_margin: float
    label_smoothing: float
    ignore_index: int
    low_memory: bool

    @property
    def scale(self) -> float:
        """What cosines are multiplied by."""
        return 1 / self.temperature

    @property
    def logit(self) -> tuple[float, float, float, float, float]:
        """What a row's logit of its own class and its loss are made with: the scale, the cosine
        margin, cosine and sine of the angular one, the smoothing.
        """
        turned = math.cos(self.angular_margin), math.sin(self.angular_margin)
        return self.scale, self.cosine_margin, *turned, self.label_smoothing
