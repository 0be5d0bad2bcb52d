"""Who is searched for among whom."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from dmlfast.errors import UserError
from dmlfast.retrieval.features import Features, check_features
from dmlfast.retrieval.pair_scorer import PairScorer

# must agree where known
SHARED = ("dataset", "model", "checkpoint_sha256", "normalized", "weighting", "learner")


@dataclass(frozen=True)
class Sides:
    """Who is searched for among whom, and by what.

    queries: (Q,) int64 rows of the query features. gallery: the features searched, rows: (M,) int64
    the rows of them that take part. own: (Q,) int64, for each query its own place in `rows`, or -1.
    itself: (Q,) bool, whether that place is there and bears the query's label. relevant: (Q,)
    int64, R, the number of gallery rows of the query's class besides itself. ranking: what
    `nearest_neighbours` takes for the distance.
    """

    queries: np.ndarray
    gallery: Features
    rows: np.ndarray
    own: np.ndarray
    itself: np.ndarray
    relevant: np.ndarray
    ranking: str | PairScorer


def match_sides(
    features: Features, gallery: Features | None = None, rank_by: str = "distance"
) -> Sides:
    """Says which rows search among which, and where each query stands in the gallery itself.

    `rank_by` is as in `Features.ranking`. Raises UserError where the two cannot be compared, or not
    by that, or a query's path is that of several rows of the gallery, TypeError for what is not
    `Features`.
    """
    other = features if gallery is None else gallery
    check_features(features, other)
    _check_comparable(features, other)
    ranking = _shared_ranking(features, other, rank_by)
    queries, rows = features.rows_as("query"), other.rows_as("gallery")
    own = np.full(len(queries), -1)
    if gallery is None:
        place = np.full(len(features), -1)
        place[rows] = np.arange(len(rows))
        own = place[queries]
    elif gallery.paths and features.paths and _same_data_set(features, gallery):
        places = {gallery.paths[row]: place for place, row in enumerate(rows)}
        paths = [features.paths[row] for row in queries]
        if len(places) < len(rows):
            _refuse_ambiguous(paths, gallery, rows)
        own = np.array([places.get(path, -1) for path in paths], dtype=np.int64)

    labels = features.labels[queries]
    if not len(rows):
        nothing = np.zeros(len(queries), bool), np.zeros_like(own)
        return Sides(queries, other, rows, own, *nothing, ranking)
    classes, counts = np.unique(other.labels[rows], return_counts=True)
    at = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    itself = (own >= 0) & (other.labels[rows[own]] == labels)
    relevant = np.where(classes[at] == labels, counts[at], 0) - itself
    return Sides(queries, other, rows, own, itself, relevant, ranking)


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


def _refuse_ambiguous(paths: list[str], gallery: Features, rows: np.ndarray) -> None:
    """Refuses queries' paths that do not say which row of the gallery is the query itself."""
    counts = Counter(gallery.paths[row] for row in rows)
    for path in paths:
        if counts[path] > 1:
            raise UserError(
                f"{counts[path]:,} images of {gallery.source} have the path '{path}': it is unclear"
                " which of them is the query itself"
            )


def _shared_ranking(features: Features, gallery: Features, rank_by: str) -> str | PairScorer:
    """What both are ranked by; refuses files whose units differ."""
    ours, theirs = features.ranking(rank_by), gallery.ranking(rank_by)
    if isinstance(ours, PairScorer) and not ours.agrees_with(theirs):
        raise UserError(
            f"{features.source} and {gallery.source} cannot be ranked by pddm: their units differ"
        )
    return ours


def _same_data_set(features: Features, gallery: Features) -> bool:
    return features.attributes.get("dataset") == gallery.attributes.get("dataset")
