"""The pair primitive on the CPU kernels: values and gradients against the reference in float64."""

from dataclasses import replace

import pytest
import torch

from dmlfast import ops

from .covering import covering
from .helpers import (
    IMPLS,
    KERNELS,
    LONG_1024,
    LONG_4096,
    NOT_CUDA,
    assert_kernels_accurate,
    careful_distances,
    generator,
    gram_distances,
    largest_term,
    pair_reduce,
    plain_pair_reduce,
    problem,
    results,
    upstream_for,
)

# (n, m, d, scale, bias); m is left out where the rows face themselves
SHAPES = [
    (0, 3, 2, 1.0, False),
    (3, 0, 5, 1.0, True),
    (1, 1, 1, -1.0, True),
    (2, 7, 3, 2.0, False),
    (7, 2, 64, -0.5, True),
    (31, 33, 16, 0.0, True),
    (33, 32, 17, -1.0, False),
    (127, 128, 2, 1.0, True),
    (129, 31, 100, -0.1, False),
    (255, 257, 1, -1.0, False),
    (256, 255, 5, 1.0, False),
    (257, 300, 3, -2.0, True),
    (300, 127, 257, 0.3, False),
    (641, 129, 3, -3.0, True),
    (300, 641, 16, 0.7, False),
]
CASES = covering(
    SHAPES,
    ["negative", "positive", "other", "all"],
    ["themselves", "others", "gathered"],
    ["dot", "distance"],
    ["logsumexp", "sum"],
)

MANY_PAIRS = 70_000


@pytest.mark.parametrize(("shape", "select", "columns", "score", "reduce"), CASES)
def test_values_and_gradients(shape, select, columns, score, reduce):
    at = CASES.index((shape, select, columns, score, reduce))
    n, m, d, scale, bias = shape
    width = None if columns == "themselves" else m
    # rows that meet themselves coincide with a column
    coincide = select == "all" and columns != "others"
    p = problem(n, width, d, selves=columns == "gathered", bias=bias, seed=at)
    # emulated, many pairs take most of the time: some cases have them
    kernels = KERNELS if p.pairs < MANY_PAIRS or at % 3 == 0 else NOT_CUDA
    assert_kernels_accurate(
        pair_reduce,
        plain_pair_reduce,
        p,
        distances=careful_distances if coincide else gram_distances,
        kernels=kernels,
        score=score,
        select=select,
        reduce=reduce,
        scale=scale,
        offset=0.3,
    )


@pytest.mark.parametrize("score", ["dot", "distance"])
@pytest.mark.parametrize("d", [1, 2, 3, 5, 16, 17, 64, 100, 257, LONG_1024, LONG_4096])
def test_dimensions(score, d):
    for p in (problem(70, d=d, seed=d), problem(33, 50, d, bias=True, seed=d)):
        scale = -1 / d**0.5
        assert_kernels_accurate(pair_reduce, plain_pair_reduce, p, score=score, scale=scale)


def test_the_widest_rows_without_emulation():
    p = problem(33, 50, 4096, bias=True, seed=4096)
    options = {"score": "distance", "scale": -1 / 64}
    assert_kernels_accurate(pair_reduce, plain_pair_reduce, p, kernels=NOT_CUDA, **options)


@pytest.mark.parametrize(("n", "m"), [(40, 17000), (17000, 40)])
def test_blocks_of_many_tiles(n, m):
    p = problem(n, m, 5, selves=True, bias=True, per_class=50)
    assert_kernels_accurate(pair_reduce, plain_pair_reduce, p, select="negative", scale=-1.0)


# terms that span more than 60 need a running maximum; statistics that do, two exponentials a pair
@pytest.mark.parametrize("columns", [None, 300])
@pytest.mark.parametrize("score", ["dot", "distance"])
@pytest.mark.parametrize(
    ("scale", "spread_rows", "terms_span", "statistics_span"),
    [(-1.0, False, False, False), (-15.0, False, True, False), (5.0, True, True, True)],
)
def test_terms_of_every_span(score, columns, scale, spread_rows, terms_span, statistics_span):
    p = problem(257, columns, 12, bias=columns is not None, per_class=5, seed=4)
    sizes = torch.logspace(-1.5, 1.5, 257) if spread_rows else torch.full((257,), 0.5)
    r = None if columns is None else p.columns * 0.5
    p = replace(p, rows=p.rows * sizes[:, None], columns=r)
    options = {"score": score, "scale": scale, "offset": 2.0}
    for select in ("negative", "other"):
        found = pair_reduce(p, select=select, impl="cpu", **options)
        assert (found.max() - found.min() > 60) == statistics_span
        assert (largest_term(p, **options) > 60) == terms_span
        assert_kernels_accurate(pair_reduce, plain_pair_reduce, p, select=select, **options)


