"""What the loss of quadruplets is made with besides rows and a unit."""

from typing import NamedTuple


class Hinges(NamedTuple):
    """Margins between scores and between distances, and what the hinges on distances weigh.

    squared: whether distances are. ends: of a positive pair that have a negative, 2 or 1.
    """

    score_margin: float
    embedding_margin: float
    embedding_weight: float
    squared: bool
    ends: int
