"""The multi-similarity loss over all pairs and over mined ones."""

from dmlfast.bench.claims.claim import Arm, Claim
from dmlfast.bench.claims.retrieval import MEASURES, recall, small_run


def arm(name: str, mining: str) -> Arm:
    """Both have the same trials, but for the option that mines."""
    grid = {
        "margin": (0.3, 0.5, 0.7),
        "lr": (3e-3, 6e-3, 1.2e-2),
        "loss_options": [f"alpha={alpha},beta=50{mining}" for alpha in (2, 10)],
    }
    return Arm(name, {}, grid=grid)


CLAIM = Claim(
    name="mined_pairs",
    title="Multi-similarity over all pairs and over mined ones",
    hypothesis="Mining pairs adds at least a point of recall at 1 to the multi-similarity loss (as "
    "is recalled of Wang et al., CVPR 2019, whose method has it).",
    settings={**small_run(), "loss": "multi-similarity", "normalize": True},
    arms=[arm("all pairs", ""), arm("mined", ",epsilon=0.1")],
    trials=8,
    baseline="all pairs",
    measure=recall,
    measures=MEASURES,
)
