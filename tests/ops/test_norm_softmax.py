"""The normalised softmax: every backend against the reference in float64, that against torch."""

import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch._subclasses.fake_tensor import FakeTensorMode

from dmlfast import ops
from dmlfast.ops.norm_softmax import cpu

from .covering import shortly
from .helpers import assert_accurate, generator, instruction_sets, upstream_for

KERNELS = ["cpu", "triton"]
EVERY_KERNEL = pytest.mark.parametrize("impl", KERNELS)
EVERY_IMPL = pytest.mark.parametrize("impl", ["reference", *KERNELS])
OPTIONS = [
    {},
    {"temperature": 1.0, "cosine_margin": 0.35},
    {"temperature": 0.1, "angular_margin": 0.5},
    {"label_smoothing": 0.1, "reduction": "sum"},
    {"temperature": 0.5, "cosine_margin": 0.1, "angular_margin": 0.3, "label_smoothing": 0.4},
    {"temperature": 0.01},  # exponents that span 200
]


def problem(n, c, d, seed=0, ignored=True):
    """Rows (n, d), labels (n,) and weights (c, d); a fifth of the rows does not count."""
    random = generator(seed + n + 7 * c + d)
    rows, weight = (torch.randn(k, d, generator=random) for k in (n, c))
    labels = torch.randint(0, c, (n,), generator=random)
    if ignored:
        labels[::5] = -100
    return rows * 3, labels, weight / 2


def results(impl, rows, labels, weight, dtype=None, upstream=upstream_for, **options):
    """The loss and its gradients for rows and weights."""
    x, w = (
        (t if dtype is None else t.to(dtype)).detach().clone().requires_grad_()
        for t in (rows, weight)
    )
    loss = ops.norm_softmax_loss(x, labels, w, impl=impl, **options)
    return [loss.detach(), *torch.autograd.grad(loss, (x, w), upstream(loss))]


def assert_right(impl, rows, labels, weight, ulps=4, **options):
    exact = results("reference", rows, labels, weight, torch.float64, **options)
    plain = results("reference", rows, labels, weight, torch.float32, **options)
    found = results(impl, rows, labels, weight, **options)
    # PyTorch rounds the logits, of up to 1 / temperature, and so may the kernels
    ulps += 1 / options.get("temperature", 0.05)
    assert_accurate(found, exact, plain, ulps, impl)


@EVERY_KERNEL
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("n", "c", "d"), [(1, 2, 2), (7, 5, 3), (65, 300, 17), (130, 513, 40)])
def test_accuracy(n, c, d, options, impl):
    assert_right(impl, *problem(n, c, d), **options)


@EVERY_KERNEL
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("n", "c", "d"), [(1, 2, 2), (65, 300, 17)])
def test_accuracy_in_low_memory(n, c, d, options, impl):
    assert_right(impl, *problem(n, c, d), low_memory=True, **options)


@EVERY_KERNEL
@pytest.mark.parametrize("options", OPTIONS[:5:2], ids=str)
def test_losses_of_rows(options, impl):
    assert_right(impl, *problem(40, 90, 9), reduction="none", **options)


@pytest.mark.parametrize("d", [2, 5, 16, 100, 257, 1030, 4096])
def test_widths_on_the_cpu(d):
    for _ in instruction_sets():
        assert_right("cpu", *problem(20, 70, d))


@pytest.mark.parametrize(("n", "c"), [(300, 70), (1, 4000), (700, 1300), (1100, 300)])
@pytest.mark.parametrize("scratch", [0, 300_000, 10**8])
def test_chunks_and_lanes_on_the_cpu(n, c, scratch, monkeypatch):
    monkeypatch.setattr(cpu, "SCRATCH_BYTES", scratch)
    assert_right("cpu", *problem(n, c, 12))
    assert_right("cpu", *problem(n, c, 12), temperature=0.02)


@pytest.mark.parametrize("scratch", [0, 10**8])
def test_a_maximum_that_rises_from_block_to_block(scratch, monkeypatch):
    """More blocks of classes than lanes, and exponents that need a running maximum."""
    monkeypatch.setattr(cpu, "SCRATCH_BYTES", scratch)
    assert_right("cpu", *problem(40, 9000, 4), temperature=0.01)


@EVERY_KERNEL
def test_low_memory_gives_the_same(impl):
    p = problem(100, 300, 20)
    torch.testing.assert_close(results(impl, *p), results(impl, *p, low_memory=True))


