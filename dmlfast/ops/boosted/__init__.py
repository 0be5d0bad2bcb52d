"""Boosted losses: learners on groups of components, each on the pairs that earlier ones miss."""

from dmlfast.ops.boosted.op import (
    boosted_contrastive_loss,
    boosted_deviance_loss,
    boosted_triplet_loss,
)

__all__ = ["boosted_contrastive_loss", "boosted_deviance_loss", "boosted_triplet_loss"]
