"""One embedding against boosted learners of the same size, and against learners made to differ."""

from dmlfast.bench.claims.claim import Arm, Claim
from dmlfast.bench.claims.retrieval import MEASURES, learner_recall, small_run

GRID = {"lr": (1.5e-3, 3e-3, 6e-3), "margin": (0.3, 0.5)}

CLAIM = Claim(
    name="bier",
    title="Boosted learners in 512 components",
    hypothesis="Three boosted learners retrieve better than one embedding of the same size, and "
    "better again where an adversary makes them differ in training; they are less correlated then; "
    "together they retrieve better than each alone (Opitz et al., ICCV 2017 and TPAMI 2018).",
    settings={**small_run(), "embedding_dim": 512},
    arms=[
        Arm("one embedding", {"loss": "bier", "learners": 1}),
        Arm("boosted", {"loss": "bier"}),
        Arm(
            "BIER",
            {"loss": "bier", "head_steps": 50},
            grid=GRID | {"loss_options": ("diversity=activation,stage=init",)},
        ),
        Arm(
            "A-BIER",
            {"loss": "a-bier"},
            grid=GRID
            | {
                "loss_options": tuple(
                    f"diversity_weight={weight},norm_weight={5 / weight}"
                    for weight in (5e-5, 5e-3, 0.5)
                )
            },
        ),
    ],
    grid=GRID,
    trials=6,
    baseline="one embedding",
    measure=learner_recall,
    measures={
        **MEASURES,
        "first_learner": "of the first learner",
        "last_learner": "of the last learner",
        "correlation": "mean absolute correlation between learners",
    },
)
