"""How an embedding is cut into learners, and what each weighs in the score of a pair."""

from collections.abc import Sequence
from itertools import pairwise

from dmlfast.ops.checks import choice
from dmlfast.text import counted

# What the papers and the released program use; the rule comes close to them.
PUBLISHED = {
    (512, 2): (170, 342),
    (512, 3): (96, 160, 256),
    (512, 4): (52, 102, 152, 206),
    (512, 5): (34, 68, 102, 138, 170),
    (1024, 6): (50, 96, 148, 196, 242, 292),
}
WEIGHTINGS = ("paper", "released")  # how much a learner weighs in a score


def group_sizes(embedding_dim: int, learners: int) -> tuple[int, ...]:
    """How many components each learner has: in proportion to 1, 2, ... as their weights in the
    boosted prediction, or as published for 512 and 1,024 components.

    Raises:
        ValueError: there are fewer components than learners, or no learner.
    """
    published = PUBLISHED.get((embedding_dim, learners))
    if published:
        return published
    if learners < 1:
        raise ValueError(f"there must be at least 1 learner, not {learners}")
    if embedding_dim < learners:
        components = counted(embedding_dim, "component is", "components are")
        raise ValueError(f"{components} too few for {counted(learners, 'learner')}")
    sizes = _in_proportion(embedding_dim, learners)
    if min(sizes) < 1:
        beyond = sorted(_in_proportion(embedding_dim - learners, learners))
        sizes = tuple(1 + size for size in beyond)
    return sizes


def _in_proportion(components: int, learners: int) -> tuple[int, ...]:
    ends = [
        round(components * m * (m + 1) / (learners * (learners + 1))) for m in range(learners + 1)
    ]
    return tuple(end - start for start, end in pairwise(ends))


def score_weights(groups: Sequence[int], weighting: str = "paper") -> list[float]:
    """What each learner's cosine weighs in the score of a pair, with sum 1.

    Args:
        groups: the sizes of the learners.
        weighting: "paper", alpha_m = 2m / (M (M + 1)), those of the boosted prediction; "released",
            in proportion to the squared sizes.

    Raises:
        ValueError: the weighting is neither.
    """
    choice("weighting", weighting, WEIGHTINGS)
    if weighting == "paper":
        parts = [float(m) for m in range(1, len(groups) + 1)]
    else:
        parts = [float(size) ** 2 for size in groups]
    return [part / sum(parts) for part in parts]