@pytest.mark.parametrize("columns", [None, 150])
def test_statistics_that_span_more_than_an_exponential(columns):
    """Few enough rows for an interpreter."""
    p = problem(150, columns, 12, per_class=5)
    p = replace(p, rows=p.rows * torch.logspace(-1.5, 1.5, 150)[:, None])
    assert_kernels_accurate(pair_reduce, plain_pair_reduce, p, scale=5.0)


@pytest.mark.parametrize("size", [-300.0, 300.0])
def test_a_bias_of_all_columns_but_those_of_one_class(size):
    """Rows of that class do not select the columns without it."""
    p = problem(70, 200, bias=True, per_class=8)
    p = replace(p, bias=p.bias + size * (p.column_labels != p.labels[0]))
    assert_kernels_accurate(pair_reduce, plain_pair_reduce, p, scale=-1.0)


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1)])
def test_a_gradient_does_not_depend_on_which_others_are_wanted(wanted):
    p = problem(65, 130, 9, selves=True, bias=True)
    _, *full = results(pair_reduce, p, impl="cpu")
    inputs = [t.clone().requires_grad_(bool(w)) for t, w in zip(p.inputs, wanted, strict=True)]
    value = pair_reduce(replace(p, rows=inputs[0], columns=inputs[1], bias=inputs[2]), impl="cpu")
    value.backward(upstream_for(value))
    for tensor, gradient, want in zip(inputs, full, wanted, strict=True):
        assert torch.equal(tensor.grad, gradient) if want else tensor.grad is None


@pytest.mark.parametrize("impl", IMPLS)
def test_an_index_outside_the_columns_is_no_self(impl):
    p = problem(20, 30, selves=True)
    outside = torch.where(
        p.self_index < 0, torch.tensor([30, -7, 2**40, -(2**40)]).repeat(5), p.self_index
    )
    for select in ("positive", "other"):
        expected = pair_reduce(p, select=select, impl=impl)
        found = pair_reduce(replace(p, self_index=outside), select=select, impl=impl)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_labels_are_not_needed_where_none_are_compared(impl):
    p = problem(30, 20, selves=True)
    for select in ("other", "all"):
        with_labels = pair_reduce(p, select=select, impl=impl)
        assert torch.equal(
            pair_reduce(replace(p, labels=None, column_labels=None), select=select, impl=impl),
            with_labels,
        )


@pytest.mark.parametrize("impl", IMPLS)
def test_rows_without_a_selected_pair_take_no_part_in_gradients(impl):
    p = replace(problem(6, d=4), labels=torch.tensor([0, 0, 1, 1, 1, 2]))
    rows = p.rows.clone().requires_grad_()
    value = pair_reduce(replace(p, rows=rows), select="positive", scale=-1.0, impl=impl)
    assert value[5] == -torch.inf
    upstream = torch.tensor([1.0, 1, 1, 1, 1, torch.nan])
    (gradient,) = torch.autograd.grad(value, rows, upstream)
    assert gradient[:5].isfinite().all()
    assert torch.equal(gradient[5], torch.zeros(4))


@pytest.mark.long
def test_a_million_rows():
    x = torch.randn(1_000_000, 4, generator=generator(0), requires_grad=True)
    order = torch.randperm(1_000_000, generator=generator(1))
    labels = torch.arange(1_000_000) // 4
    value = ops.pair_reduce(x[order], labels[order], select="positive", scale=-1.0, impl="cpu")
    (gradient,) = torch.autograd.grad(value.sum(), x)

    classes = x.detach().double().view(-1, 4, 4).requires_grad_()
    apart = ~torch.eye(4, dtype=torch.bool).expand(250_000, 4, 4)
    distances = torch.where(apart, torch.cdist(classes, classes), torch.inf)
    exact = torch.logsumexp(-distances, 2)
    (truth,) = torch.autograd.grad(exact.sum(), classes)
    torch.testing.assert_close(value, exact.view(-1)[order].float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, truth.view(-1, 4).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduce", ["logsumexp", "sum"])
def test_scores_of_wide_rows_with_a_near_pair(reduce):
    """What is done about distances of near pairs is not done to scores."""
    p = problem(40, d=129, per_class=4)
    p.rows[1] = p.rows[0] + 1e-4
    options = {"score": "dot", "scale": 0.1, "reduce": reduce, "select": "other"}
    assert_kernels_accurate(pair_reduce, plain_pair_reduce, p, **options)
