"""Gradients of several upstream gradients at once, as Jacobians are computed."""

import pytest
import torch

from dmlfast import losses

LOSSES = {
    "lifted": losses.LiftedStructuredLoss,
    "contrastive": losses.ContrastiveLoss,
    "triplet": losses.TripletLoss,
    "norm-softmax": lambda: losses.NormSoftmaxLoss(6, 8),
    "bier": lambda: losses.BIERLoss([3, 5]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_may_be_batched(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    loss_fn = LOSSES[name]().to(dtype)
    rows = torch.randn(12, 8, dtype=dtype, requires_grad=True)
    labels = torch.arange(12) // 2
    upstream = torch.tensor([1.0, -2.0, 0.5])

    def gradient(grad: torch.Tensor, batched: bool = False) -> torch.Tensor:
        loss = loss_fn(rows, labels)
        return torch.autograd.grad(loss, rows, grad.to(loss.dtype), is_grads_batched=batched)[0]

    found = gradient(upstream, batched=True)
    expected = torch.stack([gradient(each) for each in upstream])
    assert found.dtype == dtype
    assert expected.any()
    assert torch.equal(found, expected)
