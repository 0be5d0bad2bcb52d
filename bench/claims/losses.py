"""The losses against each other, each with the same effort."""

from dmlfast.bench.claims.claim import Arm, Claim
from dmlfast.bench.claims.retrieval import MEASURES, over_classes, recall, small_run

RATES = (1.5e-3, 3e-3, 6e-3, 1.2e-2)

CLAIM = Claim(
    name="losses",
    title="Losses at an equal budget",
    hypothesis="The lifted loss retrieves better than contrastive and triplet losses (Oh Song et "
    "al., CVPR 2016, say so of CUB, Cars and SOP); the normalised softmax is level with the best "
    "of them, or better (Zhai and Wu, BMVC 2019); multi-similarity retrieves better than all of "
    "these (Wang et al., CVPR 2019), and proxy-anchor better still (Kim et al., CVPR 2020).",
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
        Arm(
            "SupCon",
            {"loss": "supcon", "normalize": True},
            grid={
                "lr": RATES,
                "loss_options": [f"temperature={t}" for t in (0.05, 0.1, 0.2, 0.5)],
            },
        ),
        Arm(
            "multi-similarity",
            {"loss": "multi-similarity", "normalize": True},
            grid={
                "margin": (0.3, 0.5, 0.7),
                "lr": RATES,
                "loss_options": [f"alpha={alpha},beta=50" for alpha in (2, 10)],
            },
        ),
        Arm(
            "proxy-anchor",
            {"loss": "proxy-anchor", "normalize": True},
            grid={
                "lr": (3e-3, 6e-3, 1.2e-2),
                "loss_lr": (1e-3, 3e-3, 1e-2),
                "images_per_class": (1, 4),
                "loss_options": ("alpha=16", "alpha=32"),
            },
        ),
    ],
    grid={
        "margin": (0.1, 0.3, 1.0, 3.0),
        "lr": RATES,
        "normalize": (False, True),
    },
    trials=12,
    baseline="lifted",
    measure=recall,
    measures=MEASURES,
)
