"""The Triton kernels of the normalised softmax: log-sum-exps and gradients, however cut."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from dmlfast.ops import matmul
from dmlfast.ops.norm_softmax import norm_softmax_loss
from dmlfast.ops.numerics import unit_rows

from .helpers import ULPS, assert_accurate, generator

pytest.importorskip("triton")
from dmlfast.ops.norm_softmax import triton as kernels
from dmlfast.ops.norm_softmax.triton import product, scores, sides

FULL, BRAIN, HALF = torch.float32, torch.bfloat16, torch.float16
DTYPES = pytest.mark.parametrize("dtype", [FULL, BRAIN, HALF])
# products of bfloat16 are the library's where the width is a multiple of 8
PRODUCTS = pytest.mark.parametrize(
    ("dtype", "d"), [(FULL, 20), (BRAIN, 20), (BRAIN, 24), (HALF, 24)]
)
CUTS = {
    "rows, kept": {"KEPT": 128 * 4 * 384, "LEAST": 128},
    "rows, kept, sums in parts": {"ROWS": 128, "SUMS": 1},
    "blocks": {"KEPT": 0, "ROWS": 128, "BLOCK": 1, "SUMS": 1},
    "large blocks": {"KEPT": 0, "BLOCK": 256 * (256 + 32) * 4},
}


def inputs(n, m, d, dtype=FULL, seed=0, scale=20.0):
    """rows, weight, labels of which one in m + 1 is none, targets, row weights of either sign."""
    random = generator(seed)
    rows = torch.randn(n, d, generator=random).to(dtype).float()
    weight = torch.randn(m, d, generator=random).to(dtype)
    labels = torch.randint(-1, m, (n,), generator=random)
    target = scale * torch.rand(n, generator=random)
    return rows, weight, labels, target, torch.rand(n, generator=random) - 0.2


def plain(rows, weight, labels, target, row_weights, scale, dtype):
    """What the kernels do as one would write it, in ``dtype``."""
    rows, weight = (t.detach().to(dtype).requires_grad_() for t in (rows, weight))
    scores = scale * unit_rows(rows) @ unit_rows(weight).T
    own = torch.arange(len(weight), device=labels.device) == labels[:, None]
    found = scores.masked_fill(own, -torch.inf).logsumexp(1)
    total = (row_weights.to(dtype) * F.softplus(found - target.to(dtype))).sum()
    return [found.detach(), *torch.autograd.grad(total, (rows, weight))]


def check(given, scale=20.0, low_memory=False, forward=kernels.forward):
    found = forward(*given, scale, low_memory, True, True)
    assert all(t.dtype == FULL for t in found)
    exact, yard = (plain(*given, scale, dtype) for dtype in (torch.float64, FULL))
    # exponentials and rows times their factors are rounded to the precision of the rows
    rounded = 0.0 if given[1].dtype == FULL else 2.5 * torch.finfo(given[1].dtype).eps
    assert_accurate(found[:1], exact[:1], yard[:1], ULPS + scale)
    allowed = ULPS + scale + rounded / torch.finfo(FULL).eps
    assert_accurate(found[1:], exact[1:], yard[1:], allowed)
    return found


def check_lengths(given, size, mixed, low_memory, forward=kernels.forward):
    """Rows and classes of this length have the gradients of others, over it."""
    rows, weight, *rest = given
    power = 2.0 ** round(math.log2(size))
    by_row, by_class = (torch.full((len(t), 1), power, device=t.device) for t in (rows, weight))
    if mixed:
        by_row[::3], by_class[::2], by_class[1::4] = 1 / power, 1 / power, 1
    expected = forward(*given, 20.0, low_memory, True, True)
    scaled = rows * by_row, weight * by_class.to(weight.dtype)
    found = forward(*scaled, *rest, 20.0, low_memory, True, True)
    found = found[0], found[1] * by_row, found[2] * by_class
    for got, truth in zip(found, expected, strict=True):
        assert (got - truth).abs().max() <= 1e-5 * truth.abs().max()


def set_sizes(monkeypatch, sizes):
    for name, value in sizes.items():
        monkeypatch.setattr(sides, name, value)


@PRODUCTS
@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("scale", [20.0, 100.0])
def test_are_right(dtype, d, low_memory, scale):
    check(inputs(40, 70, d, dtype, scale=scale), scale, low_memory)


@PRODUCTS
@pytest.mark.parametrize("few", [0, 64])
@pytest.mark.parametrize("cut", CUTS)
def test_are_right_however_they_are_cut(monkeypatch, dtype, d, few, cut):
    monkeypatch.setattr(product, "FEW", few)
    set_sizes(monkeypatch, CUTS[cut])
    check(inputs(150, 300, d, dtype))


@pytest.mark.parametrize(
    ("dtype", "d", "cut", "expected"),
    [
        (BRAIN, 24, "rows, kept", [(150, 300), (300, 256)]),
        # rows, which may need powers of two, of the first block of classes alone
        (
            BRAIN,
            24,
            "blocks",
            [(128, 128), (128, 128), (22, 128), *[(128, 128)] * 3, *[(44, 128)] * 2],
        ),
        (BRAIN, 20, "rows, kept", []),
        (HALF, 24, "rows, kept", []),
    ],
)
def test_the_library_multiplies_where_it_can(monkeypatch, dtype, d, cut, expected):
    shapes = []
    multiply = matmul.add_product
    monkeypatch.setattr(
        matmul,
        "add_product",
        lambda *given, **o: shapes.append(given[1].shape) or multiply(*given, **o),
    )
    set_sizes(monkeypatch, CUTS[cut])
    check(inputs(150, 300, d, dtype))
    assert shapes == expected


def test_are_right_in_blocks_with_a_running_maximum(monkeypatch):
    set_sizes(monkeypatch, CUTS["blocks"])
    check(inputs(130, 150, 20, scale=100.0), 100.0)


@pytest.mark.parametrize(("n", "slots"), [(1, 1), (37, 5), (16, 128), (50, 300)])
def test_sums_are_added_up(n, slots):
    sums = 40 * torch.randn(slots, scores.padded(n), generator=generator(0))
    sums[:, n:] = torch.nan
    sums[0], sums[:, 0] = -torch.inf, -torch.inf
    found = torch.full((n,), torch.nan)
    scores.add_up(sums, found, fresh=True)
    exact, eps = sums[:, :n].double().logsumexp(0), torch.finfo(FULL).eps
    some = exact.isfinite()
    assert (found[~some] == -torch.inf).all()
    largest = 1 + exact[some].abs().max() if some.any() else 1.0
    assert ((found - exact)[some].abs() <= 4 * eps * largest).all()
    before = torch.linspace(-100, 100, n)
    found = before.clone()
    scores.add_up(sums, found, fresh=False)
    exact = torch.logaddexp(exact, before.double())
    assert (found - exact).abs().max() <= 4 * eps * (1 + exact.abs().max())


@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (1, 2, 3), (3, 200, 129), (129, 3, 33)])
def test_take_any_size(n, m, d):
    check(inputs(n, m, d))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 64.0, 1000.0])
def test_take_any_scale(scale):
    check(inputs(20, 40, 8, scale=scale), scale)


def test_exponents_far_apart_keep_their_digits():
    """A row that meets its opposite alone has the least exponentials that there are."""
    rows, weight = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[-3.0, 0.0], [-0.5, 0.0]])
    given = rows, weight, torch.tensor([1, -1]), torch.tensor([-60.0, 60.0]), torch.ones(2)
    check(given, 64.0)
    check(given, 400.0)


def test_columns_and_rows_may_be_strided():
    given = inputs(40, 70, 20)
    expected = kernels.forward(*given, 20.0, False, True, True)
    rows, weight = given[0].T.contiguous().T, given[1].T.contiguous().T
    found = kernels.forward(rows, weight, *given[2:], 20.0, False, True, True)
    assert all(map(torch.equal, found, expected))
    weight = torch.stack([given[1], given[1]], 1)[:, 1]
    found = kernels.forward(given[0], weight, *given[2:], 20.0, True, True, True)
    assert all(map(torch.equal, found, expected))


def test_offsets_take_64_bits():
    rows, weight, *rest = inputs(4, 3, 8, BRAIN)
    far = torch.empty(2 * 2**30 + 8, dtype=BRAIN).as_strided((3, 8), (2**30, 1))
    far.copy_(weight)
    found = kernels.forward(rows, far, *rest, 20.0, False, True, True)
    expected = kernels.forward(rows, weight, *rest, 20.0, False, True, True)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("wants", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("low_memory", [False, True])
def test_make_what_is_wanted(wants, low_memory):
    given = inputs(20, 30, 8)
    expected = kernels.forward(*given, 20.0, low_memory, True, True)
    found = kernels.forward(*given, 20.0, low_memory, *wants)
    assert torch.equal(found[0], expected[0])
    for got, truth, want in zip(found[1:], expected[1:], wants, strict=True):
        assert torch.equal(got, truth) if want else got is None


def test_no_rows_have_no_gradient():
    found, d_rows, d_weight = kernels.forward(*inputs(0, 5, 4), 20.0, False, True, True)
    assert found.shape == (0,)
    assert d_rows.shape == (0, 4)
    assert torch.equal(d_weight, torch.zeros(5, 4))


@pytest.mark.parametrize("scale", [20.0, 1000.0])
def test_a_class_alone_has_no_others(scale):
    rows, weight, _, target, row_weights = inputs(5, 1, 4)
    target[0] = -3 * scale
    labels = torch.tensor([0, 0, -1, 0, 0])
    given = rows, weight, labels, target, torch.where(labels < 0, 0, row_weights)
    found, d_rows, d_weight = kernels.forward(*given, scale, False, True, True)
    assert found.isinf().tolist() == [True, True, False, True, True]
    assert torch.equal(d_rows, torch.zeros(5, 4))
    assert torch.equal(d_weight, torch.zeros(1, 4))


def test_rows_that_do_not_count_change_nothing():
    rows, weight, _, target, _ = inputs(5, 7, 4)
    labels, nothing = torch.full((5,), -1), torch.zeros(5)
    found = kernels.forward(torch.zeros_like(rows), weight, labels, target, nothing, 20.0, 0, 1, 1)
    assert torch.allclose(found[0], torch.tensor(7.0).log())
    assert not any(d.any() for d in found[1:])


@DTYPES
def test_zeros_have_no_direction(dtype):
    given = inputs(12, 9, 8, dtype)
    given[0][3], given[1][2] = 0, 0
    _, d_rows, d_weight = check(given)
    assert not d_rows[3].any()
    assert not d_weight[2].any()


@pytest.mark.parametrize(("dtype", "d"), [(FULL, 20), (BRAIN, 20), (BRAIN, 24)])
@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_lengths_do_not_matter(dtype, d, low_memory, mixed, size):
    given = inputs(12, 30, d, dtype)
    check_lengths(given, size, mixed, low_memory)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_not_finite_makes_all_nan(value, which):
    given = inputs(5, 7, 4)
    given[which][2, 1] = value
    for low_memory in (False, True):
        found = kernels.forward(*given, 20.0, low_memory, True, True)
        assert all(t.isnan().all() for t in found)


@pytest.mark.parametrize("scale", [20.0, 1000.0])
@pytest.mark.parametrize("which", [3, 4])
def test_a_row_weight_or_target_that_is_nan_makes_its_gradients_so(which, scale):
    given = inputs(5, 7, 4)
    given[which][2] = torch.nan
    found, d_rows, d_weight = kernels.forward(*given, scale, False, True, True)
    assert found.isfinite().all()
    assert d_rows[2].isnan().all()
    assert d_weight.isnan().all()


@DTYPES
@pytest.mark.parametrize("low_memory", [False, True])
def test_repeat_to_the_bit(dtype, low_memory):
    given = inputs(40, 150, 20, dtype)
    expected = kernels.forward(*given, 20.0, low_memory, True, True)
    found = kernels.forward(*given, 20.0, low_memory, True, True)
    assert all(map(torch.equal, found, expected))


def test_plain_tf32_is_taken_where_torch_was_told_to(monkeypatch):
    given = inputs(40, 70, 20)
    expected = kernels.forward(*given, 20.0, False, True, True)
    monkeypatch.setattr("dmlfast.ops.triton.configs.exact_products", lambda: False)
    found = kernels.forward(*given, 20.0, False, True, True)
    for got, truth in zip(found, expected, strict=True):
        error = (got - truth).abs().max() / truth.abs().max()
        assert 1e-6 < error < 2e-3


@pytest.mark.parametrize("n", [1, 300, 4096, 10**6])
@pytest.mark.parametrize("m", [1, 1000, 10**6, 10**7])
@pytest.mark.parametrize("d", [64, 512, 4096])
@pytest.mark.parametrize("size", [2, 4])
def test_scratch_is_bounded(n, m, d, size):
    for scale, low_memory in ((20.0, False), (20.0, True), (500.0, False)):
        plan = sides.plan_of(n, m, d, size, scale, low_memory)
        assert plan.rows % sides.TILE == plan.classes % sides.TILE == 0
        assert plan.kept <= (plan.classes >= m)
        of_a_class = plan.rows * size + 4 * d
        if plan.kept and plan.classes * of_a_class > sides.BLOCK:
            assert plan.rows * plan.classes * size <= sides.KEPT
        elif plan.classes > sides.TILE:
            assert plan.classes * of_a_class <= sides.BLOCK
        if low_memory and plan.classes > sides.TILE:
            copies = 3 * sides.padded(n) * d * size
            assert plan.classes * of_a_class <= max(sides.LOW - copies, sides.LOW_BLOCK)


def test_the_goals_take_the_ways_meant_for_them():
    large = 4096, 10**6, 512
    assert sides.plan_of(*large, 2, 20.0, False).kept
    assert sides.plan_of(*large, 2, 20.0, False).rows == 1024
    assert sides.plan_of(*large, 4, 64.0, False)[:3] == (512, 1_000_064, True)
    assert sides.plan_of(*large, 2, 20.0, True) == (4096, 3840, False, False)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("low_memory", [False, True])
def test_serve_the_loss(reduction, low_memory):
    rows, weight, labels, *_ = inputs(30, 40, 12)
    labels = labels.masked_fill(labels == -1, -100)
    options = {
        "cosine_margin": 0.1,
        "angular_margin": 0.2,
        "label_smoothing": 0.1,
        "reduction": reduction,
        "low_memory": low_memory,
    }

    def results(impl, dtype):
        given = [t.detach().to(dtype).requires_grad_() for t in (rows, weight)]
        loss = norm_softmax_loss(given[0], labels, given[1], impl=impl, **options)
        upstream = torch.linspace(-1, 2, loss.numel(), dtype=dtype).view(loss.shape)
        return [loss.detach(), *torch.autograd.grad(loss, given, upstream)]

    exact, yard = results("reference", torch.float64), results("reference", FULL)
    assert_accurate(results("triton", FULL), exact, yard, ULPS + 20)


BLOCKS = {"ROWS": 128, "BLOCK": 1, "LOW_BLOCK": 1, "SUMS": 1}


@DTYPES
@pytest.mark.parametrize("options", [{}, {"temperature": 0.005}, {"label_smoothing": 0.3}], ids=str)
def test_gradients_of_blocks_are_those_of_all_classes_together(monkeypatch, options, dtype):
    """Rounded once either way, also of classes that many rows have as their label."""
    rows, weight, labels, *_ = inputs(150, 300, 20, dtype)
    labels = torch.where(labels % 3 > 0, labels % 5, labels).masked_fill(labels == -1, -100)

    def results(low_memory):
        given = [t.detach().to(dtype).requires_grad_() for t in (rows, weight)]
        loss = norm_softmax_loss(
            given[0], labels, given[1], impl="triton", low_memory=low_memory, **options
        )
        return [loss.detach(), *torch.autograd.grad(loss, given, torch.tensor(2.0))]

    set_sizes(monkeypatch, BLOCKS)
    for got, truth in zip(results(True), results(False), strict=True):
        assert got.dtype == truth.dtype
        units = 40 if dtype == FULL else 1  # the interpreter cuts off bfloat16
        allowed = units * torch.finfo(got.dtype).eps * truth.float().abs()
        floor = 40 * torch.finfo(FULL).eps * truth.float().abs().max()
        assert ((got.float() - truth.float()).abs() <= allowed + floor).all()
