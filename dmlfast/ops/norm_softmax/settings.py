"""The settings of a normalised softmax."""

from typing import NamedTuple

PARALLEL = 1e-6  # radians between two directions that float32 cannot tell apart
TINY = 2.0**-126  # the least that is not subnormal in float32
REDUCTIONS = ("mean", "sum", "none")


class Settings(NamedTuple):
    """What a normalised softmax is made with besides tensors; README.md has the maths."""

    temperature: float
    cosine_margin: float
    angular_margin: float
    label_smoothing: float
    ignore_index: int
    low_memory: bool
