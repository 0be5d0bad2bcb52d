"""Networks that map images to embeddings, and their files."""

from dmlfast.models.checkpoint import load_model, save_model
from dmlfast.models.model import EmbeddingModel, create_model, model_names

__all__ = ["EmbeddingModel", "create_model", "load_model", "model_names", "save_model"]
