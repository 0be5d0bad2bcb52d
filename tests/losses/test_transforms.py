"""Losses within `torch.func`, and gradients of several upstream gradients at once."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.func import functional_call, grad, jacrev, vmap
from torch.utils.checkpoint import checkpoint

from dmlfast import losses, ops

LABELS = torch.arange(12) // 2
LOSSES = {
    "lifted": losses.LiftedStructuredLoss,
    "contrastive": losses.ContrastiveLoss,
    "triplet": losses.TripletLoss,
    "norm-softmax": lambda: losses.NormSoftmaxLoss(6, 8),
    "supcon": losses.SupConLoss,
    "ntxent": losses.NTXentLoss,
    "multi-similarity": losses.MultiSimilarityLoss,
    "mined": lambda: losses.MultiSimilarityLoss(epsilon=0.1),
    "proxy-anchor": lambda: losses.ProxyAnchorLoss(6, 8),
    "pddm": lambda: losses.PDDMLoss(8),
    "bier": lambda: losses.BIERLoss([3, 5]),
    "softplus": lambda: lambda rows, labels: ops.pair_reduce(rows, labels, reduce="softplus"),
    "pair_reduce": lambda: lambda rows, labels: ops.pair_reduce(rows, labels),
    "hinges": lambda: lambda rows, labels: ops.pair_reduce(rows, labels, reduce="hinge"),
    "scores": lambda: Scores(),
}
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Scores(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unit = losses.PDDMUnit(8)

    def forward(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return ops.pddm_scores(rows, self.unit)


def made(name: str, dtype: torch.dtype = torch.float32) -> Loss:
    torch.manual_seed(0)
    loss = LOSSES[name]()
    return loss.to(dtype) if isinstance(loss, torch.nn.Module) else loss


def batches(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, 12, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def gradient(loss: Loss, rows: torch.Tensor, upstream: torch.Tensor | None = None) -> torch.Tensor:
    rows = rows.clone().requires_grad_()
    value = loss(rows, LABELS)
    upstream = torch.ones_like(value) if upstream is None else upstream
    value.backward(upstream)
    return rows.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_may_be_batched(name: str, dtype: torch.dtype) -> None:
    loss, (rows,) = made(name, dtype), batches(1, dtype)
    held = rows.clone().requires_grad_()
    value = loss(held, LABELS)
    upstream = torch.randn(3, *value.shape).to(value.dtype)
    (found,) = torch.autograd.grad(value, held, upstream, is_grads_batched=True)
    expected = torch.stack([gradient(loss, rows, each) for each in upstream])
    assert found.dtype == dtype
    assert expected.any()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_func_has_gradients(name: str, dtype: torch.dtype) -> None:
    loss, rows = made(name, dtype), batches(2, dtype)
    total = grad(lambda each: loss(each, LABELS).sum())
    expected = torch.stack([gradient(loss, each) for each in rows])
    assert expected.any()
    torch.testing.assert_close(total(rows[0]), expected[0])
    torch.testing.assert_close(vmap(total)(rows), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_func_maps_over_batches(name: str) -> None:
    loss, rows = made(name), batches(3)
    labels = torch.stack([LABELS, LABELS.flip(0), LABELS.roll(1)])
    expected = torch.stack([loss(*each) for each in zip(rows, labels, strict=True)])
    assert torch.equal(vmap(loss)(rows, labels), expected)
    assert torch.equal(vmap(loss, in_dims=(2, 0))(rows.movedim(0, 2), labels), expected)


@pytest.mark.parametrize("name", ["pair_reduce", "scores"])
def test_func_has_jacobians(name: str) -> None:
    loss, (rows,) = made(name), batches(1)
    expected = torch.autograd.functional.jacobian(lambda each: loss(each, LABELS), rows)
    assert torch.equal(jacrev(loss)(rows, LABELS), expected)


@pytest.mark.parametrize("name", ["norm-softmax", "proxy-anchor", "pddm"])
def test_func_has_gradients_of_weights_alone(name: str) -> None:
    loss, (rows,) = made(name), batches(1)
    weights = {key: weight.detach() for key, weight in loss.named_parameters()}
    found = grad(lambda held: functional_call(loss, held, (rows, LABELS)))(weights)
    loss(rows, LABELS).backward()
    for key, weight in loss.named_parameters():
        assert weight.grad.any() or key.endswith("bias")
        if name == "proxy-anchor":  # whose proxies are normalised by autograd here
            torch.testing.assert_close(found[key], weight.grad)
        else:
            assert torch.equal(found[key], weight.grad)


@pytest.mark.parametrize("name", LOSSES)
def test_func_is_refused_second_derivatives(name: str) -> None:
    loss, (rows,) = made(name), batches(1)
    total = grad(lambda each: loss(each, LABELS).sum())
    with pytest.raises(RuntimeError, match="no second derivatives"):
        grad(lambda each: total(each).square().sum())(rows)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_may_be_computed_again_for_its_gradient(name: str, reentrant: bool) -> None:
    loss, (rows,) = made(name), batches(1)
    again = partial(checkpoint, loss, use_reentrant=reentrant)
    assert torch.equal(gradient(again, rows), gradient(loss, rows))


def test_func_has_gradients_of_what_makes_learners_differ() -> None:
    loss = losses.ABIERLoss([3, 5], diversity="adversarial", diversity_weight=0.1)
    (rows,), features = batches(1), torch.randn(12, 4, generator=torch.Generator().manual_seed(2))
    weight = torch.randn(8, 4, generator=torch.Generator().manual_seed(3))
    found = grad(lambda held: loss(rows, LABELS, features=features, weight=held))(weight)
    weight.requires_grad_()
    loss(rows, LABELS, features=features, weight=weight).backward()
    assert found.any()
    assert torch.equal(found, weight.grad)
