"""What the claims about retrieval share: settings of a small run, and how it is measured."""

import dataclasses

import numpy as np

from dmlfast.models import load_model
from dmlfast.retrieval import Features, evaluate, learner_correlation, learners_of
from dmlfast.retrieval.embed import embed_batches
from dmlfast.training import RunFolder, load_scorer, load_split

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


def over_classes() -> dict[str, object]:
    """Settings of the normalised softmax, with the paper's head."""
    return {"loss": "norm-softmax", "head": "layer-norm", "normalize": True}


def recall(run: RunFolder) -> dict[str, float]:
    """Recall at 1 and MAP at R of the best checkpoint among the test classes."""
    return _retrieve(_embed_test_classes(run))


def binary_recall(run: RunFolder) -> dict[str, float]:
    """Recall at 1 of the floats, of their sign bits, and what the bits lose."""
    features = _embed_test_classes(run)
    floats = _retrieve(features)["recall_at_1"]
    bits = _retrieve(features.binarized())["recall_at_1"]
    return {"binary_recall_at_1": bits, "recall_at_1": floats, "lost": floats - bits}


def scored_recall(run: RunFolder) -> dict[str, float]:
    """As `recall`, and where the run trained a metric unit the recall at 1 ranked by its score."""
    features = _embed_test_classes(run)
    scorer = load_scorer(run.checkpoint("best").folder, run.config)
    if scorer is None:
        return _retrieve(features)
    features = dataclasses.replace(features, scorer=scorer)
    by_score = evaluate(features, clustering=False, bootstrap=0, rank_by="pddm")
    return _retrieve(features) | {"recall_by_score": float(by_score["recall_at_1"])}


def learner_recall(run: RunFolder) -> dict[str, float]:
    """As `recall`, and recall at 1 of the first and the last learner alone; and how alike learners
    are, where there are several.
    """
    features = _embed_test_classes(run)
    found = _retrieve(features)
    groups = load_model(run.checkpoint("best").folder).spec["groups"]
    if len(groups) < 2:
        return found
    features = dataclasses.replace(features, attributes={"groups": groups})
    first, *_, last = (_retrieve(learner)["recall_at_1"] for learner in learners_of(features))
    alike = learner_correlation(features)
    return found | {"first_learner": first, "last_learner": last, "correlation": alike}


def steps_to(target: float, run: RunFolder) -> dict[str, float]:
    """The share of the run's steps after which recall at 1 on validation classes first was at the
    target; 1 where it never was.
    """
    reached = [
        int(row["step"])
        for row in run.summary()
        if row["val_recall_at_1"] and float(row["val_recall_at_1"]) >= target
    ]
    last = run.config.max_steps or 1
    return {"share_to_target": min(reached, default=last) / last}


def _embed_test_classes(run: RunFolder) -> Features:
    dataset = load_split(run.config, "test")
    model = load_model(run.checkpoint("best").folder)
    parts = [embeddings for embeddings, _, _ in embed_batches(model, dataset)]
    return Features(np.concatenate(parts), dataset.labels)


def _retrieve(features: Features) -> dict[str, float]:
    report = evaluate(features, clustering=False, bootstrap=0)
    return {name: float(report[name]) for name in MEASURES}
