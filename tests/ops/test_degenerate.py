"""Batches at the edge: coinciding rows, no pairs, no rows, extreme sizes, infinite values."""

from dataclasses import replace

import pytest
import torch

from dmlfast import ops
from dmlfast.ops.triton import configs

from .covering import shortly
from .helpers import (
    IMPLS,
    ON_GPU,
    Problem,
    assert_kernels_accurate,
    direct_distances,
    generator,
    lifted,
    pair_reduce,
    plain_lifted,
    plain_pair_reduce,
    problem,
    results,
    with_duplicates,
)

NOISES = (0.0, 1e-7, 1e-5, 1e-3)  # between rows that are nearly the same
WIDTHS = (16, 128)
SIZES = (1e-4, 1e-2, 1e2, 1e4)  # of embeddings
EVERY_IMPL = pytest.mark.parametrize("impl", IMPLS)


def assert_zero_and_attached(p: Problem, impl: str) -> None:
    x = p.rows.clone().requires_grad_()
    loss = lifted(replace(p, rows=x), impl=impl)
    assert loss.item() == 0
    assert loss.requires_grad
    loss.backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("capability", configs.TILES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [20, pytest.param(140, marks=pytest.mark.long)])
def test_close_pairs_have_their_gradients_in_the_tiles_of_every_gpu(
    d, dtype, capability, monkeypatch
):
    """The interpreter has others, which are larger."""
    tiles = configs.TILES[capability][configs.kind_of(dtype)]
    monkeypatch.setattr(configs, "tiles_of", lambda dtype: tiles)
    for n in (60, 150):
        p = with_duplicates(problem(n, d=d, per_class=2, seed=d), noise=1e-4).to(dtype)
        assert_kernels_accurate(
            lifted, plain_lifted, p, kernels=("triton",), distances=direct_distances
        )


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("d", WIDTHS)
class TestATenthOfTheRowsDuplicatedAcrossClasses:
    def test_lifted(self, d, noise):
        p = with_duplicates(problem(300, d=d, per_class=4, seed=d), noise=noise)
        assert_kernels_accurate(lifted, plain_lifted, p, distances=direct_distances)

    def test_lifted_over_columns_of_their_own(self, d, noise):
        p = with_duplicates(problem(200, 300, d, selves=True, per_class=4, seed=d), noise=noise)
        assert_kernels_accurate(lifted, plain_lifted, p, distances=direct_distances)


@pytest.mark.parametrize(
    ("noise", "select", "d", "reduce"),
    shortly(NOISES, ["negative", "positive", "all"], WIDTHS, ["logsumexp", "sum"]),
)
def test_reductions_where_a_tenth_of_the_rows_is_duplicated(noise, select, d, reduce):
    p = with_duplicates(problem(150, 200, d, selves=True, per_class=4, seed=d), noise=noise)
    options = {"select": select, "reduce": reduce, "scale": -1.0}
    assert_kernels_accurate(
        pair_reduce, plain_pair_reduce, p, distances=direct_distances, **options
    )


