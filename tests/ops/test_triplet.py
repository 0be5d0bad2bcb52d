"""The triplet loss: its definition, its neighbours, and the kernels' accuracy."""

from dataclasses import replace

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer

from dmlfast import ops
from dmlfast.ops.triplet import reference

from .helpers import (
    NOT_CUDA,
    Problem,
    assert_kernels_accurate,
    decided,
    direct_distances,
    generator,
    plain_triplet,
    problem,
    results,
    triplet,
    with_duplicates,
)

MININGS = ("all", "semihard", "hardest")
EVERY_MINING = pytest.mark.parametrize("mining", MININGS)
EVERY_REDUCTION = pytest.mark.parametrize("reduction", ["nonzero", "mean", "sum"])
SERVED = pytest.mark.parametrize(
    ("impl", "dtype", "tolerance"),
    [
        ("reference", torch.float64, 1e-12),
        ("cpu", torch.float32, 1e-6),
        ("triton", torch.float32, 1e-6),
    ],
)


def assert_close(found, truth, tolerance):
    for got, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


@SERVED
@EVERY_MINING
@EVERY_REDUCTION
@pytest.mark.parametrize("m", [None, 19])
def test_the_triplets_are_those_of_a_list(impl, dtype, tolerance, mining, reduction, m):
    """One by one, in Python: anchors with no positive, no negative and several of each."""
    p = decided(25, m, 3, selves=m is not None, per_class=4)
    options = {"mining": mining, "reduction": reduction}
    truth = results(plain_triplet, p.to(torch.float64), distances=direct_distances, **options)
    found = results(triplet, p.to(dtype), impl=impl, **options)
    assert_close(found, truth, tolerance * truth[0].abs().clamp_min(1).item())


@SERVED
@pytest.mark.parametrize("reduction", ["nonzero", "mean"])
@pytest.mark.parametrize("mining", ["all", "hardest"])
def test_equals_pytorch_metric_learning_without_normalisation(
    impl, dtype, tolerance, mining, reduction
):
    distance = LpDistance(normalize_embeddings=False)
    reducer = MeanReducer() if reduction == "mean" else None
    theirs = TripletMarginLoss(0.2, distance=distance, reducer=reducer)
    miner = BatchHardMiner(distance=distance) if mining == "hardest" else lambda *_: None
    p = decided(40, d=6, per_class=4)
    truth = results(
        lambda p, **_: theirs(p.rows, p.labels, miner(p.rows, p.labels)),
        p.to(torch.float64),
        torch.ones_like,
    )
    options = {"mining": mining, "reduction": reduction, "impl": impl}
    assert_close(results(triplet, p.to(dtype), torch.ones_like, **options), truth, tolerance)


@pytest.mark.parametrize("impl", ["reference", *NOT_CUDA])
def test_semihard_negatives_of_six_points(impl):
    """Anchor 0 with positives at 1 and 4, and negatives at 2, 3 and 3.5, margin 1.5.

    Of the positive at 1 the nearest negative beyond it is that at 2; none is beyond the positive
    at 4, so that the furthest, at 3.5, serves.
    """
    r = torch.tensor([[1.0], [4.0], [-2.0], [3.0], [3.5]])
    labels = torch.tensor([0, 0, 1, 1, 2])
    p = Problem(torch.zeros(1, 1), torch.tensor([0]), r, labels)
    options = {"margin": 1.5, "mining": "semihard", "reduction": "sum", "impl": impl}
    loss, d_row, d_columns = results(triplet, p, torch.ones_like, **options)
    assert loss.item() == pytest.approx((1 - 2 + 1.5) + (4 - 3.5 + 1.5))
    assert d_columns.flatten().tolist() == pytest.approx([1, 1, 1, 0, -1])
    assert d_row.item() == pytest.approx(-1 - 1 + (-1 + 1))


@pytest.mark.parametrize("impl", ["reference", *NOT_CUDA])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6, 7], [7, 5, 3, 1, 6, 4, 2, 0]])
@pytest.mark.parametrize("mining", ["semihard", "hardest"])
def test_of_equal_distances_the_lowest_index_counts(impl, order, mining):
    """Two positives and two negatives at each distance; labels order the columns otherwise."""
    r = torch.tensor([[1.0, 0], [-1, 0], [0, 2], [0, -2], [2, 0], [-2, 0], [0, 3], [0, -3]])
    labels = torch.tensor([0, 0, 5, 3, 2, 4, 1, 6])
    p = Problem(torch.zeros(2, 2), torch.tensor([0, 0]), r[order], labels[order])
    options = {"margin": 2.0, "mining": mining, "reduction": "sum", "impl": impl}
    _, _, gradient = results(triplet, p, torch.ones_like, **options)
    hit = {j for j in range(8) if gradient[j].any()}
    near = [j for j in range(8) if r[order[j]].norm() == 2]
    own = [j for j in range(8) if order[j] < 2]
    assert hit == {min(near), *(own if mining == "semihard" else own[:1])}


