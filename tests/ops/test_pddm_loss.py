"""The loss of quadruplets, in one launch and its gradients: against the reference in float64."""

from copy import deepcopy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dmlfast.ops.pddm.hinges import quadruplet_loss
from dmlfast.ops.pddm.settings import Hinges
from dmlfast.ops.pddm.unit import weights_of

from .helpers import ULPS, assert_accurate, generator
from .test_pddm import KERNELS, LAYERS, NORMALIZE, rows_of, unit_of, wide

EVERY_KERNEL = pytest.mark.parametrize("impl", KERNELS)
PAPER = Hinges(3.0, 1.0, 0.5, False, 2)
TRIPLETS = Hinges(0.4, 0.2, 2.0, True, 1)


def quadruplets_of(n, count, seed=0):
    """Some, of which a few are missing and rows may be in any number of them."""
    found = torch.randint(0, n, (count, 4), generator=generator(seed + count))
    found[1::7] = -1
    return found


def results(impl, x, unit, quadruplets, hinges=PAPER, upstream=1.5):
    """The loss, and its gradients for rows and weights."""
    x = x.detach().requires_grad_()
    loss = quadruplet_loss(x, quadruplets, unit, hinges, impl=impl)
    found = torch.autograd.grad(loss, [x, *unit.parameters()], loss.new_tensor(upstream))
    return [loss.detach(), *found]


def assert_right(impl, x, unit, quadruplets, hinges=PAPER):
    exact = results("reference", x.double(), wide(unit), quadruplets, hinges)
    plain = results("reference", x.float(), unit, quadruplets, hinges)
    found = results(impl, x, unit, quadruplets, hinges)
    assert found[0].dtype == torch.float32
    assert found[1].dtype == x.dtype
    check(found, exact, plain, impl)


def check(found, exact, plain, impl):
    assert_accurate(found[:-1], exact[:-1], plain[:-1], 2 * ULPS, name=impl)
    assert found[-1].abs() <= 1e-6  # the bias of scores, of which differences alone count


WIDTHS = [(1, 1, 1), (5, 3, 4), (17, 33, 9), (64, 64, 11), (70, 130, 5)]


@EVERY_KERNEL
@NORMALIZE
@pytest.mark.parametrize("hinges", [PAPER, TRIPLETS])
@pytest.mark.parametrize(("d", "h", "count"), WIDTHS)
def test_accuracy(d, h, count, hinges, normalize, impl):
    unit, quadruplets = unit_of(d, h, normalize), quadruplets_of(37, count)
    assert (quadruplets < 0).any() or count == 1
    assert_right(impl, torch.randn(37, d, generator=generator(d)), unit, quadruplets, hinges)