@pytest.mark.parametrize(
    ("d", "noise"),
    [
        *[(20, 0.0), (20, 1e-5), (20, 1e-4), (20, 0.01), (140, 1e-4)],
        *[pytest.param(140, noise, marks=pytest.mark.long) for noise in (0.0, 1e-5, 0.01)],
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
class TestCloseNegativesOfEveryDtype:
    """Enough rows for whole tiles, few enough for an interpreter."""

    def test_lifted(self, d, noise, dtype):
        p = with_duplicates(problem(150, d=d, per_class=2, seed=d), noise=noise).to(dtype)
        assert_kernels_accurate(lifted, plain_lifted, p, distances=direct_distances)

    def test_lifted_of_a_small_batch(self, d, noise, dtype):
        p = with_duplicates(problem(60, d=d, per_class=2, seed=d), noise=noise).to(dtype)
        assert_kernels_accurate(lifted, plain_lifted, p, distances=direct_distances)

    def test_pair_reduce(self, d, noise, dtype):
        p = with_duplicates(problem(130, 150, d, per_class=2, seed=d), noise=noise).to(dtype)
        options = {"select": "negative", "reduce": "logsumexp", "scale": -2.0}
        assert_kernels_accurate(
            pair_reduce, plain_pair_reduce, p, distances=direct_distances, **options
        )


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_duplicates_within_a_class(size):
    p = problem(120, d=24, per_class=4)
    rows = (p.rows * size)[torch.arange(120) // 2]
    p = Problem(rows, torch.arange(120) // 6)
    assert_kernels_accurate(lifted, plain_lifted, p, distances=direct_distances)


@EVERY_IMPL
@pytest.mark.parametrize("value", [0.0, 0.1, -1e4])
def test_rows_that_are_all_the_same_have_no_gradient(impl, value):
    rows, labels = torch.full((70, 33), value), torch.arange(70) // 7
    loss, gradient = results(lifted, Problem(rows, labels), impl=impl)
    expected = (1 + torch.tensor(2.0 * 63).log()).square() / 2
    torch.testing.assert_close(loss, expected)
    assert torch.equal(gradient, torch.zeros_like(rows))


@EVERY_IMPL
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_rows_that_are_all_the_same_are_all_counted(impl, value):
    p = Problem(torch.full((70, 33), value), torch.arange(70) // 7)
    found, gradient = results(pair_reduce, p, scale=-1.0, impl=impl)
    torch.testing.assert_close(found, torch.full((70,), 63.0).log())
    assert torch.equal(gradient, torch.zeros_like(p.rows))


@EVERY_IMPL
@pytest.mark.parametrize("n", [0, 1, 2, 300])
def test_without_positive_pairs_the_loss_is_zero_and_attached(impl, n):
    assert_zero_and_attached(replace(problem(n), labels=torch.arange(n)), impl)


@EVERY_IMPL
@pytest.mark.parametrize("n", [2, 300])
def test_without_negatives_the_loss_is_zero_and_attached(impl, n):
    assert_zero_and_attached(replace(problem(n), labels=torch.zeros(n, dtype=torch.long)), impl)


@EVERY_IMPL
@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 5), (5, 0)])
def test_no_rows_or_no_columns_give_a_loss_of_zero(impl, n, m):
    loss, d_rows, d_columns = results(lifted, problem(n, m), impl=impl)
    assert loss == 0
    assert torch.equal(d_rows, torch.zeros(n, 8))
    assert torch.equal(d_columns, torch.zeros(m, 8))


@EVERY_IMPL
def test_a_positive_pair_without_negatives_adds_nothing_and_counts(impl):
    """Rows 0 and 1 meet columns of their own class only; rows 2 and 3 have a negative each."""
    x = torch.tensor([[0.0, 0], [1, 0], [5, 0], [5, 2]], requires_grad=True)
    r = torch.tensor([[0.0, 1], [5.0, 1]])
    loss = lifted(Problem(x, torch.tensor([0, 0, 1, 1]), r[:1], torch.tensor([0])), impl=impl)
    # both pairs (0, 0) and (1, 0) count; the negatives of the column are rows 2 and 3
    distances = torch.tensor([26.0, 26.0]).sqrt()
    column = (1 - distances).logsumexp(0)
    hinges = (torch.tensor([1.0, 2.0]).sqrt() + column).relu()
    torch.testing.assert_close(loss.detach(), hinges.square().sum() / 4)


@EVERY_IMPL
@pytest.mark.parametrize("reduce", ["logsumexp", "sum"])
@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 5), (5, 0), (1, None), (0, None)])
def test_a_reduction_over_nothing(impl, reduce, n, m):
    p = problem(n, m, bias=True)
    value, *gradients = results(pair_reduce, p, select="other", reduce=reduce, impl=impl)
    nothing = float("-inf") if reduce == "logsumexp" else 0.0
    assert torch.equal(value, torch.full((n,), nothing))
    assert not any(gradient.any() for gradient in gradients)


