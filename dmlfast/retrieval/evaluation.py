"""How well embeddings retrieve: recall at K, MAP at R, R-precision and clustering.

The ranking metrics are those of Musgrave, Belongie and Lim, "A Metric Learning Reality Check" (ECCV
2020).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from dmlfast.errors import UserError
from dmlfast.retrieval.clustering import cluster, normalized_mutual_information, pairwise_f1
from dmlfast.retrieval.features import DISTANCES, Features
from dmlfast.retrieval.neighbours import nearest_neighbours

BLOCK_NEIGHBOURS = 2**21  # neighbours held at a time: queries times their number
SHARED = ("dataset", "model", "checkpoint_sha256", "normalized")  # must agree where known


@dataclass(frozen=True)
class Sides:
    """Who is searched for among whom.

    queries: (Q,) int64 rows of the query features. gallery: the features searched, rows: (M,) int64
    the rows of them that take part. own: (Q,) int64, for each query its own place in `rows`, or -1.
    relevant: (Q,) int64, R, the number of gallery rows of the query's class besides itself.
    """

    queries: np.ndarray
    gallery: Features
    rows: np.ndarray
    own: np.ndarray
    relevant: np.ndarray


@dataclass(frozen=True)
class Scores:
    """One value for each query that has something to find.

    queries: (Q,) int64 rows of the query features. recall: (Q, len(ks)), 1.0 where one of the K
    nearest is of the query's class. r_precision: (Q,) the share of the class among the R nearest.
    average_precision: (Q,), cut off at R. nearest: (Q,) the distance of the nearest neighbour.
    lone: the number of queries left out because nothing in the gallery is of their class.
    """

    queries: np.ndarray
    recall: np.ndarray
    r_precision: np.ndarray
    average_precision: np.ndarray
    nearest: np.ndarray
    lone: int


def evaluate(
    features: Features,
    gallery: Features | None = None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    seed: int = 0,
    bootstrap: int = 1000,
    clustering: bool = True,
    nmi_average: str = "arithmetic",
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluates retrieval: every query of `features` against the gallery.

    Without `gallery`, the rows whose role is query (or both) search among those whose role is
    gallery (or both), and none finds itself. With it, the queries of `features` search among the
    gallery rows of `gallery`; an image that both files hold (same data set, same path) does not
    find itself either.

    Returns plain values:
      queries, gallery, classes     counts
      lone_queries        queries with no image of their class to find, left out of all ranking
      recall_at_K         share of queries with one of their class among the K nearest
      precision_at_1      the same as recall_at_1
      map_at_r            mean of 1/R sum of precision at i over the right ones among the R nearest
      r_precision         mean share of right ones among the R nearest
      nmi, f1             agreement of the classes with k-means on all queries, a cluster a class
      intervals           of each ranking metric, [low, high]: 95 % percentile bootstrap of queries
      distance, dimension, seed, bootstrap     what was computed
    A value that is not defined, as all are without queries, is nan. Equal distances are ordered by
    row. `seed` decides the clustering and the bootstrap; `nmi_average` is "arithmetic" or
    "geometric"; `progress` draws a bar on stderr. Memory grows with the number of images, not with
    its square.

    Raises UserError where the two files cannot be compared, ValueError for wrong arguments.
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be numbers of neighbours, each at least 1, not {list(ks)}")
    sides = match_sides(features, gallery)
    scores = score_queries(features, sides, ks, progress=progress)
    names = [f"recall_at_{k}" for k in ks] + ["map_at_r", "r_precision"]
    values = np.column_stack([scores.recall, scores.average_precision, scores.r_precision])
    means = values.mean(axis=0) if len(values) else np.full(len(names), np.nan)

    report: dict[str, Any] = {
        "queries": len(sides.queries),
        "lone_queries": scores.lone,
        "gallery": len(sides.rows),
        "classes": len(np.unique(features.labels[sides.queries])),
        **dict(zip(names, means.tolist(), strict=True)),
    }
    if 1 in ks:
        report["precision_at_1"] = report["recall_at_1"]
    if clustering:
        report |= _clustering(features, sides.queries, seed, nmi_average)
    if bootstrap:
        intervals = bootstrap_intervals(values, bootstrap, seed).tolist()
        report["intervals"] = dict(zip(names, intervals, strict=True))
    return report | {
        "distance": features.distance,
        "dimension": features.dimension,
        "seed": seed,
        "bootstrap": bootstrap,
    }


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

    classes, counts = np.unique(other.labels[rows], return_counts=True)
    labels = features.labels[queries]
    at = np.searchsorted(classes, labels).clip(max=max(0, len(classes) - 1))
    known = classes[at] == labels if len(classes) else np.zeros(len(labels), bool)
    itself = (own >= 0) & (other.labels[rows[own]] == labels if len(rows) else False)
    relevant = np.where(known, counts[at] if len(classes) else 0, 0) - itself
    return Sides(queries, other, rows, own, relevant)


def score_queries(
    features: Features, sides: Sides, ks: Sequence[int], *, progress: bool = False
) -> Scores:
    """Scores every query that is not lone, a block of queries at a time."""
    kept = np.flatnonzero(sides.relevant > 0)
    gallery = sides.gallery.embeddings[sides.rows]
    gallery_labels = sides.gallery.labels[sides.rows]
    largest = min(max(ks), len(gallery))  # beyond it there is nothing to find
    recall = np.zeros((len(kept), len(ks)))
    r_precision, average_precision, nearest = np.zeros((3, len(kept)))

    with tqdm(
        total=len(kept), desc="search", unit="query", leave=False, disable=not progress
    ) as bar:
        for block in _blocks(sides.relevant[kept], largest):
            chosen = kept[block]
            rows = sides.queries[chosen]
            R = sides.relevant[chosen][:, None]
            k = max(largest, int(R.max()))
            found, distances = nearest_neighbours(
                features.embeddings[rows],
                gallery,
                k,
                exclude=sides.own[chosen],
                distance=DISTANCES[features.distance],
            )
            right = (gallery_labels[found] == features.labels[rows][:, None]) & (found >= 0)
            recall[block] = np.stack([right[:, :K].any(axis=1) for K in ks], axis=1)
            right &= np.arange(k) < R
            hits = right.cumsum(axis=1)
            precision = hits / np.arange(1, k + 1)
            r_precision[block] = hits[:, -1] / R[:, 0]
            average_precision[block] = (precision * right).sum(axis=1) / R[:, 0]
            nearest[block] = distances[:, 0]
            bar.update(len(block))
    lone = len(sides.queries) - len(kept)
    return Scores(sides.queries[kept], recall, r_precision, average_precision, nearest, lone)


def bootstrap_intervals(values: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """95 % percentile intervals of the column means of (Q, m) values under resampled rows, (m, 2).

    nan without rows.
    """
    Q, m = values.shape
    if not Q:
        return np.full((m, 2), np.nan)
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, m))
    for row in means:
        row[:] = np.bincount(generator.integers(Q, size=Q), minlength=Q) @ values / Q
    return np.percentile(means, [2.5, 97.5], axis=0).T


def _blocks(relevant: np.ndarray, k: int) -> Iterator[np.ndarray]:
    """Blocks of queries whose neighbours fit in memory, those with the most to find first."""
    order = np.argsort(-relevant, kind="stable")
    while len(order):
        size = max(1, BLOCK_NEIGHBOURS // max(k, int(relevant[order[0]])))
        yield order[:size]
        order = order[size:]


def _clustering(
    features: Features, rows: np.ndarray, seed: int, nmi_average: str
) -> dict[str, float]:
    labels = features.labels[rows]
    if not len(rows):
        return {"nmi": float("nan"), "f1": float("nan")}
    embeddings = features.embeddings[rows].astype(np.float64)
    if features.distance == "angular":
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        embeddings /= np.where(norms > 0, norms, 1.0)
    clusters = cluster(embeddings, len(np.unique(labels)), seed)
    return {
        "nmi": normalized_mutual_information(labels, clusters, nmi_average),
        "f1": pairwise_f1(labels, clusters),
    }


def _check_comparable(features: Features, gallery: Features) -> None:
    """Refuses embeddings of different networks, and classes that do not mean the same."""
    both = f"{features.source} and {gallery.source} cannot be compared"
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
