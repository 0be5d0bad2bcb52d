"""Who is searched for among whom."""

from dataclasses import dataclass

import numpy as np

from dmlfast.errors import UserError
from dmlfast.retrieval.features import Features

SHARED = ("dataset", "model", "checkpoint_sha256", "normalized")  # must agree where known


@dataclass(frozen=True)
class Sides:
    """Who is searched for among whom.

    queries: (Q,) int64 rows of the query features. gallery: the features searched, rows: (M,) int64
    the rows of them that take part. own: (Q,) int64, for each query its own place in `rows`, or -1.
    itself: (Q,) bool, whether that place is there and bears the query's label. relevant: (Q,)
    int64, R, the number of gallery rows of the query's class besides itself.
    """

    queries: np.ndarray
    gallery: Features
    rows: np.ndarray
    own: np.ndarray
    itself: np.ndarray
    relevant: np.ndarray


def match_sides(features: Features, gallery: Features | None = None) -> Sides:
    """Says which rows search among which, and where each query stands in the gallery itself.

    Raises UserError where the two cannot be compared.
    """
    other = features if gallery is None else gallery
    _check_comparable(features, other)
    queries, rows = features.rows_as("query"), other.rows_as("gallery")
    own = np.full(len(queries), -1)
    if gallery is None:
        place = np.full(len(features), -1)
        place[rows] = np.arange(len(rows))
        own = place[queries]
    elif gallery.paths and features.paths and _same_data_set(features, gallery):
        places = {gallery.paths[row]: place for place, row in enumerate(rows)}
        own = np.array([places.get(features.paths[row], -1) for row in queries], dtype=np.int64)

    labels = features.labels[queries]
    if not len(rows):
        return Sides(queries, other, rows, own, np.zeros(len(queries), bool), np.zeros_like(own))
    classes, counts = np.unique(other.labels[rows], return_counts=True)
    at = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    itself = (own >= 0) & (other.labels[rows[own]] == labels)
    relevant = np.where(classes[at] == labels, counts[at], 0) - itself
    return Sides(queries, other, rows, own, itself, relevant)


def _check_comparable(features: Features, gallery: Features) -> None:
    """Refuses embeddings of different networks, and classes that do not mean the same."""
    both = f"{features.source} and {gallery.source} cannot be compared"
    if gallery.binary != features.binary:
        raise UserError(f"{both}: one holds sign bits, the other floats")
    if (gallery.dimension, gallery.distance) != (features.dimension, features.distance):
        raise UserError(
            f"{both}: {features.dimension} dimensions, {features.distance}, and"
            f" {gallery.dimension}, {gallery.distance}"
        )
    for name in SHARED:
        ours, theirs = features.attributes.get(name), gallery.attributes.get(name)
        if ours is not None and theirs is not None and ours != theirs:
            raise UserError(f"{both}: their {name} is {ours!s:.32} and {theirs!s:.32}")


def _same_data_set(features: Features, gallery: Features) -> bool:
    return features.attributes.get("dataset") == gallery.attributes.get("dataset")
