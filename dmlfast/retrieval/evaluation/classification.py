"""Classification of queries by embeddings whose classes are known."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dmlfast.errors import UserError
from dmlfast.retrieval.evaluation.class_ranks import (
    LinearClassifier,
    rank_by_means,
    rank_by_scores,
    rank_by_votes,
)
from dmlfast.retrieval.evaluation.sides import Sides, match_sides
from dmlfast.retrieval.evaluation.summary import summarize, summarize_classes
from dmlfast.retrieval.features import Features

METHODS = ("nearest-centroid", "knn", "classifier")
VOTES = ("majority", "distance")


def evaluate_classification(
    features: Features,
    train: Features,
    *,
    method: str = "nearest-centroid",
    classifier: LinearClassifier | None = None,
    neighbours: int = 20,
    vote: str = "majority",
    rank_by: str = "distance",
    shots: Sequence[int] = (20, 100),
    seed: int = 0,
    bootstrap: int = 1000,
) -> dict[str, Any]:
    """Classifies the queries of `features` by the gallery rows of `train`.

    method: "nearest-centroid", which ranks the classes by the distance of their means, or "knn",
    by the votes of the `neighbours` nearest rows, vote "majority" or "distance" (1 / distance),
    nearest by `rank_by` as in `evaluate` ("pddm" goes with majority votes alone), or
    "classifier", by the scores of `classifier`, where `train` only counts the images; the ranking
    functions in `class_ranks` say how ties are broken. An image that both hold (same data
    set, same path) takes no part in its own classification.

    Returns plain values:
      queries, classes              counts
      train_images, train_classes   those of `train`
      lone_queries                  queries whose class `train` does not have, left out
      top_1, top_5                  share of queries whose class is the first, among the first five
      class_average_top_1           mean over the classes of the share of their queries
      many_shot_top_1, medium_shot_top_1, few_shot_top_1      the same over the classes of more than
                                    shots[1] training images, of less than shots[0], and between
      many_shot_classes, medium_shot_classes, few_shot_classes      how many those are
      intervals                     as in `evaluate`; for averages over classes the queries of each
                                    class are resampled among themselves
      distance, dimension, bytes_per_image, seed, bootstrap, shots, and for "knn" neighbours, vote,
      ranked_by                     what was done
    A value that is not defined is nan.

    Raises UserError where the two cannot be compared, or not so, ValueError for wrong arguments,
    TypeError for what is not `Features`.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not '{method}'")
    if vote not in VOTES:
        raise ValueError(f"vote must be one of {', '.join(VOTES)}, not '{vote}'")
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, not {neighbours}")
    few, many = shots
    if not 1 <= few <= many:
        raise ValueError(f"shots must be two ascending numbers of images, not {list(shots)}")
    if (method == "classifier") != (classifier is not None):
        raise ValueError("method classifier takes a classifier, and no other does")
    if rank_by != "distance" and method != "knn":
        raise ValueError(f"method {method} does not rank images, by {rank_by} or otherwise")
    if rank_by != "distance" and vote == "distance":
        raise UserError(f"vote distance cannot be used with rank_by {rank_by}: use vote majority")
    if classifier is not None and features.binary:
        raise UserError(f"{features.source} holds sign bits, which the classifier cannot score")
    sides = match_sides(features, train, rank_by)
    settings: dict[str, Any] = {}
    if method == "knn":
        ranks = rank_by_votes(features, sides, neighbours, weighted=vote == "distance")
        settings = {"neighbours": neighbours, "vote": vote, "ranked_by": rank_by}
    elif classifier is not None:
        ranks = rank_by_scores(features, sides, classifier)
    else:
        ranks = rank_by_means(features, sides, 5)
    shares = summarize({"top_1": ranks < 1, "top_5": ranks < 5}, bootstrap, seed)
    averages = _by_shots(features, sides, ranks < 1, few, many, bootstrap, seed)
    if bootstrap:
        averages["intervals"] = shares["intervals"] | averages["intervals"]
    return {
        "queries": len(sides.queries),
        "lone_queries": len(sides.queries) - len(ranks),
        "classes": len(np.unique(features.labels[sides.queries])),
        "train_images": len(sides.rows),
        "train_classes": len(np.unique(train.labels[sides.rows])),
        **shares,
        **averages,
        "distance": features.distance,
        "dimension": features.dimension,
        "bytes_per_image": features.bytes_per_image,
        "seed": seed,
        "bootstrap": bootstrap,
        "shots": [few, many],
        **settings,
    }


def _by_shots(
    features: Features,
    sides: Sides,
    right: np.ndarray,
    few: int,
    many: int,
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """Accuracy averaged over all classes, and those with many, medium and few training images."""
    kept = sides.relevant > 0
    classes, index = np.unique(features.labels[sides.queries[kept]], return_inverse=True)
    trained, counts = np.unique(sides.gallery.labels[sides.rows], return_counts=True)
    images = counts[np.searchsorted(trained, classes)]
    shots = {
        "many_shot": images > many,
        "medium_shot": (images >= few) & (images <= many),
        "few_shot": images < few,
    }
    groups = {"class_average_top_1": np.ones(len(classes), bool)}
    groups |= {f"{name}_top_1": members for name, members in shots.items()}
    right, queries = np.bincount(index[right], minlength=len(classes)), np.bincount(index)
    return {
        **summarize_classes(right, queries, groups, bootstrap, seed),
        **{f"{name}_classes": int(members.sum()) for name, members in shots.items()},
    }