@EVERY_KERNEL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("low_memory", [False, True])
def test_half_precision(low_memory, both, dtype, impl):
    """Rounded once on the CPU; a GPU's exponentials, and rows between products, are as precise."""
    rows, labels, weight = problem(60, 80, 24)
    rows, weight = rows.to(dtype), weight.to(dtype) if both else weight
    found = results(impl, rows, labels, weight, low_memory=low_memory)
    wide = results(impl, rows.float(), labels, weight.float())
    assert [t.dtype for t in found] == [torch.float32, dtype, dtype if both else torch.float32]
    for got, expected in zip(found, wide, strict=True):
        units = (0.5 if impl == "cpu" else 2.5) * torch.finfo(dtype).eps
        allowed = units * (expected.abs() if impl == "cpu" else expected.abs().max()) + 1e-7
        assert ((got.float() - expected).abs() <= allowed).all()


@EVERY_KERNEL
@pytest.mark.parametrize("low_memory", [False, True])
def test_a_scaled_loss_keeps_gradients_that_float16_has_no_digits_for(low_memory, impl):
    rows, labels, weight = problem(60, 80, 24)
    p = rows.half() * 2048, labels, weight.half() * 8192
    scale = 2.0**15

    def scaled(dtype):
        options = {"upstream": partial(torch.full_like, fill_value=scale), "low_memory": low_memory}
        return results(impl, *p, dtype=dtype, **options)[1:]

    for found, exact in zip(scaled(None), scaled(torch.float32), strict=True):
        assert found.dtype == torch.float16
        assert (exact / scale).abs().median() < 2.0**-19
        torch.testing.assert_close(found.float(), exact, rtol=2e-3, atol=2e-3 * exact.abs().max())


@EVERY_KERNEL
def test_wide_rows_are_not_rounded_to_narrow_weights(impl):
    rows, labels, weight = problem(60, 80, 24)
    weight = weight.bfloat16()
    loss, d_rows, d_weight = results(impl, rows, labels, weight)
    expected = results(impl, rows, labels, weight.float())
    torch.testing.assert_close([loss, d_rows], expected[:2])
    torch.testing.assert_close(d_weight, expected[2].bfloat16())


@EVERY_IMPL
def test_it_is_cross_entropy_of_normalised_logits(impl):
    rows, labels, weight = problem(30, 20, 6)
    for options in ({}, {"label_smoothing": 0.2}, {"reduction": "sum"}, {"reduction": "none"}):
        expected = F.cross_entropy(
            F.normalize(rows) @ F.normalize(weight).T / 0.05, labels, **options
        )
        found = ops.norm_softmax_loss(rows, labels, weight, impl=impl, **options)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    other = torch.where(labels == -100, 7, labels)
    expected = F.cross_entropy(
        F.normalize(rows) @ F.normalize(weight).T / 0.05, other, ignore_index=7
    )
    found = ops.norm_softmax_loss(rows, other, weight, ignore_index=7, impl=impl)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_margins_are_those_of_cosface_and_arcface():
    rows, labels, weight = (
        t.double() if t.is_floating_point() else t for t in problem(9, 5, 4, ignored=False)
    )
    cosines = F.normalize(rows) @ F.normalize(weight).T
    own = F.one_hot(labels, 5).bool()
    for options, changed in (
        ({"cosine_margin": 0.35}, cosines - 0.35),
        ({"angular_margin": 0.5}, (cosines.acos() + 0.5).cos()),
        ({"angular_margin": 0.3, "cosine_margin": 0.2}, (cosines.acos() + 0.3).cos() - 0.2),
    ):
        logits = torch.where(own, changed, cosines) / 0.1
        found = ops.norm_softmax_loss(rows, labels, weight, temperature=0.1, **options)
        torch.testing.assert_close(found, F.cross_entropy(logits, labels))


@pytest.mark.parametrize("options", OPTIONS[:5], ids=str)
def test_gradients_of_the_reference(options):
    rows, labels, weight = problem(6, 5, 4)
    x, w = rows.double().requires_grad_(), weight.double().requires_grad_()
    loss = partial(ops.norm_softmax_loss, **{"temperature": 0.5, **options})
    assert torch.autograd.gradcheck(lambda x, w: loss(x, labels, w), (x, w))


