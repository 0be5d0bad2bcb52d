"""The lifted loss of a batch and its gradient in one CUDA launch, on a GPU or emulated.

The emulated GPU has 24 multiprocessors: batches of 128 rows are one cluster, larger ones meet at a
barrier of the grid, and a block of a batch of more than 192 rows owns 16 of them, else 8.
"""

from pathlib import Path

import pytest
import torch

from dmlfast.ops import gpu
from dmlfast.ops.cuda.library import emulated as emulated_library
from dmlfast.ops.cuda.library import library
from dmlfast.ops.lifted import cuda

from . import emulated
from .helpers import (
    ULPS,
    Problem,
    Tensors,
    assert_accurate,
    direct_distances,
    generator,
    gram_distances,
    largest_term,
    lifted,
    plain_lifted,
    problem,
    results,
    with_duplicates,
)

DEVICE = "cpu" if emulated_library() else "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HERE = Path(__file__).parent

pytestmark = [pytest.mark.skipif(gpu.why_no_cuda() is not None, reason=str(gpu.why_no_cuda()))]
if DEVICE == "cuda":
    pytestmark.append(pytest.mark.gpu)


def one_pass(p: Problem, margin: float = 1.0, gradient: bool = True) -> Tensors:
    """Loss and, if wanted, gradient."""
    assert library().dml_cuda_one_pass_fits(*p.rows.shape)
    on_device = p.on(DEVICE)
    rows, labels = on_device.rows, on_device.labels
    found = cuda.forward(rows, None, labels, None, None, margin, gradient, False)
    return [t.cpu() for t in found if t is not None]


def assert_one_pass_accurate(p: Problem, distances=gram_distances, margin: float = 1.0) -> None:
    double = p.to(torch.float64)
    exact = results(lifted, double, torch.ones_like, impl="reference", margin=margin)
    yard = results(
        plain_lifted, p.to(torch.float32), torch.ones_like, distances=distances, margin=margin
    )
    found = one_pass(p, margin)
    assert [t.dtype for t in found] == [torch.float32] * 2
    assert_accurate(found, exact, yard, ULPS + largest_term(double, margin=margin), "cuda")


def assert_same_bits(found: Tensors, expected: Tensors) -> None:
    for got, other in zip(found, expected, strict=True):
        assert torch.equal(got, other)


def assert_zero(found: Tensors) -> None:
    assert not any(t.any() for t in found)


@pytest.mark.parametrize(
    ("n", "d"),
    [
        *[(2, 3), (3, 1), (8, 128), (9, 512), (16, 4), (31, 33), (61, 200), (127, 2), (128, 128)],
        *[(129, 33), (131, 200), (151, 512), (192, 128), (193, 1), (211, 3), (257, 100), (384, 8)],
    ],
)
def test_accuracy_over_shapes(n, d):
    assert_one_pass_accurate(problem(n, d=d, per_class=2 + n % 5, seed=n))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d"), [(17, 3), (67, 32), (67, 33), (130, 132), (195, 20)])
def test_accuracy_over_dtypes(n, d, dtype):
    assert_one_pass_accurate(problem(n, d=d, seed=d).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.T.contiguous().T,
        lambda x: torch.cat([x, x + 1], 1)[:, : x.shape[1]],
        lambda x: torch.cat([x, x[:, :1]], 1)[:, :-1],
        lambda x: torch.cat([x[:1, 0], x.flatten()])[1:].view_as(x),
        lambda x: x.repeat_interleave(3, 0)[::3],
        lambda x: x.repeat_interleave(2, 1)[:, ::2],
    ],
    ids=["columns first", "wide", "odd rows", "odd start", "every third row", "every other column"],
)
def test_rows_of_any_strides(view, dtype):
    p = problem(43, d=24, seed=1).to(dtype)
    x = view(p.rows.to(DEVICE))
    assert torch.equal(x.cpu(), p.rows)
    assert_same_bits(one_pass(Problem(x, p.labels)), one_pass(p))


