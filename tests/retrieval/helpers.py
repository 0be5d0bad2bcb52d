"""Embeddings to evaluate."""

import numpy as np
import torch

from dmlfast.losses import PDDMUnit
from dmlfast.retrieval import Features, PairScorer


def blobs(rows=300, classes=20, columns=8, noise=1.0, seed=0, **features):
    """A Gaussian around each of the classes' centres."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    centres = rng.normal(size=(classes, columns))
    embeddings = centres[labels] + noise * rng.normal(size=(rows, columns))
    return Features(embeddings.astype(np.float32), labels.astype(np.int64), **features)


def halves(features, count):
    """The first `count` rows, and the others."""
    return tuple(
        Features(features.embeddings[rows], features.labels[rows], attributes=features.attributes)
        for rows in (slice(count), slice(count, None))
    )


def pair_scorer(dimension=8, hidden=None, *, seed=0, **settings):
    """A metric unit with weights and biases that matter, whose scores have both signs."""
    generator = torch.Generator().manual_seed(seed)
    unit = PDDMUnit(dimension, hidden, normalize_inputs=settings.pop("normalize_inputs", False))
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return PairScorer(unit, **settings)
