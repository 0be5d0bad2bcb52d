"""The lifted loss with batches of 32 to 2048 images, and the same number of images in all."""

from dmlfast.bench.claims.claim import Arm, Claim
from dmlfast.bench.claims.retrieval import MEASURES, recall, small_run

CLAIM = Claim(
    name="batch_sizes",
    title="Lifted loss by batch size, at the same number of images",
    hypothesis="Recall at 1 rises with the batch size, as each pair meets more negatives, until "
    "the steps become too few: the best batch has 128 images or more.",
    settings={"loss": "lifted"},
    arms=[Arm(str(size), small_run(size), x=size) for size in (32, 64, 128, 256, 512, 1024, 2048)],
    grid={"margin": (0.3, 1.0, 3.0), "lr": (7.5e-4, 1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2)},
    trials=6,
    baseline="128",
    measure=recall,
    measures=MEASURES,
    x_label="images in a batch",
)