@EVERY_MINING
@pytest.mark.parametrize(
    ("n", "m", "d", "per_class"),
    [
        *[(2, None, 1, 1), (7, None, 64, 3), (33, None, 17, 20), (150, None, 24, 3)],
        *[(20, 150, 200, 5), (1, 40, 3, 9), (20, 600, 5, 30), (300, None, 8, 3)],
    ],
)
def test_accuracy(mining, n, m, d, per_class):
    """Few positives and many, which the kernels take in two ways; one band of anchors and more."""
    margins = {"all": (0.2,), "semihard": (0.0,), "hardest": ()}[mining]
    p = decided(n, m, d, selves=m is not None, per_class=per_class, margins=margins)
    assert_kernels_accurate(triplet, plain_triplet, p, kernels=NOT_CUDA, mining=mining)


@EVERY_MINING
@pytest.mark.parametrize("margin", [-1.0, 0.0, 30.0])
def test_accuracy_over_margins(mining, margin):
    p = decided(60, d=8, per_class=6, margins=(0.0, margin))
    options = {"margin": margin, "mining": mining}
    assert_kernels_accurate(triplet, plain_triplet, p, kernels=NOT_CUDA, **options)


@pytest.mark.parametrize("mining", ["all", "hardest"])  # of near ties roundings would choose one
@pytest.mark.parametrize(("noise", "m"), [(1e-5, None), (1e-3, 90)])
def test_a_tenth_of_the_rows_nearly_duplicated_across_classes(mining, noise, m):
    p = with_duplicates(problem(120, m, 16, selves=m is not None, per_class=4), noise=noise)
    assert_kernels_accurate(
        triplet,
        plain_triplet,
        p,
        distances=direct_distances,
        kernels=NOT_CUDA,
        mining=mining,
        margin=0.3,
    )


@EVERY_MINING
@pytest.mark.parametrize("impl", ["reference", *NOT_CUDA])
def test_rows_that_are_all_the_same_have_no_gradient(mining, impl):
    p = Problem(torch.full((40, 5), 0.1), torch.arange(40) // 4)
    loss, gradient = results(triplet, p, mining=mining, impl=impl)
    torch.testing.assert_close(loss, torch.tensor(0.2))
    assert not gradient.any()


def test_the_reference_takes_a_few_anchors_at_a_time(monkeypatch):
    p = decided(40, d=6, per_class=4).to(torch.float64)
    expected = results(triplet, p, impl="reference")
    monkeypatch.setattr(reference, "MOST_TRIPLETS", 3 * 40**2)
    assert_close(results(triplet, p, impl="reference"), expected, 1e-12)


@EVERY_MINING
@pytest.mark.parametrize("impl", NOT_CUDA)
def test_the_batch_as_its_own_columns_gives_the_same_loss(mining, impl):
    p = decided(70, d=7, per_class=4)
    q = Problem(p.rows, p.labels, p.rows, p.labels, torch.arange(70))
    loss, gradient = results(triplet, p, mining=mining, impl=impl)
    other, d_rows, d_columns = results(triplet, q, mining=mining, impl=impl)
    torch.testing.assert_close(other, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(d_rows + d_columns, gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("impl", NOT_CUDA)
def test_a_row_of_another_label_than_its_own_column_meets_it_as_a_negative(impl):
    p = replace(decided(40, 60), self_index=torch.arange(40))
    torch.testing.assert_close(triplet(p, impl=impl), triplet(p, impl="reference"))


@EVERY_MINING
def test_a_thousand_positives_and_negatives(mining):
    """So many that roundings decide a few triplets, which hardly change the mean."""
    random = generator(0)
    r, labels = torch.randn(2000, 4, generator=random), torch.arange(2000) % 2
    p = Problem(torch.randn(5, 4, generator=random), torch.arange(5) % 2, r, labels)
    truth = results(triplet, p.to(torch.float64), mining=mining, impl="reference")
    found = results(triplet, p, mining=mining, impl="cpu")
    torch.testing.assert_close(found[0].double(), truth[0], rtol=1e-5, atol=0)
    if mining == "all":
        for got, expected in zip(found, truth, strict=True):
            torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mining": "hard"}, "mining must be one of all, semihard, hardest, not 'hard'"),
        ({"reduction": "max"}, "reduction must be one of nonzero, mean, sum, not 'max'"),
        ({"margin": float("nan")}, "margin must be a finite number"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ops.triplet_loss(torch.randn(4, 3), torch.arange(4), **options)
