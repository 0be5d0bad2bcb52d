"""A linear classifier that is trained along with a metric loss."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dmlfast.errors import UserError
from dmlfast.retrieval import LinearClassifier
from dmlfast.training.checkpoint import LOSS


class ClassifierLoss(nn.Module):
    """A loss on embeddings, plus `weight` times the cross-entropy of a linear classifier of them.

    Args:
        loss_fn: of embeddings (N, D) and labels (N,), a scalar.
        classes: (C,) integers, the labels there are, each once.
        embedding_dim: D.
        weight: of the cross-entropy, which is in nats and a mean over the rows.

    Attributes:
        classes: (C,) int64 in ascending order, the labels of the classifier's outputs.
    """

    classes: Tensor

    def __init__(self, loss_fn: nn.Module, classes: Tensor, embedding_dim: int, weight: float):
        super().__init__()
        self.loss_fn = loss_fn
        self.weight = weight
        self.classifier = nn.Linear(embedding_dim, len(classes))
        self.register_buffer("classes", classes.sort().values)

    @property
    def needs_features(self) -> bool:
        """As the loss that it is added to."""
        return bool(getattr(self.loss_fn, "needs_features", False))

    def forward(self, embeddings: Tensor, labels: Tensor, **others: Any) -> Tensor:
        """The loss, (), of embeddings (N, D) with labels (N,) that are all among the classes; what
        else there is goes to the loss that it is added to.
        """
        targets = torch.searchsorted(self.classes, labels)
        cross_entropy = F.cross_entropy(self.classifier(embeddings), targets)
        loss: Tensor = self.loss_fn(embeddings, labels, **others) + self.weight * cross_entropy
        return loss


def load_classifier(folder: str | Path) -> LinearClassifier:
    """The classifier in the folder of a checkpoint; a `UserError` says why there is none."""
    path = Path(folder) / LOSS
    try:
        tensors = load_file(path) if path.exists() else {}
        names = ("classifier.weight", "classifier.bias", "classes")
        return LinearClassifier(*(tensors[name].numpy() for name in names))
    except KeyError:
        raise UserError(f"{folder} has no classifier: --ce-weight trains one") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
