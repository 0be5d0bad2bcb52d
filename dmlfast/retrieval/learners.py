"""The learners of a boosted embedding, each on its own, and how alike they are."""

from dataclasses import replace

import numpy as np

from dmlfast.errors import UserError
from dmlfast.retrieval.features import Features


def learners_of(features: Features) -> list[Features]:
    """The same rows with each learner's components alone.

    Raises:
        UserError: the embeddings do not say which learners made them, or hold sign bits.
    """
    groups = features.attributes.get("groups")
    if not groups or features.binary:
        raise UserError(
            f"{features.source} has no learners: only a run with --loss bier or a-bier has them"
        )
    if sum(groups) != features.dimension:
        raise UserError(
            f"{features.source}: groups {list(groups)} do not add up to {features.dimension}"
            " dimensions"
        )
    known = {
        name: value
        for name, value in features.attributes.items()
        if name not in ("groups", "group_weights", "weighting", "normalized")
    }
    parts = np.split(features.embeddings, np.cumsum(groups)[:-1], axis=1)
    return [replace(features, embeddings=x, attributes=known, scorer=None) for x in parts]


def learner_correlation(features: Features) -> float:
    """The mean absolute correlation between components of different learners, from 0 to 1; NaN for
    one learner, or where no two vary. Components that do not vary are left out.

    Raises:
        UserError: as `learners_of`.
    """
    scaled = []
    for learner in learners_of(features):
        x = learner.embeddings.astype(np.float64)
        x = x - x.mean(0)
        norms = np.linalg.norm(x, axis=0)
        scaled.append(x[:, norms > 0] / norms[norms > 0])
    found = [np.abs(a.T @ b).ravel() for k, a in enumerate(scaled) for b in scaled[k + 1 :]]
    values = np.concatenate([[], *found])
    return float(values.mean()) if len(values) else float("nan")
