"""Zero-shot recognition: the classes that are searched were never trained on."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dmlfast.errors import UserError
from dmlfast.retrieval.evaluation.class_ranks import rank_by_means
from dmlfast.retrieval.evaluation.ranking import check_ks, score_queries
from dmlfast.retrieval.evaluation.sides import match_sides
from dmlfast.retrieval.evaluation.summary import summarize
from dmlfast.retrieval.features import Features

CANDIDATES = ("prototypes", "images")


def evaluate_zero_shot(
    features: Features,
    gallery: Features | None = None,
    *,
    against: str = "prototypes",
    rank_by: str = "distance",
    ks: Sequence[int] = (1, 2, 5, 10, 20),
    seed: int = 0,
    bootstrap: int = 1000,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluates the flat hit at K: is the class of a query among its K first candidates?

    against: "prototypes", the mean embedding of each class of the gallery without the query itself
    (one row a class in `gallery` is that class's prototype as it is), or "images", the rows of the
    gallery, where a hit is one image of the class. Who searches among whom is as in `evaluate`, and
    so is `rank_by`; "pddm" ranks images, and not prototypes, of which its unit has seen none.

    Returns plain values: queries, classes and candidates (counts), lone_queries (with no other
    image of their class, left out), hit_at_K, intervals, as in `evaluate`, and ranked_by, distance,
    dimension, bytes_per_image, seed, bootstrap, against. nan without queries.

    Raises UserError where the two files cannot be compared, or not so, ValueError for wrong
    arguments, TypeError for what is not `Features`.
    """
    check_ks(ks)
    if against not in CANDIDATES:
        raise ValueError(f"against must be one of {', '.join(CANDIDATES)}, not '{against}'")
    if rank_by != "distance" and against != "images":
        raise UserError(f"{rank_by} ranks images, not {against}: use --against images")
    sides = match_sides(features, gallery, rank_by)
    if against == "images":
        scores = score_queries(features, sides, ks, progress=progress)
        values = {f"hit_at_{k}": scores.recall[:, i] for i, k in enumerate(ks)}
        candidates = len(sides.rows)
    else:
        ranks = rank_by_means(features, sides, max(ks))
        values = {f"hit_at_{k}": ranks < k for k in ks}
        candidates = len(np.unique(sides.gallery.labels[sides.rows]))
    return {
        "queries": len(sides.queries),
        "lone_queries": int((sides.relevant <= 0).sum()),
        "classes": len(np.unique(features.labels[sides.queries])),
        "candidates": candidates,
        **summarize(values, bootstrap, seed),
        "ranked_by": rank_by,
        "distance": features.distance,
        "dimension": features.dimension,
        "bytes_per_image": features.bytes_per_image,
        "seed": seed,
        "bootstrap": bootstrap,
        "against": against,
    }