@EVERY_KERNEL
def test_a_loss_near_zero_keeps_its_digits(impl):
    weight = torch.eye(40)[:, :39]  # the last class is zeros
    rows, labels = weight[:30] * 5 + 0.1, torch.arange(30)
    cosines = F.normalize(rows.double()) @ F.normalize(weight.double()).T / 0.03
    own = cosines.diagonal().clone()
    exact = F.softplus(cosines.fill_diagonal_(-torch.inf).logsumexp(1) - own)
    options = {"temperature": 0.03, "reduction": "none"}
    found = ops.norm_softmax_loss(rows, labels, weight, impl=impl, **options)
    assert exact.max() < 1e-12
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=0)


@EVERY_IMPL
def test_one_class_is_always_right(impl):
    rows, labels, weight = problem(6, 1, 3)
    for tensor in results(impl, rows, labels, weight):
        assert torch.equal(tensor, torch.zeros_like(tensor))


@EVERY_IMPL
@pytest.mark.parametrize("n", [0, 1, 9])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("low_memory", [False, True])
def test_rows_that_do_not_count_give_nothing(low_memory, n, reduction, impl):
    rows, labels = torch.full((n, 4), torch.nan), torch.full((n,), -100)
    options = {"reduction": reduction, "low_memory": low_memory}
    found = results(impl, rows, labels, torch.randn(5, 4), **options)
    assert found[0].shape == ((n,) if reduction == "none" else ())
    for tensor in found:
        assert torch.equal(tensor, torch.zeros_like(tensor))


@EVERY_KERNEL
def test_nothing_arrives_through_rows_that_do_not_count(impl):
    rows, labels, weight = problem(20, 12, 5)
    upstream = torch.ones(20).masked_fill(labels == -100, torch.nan)
    options = {"reduction": "none", "impl": impl}
    found = results(rows=rows, labels=labels, weight=weight, upstream=lambda _: upstream, **options)
    expected = results(rows=rows, labels=labels, weight=weight, upstream=torch.ones_like, **options)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("label", [-1, 12, 2**40, -(2**62)])
@pytest.mark.parametrize("low_memory", [False, True])
def test_a_label_that_is_no_class_makes_the_loss_nan_where_nobody_looks(low_memory, label):
    rows, labels, weight = problem(20, 12, 5)
    labels[3] = label
    options = {"low_memory": low_memory, "label_smoothing": 0.1}
    loss, d_rows, d_weight = results("triton", rows, labels, weight, **options)
    assert loss.isnan()
    assert d_weight.isnan().all()
    assert d_rows[3].isnan().all()
    losses = ops.norm_softmax_loss(rows, labels, weight, reduction="none", impl="triton", **options)
    assert losses.isnan().nonzero().tolist() == [[3]]


@EVERY_KERNEL
@pytest.mark.parametrize("options", OPTIONS[1:5:3], ids=str)
def test_zeros_have_no_direction_and_no_gradient(options, impl):
    rows, labels, weight = problem(20, 12, 5, ignored=False)
    rows[:5], weight[:4] = 0, 0
    labels[0], labels[6] = 1, 2  # zeros of a class of zeros; a row of one
    assert_right(impl, rows, labels, weight, **options)
    _, d_rows, d_weight = results(impl, rows, labels, weight, **options)
    assert not d_rows[:5].any()
    assert not d_weight[:4].any()


@EVERY_KERNEL
def test_rows_that_float32_barely_tells_from_zeros_are_zeros(impl):
    rows, labels, weight = problem(20, 12, 5, ignored=False)
    rows[:5] *= 1e-42
    weight[:4] *= 1e-42
    found = results(impl, rows, labels, weight)
    rows[:5], weight[:4] = 0, 0
    for got, expected in zip(found, results(impl, rows, labels, weight), strict=True):
        torch.testing.assert_close(got, expected)


@EVERY_KERNEL
def test_on_a_line_there_is_nowhere_to_turn(impl):
    p = problem(20, 70, 1)
    found, exact = (results(name, *p) for name in (impl, "reference"))
    torch.testing.assert_close(found[0], exact[0])
    for tensor, gradient in zip(p[::2], found[1:], strict=True):
        assert (tensor * gradient).abs().max() < 1e-5


@EVERY_KERNEL
def test_rows_that_are_their_class_and_its_opposite(impl):
    rows, labels, weight = problem(20, 30, 8, ignored=False)
    rows[::2] = weight[labels[::2]] * 2
    rows[1::4] = -weight[labels[1::4]]
    assert_right(impl, rows, labels, weight, temperature=0.2, angular_margin=0.5)


