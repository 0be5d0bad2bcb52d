"""Embeddings to evaluate."""

import numpy as np

from dmlfast.retrieval import Features


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
