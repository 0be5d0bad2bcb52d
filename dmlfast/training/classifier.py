"""A linear classifier that is trained along with a metric loss."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


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

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss, (), of embeddings (N, D) with labels (N,) that are all among the classes."""
        targets = torch.searchsorted(self.classes, labels)
        cross_entropy = F.cross_entropy(self.classifier(embeddings), targets)
        loss: Tensor = self.loss_fn(embeddings, labels) + self.weight * cross_entropy
        return loss
