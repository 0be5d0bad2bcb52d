"""The reference, the definition of right, against finite differences and plain formulas."""

from dataclasses import replace

import pytest
import torch

from .helpers import (
    Problem,
    direct_distances,
    lifted,
    pair_reduce,
    plain_lifted,
    plain_pair_reduce,
    problem,
    results,
)


def small(columns: bool, bias: bool = False) -> Problem:
    """Float64, with duplicates and with rows that select nothing.

    The distance of duplicates has a kink: its central difference is 0, and so is its gradient.
    """
    p = problem(9, 8 if columns else None, 3, bias=bias, per_class=2, seed=1).to(torch.float64)
    p.rows[4] = p.rows[1]
    p.rows[6:8] = p.rows[2]
    if columns:
        p.columns[5] = p.columns[2]
        p.columns[3] = p.rows[4]
    return p


def assert_gradients_are_right(op, p: Problem, **options) -> None:
    present = [t.requires_grad_() for t in p.inputs if t is not None]

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        given = iter(tensors)
        rows, columns, bias = (None if t is None else next(given) for t in p.inputs)
        value = op(replace(p, rows=rows, columns=columns, bias=bias), impl="reference", **options)
        return value.masked_fill(value.isinf(), 0)

    assert torch.autograd.gradcheck(function, present)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("reduce", ["logsumexp", "sum"])
@pytest.mark.parametrize("select", ["negative", "positive", "other", "all"])
@pytest.mark.parametrize("score", ["dot", "distance"])
def test_gradients_of_the_primitive(score, select, reduce, columns):
    options = {"score": score, "select": select, "reduce": reduce, "scale": -1.3, "offset": 0.4}
    assert_gradients_are_right(pair_reduce, small(columns, bias=True), **options)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("margin", [1.0, -2.0])
def test_gradients_of_the_lifted_loss(columns, margin):
    assert_gradients_are_right(lifted, small(columns), margin=margin)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 50])
@pytest.mark.parametrize("m", [None, 60])
def test_values_and_gradients_equal_the_plain_formula(dtype, n, m):
    p = problem(n, m, 7, selves=True, per_class=4).to(dtype)
    tolerance = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 1e-4}
    for select in ("negative", "positive", "other"):
        options = {"select": select, "scale": -1.0}
        found = results(pair_reduce, p, impl="reference", **options)
        plain = results(plain_pair_reduce, p, distances=direct_distances, **options)
        assert found[0].dtype == dtype
        torch.testing.assert_close(found, plain, **tolerance)
    found = results(lifted, p, impl="reference")
    torch.testing.assert_close(
        found, results(plain_lifted, p, distances=direct_distances), **tolerance
    )


def test_products_have_second_derivatives():
    p = problem(8, d=3).to(torch.float64)

    def gradient(x: torch.Tensor) -> torch.Tensor:
        value = pair_reduce(replace(p, rows=x), score="dot", impl="reference").sum()
        return torch.autograd.grad(value, x, create_graph=True)[0]

    assert torch.autograd.gradcheck(gradient, p.rows.requires_grad_())
