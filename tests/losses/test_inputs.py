"""What no loss can take, said alike by all of them."""

import pytest
import torch

from dmlfast.losses import (
    ABIERLoss,
    BIERLoss,
    ContrastiveLoss,
    GeneralizedLiftedStructuredLoss,
    LiftedStructuredLoss,
    NormSoftmaxLoss,
    PDDMLoss,
    TripletLoss,
)

ROWS, LABELS = torch.zeros(4, 6), torch.tensor([0, 0, 1, 1])
LOSSES = [
    LiftedStructuredLoss(),
    GeneralizedLiftedStructuredLoss(),
    ContrastiveLoss(),
    TripletLoss(),
    NormSoftmaxLoss(2, 6),
    PDDMLoss(6),
    BIERLoss([2, 4]),
]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)


@each_loss
def test_labels_are_a_tensor(loss):
    with pytest.raises(TypeError, match=r"^labels must be a torch.Tensor, not list$"):
        loss(ROWS, LABELS.tolist())


@each_loss
def test_embeddings_are_a_floating_matrix(loss):
    with pytest.raises(TypeError, match=r"^embeddings must be a torch.Tensor, not ndarray$"):
        loss(ROWS.numpy(), LABELS)
    with pytest.raises(TypeError, match=r"^embeddings must be floating point, not torch.int64$"):
        loss(ROWS.long(), LABELS)
    with pytest.raises(ValueError, match=r"^embeddings must have shape \(N, D\)"):
        loss(ROWS[0], LABELS)


def test_the_adversarial_loss_asks_for_features_by_its_own_name():
    with pytest.raises(ValueError, match=r"^ABIERLoss needs features and weight"):
        ABIERLoss([2, 4])(ROWS, LABELS)