@EVERY_IMPL
@pytest.mark.parametrize("select", ["negative", "positive"])
def test_a_row_that_selects_nothing_has_no_part_in_the_gradient(impl, select):
    """One class of 60 rows and 5 rows with a class each."""
    labels = torch.cat([torch.zeros(60), torch.arange(1, 6)]).long()
    p = replace(problem(65), labels=labels)
    value, gradient = results(pair_reduce, p, select=select, impl=impl)
    assert value.isinf().any() == (select == "positive")
    assert gradient.isfinite().all()
    if select == "positive":
        assert not gradient[60:].any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("columns", [None, 90])
def test_embeddings_of_every_size(size, columns):
    p = problem(140, columns, 20, per_class=4, scale=size)
    assert_kernels_accurate(lifted, plain_lifted, p)


@pytest.mark.parametrize(
    ("size", "scale", "score"), shortly(SIZES, [-1.0, 1.0], ["dot", "distance"])
)
def test_reductions_of_embeddings_of_every_size(size, scale, score):
    """At the size that the scale undoes as well."""
    p = problem(140, 90, 20, per_class=4, scale=size)
    for undone in (scale, scale / size, scale / size**2):
        options = {"score": score, "scale": undone}
        assert_kernels_accurate(pair_reduce, plain_pair_reduce, p, **options)


@EVERY_IMPL
@pytest.mark.parametrize(("d", "size"), [(12, 1e-19), (12, 1e-20), (12, 1e-22), (530, 1e-22)])
def test_rows_whose_squares_vanish_have_finite_gradients(d, size, impl):
    """Roots of subnormal numbers are 0 on a GPU, or infinite."""
    p = problem(140 if d < 500 else 36, None, d, per_class=4, scale=size)
    sums = {"select": "all", "reduce": "sum"}
    for op, options in ((lifted, {}), (pair_reduce, {"scale": -1.0}), (pair_reduce, sums)):
        found, gradient = results(op, p, impl=impl, **options)[:2]
        exact = op(replace(p, rows=p.rows.double()), impl="reference", **options)
        torch.testing.assert_close(found, exact.float(), atol=1e-5, rtol=1e-5)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("offset", [10, 100])
@pytest.mark.parametrize("columns", [None, 90])
def test_an_offset_of_every_row_changes_nothing(columns, offset):
    """The kernels subtract the mean: they err no more than they would without the offset."""
    p = problem(150, columns, 12, per_class=4)
    far = replace(p, rows=p.rows + offset, columns=columns and p.columns + offset)
    for op, plain in ((lifted, plain_lifted), (pair_reduce, plain_pair_reduce)):
        assert_kernels_accurate(op, plain, far, distances=direct_distances)


@EVERY_IMPL
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("pairs", ["some", "none"])
@pytest.mark.parametrize("place", ["row", "column"])
class TestAValueThatIsNotFiniteMakesTheResultNan:
    @staticmethod
    def spoiled(place, value, pairs) -> Problem:
        p = problem(40, 50 if place == "column" else None, 7, bias=True, seed=2)
        if pairs == "none":
            own = None if p.columns is None else torch.arange(50) + 40
            p = replace(p, labels=torch.arange(40), column_labels=own)
        (p.rows if place == "row" else p.columns)[17, 3] = value
        return p

    def test_lifted(self, impl, place, value, pairs):
        assert lifted(self.spoiled(place, value, pairs), impl=impl).isnan()

    @pytest.mark.parametrize("score", ["dot", "distance"])
    @pytest.mark.parametrize("reduce", ["logsumexp", "sum"])
    def test_pair_reduce(self, impl, place, value, pairs, score, reduce):
        p = self.spoiled(place, value, pairs)
        options = {"select": "positive", "score": score, "reduce": reduce}
        assert pair_reduce(p, impl=impl, **options).isnan().all()