@EVERY_KERNEL
@pytest.mark.parametrize("size", [1e-30, 1e-4, 1e4, 1e30])
def test_lengths_do_not_matter(size, impl):
    rows, labels, weight = problem(40, 60, 7)
    loss, d_rows, d_weight = results(impl, rows, labels, weight)
    found = results(impl, rows * size, labels, weight / size)
    torch.testing.assert_close(found[0], loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1] * size, d_rows, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[2] / size, d_weight, rtol=1e-4, atol=1e-6)


@EVERY_IMPL
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize(
    "options", [{}, {"reduction": "none"}, {"low_memory": True, "label_smoothing": 0.1}], ids=str
)
def test_a_value_that_is_not_finite_gives_nan(place, value, options, impl):
    p = problem(20, 15, 4, ignored=False)
    p[place][3, 1] = value
    for tensor in results(impl, *p, **options):
        assert tensor.isnan().any()
        if impl != "reference":
            assert tensor.isnan().all()


@EVERY_IMPL
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("low_memory", [False, True])
def test_a_class_that_is_not_finite_gives_nan_where_no_row_counts(reduction, low_memory, impl):
    rows, labels, weight = problem(5, 15, 4)
    options = {"reduction": reduction, "low_memory": low_memory, "impl": impl}
    none = torch.full_like(labels, -100)
    assert not ops.norm_softmax_loss(rows, none, weight, **options).any()
    assert not ops.norm_softmax_loss(rows, none, weight[:1], **options).any()
    weight[3, 1] = torch.nan
    assert ops.norm_softmax_loss(rows, none, weight, **options).isnan().all()
    labels[0] = -100
    assert ops.norm_softmax_loss(rows, labels, weight, **options).isnan().all()


@EVERY_KERNEL
def test_strides_and_integers_of_any_kind(impl):
    rows, labels, weight = problem(30, 40, 8)
    expected = ops.norm_softmax_loss(rows, labels, weight, impl=impl)
    strided = (rows.T.contiguous().T, labels.int(), torch.cat([weight, weight], 1)[:, :8])
    assert torch.equal(ops.norm_softmax_loss(*strided, impl=impl), expected)


@EVERY_KERNEL
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("low_memory", [False, True])
def test_gradients_only_where_wanted(low_memory, reduction, impl):
    rows, labels, weight = problem(30, 40, 8)
    options = {"reduction": reduction, "low_memory": low_memory}
    p = rows, labels, weight
    _, d_rows, d_weight = results(impl, *p, upstream=torch.ones_like, **options)
    for wanted, expected in ((rows, d_rows), (weight, d_weight)):
        leaf = wanted.clone().requires_grad_()
        p = [leaf if t is wanted else t for t in (rows, labels, weight)]
        ops.norm_softmax_loss(*p, impl=impl, **options).sum().backward()
        torch.testing.assert_close(leaf.grad, expected)
    assert not ops.norm_softmax_loss(rows, labels, weight, impl=impl).requires_grad


@EVERY_KERNEL
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("low_memory", [False, True])
def test_a_graph_that_is_retained_gives_its_gradients_again(low_memory, reduction, impl):
    rows, labels, weight = problem(30, 40, 8)
    x, w = rows.requires_grad_(), weight.requires_grad_()
    options = {"reduction": reduction, "low_memory": low_memory}
    loss = ops.norm_softmax_loss(x, labels, w, impl=impl, **options).sum()
    first = torch.autograd.grad(loss, (x, w), torch.tensor(3.0), retain_graph=True)
    second = torch.autograd.grad(loss, (x, w), torch.tensor(0.5))
    torch.testing.assert_close([g / 6 for g in first], list(second))


