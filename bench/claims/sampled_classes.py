"""The normalised softmax over some of the classes in each step."""

from dmlfast.bench.claims.claim import Arm, Claim
from dmlfast.bench.claims.retrieval import MEASURES, over_classes, recall, small_run

CLAIM = Claim(
    name="sampled_classes",
    title="Normalised softmax by the share of classes in a step",
    hypothesis="Comparing with a tenth of the classes in each step, those of the batch among them, "
    "costs less than one point of recall at 1 (as is recalled of Zhai and Wu, BMVC 2019).",
    settings={**small_run(), **over_classes(), "images_per_class": 2},
    arms=[
        Arm(f"{share:.0%}", {"loss_options": f"class_fraction={share}"}, x=100 * share)
        for share in (0.05, 0.1, 0.3, 1.0)
    ],
    grid={"lr": (3e-3, 6e-3, 1.2e-2), "loss_lr": (1e-2, 3e-2, 1e-1)},
    trials=6,
    baseline="100%",
    measure=recall,
    measures=MEASURES,
    x_label="classes that a step compares with, %",
)
