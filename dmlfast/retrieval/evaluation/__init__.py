"""How well embeddings retrieve, by the protocols of the field."""

from dmlfast.retrieval.evaluation.ranking import Scores, evaluate, score_queries
from dmlfast.retrieval.evaluation.sides import Sides, match_sides

__all__ = ["Scores", "Sides", "evaluate", "match_sides", "score_queries"]
