"""What boosted learners gain over one embedding, by its size."""

from dmlfast.bench.claims.claim import Arm, Claim
from dmlfast.bench.claims.retrieval import MEASURES, recall, small_run

CLAIM = Claim(
    name="bier_sizes",
    title="Boosted learners by embedding size",
    hypothesis="What three boosted learners gain over one embedding grows with its size (Opitz et "
    "al., TPAMI 2018).",
    settings={**small_run(), "loss": "bier"},
    arms=[
        Arm(f"{size}, {name}", {"embedding_dim": size, "learners": learners})
        for size in (64, 256, 1024)
        for name, learners in (("one", 1), ("boosted", 3))
    ],
    grid={"lr": (1.5e-3, 3e-3, 6e-3), "margin": (0.3, 0.5)},
    trials=4,
    baseline="64, one",
    measure=recall,
    measures=MEASURES,
)
