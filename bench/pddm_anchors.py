"""A step of the PDDM loss with a quadruplet of each anchor, which needs the scores of all pairs."""

from dmlfast.bench.pddm import ANCHORS

BENCHMARK = ANCHORS
