"""How well embeddings retrieve and classify, by the protocols of the field."""

from dmlfast.retrieval.evaluation.class_ranks import LinearClassifier
from dmlfast.retrieval.evaluation.classification import evaluate_classification
from dmlfast.retrieval.evaluation.identity_draws import evaluate_identity_draws
from dmlfast.retrieval.evaluation.ranking import Scores, evaluate, score_queries
from dmlfast.retrieval.evaluation.sides import Sides, match_sides
from dmlfast.retrieval.evaluation.zero_shot import evaluate_zero_shot

__all__ = [
    "LinearClassifier",
    "Scores",
    "Sides",
    "evaluate",
    "evaluate_classification",
    "evaluate_identity_draws",
    "evaluate_zero_shot",
    "match_sides",
    "score_queries",
]
