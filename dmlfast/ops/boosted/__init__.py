"""Boosted losses: learners on groups of components, each on the pairs that earlier ones miss."""

from dmlfast.ops.boosted.learners import WEIGHTINGS, group_sizes, score_weights
from dmlfast.ops.boosted.op import (
    boosted_contrastive_loss,
    boosted_deviance_loss,
    boosted_triplet_loss,
)
from dmlfast.ops.boosted.settings import SHORTEST

__all__ = [
    "SHORTEST",
    "WEIGHTINGS",
    "boosted_contrastive_loss",
    "boosted_deviance_loss",
    "boosted_triplet_loss",
    "group_sizes",
    "score_weights",
]
