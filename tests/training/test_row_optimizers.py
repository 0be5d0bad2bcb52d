"""Optimisers that change the rows of a sparse gradient alone."""

import pytest
import torch

from dmlfast.training.row_optimizers import RowAdamW, RowSGD

MAKE = {
    "sgd": (RowSGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "plain sgd": (RowSGD, torch.optim.SGD, {}),
    "adamw": (RowAdamW, torch.optim.AdamW, {"weight_decay": 0.1}),
}
EVERY = pytest.mark.parametrize(("kind", "plain", "options"), MAKE.values(), ids=MAKE)


def sparse(rows, values, size):
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, size)


@EVERY
def test_all_rows_are_those_of_torch(kind, plain, options):
    torch.manual_seed(0)
    start = torch.randn(5, 3)
    weights = [torch.nn.Parameter(start.clone()) for _ in range(3)]
    ours, dense, theirs = (
        kind(weights[:1], 0.1, **options),
        kind(weights[1:2], 0.1, **options),
        plain(weights[2:], 0.1, **options),
    )
    for _ in range(7):
        gradient = torch.randn(5, 3)
        weights[0].grad = sparse([4, 2, 0, 1, 3], gradient[[4, 2, 0, 1, 3]], (5, 3))
        weights[1].grad, weights[2].grad = gradient.clone(), gradient.clone()
        for optimizer in (ours, dense, theirs):
            optimizer.step()
    assert torch.equal(weights[1], weights[2])
    torch.testing.assert_close(weights[0], weights[2])


@EVERY
def test_a_row_moves_as_if_it_were_alone(kind, plain, options):
    """What other rows do, and how many steps it is left out of, changes nothing."""
    torch.manual_seed(0)
    start = torch.randn(6, 3)
    weight, alone = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start[2:3].clone())
    ours, theirs = kind([weight], 0.1, **options), plain([alone], 0.1, **options)
    for rows in ([2, 4], [0, 4], [1], [5, 2], [2], [0]):
        values = torch.randn(len(rows), 3)
        before = weight.detach().clone()
        weight.grad = sparse(rows, values, (6, 3))
        ours.step()
        changed = (weight != before).any(1).nonzero().flatten().tolist()
        assert changed == sorted(rows)
        if 2 in rows:
            alone.grad = values[rows.index(2)][None].clone()
            theirs.step()
    torch.testing.assert_close(weight[2:3], alone)
    assert torch.equal(weight[3], start[3])


@EVERY
def test_state_is_saved_and_loaded(kind, plain, options):
    torch.manual_seed(0)
    steps = [(rows, torch.randn(len(rows), 3)) for rows in ([0, 2], [1, 2], [2], [0, 1])]
    weight = torch.nn.Parameter(torch.randn(4, 3))
    copy = torch.nn.Parameter(weight.detach().clone())
    whole, first = kind([weight], 0.1, **options), kind([copy], 0.1, **options)
    for rows, values in steps:
        weight.grad = sparse(rows, values, (4, 3))
        whole.step()
    for k, (rows, values) in enumerate(steps):
        if k == 2:
            state = first.state_dict()
            first = kind([copy], 0.1, **options)
            first.load_state_dict(state)
        copy.grad = sparse(rows, values, (4, 3))
        first.step()
    assert torch.equal(weight, copy)


@EVERY
def test_dense_and_sparse_gradients_in_turn(kind, plain, options):
    """What a loss in eval mode gives is dense. All rows are seen each time, as torch has them."""
    torch.manual_seed(0)
    start = torch.randn(4, 3)
    for dense_steps in ([0, 3], [1, 2]):
        weight, other = (torch.nn.Parameter(start.clone()) for _ in range(2))
        ours, theirs = kind([weight], 0.1, **options), plain([other], 0.1, **options)
        for step in range(5):
            gradient = torch.randn(4, 3)
            is_dense = step in dense_steps
            weight.grad = gradient.clone() if is_dense else sparse([0, 1, 2, 3], gradient, (4, 3))
            other.grad = gradient.clone()
            ours.step()
            theirs.step()
        torch.testing.assert_close(weight, other)


@EVERY
def test_a_closure_computes_the_gradients(kind, plain, options):
    torch.manual_seed(0)
    start, places = torch.randn(5, 3), torch.tensor([0, 3, 3])
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    ours, theirs = (kind([weight], 0.1, **options) for weight in weights)

    def loss_of(weight):
        return torch.nn.functional.embedding(places, weight, sparse=True).square().sum()

    def closure():
        ours.zero_grad()
        loss = loss_of(weights[0])
        loss.backward()
        return loss

    for _ in range(2):
        theirs.zero_grad()
        expected = loss_of(weights[1])
        expected.backward()
        with torch.no_grad():
            assert torch.equal(ours.step(closure), expected)
        theirs.step()
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], start)


@EVERY
def test_hooks_are_called_once_a_step(kind, plain, options):
    """Also after torch has put its own hooks into the class that ours is made of."""
    plain([torch.nn.Parameter(torch.zeros(2, 2))], 0.1)
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimizer, calls = kind([weight], 0.1, **options), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    for gradient in (torch.ones(3, 2), sparse([1], torch.ones(1, 2), (3, 2))):
        weight.grad = gradient
        optimizer.step()
    assert calls == ["before", "after"] * 2


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        (RowSGD, {"nesterov": True, "momentum": 0.9}),
        (RowSGD, {"dampening": 0.5}),
        (RowSGD, {"maximize": True}),
        (RowAdamW, {"maximize": True}),
        (RowAdamW, {"amsgrad": True}),
    ],
)
def test_what_rows_do_not_know_is_refused(kind, option):
    name = next(iter(option))
    with pytest.raises(
        ValueError, match=f"^{kind.__name__} does not support {name}: leave it out$"
    ):
        kind([torch.nn.Parameter(torch.zeros(3, 2))], 0.1, **option)
    with pytest.raises(ValueError, match=name):
        kind([{"params": [torch.nn.Parameter(torch.zeros(3, 2))], **option}], 0.1)


@pytest.mark.parametrize("kind", [RowSGD, RowAdamW])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_move_as_others_do(kind, dtype):
    """Also after the state was saved and loaded, which torch rounds to the weights' dtype."""
    torch.manual_seed(0)
    start = torch.randn(6, 3).to(dtype)
    weight, other = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())
    ours, theirs = kind([weight], 0.1), kind([other], 0.1)
    for step in range(8):
        gradient = torch.randn(2, 3).to(dtype)
        weight.grad = sparse([1, 4], gradient, (6, 3))
        other.grad = sparse([1, 4], gradient.float(), (6, 3))
        if step == 4:
            state = ours.state_dict()
            ours = kind([weight], 0.1)
            ours.load_state_dict(state)
        ours.step()
        theirs.step()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(weight.float(), other, rtol=8 * eps, atol=8 * eps)
    assert torch.equal(weight[0], start[0])
    assert (weight[1] - start[1]).abs().min() > 0.1
