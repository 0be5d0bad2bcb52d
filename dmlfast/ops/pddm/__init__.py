"""Scores of the position-dependent metric unit, and hard quadruplets."""

from dmlfast.ops.pddm.op import pddm_hard_quadruplets, pddm_scores

__all__ = ["pddm_hard_quadruplets", "pddm_scores"]
