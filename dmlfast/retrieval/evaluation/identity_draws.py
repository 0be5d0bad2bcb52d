"""VehicleID's re-identification protocol: a random image of each identity is the gallery."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dmlfast.retrieval.evaluation.ranking import check_ks
from dmlfast.retrieval.evaluation.summary import mean_and_deviation
from dmlfast.retrieval.features import Features, check_features
from dmlfast.retrieval.neighbours import nearest_neighbours
from dmlfast.retrieval.pair_scorer import PairScorer


def evaluate_identity_draws(
    features: Features,
    *,
    rank_by: str = "distance",
    ks: Sequence[int] = (1, 5),
    draws: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluates re-identification with galleries of one random image for each class.

    In each draw every other image is a query; a class of one image is in every gallery and never a
    query. Returns plain values: queries and gallery (the same in all draws), cmc_at_K, the mean
    over the draws of the share of queries with their class among the K nearest, cmc_at_K_std, its
    sample standard deviation over the draws (nan for one draw), ranked_by, distance, dimension,
    bytes_per_image, draws and seed. Equal distances are ordered by row. nan without queries.
    `rank_by` is as in `evaluate`.

    Raises UserError where there is no unit to rank by, ValueError for wrong arguments, TypeError
    for what is not `Features`.
    """
    check_features(features)
    check_ks(ks)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, not {draws}")
    ranking = features.ranking(rank_by)
    galleries = [draw_gallery(features, seed, i) for i in range(draws)]
    curves = np.stack([_cmc(features, ks, gallery, ranking) for gallery in galleries])
    classes = len(np.unique(features.labels))
    report: dict[str, Any] = {
        "queries": len(features) - classes,
        "gallery": classes,
        "classes": classes,
    }
    for position, k in enumerate(ks):
        report |= mean_and_deviation(f"cmc_at_{k}", curves[:, position])
    return report | {
        "ranked_by": rank_by,
        "distance": features.distance,
        "dimension": features.dimension,
        "bytes_per_image": features.bytes_per_image,
        "draws": draws,
        "seed": seed,
    }


def draw_gallery(features: Features, seed: int, draw: int) -> np.ndarray:
    """One random row of each class, (C,) int64 in ascending order, a function of (seed, draw)."""
    shuffled = np.random.default_rng([seed, draw]).permutation(len(features))
    _, first = np.unique(features.labels[shuffled], return_index=True)
    return np.sort(shuffled[first])


def _cmc(
    features: Features, ks: Sequence[int], gallery: np.ndarray, ranking: str | PairScorer
) -> np.ndarray:
    """The share of the other rows whose class is among the K nearest of the gallery, (len(ks),)."""
    queries = np.setdiff1d(np.arange(len(features)), gallery)
    if not len(queries):
        return np.full(len(ks), np.nan)
    found, _ = nearest_neighbours(
        features.embeddings[queries],
        features.embeddings[gallery],
        min(max(ks), len(gallery)),
        distance=ranking,
    )
    right = features.labels[gallery][found] == features.labels[queries][:, None]
    return np.array([right[:, :k].any(axis=1).mean() for k in ks])
