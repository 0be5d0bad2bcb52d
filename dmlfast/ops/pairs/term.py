"""What is taken over the pairs, as plain values that all backends share."""

import math
from typing import NamedTuple

SCORES = ("dot", "distance")
SELECTIONS = ("negative", "positive", "other", "all")
REDUCTIONS = ("logsumexp", "sum", "hinge", "squared_hinge", "softplus")
MAX = "max"  # the greatest term, which has no gradient


class PairTerm(NamedTuple):
    """``scale * score_ij + offset + column_bias_j``, reduced over the selected columns of row i."""

    score: str
    select: str
    reduce: str
    scale: float
    offset: float

    @property
    def by_label(self) -> bool:
        """Whether labels say which columns are selected."""
        return self.select in ("negative", "positive")

    @property
    def over_nothing(self) -> float:
        """The statistic of a row that selects no column."""
        return -math.inf if self.reduce in ("logsumexp", MAX) else 0.0

    @property
    def is_hinge(self) -> bool:
        """Whether a hinge is summed, max(0, term), its square or the smooth one, and those above 0
        are counted.
        """
        return self.reduce not in ("logsumexp", "sum", MAX)
