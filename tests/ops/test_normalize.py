"""Rows at length 1: values and gradients against float64, at any scale, stride and dtype."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dmlfast import ops
from dmlfast.losses import LiftedStructuredLoss, PDDMLoss, ProxyAnchorLoss

from .helpers import (
    IMPLS,
    KERNELS,
    ULPS,
    Problem,
    assert_accurate,
    backends,
    cut_off,
    generator,
    upstream_for,
)
from .test_inputs import LAYOUTS

EVERY_IMPL = pytest.mark.parametrize("impl", IMPLS)
EVERY_KERNEL = pytest.mark.parametrize("impl", KERNELS)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def step(rows, impl="auto", upstream=upstream_for):
    """Rows at length 1, and the gradient of the rows."""
    rows = rows.detach().requires_grad_()
    units = ops.normalize(rows, impl=impl)
    (found,) = torch.autograd.grad(units, rows, upstream(units))
    return [units.detach(), found]


def plain(rows, upstream=upstream_for):
    """The same by the functions of torch."""
    rows = rows.detach().requires_grad_()
    units = torch.nn.functional.normalize(rows, eps=0)
    (found,) = torch.autograd.grad(units, rows, upstream(units))
    return [units.detach(), found]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "d"), [(1, 5), (7, 16), (33, 31), (130, 129), (3, 1024), (2, 1500), (700, 3)]
)
def test_accuracy(n, d, dtype):
    rows = torch.randn(n, d, generator=generator(n)).to(dtype)

    def upstream(value):
        return upstream_for(value).to(dtype).to(value.dtype)

    exact, yard = plain(rows.double(), upstream), plain(rows.float(), upstream)
    assert_accurate(step(rows.double(), "auto", upstream), exact, exact, name="reference")
    for impl in backends(Problem(rows, torch.zeros(n)), KERNELS):
        found = step(rows, impl, upstream)
        assert [tensor.dtype for tensor in found] == [dtype, dtype]
        assert_accurate(found, exact, yard, ULPS + cut_off(dtype, impl), impl)


@EVERY_IMPL
@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-19, 1e19, 1e30, 1e37])
def test_lengths_neither_overflow_nor_vanish(impl, scale):
    """Gradients may: they are as large as lengths are small."""
    rows = torch.randn(5, 40, generator=generator(0))
    units, gradient = step(rows, impl)
    far, its = step(rows * scale, impl, lambda value: upstream_for(value) * min(scale, 1.0))
    torch.testing.assert_close(far, units, rtol=0, atol=2e-7)
    assert its.isfinite().all()
    torch.testing.assert_close(its * max(scale, 1.0), gradient, rtol=1e-5, atol=1e-6)


def test_long_rows_where_subnormal_numbers_are_zeros(threads):
    rows = torch.tensor([[3e38, -3e38, 1.5e38, 0.0]])
    units, _ = step(rows, "cpu")
    threads(1)  # whose setting it is
    torch.set_flush_denormal(True)
    try:
        found = step(rows, "cpu")
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(found[0], units)
    assert found[1].isfinite().all()


@EVERY_IMPL
def test_powers_of_two_change_no_bit(impl):
    rows = torch.randn(9, 20, generator=generator(0))
    units, gradient = step(rows, impl)
    for power in (2.0**-100, 2.0**-3, 2.0**100):
        far, its = step(rows * power, impl)
        assert torch.equal(far, units)
        if power < 2.0**100:  # with which gradients are subnormal
            assert torch.equal(its * power, gradient)


@EVERY_IMPL
def test_rows_without_a_length_are_zeros_and_have_no_gradient(impl):
    rows = torch.tensor([[0.0, 0.0], [1e-40, -1e-39], [0.0, 1.2e-38], [-0.0, 0.0], [3e38, -3e38]])
    units, gradient = step(rows, impl, torch.ones_like)
    half = 0.5**0.5
    expected = torch.tensor([[0.0, 0], [0, 0], [0, 1], [0, 0], [half, -half]])
    torch.testing.assert_close(units, expected)
    assert not gradient[[0, 1, 3]].any()
    assert gradient.isfinite().all()
    assert gradient[2, 0] > 8e37


@EVERY_IMPL
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 3, 21])
def test_a_row_that_is_not_finite_is_nan_and_no_other(impl, value, place):
    rows = torch.randn(3, 22, generator=generator(0))
    units, gradient = step(rows, impl)
    rows[1, place] = value
    found, its = step(rows, impl)
    assert found[1].isnan().all()
    assert its[1].isnan().all()
    assert torch.equal(found[::2], units[::2])
    assert torch.equal(its[::2], gradient[::2])


@EVERY_IMPL
def test_one_component_is_a_sign(impl):
    rows = torch.tensor([[3.0], [-1e-20], [0.0]])
    units, gradient = step(rows, impl)
    assert units.tolist() == [[1.0], [-1.0], [0.0]]
    assert not gradient.any()


@EVERY_IMPL
def test_no_rows(impl):
    for tensor in step(torch.zeros(0, 7), impl):
        assert tensor.shape == (0, 7)


@EVERY_KERNEL
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_any_layout_gives_the_same_bits(impl, layout, dtype):
    rows = torch.randn(12, 9, generator=generator(0)).to(dtype)
    lay = LAYOUTS[layout]
    expected = step(rows, impl)
    found = step(lay(rows), impl, lambda value: lay(upstream_for(value)))
    assert all(map(torch.equal, found, expected))
    assert found[0].is_contiguous()


@EVERY_IMPL
def test_a_gradient_that_is_expanded(impl):
    rows = torch.randn(12, 9, generator=generator(0), requires_grad=True)
    ops.normalize(rows, impl=impl).sum().backward()
    _, expected = plain(rows.double(), torch.ones_like)
    torch.testing.assert_close(rows.grad, expected.float())


def test_threads_do_not_change_a_bit(threads):
    rows = torch.randn(1000, 70, generator=generator(0))
    threads(1)
    expected = step(rows, "cpu")
    for count in (2, 3):
        threads(count)
        assert all(map(torch.equal, step(rows, "cpu"), expected))


def test_the_reference_has_gradients_of_both_orders():
    rows = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        rows[1, 1:] = 0
    assert torch.autograd.gradcheck(ops.normalize, rows)
    assert torch.autograd.gradgradcheck(ops.normalize, rows[2:])


@EVERY_KERNEL
def test_kernels_have_no_second_derivatives(impl):
    rows = torch.randn(5, 4, requires_grad=True)
    (found,) = torch.autograd.grad(ops.normalize(rows, impl=impl).sum(), rows, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        found.sum().backward()


@EVERY_KERNEL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(impl, dtype):
    rows = torch.randn(5, 4, dtype=dtype, requires_grad=True)
    torch.library.opcheck(torch.ops.dmlfast.normalize.default, (rows, impl))
    grad = torch.randn(5, 4, dtype=dtype)
    torch.library.opcheck(torch.ops.dmlfast.normalize_grad.default, (grad, rows.detach(), impl))


@EVERY_IMPL
def test_compiled_and_fake(impl):
    torch._dynamo.reset()
    compiled = torch.compile(ops.normalize, fullgraph=True, backend="aot_eager")
    rows = torch.randn(5, 4)
    expected = step(rows, impl)
    rows.requires_grad_()
    units = compiled(rows, impl=impl)
    (found,) = torch.autograd.grad(units, rows, upstream_for(units))
    assert torch.equal(units, expected[0])
    assert torch.equal(found, expected[1])
    across = rows.detach().T
    with FakeTensorMode() as mode:
        fake = ops.normalize(mode.from_tensor(across), impl=impl)
    assert (fake.shape, fake.stride(), fake.dtype) == ((4, 5), (5, 1), torch.float32)


@EVERY_IMPL
def test_transforms_of_torch_func(impl):
    rows = torch.randn(3, 4, generator=generator(0))
    stack = torch.stack([rows, rows * 3, -rows])
    found = torch.func.vmap(lambda each: ops.normalize(each, impl=impl))(stack)
    assert torch.equal(found[0], ops.normalize(rows, impl=impl))
    torch.testing.assert_close(found[2], -found[0])
    jacobian = torch.func.jacrev(lambda each: ops.normalize(each, impl=impl))(rows)
    exact = torch.func.jacrev(ops.normalize)(rows.double())
    torch.testing.assert_close(jacobian, exact.float())


@EVERY_KERNEL
def test_losses_normalise_by_the_backend_that_they_were_given(impl, monkeypatch):
    from dmlfast.ops.normalize import op

    asked, choose = set(), op.dispatch.module

    def module(package, name, *rest):
        asked.add((package.rsplit(".")[-1], name))
        return choose(package, name, *rest)

    monkeypatch.setattr(op.dispatch, "module", module)
    rows, labels = torch.randn(8, 4, requires_grad=True), torch.arange(8) // 2
    losses = [LiftedStructuredLoss(normalize_embeddings=True, impl=impl)]
    losses += [ProxyAnchorLoss(4, 4, impl=impl)]
    losses += [PDDMLoss(4, impl=impl)] if impl != "cuda" else []  # which has no metric unit
    for loss in losses:
        asked.clear()
        loss(rows, labels).backward()
        assert {name for package, name in asked if package == "normalize"} == {impl}


def test_what_is_wrong_is_named():
    with pytest.raises(TypeError, match=r"^embeddings must be a torch.Tensor, not list$"):
        ops.normalize([[1.0]])
    with pytest.raises(ValueError, match=r"^embeddings must have shape \(N, D\) with D >= 1"):
        ops.normalize(torch.zeros(3))
    with pytest.raises(TypeError, match=r"^embeddings must be floating point"):
        ops.normalize(torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(RuntimeError, match=r"^normalize: impl='cpu' cannot serve this call"):
        ops.normalize(torch.zeros(3, 2, dtype=torch.float64), impl="cpu")