@EVERY_KERNEL
def test_second_derivatives_raise(impl):
    rows, labels, weight = problem(10, 8, 4)
    x = rows.requires_grad_()
    loss = ops.norm_softmax_loss(x, labels, weight, impl=impl)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        gradient.sum().backward()


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize(("n", "c"), [(100, 3000), (1100, 700)])
def test_threads_do_not_change_a_bit(n, c, low_memory, threads):
    p = problem(n, c, 9)
    found = []
    for count in (1, 2, 5):
        threads(count)
        found.append(results("cpu", *p, low_memory=low_memory))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": torch.tensor([0, 5, 1])},
            "labels must be from 0 to 3, or ignore_index: there is 5",
        ),
        ({"labels": torch.tensor([0, -1, 1])}, "there is -1"),
        ({"weight": torch.ones(4, 3)}, "weight must have the width of embeddings, 2, not 3"),
        ({"weight": torch.ones(0, 2)}, "weight must have a row for each class"),
        ({"temperature": 0.0}, "temperature must be above 0, not 0.0"),
        ({"labels": torch.tensor([0, -9, 1])}, "there is -9"),
        ({"temperature": torch.nan}, "temperature must be a finite number"),
        ({"label_smoothing": 1.5}, "label_smoothing must be from 0 to 1, not 1.5"),
        ({"reduction": "nonzero"}, "reduction must be one of mean, sum, none"),
    ],
)
def test_what_cannot_be_is_said(changes, message):
    arguments = {
        "embeddings": torch.ones(3, 2),
        "labels": torch.tensor([0, 1, 2]),
        "weight": torch.ones(4, 2),
        "impl": "cpu",
    }
    with pytest.raises(ValueError, match=message):
        ops.norm_softmax_loss(**arguments | changes)
    with pytest.raises(TypeError, match="ignore_index must be an integer, not 2"):
        ops.norm_softmax_loss(**arguments, ignore_index=2.7)


@pytest.mark.parametrize(
    ("low_memory", "requires_grad", "reduction", "impl"),
    shortly([False, True], [False, True], ["mean", "none"], KERNELS),
)
def test_opcheck(low_memory, requires_grad, reduction, impl):
    rows, labels, weight = problem(12, 9, 5)
    x, w = rows.requires_grad_(requires_grad), weight.requires_grad_(requires_grad)
    rest = (0.05, 0.1, 0.2, 0.1, -100, low_memory, requires_grad, requires_grad, impl)
    torch.library.opcheck(torch.ops.dmlfast.norm_softmax.default, (x, w, labels, reduction, *rest))
    rest = (0.05, 0.1, 0.2, 0.1, -100, low_memory, True, True, impl)
    known = torch.rand(12) if low_memory and impl == "triton" else None
    given = rows, weight, labels, torch.rand(12), known
    torch.library.opcheck(torch.ops.dmlfast.norm_softmax_grad.default, (*given, *rest))


@EVERY_KERNEL
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("low_memory", [False, True])
def test_fake_tensors_and_a_whole_graph(low_memory, reduction, impl):
    p = problem(14, 9, 5)
    expected = results(impl, *p, reduction=reduction, low_memory=low_memory)
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        fakes = [mode.from_tensor(t) for t in p]
        options = {"reduction": reduction, "low_memory": low_memory}
        found = results(impl, *fakes, upstream=torch.ones_like, **options)
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in expected]
    torch._dynamo.reset()

    @partial(torch.compile, backend="aot_eager", fullgraph=True)
    def loss_fn(x, labels, w):
        return ops.norm_softmax_loss(x, labels, w, impl=impl, **options)

    x, w = (t.clone().requires_grad_() for t in p[::2])
    loss = loss_fn(x, p[1], w)
    found = [loss.detach(), *torch.autograd.grad(loss, (x, w), upstream_for(loss))]
    torch.testing.assert_close(found, expected)


@EVERY_KERNEL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast_does_not_reach_the_loss(reduction, dtype, impl):
    rows, labels, weight = problem(30, 40, 8)
    given = rows.to(dtype), labels, weight.to(dtype)
    options = {"reduction": reduction, "label_smoothing": 0.1}
    expected = results(impl, *given, **options)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(impl, *given, **options)
    for got, other in zip(found, expected, strict=True):
        assert got.dtype == other.dtype
        assert torch.equal(got, other)


MEASURE = """
import resource, torch
from dmlfast.ops import norm_softmax_loss
torch.set_num_threads(2)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def step(n, c):
    x, w = torch.randn(n, 64, requires_grad=True), torch.randn(c, 64, requires_grad=True)
    labels = torch.randint(0, c, (n,))
    before = peak()
    norm_softmax_loss(x, labels, w, low_memory={low}, impl="cpu").backward()
    return peak() - before - c * 64 * 4 / 2**20
step(8, 300)
print(step(512, 400_000))
"""


@pytest.mark.parametrize(("low", "most"), [(False, 135), (True, 40)])
def test_memory_is_scratch_alone(low, most):
    """The logits alone would be 780 MiB, a copy of the weights 98 MiB."""
    command = [sys.executable, "-c", MEASURE.format(low=low)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(run.stdout) < most
