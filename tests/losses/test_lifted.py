"""The lifted structured loss as a module: how it is called, kept and printed."""

import inspect
import pickle

import pytest
import torch

from dmlfast import ops
from dmlfast.losses import LiftedStructuredLoss, PairLoss

X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) // 3
R = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
RY = torch.arange(7) // 2


def test_it_is_called_the_way_the_field_calls_losses():
    names = list(inspect.signature(LiftedStructuredLoss().forward).parameters)
    assert names[:5] == ["embeddings", "labels", "indices_tuple", "ref_emb", "ref_labels"]
    loss = LiftedStructuredLoss()
    assert torch.equal(loss(X, Y), ops.lifted_structured_loss(X, Y))
    expected = ops.lifted_structured_loss(X, Y, R, RY)
    assert torch.equal(loss(X, Y, None, R, RY), expected)
    assert torch.equal(loss(X, Y, ref_emb=R, ref_labels=RY), expected)


def test_the_batch_as_ref_emb_leaves_out_each_row_itself():
    found = LiftedStructuredLoss()(X, Y, ref_emb=X, ref_labels=Y, self_index=torch.arange(12))
    torch.testing.assert_close(found, LiftedStructuredLoss()(X, Y))


@pytest.mark.parametrize("margin", [0.0, 1.0, 2.5])
def test_the_margin_is_passed_on(margin):
    expected = ops.lifted_structured_loss(X, Y, margin=margin)
    assert torch.equal(LiftedStructuredLoss(margin)(X, Y), expected)


def test_the_defaults_are_the_papers():
    loss = LiftedStructuredLoss()
    assert loss.margin == 1.0
    assert not loss.normalize_embeddings


def test_embeddings_can_be_normalised_first_with_their_gradient():
    x = (X * 3).requires_grad_()
    r = (R * 5).requires_grad_()
    loss = LiftedStructuredLoss(normalize_embeddings=True)(x, Y, ref_emb=r, ref_labels=RY)
    unit = [t / t.norm(dim=1, keepdim=True) for t in (x, r)]
    expected = ops.lifted_structured_loss(unit[0], Y, unit[1], RY)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, (x, r)), torch.autograd.grad(expected, (x, r))
    )


def test_a_miners_indices_cannot_be_honoured():
    with pytest.raises(ValueError, match=r"LiftedStructuredLoss.*indices_tuple.*ref_emb"):
        LiftedStructuredLoss()(X, Y, (Y, Y, Y))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_dtype(dtype):
    assert torch.equal(LiftedStructuredLoss()(X, Y.to(dtype)), LiftedStructuredLoss()(X, Y))


def test_labels_follow_the_embeddings_to_their_device():
    x, r = X.to("meta"), R.to("meta")
    assert LiftedStructuredLoss()(x, Y, ref_emb=r, ref_labels=RY).device.type == "meta"


def test_the_backend_asked_for_is_used():
    x = X.double()
    with pytest.raises(RuntimeError, match="impl='cpu' cannot serve"):
        LiftedStructuredLoss(impl="cpu")(x, Y)
    assert LiftedStructuredLoss(impl="reference")(x, Y).dtype == torch.float64


def test_it_has_no_state_and_survives_pickling():
    loss = LiftedStructuredLoss(0.7, normalize_embeddings=True, impl="reference")
    assert isinstance(loss, PairLoss)
    assert not loss.state_dict()
    assert not list(loss.parameters())
    copy = pickle.loads(pickle.dumps(loss))
    assert repr(copy) == repr(loss)
    assert torch.equal(copy(X, Y), loss(X, Y))


def test_it_prints_what_it_was_made_of():
    loss = LiftedStructuredLoss(0.7, impl="cpu")
    assert repr(loss) == "LiftedStructuredLoss(margin=0.7, normalize_embeddings=False, impl='cpu')"
