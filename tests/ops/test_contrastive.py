"""The contrastive loss: the paper's formula, its neighbours, and the kernels' accuracy."""

import math
from itertools import product

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import ContrastiveLoss
from pytorch_metric_learning.reducers import MeanReducer

from dmlfast import ops

from .helpers import (
    NOT_CUDA,
    Problem,
    assert_kernels_accurate,
    careful_distances,
    contrastive,
    gram_distances,
    pair_reduce,
    plain_contrastive,
    plain_pair_reduce,
    problem,
    results,
)

SERVED = pytest.mark.parametrize(
    ("impl", "dtype", "tolerance"),
    [
        ("reference", torch.float64, 1e-12),
        ("cpu", torch.float32, 1e-6),
        ("triton", torch.float32, 1e-6),
    ],
)
KINDS = [*product(["nonzero", "mean", "sum"], [False, True])]


def by_the_paper(p: Problem, pos_margin: float, neg_margin: float, squared: bool, reduction: str):
    """Pair by pair, in Python floats."""
    rows, labels = p.rows.tolist(), p.labels.tolist()
    r = rows if p.columns is None else p.columns.tolist()
    r_labels = labels if p.columns is None else p.column_labels.tolist()
    selves = [-1] * len(rows) if p.selves is None else p.selves.tolist()
    hinges = {True: [], False: []}
    for i, j in product(range(len(rows)), range(len(r))):
        same = labels[i] == r_labels[j]
        if same and selves[i] == j:
            continue
        distance = math.dist(rows[i], r[j])
        hinges[same].append(max(0.0, distance - pos_margin if same else neg_margin - distance))
    loss = 0.0
    for found in hinges.values():
        count = {"nonzero": sum(h > 0 for h in found), "mean": len(found), "sum": 1}[reduction]
        loss += sum(h * h / 2 if squared else h for h in found) / max(count, 1)
    return loss


@SERVED
@pytest.mark.parametrize(("reduction", "squared"), KINDS)
@pytest.mark.parametrize("m", [None, 17])
def test_the_papers_formula(impl, dtype, tolerance, reduction, squared, m):
    p = problem(23, m, 3, selves=m is not None, per_class=4, seed=1).to(dtype)
    options = {"pos_margin": 0.7, "neg_margin": 2.5, "squared": squared, "reduction": reduction}
    found = contrastive(p, impl=impl, **options).item()
    assert found == pytest.approx(by_the_paper(p, *options.values()), rel=tolerance)


@SERVED
@pytest.mark.parametrize("reduction", ["nonzero", "mean"])
@pytest.mark.parametrize("margins", [(0.0, 1.0), (1.5, 4.0)])
def test_equals_pytorch_metric_learning_without_normalisation(
    impl, dtype, tolerance, reduction, margins
):
    reducer = MeanReducer() if reduction == "mean" else None
    distance = LpDistance(normalize_embeddings=False)
    theirs = ContrastiveLoss(*margins, distance=distance, reducer=reducer)
    p = problem(40, d=6, per_class=4, seed=5)
    truth = results(lambda p, **_: theirs(p.rows, p.labels), p.to(torch.float64), torch.ones_like)
    options = {"pos_margin": margins[0], "neg_margin": margins[1], "reduction": reduction}
    found = results(contrastive, p.to(dtype), torch.ones_like, impl=impl, **options)
    for got, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("n", "m", "d"),
    [(2, None, 1), (33, None, 17), (150, None, 24), (40, 70, 200), (61, 97, 10), (641, None, 5)],
)
@pytest.mark.parametrize(("reduction", "squared"), [("nonzero", False), ("mean", True)])
def test_accuracy(n, m, d, reduction, squared):
    p = problem(n, m, d, selves=m is not None, per_class=4, scale=d**-0.5, seed=n)
    options = {"pos_margin": 0.5, "neg_margin": 1.3, "reduction": reduction, "squared": squared}
    assert_kernels_accurate(contrastive, plain_contrastive, p, kernels=NOT_CUDA, **options)


@pytest.mark.parametrize("reduce", ["hinge", "squared_hinge", "softplus"])
@pytest.mark.parametrize("score", ["dot", "distance"])
@pytest.mark.parametrize("select", ["negative", "positive", "other", "all"])
class TestHingesOfThePrimitive:
    def test_over_a_batch(self, reduce, score, select):
        p = problem(90, d=5, per_class=5, bias=select == "other", seed=3)
        self.check(p, reduce=reduce, score=score, select=select)

    def test_over_columns_of_their_own(self, reduce, score, select):
        p = problem(40, 129, 7, selves=True, bias=True, per_class=20, seed=3)
        self.check(p, reduce=reduce, score=score, select=select)

    def check(self, p, **options):
        # rows that meet themselves coincide with a column
        distances = careful_distances if options["select"] == "all" else gram_distances
        assert_kernels_accurate(
            pair_reduce,
            plain_pair_reduce,
            p,
            distances=distances,
            kernels=NOT_CUDA,
            scale=-1.0,
            offset=2.0,
            **options,
        )


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("offset", [-70.0, -18.0, 0.0, 18.0, 70.0])
def test_smooth_hinges_of_any_size(offset, scale):
    """Also where exp(t) is too small for 1 + exp(t), or log(1 + exp(t)) is t."""
    p = problem(40, 129, 7, selves=True, per_class=4, seed=5)
    options = {"reduce": "softplus", "score": "dot", "select": "all", "offset": offset}
    options["scale"] = scale
    assert_kernels_accurate(pair_reduce, plain_pair_reduce, p, kernels=NOT_CUDA, **options)
    expected = torch.full((40,), 129 * math.log1p(math.exp(offset)), dtype=torch.float64)
    for impl in NOT_CUDA:
        found = ops.pair_reduce(p.rows * 0, ref_emb=p.columns, impl=impl, **options)
        rounded = (4 + abs(offset)) * torch.finfo(torch.float32).eps  # of what is exponentiated
        torch.testing.assert_close(found.double(), expected, rtol=rounded, atol=0)


@pytest.mark.parametrize("impl", NOT_CUDA)
def test_a_batch_with_all_hinges_off_has_no_loss_and_no_gradient(impl):
    p = problem(150, d=6, per_class=4)
    found = results(contrastive, p, pos_margin=100.0, neg_margin=-1.0, impl=impl)
    assert not any(t.any() for t in found)