def test_the_same_row_everywhere():
    row = torch.randn(1, 12, generator=generator(0)).expand(20, 12)
    loss, gradient = one_pass(Problem(row, torch.arange(20) // 2))
    assert loss.item() == pytest.approx((1 + torch.log(torch.tensor(36.0)).item()) ** 2 / 2)
    assert_zero([gradient])


@pytest.mark.parametrize("n", [1, 2, 40, 130])
def test_one_class_and_no_positive_pairs(n):
    x = torch.randn(n, 6, generator=generator(n))
    assert_zero(one_pass(Problem(x, torch.zeros(n, dtype=torch.int64))))
    assert_zero(one_pass(Problem(x, torch.arange(n))))


@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_duplicates_across_classes(noise, offset):
    p = with_duplicates(problem(120, d=32, per_class=4, seed=3), noise=noise)
    p = Problem(p.rows + offset, p.labels)
    assert_one_pass_accurate(p, distances=direct_distances)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1e2, 1e4])
@pytest.mark.parametrize("n", [60, 140])
def test_accuracy_over_scales(n, scale):
    assert_one_pass_accurate(problem(n, d=16, scale=scale, seed=n))


@pytest.mark.parametrize("margin", [-40.0, -3.0, 0.0, 100.0])
def test_accuracy_over_margins(margin):
    p = problem(90, d=8, seed=1)
    assert_one_pass_accurate(p, margin=margin)
    assert (one_pass(p, margin)[0] == 0) == (margin == -40)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("n", "row"), [(1, 0), (30, 0), (30, 29), (130, 70)])
@pytest.mark.parametrize(("dtype", "per_class"), list(zip(DTYPES, (3, 1, 200), strict=True)))
def test_a_value_that_is_not_finite(n, row, bad, dtype, per_class):
    x = torch.randn(n, 7, generator=generator(0)).to(dtype)
    x[row, 4] = bad
    p = Problem(x, torch.arange(n) // per_class)
    for result in (*one_pass(p), *one_pass(p, gradient=False)):
        assert result.isnan().all()


def test_labels_are_opaque():
    p = problem(70, d=9, seed=2)
    expected = one_pass(p)
    for labels in (p.labels + 2**40, -p.labels - 2**33, p.labels * 2**32, p.labels.to(torch.int16)):
        assert_same_bits(one_pass(Problem(p.rows, labels)), expected)
    spaced = torch.stack([p.labels, -p.labels], 1).to(DEVICE)[:, 0]
    assert_same_bits(one_pass(Problem(p.rows, spaced)), expected)


@pytest.mark.parametrize("n", [33, 128, 129, 200])
def test_the_same_bits_again_and_without_the_gradient(n):
    p = problem(n, d=20, seed=n)
    found = one_pass(p)
    assert_same_bits(one_pass(p), found)
    assert_same_bits(one_pass(p, gradient=False), found[:1])


def test_what_fits():
    fits = library().dml_cuda_one_pass_fits
    assert fits(1, 1)
    assert fits(128, 512)
    for shape in ((0, 1), (1, 0), (1, 513), (2049, 1), (2**40, 1), (1, 2**40)):
        assert not fits(*shape)


@pytest.mark.skipif(DEVICE == "cuda", reason="the limits are those of the emulated GPU")
def test_what_fits_the_emulated_gpu():
    fits = library().dml_cuda_one_pass_fits
    assert fits(192, 512)  # 8 rows of a block
    assert not fits(193, 512)  # 16 take too much shared memory
    assert fits(193, 448)
    assert fits(384, 400)
    assert not fits(385, 1)  # too few multiprocessors


@pytest.fixture
def large_gpu(monkeypatch):
    """Emulates one of 132 multiprocessors."""
    path = emulated.build("-O2", "-DDML_EMULATED_LARGE")
    monkeypatch.setenv("DMLFAST_CUDA_EMULATED", str(path))
    library.cache_clear()
    yield
    library.cache_clear()


@pytest.mark.long
@pytest.mark.skipif(DEVICE == "cuda", reason="is about an emulated GPU")
@pytest.mark.parametrize(("n", "d"), [(1023, 200), (1057, 33), (2047, 200)])
def test_accuracy_over_large_batches(n, d, large_gpu):
    assert_one_pass_accurate(problem(n, d=d, per_class=4, seed=n))
