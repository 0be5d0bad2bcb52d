"""The lifted structured loss: the paper's formula, its neighbours, and the kernels' accuracy."""

import math
from dataclasses import replace

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import LiftedStructureLoss

from dmlfast.ops import lifted_structured_loss

from .helpers import (
    IMPLS,
    KERNELS,
    LONG_4096,
    NOT_CUDA,
    Problem,
    assert_accurate,
    assert_kernels_accurate,
    generator,
    lifted,
    plain_lifted,
    problem,
    results,
)

LABELS = [0, 1, 0, 2, 0, 1, 3, 2, 2, 4, 4, 1]


def vectors(count: int, seed: int) -> list[list[float]]:
    return torch.randn(count, 3, generator=generator(seed), dtype=torch.float64).tolist()


def by_the_paper(
    rows: list[list[float]],
    labels: list[int],
    margin: float,
    columns: list[list[float]] | None = None,
    column_labels: list[int] | None = None,
    self_index: list[int] | None = None,
) -> tuple[float, list[list[float]], list[list[float]]]:
    """Loss and gradients of rows and columns, pair by pair, in Python floats."""
    itself = columns is None
    r, r_labels = (rows, labels) if itself else (columns, column_labels)
    d_rows = [[0.0] * len(row) for row in rows]
    d_columns = d_rows if itself else [[0.0] * len(row) for row in r]

    def push(i: int, j: int, weight: float) -> None:
        distance = math.dist(rows[i], r[j])
        for k in range(len(rows[i])):
            part = weight * (rows[i][k] - r[j][k]) / distance
            d_rows[i][k] += part
            d_columns[j][k] -= part

    def is_positive(i: int, j: int) -> bool:
        if labels[i] != r_labels[j]:
            return False
        return i < j if itself else self_index is None or self_index[i] != j

    positives = [(i, j) for i in range(len(rows)) for j in range(len(r)) if is_positive(i, j)]
    loss = 0.0
    for i, j in positives:
        of_i = [(i, k) for k in range(len(r)) if r_labels[k] != labels[i]]
        of_j = [(k, j) for k in range(len(rows)) if labels[k] != r_labels[j]]
        exponentials = [(a, b, math.exp(margin - math.dist(rows[a], r[b]))) for a, b in of_i + of_j]
        total = sum(e for *_, e in exponentials)
        if total == 0:
            continue
        hinge = max(0.0, math.dist(rows[i], r[j]) + math.log(total))
        loss += hinge**2 / (2 * len(positives))
        push(i, j, hinge / len(positives))
        for a, b, exponential in exponentials:
            push(a, b, -hinge / len(positives) * exponential / total)
    return loss, d_rows, d_columns


@pytest.mark.parametrize(
    ("impl", "dtype", "tolerance"),
    [
        ("reference", torch.float64, 1e-12),
        ("cpu", torch.float32, 1e-6),
        ("triton", torch.float32, 1e-6),
        ("cuda", torch.float32, 1e-6),
    ],
)
@pytest.mark.parametrize("margin", [1.0, 0.0, -2.5, 30.0])
class TestThePapersFormula:
    """The margin of -2.5 switches off a third of the hinges, the one of 30 makes them all large."""

    def test_over_a_batch(self, impl, dtype, tolerance, margin):
        x = vectors(len(LABELS), 0)
        loss, d_rows, _ = by_the_paper(x, LABELS, margin)
        p = Problem(torch.tensor(x, dtype=dtype), torch.tensor(LABELS))
        found = results(lifted, p, torch.ones_like, margin=margin, impl=impl)
        assert found[0].item() == pytest.approx(loss, rel=tolerance)
        expected = torch.tensor(d_rows, dtype=dtype)
        torch.testing.assert_close(found[1], expected, rtol=0, atol=tolerance * (1 + loss))

    @pytest.mark.parametrize("self_index", [None, [3, -1, 0, -1, 6, -1, -1, 5, -1, 1, -1, -1]])
    def test_over_columns_of_their_own(self, impl, dtype, tolerance, margin, self_index):
        x, r = vectors(len(LABELS), 1), vectors(9, 2)
        column_labels = [0, 4, 5, 0, 1, 2, 0, 2, 3]
        truth = by_the_paper(x, LABELS, margin, r, column_labels, self_index)
        p = Problem(
            torch.tensor(x, dtype=dtype),
            torch.tensor(LABELS),
            torch.tensor(r, dtype=dtype),
            torch.tensor(column_labels),
            None if self_index is None else torch.tensor(self_index),
        )
        found = results(lifted, p, torch.ones_like, margin=margin, impl=impl)
        assert found[0].item() == pytest.approx(truth[0], rel=tolerance)
        for got, expected in zip(found[1:], truth[1:], strict=True):
            expected = torch.tensor(expected, dtype=dtype)
            torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * (1 + truth[0]))


@pytest.mark.parametrize("impl", IMPLS)
def test_five_unit_vectors_of_the_plane(impl):
    angles = torch.tensor([0.0, 20, 40, 60, 80]).deg2rad()
    x = torch.stack([angles.cos(), angles.sin()], 1)
    labels = torch.tensor([0, 0, 1, 1, 2])
    chord = {angle: 2 * math.sin(math.radians(angle / 2)) for angle in (20, 40, 60, 80)}
    e = {angle: math.exp(0.5 - length) for angle, length in chord.items()}
    first = chord[20] + math.log((e[40] + e[60] + e[80]) + (e[20] + e[40] + e[60]))
    second = chord[20] + math.log((e[40] + e[20] + e[40]) + (e[60] + e[40] + e[20]))
    expected = (first**2 + second**2) / (2 * 2)
    found = lifted_structured_loss(x, labels, margin=0.5, impl=impl)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("impl", "dtype"), [("reference", torch.float64), ("cpu", torch.float32)])