@EVERY_IMPL
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("reduce", ["logsumexp", "sum"])
def test_a_bias_that_is_not_finite_makes_the_result_nan(impl, value, reduce):
    p = problem(20, 30, bias=True)
    p.bias[11] = value
    assert pair_reduce(p, reduce=reduce, impl=impl).isnan().all()


def test_gradients_of_values_that_are_not_finite_are_nan():
    p = problem(20, 30, bias=True)
    p.rows[3, 0] = torch.nan
    for op in (lifted, pair_reduce):
        found = results(op, replace(p, bias=None) if op is lifted else p, impl="cpu")
        assert all(tensor.isnan().all() for tensor in found)


@EVERY_IMPL
@pytest.mark.parametrize("n", [1, 40])
def test_one_class_and_classes_of_one_agree_on_who_is_negative(impl, n):
    """Everyone is everyone's positive, or everyone's negative: the other selection is empty."""
    p = Problem(torch.randn(n, 5, generator=generator(0)), torch.zeros(n, dtype=torch.long))
    alone = replace(p, labels=torch.arange(n))
    positive = pair_reduce(p, select="positive", impl=impl)
    negative = pair_reduce(alone, select="negative", impl=impl)
    # two CUDA kernels serve, which add up in orders of their own
    torch.testing.assert_close(positive, negative, rtol=1e-6 if impl == "cuda" else 0.0, atol=0.0)
    assert pair_reduce(p, select="negative", impl=impl).isneginf().all()
    assert pair_reduce(alone, select="positive", impl=impl).isneginf().all()


@pytest.mark.parametrize("impl", ON_GPU)
@pytest.mark.parametrize(("n", "m"), [(40, None), (150, None), (130, 80)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_nan_of_a_gpu_remains_one(n, m, dtype, impl):
    """All bits of it are set, and rounding must not turn it into a zero."""
    p = problem(n, m)
    p.rows[3, 1] = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)[0]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = results(lifted, p.to(dtype), impl=impl)
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(tensor.isnan().all() for tensor in found)


@pytest.mark.parametrize("n", [1, 2, 40])
@pytest.mark.parametrize(("size", "offset"), [(1e3, 1e3), (1e5, 1e5), (1.0, 1e5)])
def test_the_only_negative_has_all_of_the_weight(n, size, offset):
    """Also where a statistic has no digits behind its point, so that its rounding would weigh."""
    x = torch.randn(n, 3, generator=generator(n)) * size
    r = torch.randn(5, 3, generator=generator(n + 1)) * size
    labels, others = torch.zeros(n).long(), torch.tensor([1, 0, 0, 0, 0])
    p = Problem(x.requires_grad_(), labels, r, others)
    options = {"select": "negative", "scale": -1.0, "offset": offset, "impl": "cpu"}
    pair_reduce(p, **options).sum().backward()
    expected = torch.nn.functional.normalize(r[0] - x.detach(), dim=1)
    torch.testing.assert_close(x.grad, expected, rtol=1e-5, atol=1e-5)


@EVERY_IMPL
@pytest.mark.parametrize("reduce", ["sum", "logsumexp"])
def test_rows_that_are_not_finite_give_nan_over_no_columns(reduce, impl):
    rows, none = torch.ones(3, 2), torch.zeros(0, 2)
    given = torch.arange(3), none, torch.zeros(0, dtype=torch.int64)
    nothing = 0.0 if reduce == "sum" else -torch.inf
    found = ops.pair_reduce(rows, *given, reduce=reduce, impl=impl)
    assert found.tolist() == [nothing] * 3
    rows[1, 0] = torch.nan
    assert ops.pair_reduce(rows, *given, reduce=reduce, impl=impl).isnan().all()
