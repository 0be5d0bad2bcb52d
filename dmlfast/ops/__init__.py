"""Pair losses as registered torch ops: one folder per op, its maths and kernels side by side."""

from dmlfast.ops.boosted.learners import group_sizes
from dmlfast.ops.boosted.op import (
    boosted_contrastive_loss,
    boosted_deviance_loss,
    boosted_triplet_loss,
)
from dmlfast.ops.contrastive.op import contrastive_loss
from dmlfast.ops.dispatch import available, why_not
from dmlfast.ops.lifted.op import lifted_structured_loss
from dmlfast.ops.norm_softmax.op import norm_softmax_loss
from dmlfast.ops.normalize.op import normalize
from dmlfast.ops.pairs.counts import pair_counts
from dmlfast.ops.pairs.op import pair_max, pair_reduce
from dmlfast.ops.pddm.op import pddm_hard_quadruplets, pddm_scores
from dmlfast.ops.triplet.op import triplet_loss

__all__ = [
    "available",
    "boosted_contrastive_loss",
    "boosted_deviance_loss",
    "boosted_triplet_loss",
    "contrastive_loss",
    "group_sizes",
    "lifted_structured_loss",
    "norm_softmax_loss",
    "normalize",
    "pair_counts",
    "pair_max",
    "pair_reduce",
    "pddm_hard_quadruplets",
    "pddm_scores",
    "triplet_loss",
    "why_not",
]
