"""The losses against each other, each with the same effort."""

from dmlfast.bench.claims.claim import Arm, Claim
from dmlfast.bench.claims.retrieval import MEASURES, over_classes, recall, small_run

CLAIM = Claim(
    name="losses",
    title="Losses at an equal budget",
    hypothesis="The lifted loss retrieves better than contrastive and triplet losses (Oh Song et "
    "al., CVPR 2016, say so of CUB, Cars and SOP); the normalised softmax is level with the best "
    "of them, or better (Zhai and Wu, BMVC 2019).",
    settings=small_run(),
    arms=[
        Arm("lifted", {"loss": "lifted"}),
        Arm("contrastive", {"loss": "contrastive"}),
        Arm("triplet, all", {"loss": "triplet"}),
        Arm("triplet, semi-hard", {"loss": "triplet", "loss_options": "mining=semihard"}),
        Arm("triplet, hardest", {"loss": "triplet", "loss_options": "mining=hardest"}),
        Arm(
            "normalised softmax",
            over_classes(),
            grid={
                "lr": (3e-3, 6e-3, 1.2e-2),
                "loss_lr": (1e-2, 3e-2, 1e-1),
                "images_per_class": (1, 4),
                "loss_options": ("temperature=0.05", "temperature=0.1"),
            },
        ),
    ],
    grid={
        "margin": (0.1, 0.3, 1.0, 3.0),
        "lr": (1.5e-3, 3e-3, 6e-3, 1.2e-2),
        "normalize": (False, True),
    },
    trials=12,
    baseline="lifted",
    measure=recall,
    measures=MEASURES,
)
