"""What the claims about retrieval share: settings of a small run, and how it is measured."""

import numpy as np

from dmlfast.models import load_model
from dmlfast.retrieval import Features, evaluate
from dmlfast.retrieval.embed import embed_batches
from dmlfast.training import RunFolder, load_split

IMAGES = 64_000  # that a run trains on
MEASURES = {"recall_at_1": "recall at 1", "map_at_r": "MAP at R"}


def small_run(batch_size: int = 128) -> dict[str, object]:
    """Settings of a run on `IMAGES` images of the glyphs, a fifth of its classes for validation."""
    steps = IMAGES // batch_size
    return {
        "dataset": "glyphs",
        "val_fraction": 0.2,
        "batch_size": batch_size,
        "max_steps": steps,
        "warmup_steps": steps // 10,
        "eval_interval": max(steps // 4, 1),
        "checkpoint_interval": steps,
        "log_interval": max(steps // 50, 1),
        "device": "cpu",
    }


def recall(run: RunFolder) -> dict[str, float]:
    """Recall at 1 and MAP at R of the best checkpoint among the test classes."""
    dataset = load_split(run.config, "test")
    model = load_model(run.checkpoint("best").folder)
    parts = [embeddings for embeddings, _, _ in embed_batches(model, dataset)]
    report = evaluate(
        Features(np.concatenate(parts), dataset.labels), clustering=False, bootstrap=0
    )
    return {name: float(report[name]) for name in MEASURES}