@EVERY_KERNEL
@pytest.mark.parametrize("hinges", [PAPER._replace(squared=True), PAPER._replace(ends=1)])
def test_other_hinges(hinges, impl):
    x, unit = torch.randn(20, 6, generator=generator(0)), unit_of(6)
    assert_right(impl, x, unit, quadruplets_of(20, 9), hinges)
    assert_right(impl, x, unit, quadruplets_of(20, 9), hinges._replace(embedding_weight=0.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@NORMALIZE
def test_half_precision_rows_are_taken_as_they_are(normalize, dtype):
    """In float32, and gradients are rounded once; weights may be halves too."""
    x = torch.randn(31, 24, generator=generator(1)).to(dtype)
    for impl in KERNELS:
        assert_right(impl, x, unit_of(24, 20, normalize), quadruplets_of(31, 9))
        low = unit_of(24, 20, normalize).to(dtype)
        found = results(impl, x, low, quadruplets_of(31, 9))
        expected = results("reference", x, low, quadruplets_of(31, 9))
        assert [t.dtype for t in found[2:]] == [dtype] * 8
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("widths", [(7, 3, 5), (70, 20, 40)])
def test_layers_of_any_width(widths):
    random, (h_d, h_m, h) = generator(0), widths
    shapes = (h_d, 6), (h_d,), (h_m, 6), (h_m,), (h, h_d + h_m), (h,), (1, h), (1,)
    weights = [torch.randn(shape, generator=random) for shape in shapes]
    x = torch.randn(20, 6, generator=random)

    def solved(impl, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in (x, *weights)]
        layers = dict(zip(LAYERS, zip(leaves[1::2], leaves[2::2], strict=True), strict=True))
        unit = torch.nn.Module()
        for name, (weight, bias) in layers.items():
            layer = torch.nn.Module()
            layer.weight, layer.bias = weight, bias
            setattr(unit, name, layer)
        loss = quadruplet_loss(leaves[0], quadruplets_of(20, 9), unit, PAPER, impl=impl)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    exact, plain = (solved("reference", dtype) for dtype in (torch.float64, torch.float32))
    for impl in KERNELS:
        check(solved(impl, torch.float32), exact, plain, impl)


@pytest.mark.parametrize("floats", [1, 16 * 400])
def test_parts_of_the_quadruplets(floats, monkeypatch):
    """One after the other: their sums are those of all at once."""
    pytest.importorskip("triton")
    monkeypatch.setattr("dmlfast.ops.pddm.triton.loss.BLOCK_FLOATS", floats)
    x, unit = torch.randn(50, 9, generator=generator(0)), unit_of(9, 10)
    assert_right("triton", x, unit, quadruplets_of(50, 30))


def test_a_row_that_is_in_every_quadruplet():
    """Whose gradients are more than a program looks through at once."""
    x, unit = torch.randn(9, 5, generator=generator(0)), unit_of(5, 6)
    quadruplets = torch.randint(0, 8, (75, 4), generator=generator(1))
    quadruplets[:, 2] = 7
    quadruplets[73:, 0] = 8
    assert_right("triton", x, unit, quadruplets)


@EVERY_KERNEL
@NORMALIZE
def test_duplicates_zeros_and_opposites(normalize, impl):
    x, unit = rows_of(12, 6), unit_of(6, 7, normalize)
    quadruplets = torch.tensor([[0, 1, 2, 3], [2, 3, 5, 0], [6, 7, 6, 7], [5, 5, 0, 9]])
    for hinges in (PAPER, PAPER._replace(squared=True)):
        found = results(impl, x, unit, quadruplets, hinges)
        expected = results("reference", x, unit, quadruplets, hinges)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@EVERY_KERNEL
@pytest.mark.parametrize("scale", [1e-2, 1e4])
def test_lengths_of_rows(scale, impl):
    """Scores all but cancel where rows are short."""
    x, unit = scale * torch.randn(20, 6, generator=generator(0)), unit_of(6, 7)
    given = quadruplets_of(20, 9), PAPER._replace(score_margin=1e5)
    found = results(impl, x, unit, *given)
    exact = results("reference", x.double(), wide(unit), *given)
    for got, truth in zip(found[:-1], exact[:-1], strict=True):
        assert (got - truth).abs().max() <= 1e-4 * truth.abs().max() + 1e-6


@EVERY_KERNEL
@pytest.mark.parametrize("branch", ["difference", "mean", "joint"])
def test_a_layer_may_be_dead(branch, impl):
    unit = unit_of(6, 7)
    getattr(unit, branch).bias.data.fill_(-1e3)
    x = torch.randn(20, 6, generator=generator(0))
    found = results(impl, x, unit, quadruplets_of(20, 9))
    torch.testing.assert_close(found, results("reference", x, unit, quadruplets_of(20, 9)))


@EVERY_KERNEL
def test_hinges_that_are_met_have_no_gradient(impl):
    x, unit = torch.randn(20, 6, generator=generator(0)), unit_of(6, 7)
    found = results(impl, x, unit, quadruplets_of(20, 9), PAPER._replace(score_margin=-1e3))
    assert all(not gradient.any() for gradient in found[2:])
    assert found[1].any()
    met = Hinges(-1e3, -1e3, 0.5, False, 2)
    assert not any(t.any() for t in results(impl, x, unit, quadruplets_of(20, 9), met))


@EVERY_KERNEL
def test_no_quadruplet_at_all(impl):
    x, unit = torch.randn(20, 6, generator=generator(0)), unit_of(6, 7)
    found = results(impl, x, unit, torch.full((5, 4), -1))
    assert not any(t.any() for t in found)


@EVERY_KERNEL
@pytest.mark.parametrize("some", [True, False])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_makes_the_loss_nan(value, some, impl):
    """Also a row that is in no quadruplet, and also where there is none."""
    quadruplets = torch.tensor([[0, 1, 2, 3]] if some else [[-1] * 4])
    x, unit = torch.randn(70, 6, generator=generator(0)), unit_of(6, 7)
    for row in (0, 33, 69):
        broken = x.clone()
        broken[row, 5] = value
        assert quadruplet_loss(broken, quadruplets, unit, PAPER, impl=impl).isnan()
    for layer in LAYERS:
        for part in ("weight", "bias"):
            unit = unit_of(6, 7)
            getattr(getattr(unit, layer), part).data.view(-1)[-1] = value
            assert quadruplet_loss(x, quadruplets, unit, PAPER, impl=impl).isnan()


@EVERY_KERNEL
def test_any_strides(impl):
    x, unit, quadruplets = rows_of(15, 6), unit_of(6, 7), quadruplets_of(15, 9)
    expected = results(impl, x, unit, quadruplets)
    for layer in LAYERS:
        weight = getattr(unit, layer).weight
        weight.data = weight.data.T.contiguous().T
    spread = torch.stack([quadruplets, quadruplets.flip(0)], 2)[..., 0]
    gaps = torch.full((30, 12), torch.nan)
    for view in (x.T.contiguous().T, gaps[1::2, 1::2].copy_(x)):
        found = results(impl, view, unit, spread)
        if impl == "cpu":
            torch.testing.assert_close(found, expected)
        else:
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@EVERY_KERNEL
def test_gradients_only_where_wanted(impl):
    x, unit, quadruplets = rows_of(15, 6), unit_of(6, 7), quadruplets_of(15, 9)
    loss, d_rows, *d_weights = results(impl, x, unit, quadruplets, upstream=1.0)
    for parameter in unit.parameters():
        parameter.requires_grad_(False)
    plain = quadruplet_loss(x, quadruplets, unit, PAPER, impl=impl)
    assert not plain.requires_grad
    torch.testing.assert_close(plain, loss)
    leaf = x.clone().requires_grad_()
    quadruplet_loss(leaf, quadruplets, unit, PAPER, impl=impl).backward()
    assert torch.equal(leaf.grad, d_rows)
    unit.joint.weight.requires_grad_()
    quadruplet_loss(x, quadruplets, unit, PAPER, impl=impl).backward()
    assert torch.equal(unit.joint.weight.grad, d_weights[4])
    with torch.no_grad():
        torch.testing.assert_close(quadruplet_loss(leaf, quadruplets, unit, PAPER, impl=impl), loss)


@EVERY_KERNEL
@pytest.mark.parametrize("full", [[], ["joint"], ["difference", "mean", "joint", "score"]])
def test_weights_of_any_precision_have_gradients_rounded_once(full, impl):
    unit, x = unit_of(9, 7).bfloat16(), torch.randn(20, 9, generator=generator(0)).bfloat16()
    quadruplets = quadruplets_of(20, 6)
    expected = results(impl, x, deepcopy(unit).float(), quadruplets)
    for name in full:
        bias = getattr(unit, name).bias
        bias.data = bias.data.float()
    found = results(impl, x, unit, quadruplets)
    assert torch.equal(found[0], expected[0])
    for got, exact, given in zip(found[2:], expected[2:], unit.parameters(), strict=True):
        assert got.dtype == given.dtype
        assert torch.equal(got, exact.to(given.dtype))


@EVERY_KERNEL
def test_second_derivatives_raise(impl):
    x, unit = rows_of(10, 4).requires_grad_(), unit_of(4)
    loss = quadruplet_loss(x, quadruplets_of(10, 3), unit, PAPER, impl=impl)
    (found,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        found.sum().backward()


@EVERY_KERNEL
def test_autocast_does_not_reach_it(impl):
    x, unit, quadruplets = rows_of(15, 6), unit_of(6, 7), quadruplets_of(15, 9)
    expected = results(impl, x, unit, quadruplets)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(impl, x, unit, quadruplets)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@EVERY_KERNEL
@pytest.mark.parametrize("want", [False, True])
def test_opcheck(want, impl):
    x, unit = rows_of(10, 4).requires_grad_(want), unit_of(4, 3).requires_grad_(want)
    weights = weights_of(unit, x)
    given = x, quadruplets_of(10, 5), *weights, False, *PAPER, want, impl
    torch.library.opcheck(torch.ops.dmlfast.pddm_quadruplet_loss.default, given)


@EVERY_KERNEL
def test_fake_tensors_and_a_whole_graph(impl):
    x, unit, quadruplets = rows_of(10, 4), unit_of(4, 3), quadruplets_of(10, 5)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        loss = quadruplet_loss(mode.from_tensor(x), quadruplets, unit, PAPER, impl=impl)
        assert (loss.shape, loss.dtype) == ((), torch.float32)
    torch._dynamo.reset()

    def f(x):
        return 2 * quadruplet_loss(x, quadruplets, unit, PAPER, impl=impl)

    found = []
    for each in (f, torch.compile(f, backend="aot_eager", fullgraph=True)):
        leaf = x.clone().requires_grad_()
        value = each(leaf)
        found.append([value.detach(), *torch.autograd.grad(value, [leaf, *unit.parameters()])])
    torch.testing.assert_close(found[1], found[0])


def test_what_a_unit_lacks_is_said():
    with pytest.raises(TypeError, match=r"unit.difference must be a linear layer"):
        quadruplet_loss(torch.ones(3, 2), quadruplets_of(3, 1), object(), PAPER)
    with pytest.raises(RuntimeError, match="no kernels for it"):
        quadruplet_loss(torch.ones(3, 2), quadruplets_of(3, 1), unit_of(2), PAPER, impl="cuda")
