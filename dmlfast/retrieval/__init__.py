"""Embedding files, exact search, evaluation and pictures."""

from dmlfast.retrieval.codes import binarize
from dmlfast.retrieval.embedding_map import draw_map
from dmlfast.retrieval.evaluation import (
    LinearClassifier,
    evaluate,
    evaluate_classification,
    evaluate_identity_draws,
    evaluate_zero_shot,
)
from dmlfast.retrieval.features import Features
from dmlfast.retrieval.learners import learner_correlation, learners_of
from dmlfast.retrieval.montage import draw_montage
from dmlfast.retrieval.neighbours import nearest_neighbours
from dmlfast.retrieval.pair_scorer import PairScorer
from dmlfast.retrieval.store import FeatureWriter, export_ann_benchmarks, load_features

__all__ = [
    "FeatureWriter",
    "Features",
    "LinearClassifier",
    "PairScorer",
    "binarize",
    "draw_map",
    "draw_montage",
    "evaluate",
    "evaluate_classification",
    "evaluate_identity_draws",
    "evaluate_zero_shot",
    "export_ann_benchmarks",
    "learner_correlation",
    "learners_of",
    "load_features",
    "nearest_neighbours",
]
