"""At which place the class of a query stands among all classes."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from dmlfast.retrieval.evaluation.sides import Sides
from dmlfast.retrieval.features import DISTANCES, Features
from dmlfast.retrieval.neighbours import nearest_neighbours, paired_distances

BLOCK_VALUES = 2**21  # of embeddings or neighbours held at a time
UNRANKED = np.iinfo(np.int64).max  # the place of a class that is not among the candidates


class LinearClassifier(NamedTuple):
    """Scores classes by weight @ embedding + bias: (C, D) and (C,); their labels (C,) ascend."""

    weight: np.ndarray
    bias: np.ndarray
    classes: np.ndarray


def rank_by_scores(features: Features, sides: Sides, classifier: LinearClassifier) -> np.ndarray:
    """The place of each query's class by the scores of a classifier, in float64, highest first.

    Equal scores are ordered by label. Only queries that have something to find: returns (Q,) int64,
    0 the highest, UNRANKED for a class that the classifier does not have.
    """
    rows = np.flatnonzero(sides.relevant > 0)
    weight, bias = (part.astype(np.float64) for part in classifier[:2])
    labels = features.labels[sides.queries[rows]]
    own = np.searchsorted(classifier.classes, labels).clip(max=len(bias) - 1)
    ranks = np.empty(len(rows), dtype=np.int64)
    for block in _blocks(len(rows), len(bias) + features.dimension):
        embeddings = features.embeddings[sides.queries[rows[block]]].astype(np.float64)
        scores = embeddings @ weight.T + bias
        of_own = np.take_along_axis(scores, own[block, None], axis=1)
        before = np.arange(len(bias)) < own[block, None]
        ranks[block] = ((scores > of_own) | ((scores == of_own) & before)).sum(axis=1)
    ranks[classifier.classes[own] != labels] = UNRANKED
    return ranks


def rank_by_means(features: Features, sides: Sides, depth: int) -> np.ndarray:
    """The place of each query's class among the class means of the gallery, nearest first.

    A class's mean is taken in float64 over its gallery rows without the query itself, of vectors
    scaled to length 1 where the distance is angular, and rounded once to the embeddings' type (at
    least float32). Sign bits are vectors of 0 and 1 here, compared with their means by euclidean
    distance. Classes at equal distances are ordered by label. Only queries that have something to
    find: returns (Q,) int64, 0 the nearest, exact below `depth`. Memory beyond the embeddings grows
    as C D, not as Q C.
    """
    rows = np.flatnonzero(sides.relevant > 0)
    distance = "euclidean" if features.binary else DISTANCES[features.distance]
    classes, sums, counts = _class_sums(sides)
    dtype = np.promote_types(sides.gallery.embeddings.dtype, np.float32)
    means = (sums / counts[:, None]).astype(dtype)
    own = np.searchsorted(classes, features.labels[sides.queries[rows]])
    ranks = np.empty(len(rows), dtype=np.int64)
    k = min(depth, len(classes))
    for block in _blocks(len(rows), max(k, features.dimension)):
        places = rows[block]
        embeddings = features.floats(sides.queries[places])
        found, distances = nearest_neighbours(
            embeddings, means, k, exclude=own[block], distance=distance
        )
        left_out = sides.itself[places][:, None]
        vectors = features.vectors(sides.queries[places])
        others = counts[own[block]][:, None] - left_out
        target = ((sums[own[block]] - left_out * vectors) / others).astype(dtype)
        to_own = paired_distances(embeddings, target, distance=distance)[:, None]
        nearer = (distances < to_own) | ((distances == to_own) & (found < own[block][:, None]))
        ranks[block] = nearer.sum(axis=1)
    return ranks


def rank_by_votes(
    features: Features, sides: Sides, neighbours: int, *, weighted: bool = False
) -> np.ndarray:
    """The place of each query's class in the vote of its k nearest gallery rows, most votes first.

    Each of the `neighbours` nearest rows besides the query itself has one vote, or with `weighted`
    1 / distance; neighbours at distance 0 then outvote all others. Equal votes are ordered by the
    nearest voter. Only queries that have something to find: returns (Q,) int64, 0 the winner,
    UNRANKED where no neighbour is of the class.
    """
    rows = np.flatnonzero(sides.relevant > 0)
    gallery = sides.gallery.embeddings[sides.rows]
    classes, gallery_classes = np.unique(sides.gallery.labels[sides.rows], return_inverse=True)
    own = np.searchsorted(classes, features.labels[sides.queries[rows]])
    ranks = np.empty(len(rows), dtype=np.int64)
    k = min(neighbours, len(gallery))
    for block in _blocks(len(rows), max(k, features.dimension)):
        places = rows[block]
        found, distances = nearest_neighbours(
            features.embeddings[sides.queries[places]],
            gallery,
            k,
            exclude=sides.own[places],
            distance=sides.ranking,
        )
        weights = _inverse(distances) if weighted else np.ones_like(distances, dtype=np.float64)
        weights[found < 0] = 0
        ranks[block] = _places_in_vote(gallery_classes[found], weights, own[block], len(classes))
    return ranks


def _places_in_vote(
    voters: np.ndarray, weights: np.ndarray, own: np.ndarray, classes: int
) -> np.ndarray:
    """The place of class `own` (q,) where `voters` (q, k) cast `weights`, (q,)."""
    q = len(voters)
    ballots = np.arange(q)[:, None] * classes + voters
    groups, first, group = np.unique(ballots, return_index=True, return_inverse=True)
    votes = np.bincount(group.ravel(), weights=weights.ravel())
    row, elected = np.divmod(groups, classes)
    mine = (elected == own[row]) & (votes > 0)
    votes_for, voter_for = np.zeros(q), np.zeros(q, dtype=np.int64)
    votes_for[row[mine]], voter_for[row[mine]] = votes[mine], first[mine]
    ahead = (votes > votes_for[row]) | ((votes == votes_for[row]) & (first < voter_for[row]))
    places = np.bincount(row, weights=ahead, minlength=q).astype(np.int64)
    places[votes_for == 0] = UNRANKED
    return places


def _inverse(distances: np.ndarray) -> np.ndarray:
    """1 / distance, (q, k) float64; in rows with a distance of 0, 1 for those and 0 for others."""
    zero = distances == 0
    weights = 1 / np.where(zero, 1, distances.astype(np.float64))
    return np.where(zero.any(axis=1, keepdims=True), zero, weights)


def _class_sums(sides: Sides) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (C,), sums (C, D) float64 and counts (C,) of the gallery's classes."""
    labels = sides.gallery.labels[sides.rows]
    classes, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(classes), sides.gallery.dimension, dtype=torch.float64)
    for block in _blocks(len(labels), sides.gallery.dimension):
        vectors = sides.gallery.vectors(sides.rows[block])
        sums.index_add_(0, torch.from_numpy(index[block]), torch.from_numpy(vectors))
    return classes, sums.numpy(), counts


def _blocks(rows: int, width: int) -> Iterator[slice]:
    size = max(1, BLOCK_VALUES // width)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))
