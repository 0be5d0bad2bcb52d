"""The raw block functions: columns that arrive in parts give what they give together."""

from itertools import pairwise

import pytest
import torch

from dmlfast.ops.pairs.op import grad_block, reduce_block
from dmlfast.ops.pairs.term import PairTerm

from .covering import shortly
from .helpers import KERNELS, Problem, pair_reduce, problem, results, upstream_for

# rows and columns, of which some rows select nothing in the second part; fewer for an interpreter
MANY, FEW = (130, 300, (0, 70, 71, 300)), (40, 75, (0, 33, 34, 75))
SIZES = {"cpu": MANY, "triton": FEW, "cuda": MANY}


def block(p: Problem, part: slice) -> tuple[torch.Tensor | None, ...]:
    """Rows, a part of the columns, their labels and the self index counted in the part."""
    inside = (p.self_index >= part.start) & (p.self_index < part.stop)
    itself = torch.where(inside, p.self_index - part.start, -1)
    return p.rows, p.columns[part], p.labels, p.column_labels[part], itself


def turned(p: Problem) -> Problem:
    """The columns as rows."""
    index = torch.full((len(p.columns),), -1)
    rows = (p.self_index >= 0).nonzero().flatten()
    index[p.self_index[rows]] = rows
    return Problem(p.columns, p.column_labels, p.rows, p.labels, index)


@pytest.mark.parametrize(
    ("select", "impl", "score", "reduce", "with_columns"),
    shortly(
        ["negative", "positive", "other", "all"],
        KERNELS,
        ["dot", "distance"],
        ["logsumexp", "sum"],
        [False, True],
    ),
)
def test_parts_give_the_whole(score, reduce, select, with_columns, impl):
    n, m, bounds = SIZES[impl]
    parts = [slice(*ends) for ends in pairwise(bounds)]
    p = problem(n, m, 9, selves=True, per_class=n // 3)
    term = PairTerm(score, select, reduce, -0.7, 0.2)
    options = {**term._asdict(), "impl": impl}
    row_grad, column_grad = upstream_for(torch.empty(n)), upstream_for(torch.empty(m))
    stat, d_rows, d_columns = results(pair_reduce, p, lambda _: row_grad, **options)
    column_stat = None
    if with_columns:
        column_stat, *turned_grads = results(
            pair_reduce, turned(p), lambda _: column_grad, **options
        )
        d_rows, d_columns = d_rows + turned_grads[1], d_columns + turned_grads[0]

    running = None
    for part in parts:
        running = reduce_block(*block(p, part), running, term, impl=impl)
    found = [running, torch.zeros_like(d_rows), torch.zeros_like(d_columns)]
    for part in parts:
        of_columns = (column_stat[part], column_grad[part]) if with_columns else (None, None)
        grads = (found[1], found[2][part]) if part.start else None
        stats = (running, row_grad, *of_columns)
        found[1], found[2][part] = grad_block(*block(p, part), *stats, grads, term, impl=impl)
    for got, expected in zip(found, [stat, d_rows, d_columns], strict=True):
        size = expected[expected.isfinite()].abs().max()
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(size))
