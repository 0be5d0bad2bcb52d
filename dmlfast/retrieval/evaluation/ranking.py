"""Retrieval: recall at K, MAP at R, R-precision and clustering.

The ranking metrics are those of Musgrave, Belongie and Lim, "A Metric Learning Reality Check" (ECCV
2020).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from dmlfast.retrieval.evaluation.clustering import evaluate_clustering
from dmlfast.retrieval.evaluation.sides import Sides, match_sides
from dmlfast.retrieval.evaluation.summary import summarize
from dmlfast.retrieval.features import Features
from dmlfast.retrieval.neighbours import nearest_neighbours
from dmlfast.retrieval.pair_scorer import PairScorer

BLOCK_NEIGHBOURS = 2**21  # neighbours held at a time: queries times their number
SCORED_QUERIES = 1024  # at most at a time, where scores take minutes and progress is to be seen
SHALLOW = 128  # neighbours searched for at first; most queries find their class among them
NOT_FOUND = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Scores:
    """One value for each query that has something to find.

    queries: (Q,) int64 rows of the query features. recall: (Q, len(ks)), 1.0 where one of the K
    nearest is of the query's class. r_precision: (Q,) the share of the class among the R nearest.
    average_precision: (Q,), cut off at R. nearest: (Q,) the distance of the nearest neighbour, or
    minus its score.
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
    rank_by: str = "distance",
    ks: Sequence[int] = (1, 2, 4, 8),
    seed: int = 0,
    bootstrap: int = 1000,
    clustering: bool = True,
    clustering_runs: int = 1,
    kmeans: str = "auto",
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluates retrieval: every query of `features` against the gallery.

    Without `gallery`, the rows whose role is query (or both) search among those whose role is
    gallery (or both), and none finds itself. With it, the queries of `features` search among the
    gallery rows of `gallery`; an image that both files hold (same data set, same path) does not
    find itself either. rank_by: "distance", that of the embeddings, or "pddm", the score of the
    unit that is stored with them, most similar first; clusters are by distance all the same.

    Returns plain values:
      queries, gallery, classes     counts
      lone_queries        queries with no image of their class to find, left out of all ranking
      recall_at_K         share of queries with one of their class among the K nearest
      precision_at_1      the same as recall_at_1
      map_at_r            mean of 1/R sum of precision at i over the right ones among the R nearest
      r_precision         mean share of right ones among the R nearest
      nmi, nmi_geometric, ami, f1     agreement of the classes with k-means on all queries, a
                          cluster a class: the mean of `clustering_runs` runs; with more than one,
                          NAME_std is the standard deviation
      kmeans              "faiss" or "sklearn", what the clusters were found by
      intervals           of each ranking metric, [low, high]: 95 % percentile bootstrap of queries
      ranked_by, distance, dimension, bytes_per_image, seed, bootstrap      what was computed
    A value that is not defined, as all are without queries, is nan. Equal distances, and scores,
    are ordered by row. `seed` decides the clustering (the i-th run takes seed + i) and the
    bootstrap; `kmeans` is as in `cluster`; `progress` draws a bar on stderr. Memory grows with the
    number of images, not with its square.

    Raises UserError where the two files cannot be compared, or hold no unit or two different ones
    to rank by, ValueError for wrong arguments, TypeError for what is not `Features`.
    """
    check_ks(ks)
    if clustering_runs < 1:
        raise ValueError(f"clustering_runs must be at least 1, not {clustering_runs}")
    sides = match_sides(features, gallery, rank_by)
    scores = score_queries(features, sides, ks, progress=progress)
    values = {f"recall_at_{k}": scores.recall[:, i] for i, k in enumerate(ks)}
    values |= {"map_at_r": scores.average_precision, "r_precision": scores.r_precision}
    report: dict[str, Any] = {
        "queries": len(sides.queries),
        "lone_queries": scores.lone,
        "gallery": len(sides.rows),
        "classes": len(np.unique(features.labels[sides.queries])),
        **summarize(values, bootstrap, seed),
    }
    if 1 in ks:
        report["precision_at_1"] = report["recall_at_1"]
    if clustering:
        report |= evaluate_clustering(
            features, sides.queries, runs=clustering_runs, seed=seed, method=kmeans
        )
    return report | {
        "ranked_by": rank_by,
        "distance": features.distance,
        "dimension": features.dimension,
        "bytes_per_image": features.bytes_per_image,
        "seed": seed,
        "bootstrap": bootstrap,
    }


def check_ks(ks: Sequence[int]) -> None:
    """Raises ValueError where `ks` are no numbers of neighbours."""
    if not len(ks) or min(ks) < 1:
        raise ValueError(f"ks must be numbers of neighbours, each at least 1, not {list(ks)}")


def score_queries(
    features: Features, sides: Sides, ks: Sequence[int], *, progress: bool = False
) -> Scores:
    """Scores every query that has something to find, a block of queries at a time.

    features: whose rows `sides.queries` are. ks: the K of recall. progress: draws a bar on stderr.
    """
    kept = np.flatnonzero(sides.relevant > 0)
    gallery = sides.gallery.embeddings[sides.rows]
    gallery_labels = sides.gallery.labels[sides.rows]
    most = SCORED_QUERIES if isinstance(sides.ranking, PairScorer) else BLOCK_NEIGHBOURS
    deepest = min(max(ks), len(gallery))  # beyond it there is nothing to find
    shallow = min(deepest, SHALLOW)
    first = np.empty(len(kept), dtype=np.int64)
    r_precision, average_precision, nearest = np.zeros((3, len(kept)))

    def search(block: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Whether the k nearest of each query are right, and how far they are, (q, k) both."""
        rows = sides.queries[kept[block]]
        found, distances = nearest_neighbours(
            features.embeddings[rows],
            gallery,
            k,
            exclude=sides.own[kept[block]],
            distance=sides.ranking,
        )
        right = gallery_labels[found] == features.labels[rows][:, None]
        return right & (found >= 0), distances

    with tqdm(
        total=len(kept), desc="search", unit="query", leave=False, disable=not progress
    ) as bar:
        for block in _blocks(sides.relevant[kept], shallow, most):
            R = sides.relevant[kept[block]][:, None]
            k = max(shallow, int(R.max()))
            right, distances = search(block, k)
            first[block] = _first(right)
            right &= np.arange(k) < R
            hits = right.cumsum(axis=1)
            precision = hits / np.arange(1, k + 1)
            r_precision[block] = hits[:, -1] / R[:, 0]
            average_precision[block] = (precision * right).sum(axis=1) / R[:, 0]
            nearest[block] = distances[:, 0]
            bar.update(len(block))
        if deepest > shallow:
            missed = np.flatnonzero(first == NOT_FOUND)
            bar.reset(total=len(missed))
            size = min(most, max(1, BLOCK_NEIGHBOURS // deepest))
            for start in range(0, len(missed), size):
                block = missed[start : start + size]
                first[block] = _first(search(block, deepest)[0])
                bar.update(len(block))
    recall = (first[:, None] < [min(k, deepest) for k in ks]).astype(np.float64)
    lone = len(sides.queries) - len(kept)
    return Scores(sides.queries[kept], recall, r_precision, average_precision, nearest, lone)


def _first(right: np.ndarray) -> np.ndarray:
    """The place of the first that is right in each row of (q, k), from 0, or NOT_FOUND, (q,)."""
    return np.where(right.any(axis=1), right.argmax(axis=1), NOT_FOUND)


def _blocks(relevant: np.ndarray, k: int, most: int) -> Iterator[np.ndarray]:
    """Blocks of at most `most` queries whose neighbours fit in memory, most to find first."""
    order = np.argsort(-relevant, kind="stable")
    while len(order):
        size = min(most, max(1, BLOCK_NEIGHBOURS // max(k, int(relevant[order[0]]))))
        yield order[:size]
        order = order[size:]
