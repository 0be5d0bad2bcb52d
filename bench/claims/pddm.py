"""Quadruplets mined by a learned score against the same loss mined by distance."""

from dmlfast.bench.claims.claim import Arm, Claim
from dmlfast.bench.claims.retrieval import IMAGES, MEASURES, scored_recall, small_run, steps_to

from dmlfast.training import RunFolder

TARGET = 0.8  # recall at 1 on validation classes
GRID = {
    "loss_options": ("per=batch", "per=class", "per=anchor"),
    "margin": (1.0, 3.0),
    "lr": (3e-3, 6e-3, 1.2e-2),
}


def mined_by(what: str) -> Arm:
    """The PDDM loss, tuned over how many quadruplets there are."""
    options = tuple(f"mining={what},{each}" for each in GRID["loss_options"])
    return Arm(f"PDDM, mined by {what}", {"loss": "pddm"}, grid=GRID | {"loss_options": options})


def measure(run: RunFolder) -> dict[str, float]:
    """Recall by distance and by score, and how soon the target was reached."""
    return scored_recall(run) | steps_to(TARGET, run)


CLAIM = Claim(
    name="pddm",
    title="Quadruplets by a learned score",
    hypothesis="Quadruplets mined by the learned score retrieve better than those that the same "
    "loss mines by distance, reach a given recall in fewer steps, and beat triplet and lifted "
    "losses (Huang, Loy and Tang, NIPS 2016, say so of CUB and Cars); ranking by distance is as "
    "good as ranking by the score, or better.",
    settings={**small_run(), "eval_interval": IMAGES // 128 // 10},
    arms=[
        mined_by("score"),
        mined_by("distance"),
        Arm("triplet, semi-hard", {"loss": "triplet", "loss_options": "mining=semihard"}),
        Arm("lifted", {"loss": "lifted"}),
    ],
    grid={"margin": (0.1, 0.3, 1.0, 3.0), "lr": (3e-3, 6e-3, 1.2e-2), "normalize": (False, True)},
    trials=8,
    baseline="PDDM, mined by distance",
    measure=measure,
    measures={
        **MEASURES,
        "recall_by_score": "recall at 1, ranked by score",
        "share_to_target": f"share of the run until {TARGET:.0%} on validation",
    },
)
