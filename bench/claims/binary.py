"""Sign bits of embeddings trained with the normalised softmax, with and without its layer norm."""

from dmlfast.bench.claims.claim import Arm, Claim
from dmlfast.bench.claims.retrieval import binary_recall, over_classes, small_run

CLAIM = Claim(
    name="binary",
    title="Sign bits of 512 components",
    hypothesis="The signs of 512 components are within two points of recall at 1 of the floats, "
    "and a layer norm before the embedding layer helps them (Zhai and Wu, BMVC 2019).",
    settings={
        **small_run(),
        **over_classes(),
        "embedding_dim": 512,
        "images_per_class": 1,
    },
    arms=[
        Arm("layer norm", {"head": "layer-norm"}),
        Arm("linear layer alone", {"head": "linear"}),
    ],
    grid={"lr": (3e-3, 6e-3, 1.2e-2), "loss_lr": (1e-2, 3e-2, 1e-1)},
    trials=6,
    baseline="linear layer alone",
    measure=binary_recall,
    measures={
        "binary_recall_at_1": "recall at 1 of the bits",
        "recall_at_1": "of the floats",
        "lost": "lost",
    },
)