@pytest.mark.parametrize("margin", [1.0, 0.2])
def test_equals_pytorch_metric_learning_without_normalisation(impl, dtype, margin):
    theirs = LiftedStructureLoss(
        neg_margin=margin, distance=LpDistance(normalize_embeddings=False, p=2, power=1)
    )
    p = problem(40, d=6, per_class=4, seed=5)
    truth = results(lambda p, **_: theirs(p.rows, p.labels), p.to(torch.float64), torch.ones_like)
    found = results(lifted, p.to(dtype), torch.ones_like, margin=margin, impl=impl)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    for got, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("n", [5, 130, 300])
def test_the_batch_as_its_own_columns_gives_the_symmetric_loss(impl, n):
    p = problem(n, d=7, seed=n)
    q = Problem(p.rows, p.labels, p.rows, p.labels, torch.arange(n))
    loss, gradient = results(lifted, p, impl=impl)
    ref_loss, d_rows, d_columns = results(lifted, q, impl=impl)
    torch.testing.assert_close(ref_loss, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        d_rows + d_columns, gradient, rtol=1e-5, atol=1e-6 * gradient.abs().max()
    )


# up to 1100 the distances are kept for the gradient; those of 2433 rows are too many
@pytest.mark.parametrize("n", [2, 3, 7, 31, 32, 33, 127, 128, 129, 255, 257, 300, 641, 1100, 2433])
def test_accuracy_over_a_batch(n):
    d = 3 if n > 1000 else [5, 17, 64, 2, 100][n % 5]
    assert_kernels_accurate(lifted, plain_lifted, problem(n, d=d, per_class=1 + n % 7, seed=n))


# 17000 rows lie in blocks of several tiles
@pytest.mark.parametrize(
    ("n", "m"),
    [
        *[(1, 2), (3, 31), (7, 255), (33, 2), (128, 129), (129, 300), (257, 128), (641, 700)],
        *[(40, 17000), (17000, 40)],
    ],
)
@pytest.mark.parametrize("selves", [False, True])
def test_accuracy_over_columns_of_their_own(n, m, selves):
    p = problem(n, m, d=[3, 16, 33][n % 3], selves=selves, per_class=4, seed=n)
    assert_kernels_accurate(lifted, plain_lifted, p)


@pytest.mark.parametrize("d", [1, 2, 3, 5, 16, 17, 64, 100, 257, 1024, LONG_4096])
def test_accuracy_over_dimensions(d):
    assert_kernels_accurate(lifted, plain_lifted, problem(70, d=d, seed=d))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_accuracy_of_rows_whose_gradient_several_programs_share(dtype):
    """In Triton: blocks of 128 rows, and of 512 components."""
    p = problem(150, d=600, scale=600**-0.5).to(dtype)
    assert_kernels_accurate(lifted, plain_lifted, p)


def test_the_widest_rows_without_emulation():
    p = problem(70, d=4096, seed=4096)
    assert_kernels_accurate(lifted, plain_lifted, p, kernels=NOT_CUDA)


@pytest.mark.parametrize("margin", [-40.0, -3.0, 100.0])
def test_accuracy_over_margins(margin):
    p = problem(150, d=8, seed=1)
    assert_kernels_accurate(lifted, plain_lifted, p, margin=margin)
    loss, gradient = results(lifted, p, margin=margin, impl="cpu")
    assert (loss == 0) == (gradient == 0).all() == (margin == -40)


def lifted_by_chunks(p: Problem, chunk: int = 500) -> list[torch.Tensor]:
    """Loss and gradient in the dtype of the rows, whose classes are four consecutive rows each."""
    x = p.rows.clone().requires_grad_()
    parts = range(0, len(x), chunk)

    def statistic(first: int) -> torch.Tensor:
        rows = slice(first, first + chunk)
        terms = 1 - torch.cdist(x[rows], x, compute_mode="donot_use_mm_for_euclid_dist")
        return terms.masked_fill(p.labels[rows, None] == p.labels, -torch.inf).logsumexp(1)

    with torch.no_grad():
        stat = torch.cat([statistic(first) for first in parts])
    stat.requires_grad_()
    members = torch.arange(len(x)).view(-1, 4)
    i, j = members[:, [0, 0, 0, 1, 1, 2]].flatten(), members[:, [1, 2, 3, 2, 3, 3]].flatten()
    hinge = ((x[i] - x[j]).norm(dim=1) + torch.logaddexp(stat[i], stat[j])).relu()
    loss = hinge.square().mean() / 2
    loss.backward()
    for first in parts:
        statistic(first).backward(stat.grad[first : first + chunk])
    return [loss.detach(), x.grad]


@pytest.mark.long
def test_accuracy_where_a_block_has_many_tiles():
    n = 17000
    p = Problem(torch.randn(n, 4, generator=generator(0)), torch.arange(n) // 4)
    truth = lifted_by_chunks(p.to(torch.float64))
    yard = lifted_by_chunks(p)
    order = torch.randperm(n, generator=generator(1))
    found = results(lifted, Problem(p.rows[order], p.labels[order]), torch.ones_like, impl="cpu")
    assert_accurate([found[0], found[1][order.argsort()]], truth, yard)


@pytest.mark.parametrize("impl", KERNELS)
def test_a_row_of_another_label_than_its_own_column_meets_it_as_a_negative(impl):
    """`self_index` leaves a pair out of the positives alone."""
    p = problem(40, 60)
    p = replace(p, self_index=torch.arange(40))
    torch.testing.assert_close(lifted(p, impl=impl), lifted(p, impl="reference"))
