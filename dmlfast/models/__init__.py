"""Networks that map images to embeddings, and their files."""

from dmlfast.models.backbone import Preprocessing
from dmlfast.models.checkpoint import load_model, save_model
from dmlfast.models.model import (
    HEAD_INITS,
    HEADS,
    WEIGHTINGS,
    EmbeddingModel,
    backbone_preprocessing,
    create_model,
    has_default_weights,
    model_names,
)

__all__ = [
    "HEADS",
    "HEAD_INITS",
    "WEIGHTINGS",
    "EmbeddingModel",
    "Preprocessing",
    "backbone_preprocessing",
    "create_model",
    "has_default_weights",
    "load_model",
    "model_names",
    "save_model",
]
