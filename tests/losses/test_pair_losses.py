"""The contrastive, triplet and generalised lifted losses as modules."""

import pickle

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import GeneralizedLiftedStructureLoss

from dmlfast import ops
from dmlfast.losses import ContrastiveLoss, GeneralizedLiftedStructuredLoss, TripletLoss

X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) // 3
R = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
RY = torch.arange(7) // 2
CONTRASTIVE = {"pos_margin": 0.3, "neg_margin": 2.0, "squared": True, "reduction": "sum"}
TRIPLET = {"margin": 0.4, "mining": "semihard", "reduction": "mean"}
CASES = pytest.mark.parametrize(
    ("module", "op", "options"),
    [
        (ContrastiveLoss, ops.contrastive_loss, CONTRASTIVE),
        (TripletLoss, ops.triplet_loss, TRIPLET),
    ],
)


@CASES
class TestModules:
    def test_defaults_and_options_are_those_of_the_op(self, module, op, options):
        assert torch.equal(module()(X, Y), op(X, Y))
        assert torch.equal(module(**options)(X, Y), op(X, Y, **options))
        assert not torch.equal(module(**options)(X, Y), op(X, Y))

    def test_columns_of_their_own(self, module, op, options):
        index = torch.arange(12) % 7
        found = module()(X, Y, ref_emb=R, ref_labels=RY, self_index=index)
        assert torch.equal(found, op(X, Y, R, RY, self_index=index))

    def test_embeddings_can_be_normalised_first(self, module, op, options):
        unit = X / X.norm(dim=1, keepdim=True)
        found = module(normalize_embeddings=True)(X * 3, Y)
        torch.testing.assert_close(found, op(unit, Y))

    def test_a_miners_indices_cannot_be_honoured(self, module, op, options):
        with pytest.raises(ValueError, match=rf"{module.__name__}.*indices_tuple"):
            module()(X, Y, (Y, Y, Y))

    def test_it_survives_pickling_and_prints_what_it_was_made_of(self, module, op, options):
        loss = module(**options, impl="cpu")
        copy = pickle.loads(pickle.dumps(loss))
        assert torch.equal(copy(X, Y), loss(X, Y))
        printed = ", ".join(f"{name}={value!r}" for name, value in options.items())
        assert repr(copy) == f"{module.__name__}({printed}, normalize_embeddings=False, impl='cpu')"


@pytest.mark.parametrize("margin", [1.0, 0.2])
@pytest.mark.parametrize("columns", [False, True])
def test_generalised_lifted_by_its_formula(margin, columns):
    """A row without positives, and one without negatives, add nothing and count."""
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 4])
    r, r_labels = (R, RY) if columns else (X, labels)
    distance = torch.cdist(X.double(), r.double())
    terms = []
    for i, own in enumerate(labels):
        same = r_labels == own
        if not columns:
            same[i] = False
        other = r_labels != own
        if same.any():
            pull, push = distance[i][same].logsumexp(0), (margin - distance[i][other]).logsumexp(0)
            terms.append((pull + push).relu())
    loss = GeneralizedLiftedStructuredLoss(margin)
    given = (R, RY) if columns else (None, None)
    found = loss(X, labels, None, *given)
    assert len(terms) < 12
    torch.testing.assert_close(found.double(), sum(terms) / 12, rtol=1e-6, atol=0)


def test_generalised_lifted_equals_pytorch_metric_learning_without_normalisation():
    distance = LpDistance(normalize_embeddings=False)
    theirs = GeneralizedLiftedStructureLoss(neg_margin=0.5, pos_margin=0, distance=distance)
    x = X.double().requires_grad_()
    y = X.clone().requires_grad_()
    expected = theirs(x, Y)
    found = GeneralizedLiftedStructuredLoss(0.5)(y, Y)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    expected.backward()
    found.backward()
    torch.testing.assert_close(y.grad.double(), x.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("labels", [torch.zeros(12).long(), torch.arange(12)])
def test_generalised_lifted_without_negatives_or_positives_is_zero(labels):
    x = X.clone().requires_grad_()
    loss = GeneralizedLiftedStructuredLoss()(x, labels)
    loss.backward()
    assert loss == 0
    assert not x.grad.any()


def test_generalised_lifted_of_no_rows_is_zero():
    assert GeneralizedLiftedStructuredLoss()(X[:0], Y[:0]) == 0
