"""What losses take, and what none of them can, said alike by all."""

import copy

import pytest
import torch

from dmlfast import ops
from dmlfast.losses import (
    ABIERLoss,
    BIERLoss,
    ContrastiveLoss,
    GeneralizedLiftedStructuredLoss,
    LiftedStructuredLoss,
    MultiSimilarityLoss,
    NormSoftmaxLoss,
    NTXentLoss,
    PDDMLoss,
    ProxyAnchorLoss,
    SupConLoss,
    TripletLoss,
)

ROWS, LABELS = torch.zeros(4, 6), torch.tensor([0, 0, 1, 1])
LOSSES = [
    LiftedStructuredLoss(),
    GeneralizedLiftedStructuredLoss(),
    ContrastiveLoss(),
    TripletLoss(),
    SupConLoss(),
    NTXentLoss(),
    MultiSimilarityLoss(),
    MultiSimilarityLoss(epsilon=0.1),
    PDDMLoss(6),
    NormSoftmaxLoss(2, 6),
    ProxyAnchorLoss(2, 6),
    BIERLoss([2, 4]),
]
OF_PAIRS, NORMALIZING = LOSSES[:7], LOSSES[:8]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)


@each_loss
def test_labels_are_a_tensor(loss):
    with pytest.raises(TypeError, match=r"^labels must be a torch.Tensor, not list$"):
        loss(ROWS, LABELS.tolist())


@each_loss
def test_a_default_dtype_changes_nothing(loss):
    torch.manual_seed(0)
    rows = torch.randn(4, 6, requires_grad=True)

    def results():
        value = loss(rows, LABELS)
        return value.detach(), *torch.autograd.grad(value, rows)

    expected = results()
    torch.set_default_dtype(torch.float64)
    try:
        assert all(map(torch.equal, results(), expected))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("loss", NORMALIZING, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 3e4])
def test_rows_are_normalised_in_float32(loss, dtype, scale):
    """A row of zeros stays one, without gradient; of half precision no length is lost."""
    loss = copy.deepcopy(loss)
    loss.normalize_embeddings = True
    torch.manual_seed(0)
    rows = (scale * torch.randn(4, 6).sign()).to(dtype)
    rows[1] = 0
    double = rows.double()
    units = double / double.norm(dim=1, keepdim=True).clamp_min(1e-30)
    found, exact = (each.clone().requires_grad_() for each in (rows, units))
    value = loss(found, LABELS)
    value.backward()
    loss.normalize_embeddings = False
    expected = loss.double()(exact, LABELS)
    expected.backward()
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)
    assert not found.grad[1].any()
    g = exact.grad[[0, 2, 3]]
    through = (g - units[[0, 2, 3]] * (g * units[[0, 2, 3]]).sum(1, keepdim=True)) / (
        double[[0, 2, 3]].norm(dim=1, keepdim=True)
    )
    bound = tolerance * g.abs().max().item() / scale + torch.finfo(dtype).tiny
    torch.testing.assert_close(found.grad[[0, 2, 3]].double(), through, rtol=0, atol=bound)


@pytest.mark.parametrize("loss", OF_PAIRS, ids=lambda loss: type(loss).__name__)
def test_columns_of_their_own_are_tensors_on_the_device(loss):
    with pytest.raises(TypeError, match=r"^ref_emb must be a torch.Tensor, not ndarray$"):
        loss(ROWS, LABELS, ref_emb=ROWS.numpy(), ref_labels=LABELS)
    with pytest.raises(TypeError, match=r"^ref_labels must be a torch.Tensor, not list$"):
        loss(ROWS, LABELS, ref_emb=ROWS, ref_labels=LABELS.tolist())
    with pytest.raises(ValueError, match=r"^ref_labels must be on the device .*, cpu, not meta$"):
        loss(ROWS, LABELS, ref_emb=ROWS, ref_labels=LABELS.to("meta"))


@each_loss
def test_labels_have_data(loss):
    with pytest.raises(ValueError, match=r"^labels must be on the device .*, cpu, not meta$"):
        loss(ROWS, LABELS.to("meta"))


@each_loss
def test_embeddings_are_a_floating_matrix(loss):
    with pytest.raises(TypeError, match=r"^embeddings must be a torch.Tensor, not ndarray$"):
        loss(ROWS.numpy(), LABELS)
    with pytest.raises(TypeError, match=r"^embeddings must be floating point, not torch.int64$"):
        loss(ROWS.long(), LABELS)
    with pytest.raises(ValueError, match=r"^embeddings must have shape \(N, D\)"):
        loss(ROWS[0], LABELS)


@pytest.mark.parametrize(
    ("loss", "does"),
    [
        (NormSoftmaxLoss(2, 6), "compares with classes"),
        (ProxyAnchorLoss(2, 6), "compares with classes"),
        (PDDMLoss(6), "mines its quadruplets in the batch"),
        (BIERLoss([2, 4]), "weighs every pair of the batch"),
        (ABIERLoss([2, 4]), "weighs every pair of the batch"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_a_loss_without_columns_of_their_own_says_why(loss, does):
    name = type(loss).__name__
    for given in (
        {"ref_emb": ROWS, "ref_labels": LABELS},
        {"ref_emb": ROWS},
        {"ref_labels": LABELS},
    ):
        with pytest.raises(ValueError, match=rf"^{name} {does} and takes no ref_emb$"):
            loss(ROWS, LABELS, **given)
    with pytest.raises(ValueError, match=rf"^{name} {does} and cannot honour indices_tuple$"):
        loss(ROWS, LABELS, (LABELS, LABELS, LABELS))


@pytest.mark.parametrize(
    ("dtype", "weights", "wanted"),
    [
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float64, torch.float64),
    ],
)
def test_regressors_are_in_the_dtype_that_learners_are_compared_in(dtype, weights, wanted):
    loss = ABIERLoss([2, 4]).to(dtype)
    others = {"features": torch.ones(4, 5), "weight": torch.ones(6, 5, dtype=weights)}
    with pytest.raises(TypeError, match=rf"^the regressors .* be {wanted}, .* not {dtype}$"):
        loss(ROWS, LABELS, **others)
    loss.to(wanted)(ROWS, LABELS, **others)


def test_the_adversarial_loss_asks_for_features_by_its_own_name():
    with pytest.raises(ValueError, match=r"^ABIERLoss needs features and weight"):
        ABIERLoss([2, 4])(ROWS, LABELS)


def test_normalised_rows_have_gradients_of_both_orders():
    rows = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.normalize, rows)
    assert torch.autograd.gradgradcheck(ops.normalize, rows)
    torch.testing.assert_close(ops.normalize(rows), torch.nn.functional.normalize(rows))
