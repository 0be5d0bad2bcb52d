"""The lifted loss with embeddings of 64 to 512 numbers."""

from dmlfast.bench.claims.claim import Arm, Claim
from dmlfast.bench.claims.retrieval import MEASURES, recall, small_run

CLAIM = Claim(
    name="embedding_sizes",
    title="Lifted loss by embedding size",
    hypothesis="Recall at 1 hardly depends on the embedding size from 64 on: 512 is within two "
    "points of 64 (Oh Song et al., CVPR 2016, show flat curves).",
    settings={**small_run(), "loss": "lifted"},
    arms=[Arm(str(size), {"embedding_dim": size}, x=size) for size in (64, 128, 256, 512)],
    grid={"margin": (0.3, 1.0, 3.0), "lr": (1.5e-3, 3e-3, 6e-3, 1.2e-2)},
    trials=8,
    baseline="64",
    measure=recall,
    measures=MEASURES,
    x_label="embedding size",
)
