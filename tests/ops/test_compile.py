"""The ops under torch's own tools: opcheck, fake tensors, compile, autocast, double backward."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from dmlfast.ops import norm_softmax_loss

from .covering import shortly
from .helpers import IMPLS, KERNELS, Problem, generator, lifted, pair_reduce, problem, results

OPS = pytest.mark.parametrize("op", [lifted, pair_reduce])
EVERY_KERNEL = pytest.mark.parametrize("impl", KERNELS)
FLOATS = (torch.float32, torch.bfloat16)
DTYPES = pytest.mark.parametrize("dtype", FLOATS)

BATCH = problem(12, d=5)
BESIDE = problem(12, 9, 5, selves=True, bias=True)


def tensors(p: Problem, dtype: torch.dtype, requires_grad: bool = True) -> tuple:
    p = p.to(dtype)
    rows, columns, bias = (
        None if t is None else t.clone().requires_grad_(requires_grad) for t in p.inputs
    )
    return rows, columns, p.labels, p.column_labels, p.self_index, bias, p.floor


@pytest.mark.parametrize(
    ("impl", "dtype", "p", "requires_grad"),
    shortly(KERNELS, FLOATS, [BATCH, BESIDE], [False, True]),
)
class TestOpcheck:
    def test_lifted(self, p, dtype, requires_grad, impl):
        *pairs, _, _ = tensors(p, dtype, requires_grad)
        wants = requires_grad, requires_grad and p.columns is not None
        torch.library.opcheck(
            torch.ops.dmlfast.lifted_structured_loss.default, (*pairs, 1.0, *wants, impl)
        )

    @pytest.mark.parametrize(("select", "reduce"), [("negative", "logsumexp"), ("all", "sum")])
    def test_pair_reduce(self, p, dtype, requires_grad, select, reduce, impl):
        arguments = (
            *tensors(p, dtype, requires_grad),
            "distance",
            select,
            reduce,
            -1.0,
            0.5,
            impl,
        )
        torch.library.opcheck(torch.ops.dmlfast.pair_reduce.default, arguments)

    def test_pair_grad(self, p, dtype, requires_grad, impl):
        term = ("dot", "other", "logsumexp", 0.3, 0.0, impl)
        pairs = tensors(p, dtype, requires_grad)
        stat = torch.ops.dmlfast.pair_reduce(*pairs, *term).detach()
        wants = True, p.columns is not None, p.bias is not None
        torch.library.opcheck(
            torch.ops.dmlfast.pair_grad.default, (torch.ones(12), *pairs, stat, *wants, *term)
        )


@OPS
@DTYPES
@EVERY_KERNEL
def test_fake_tensors_have_the_shapes_and_dtypes_of_real_ones(op, dtype, impl):
    p = BESIDE.to(dtype)
    real = results(op, p, torch.ones_like, impl=impl)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = replace(
            p,
            **{
                name: mode.from_tensor(tensor)
                for name, tensor in vars(p).items()
                if isinstance(tensor, torch.Tensor)
            },
        )
        found = results(op, fake, torch.ones_like, impl=impl)
    for got, expected in zip(found, real, strict=True):
        assert (got.shape, got.dtype, got.stride()) == (
            expected.shape,
            expected.dtype,
            expected.stride(),
        )


@OPS
@pytest.mark.parametrize("impl", ["auto", *IMPLS])
@pytest.mark.parametrize("p", [BATCH, BESIDE], ids=["batch", "columns"])
def test_a_whole_graph_compiles(op, impl, p):
    torch._dynamo.reset()
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    expected = results(op, p, torch.ones_like, impl=impl)
    torch.testing.assert_close(results(compiled, p, torch.ones_like, impl=impl), expected)


@OPS
def test_a_compiled_loss_serves_every_batch_size(op):
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(op, fullgraph=True, dynamic=True, backend=backend)
    graphs = []
    for n, m in ((12, 9), (31, 40), (65, 7)):
        p = problem(n, m, 5, bias=True)
        expected = results(op, p, torch.ones_like, impl="cpu")
        assert all(map(torch.equal, results(compiled, p, torch.ones_like, impl="cpu"), expected))
        graphs.append(backend.frame_count)
    assert graphs == graphs[:1] * 3


def test_a_compiled_softmax_serves_every_size():
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    op = partial(norm_softmax_loss, impl="cpu")
    compiled = torch.compile(op, fullgraph=True, dynamic=True, backend=backend)
    graphs = []
    for n, classes, d in ((12, 9, 5), (31, 40, 7), (65, 12, 24)):
        random = generator(n)
        rows, weight = (torch.randn(m, d, generator=random) for m in (n, classes))
        labels = torch.randint(0, classes, (n,), generator=random)
        assert torch.equal(compiled(rows, labels, weight), op(rows, labels, weight))
        graphs.append(backend.frame_count)
    assert graphs == graphs[:1] * 3


@pytest.mark.long
@OPS
def test_inductor_compiles_a_model_with_its_loss(op):
    torch._dynamo.reset()
    p = problem(40, d=6)
    model = torch.nn.Linear(6, 4)

    def step(rows: torch.Tensor) -> torch.Tensor:
        embeddings = model(rows).relu()
        return op(replace(p, rows=embeddings, bias=None), impl="cpu").square().sum()

    expected = torch.autograd.grad(step(p.rows), model.parameters())
    compiled = torch.compile(step, fullgraph=True)
    found = torch.autograd.grad(compiled(p.rows), model.parameters())
    torch.testing.assert_close(found, expected)


@OPS
@pytest.mark.parametrize("impl", IMPLS)
def test_autocast_reaches_the_layer_before_and_not_the_loss(op, impl):
    p = problem(40, d=6)
    layer = torch.nn.Linear(6, 16)
    options = {"score": "dot"} if op is pair_reduce else {}
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = layer(p.rows)
        value = op(replace(p, rows=embeddings), impl=impl, **options)
        wide = op(replace(p, rows=embeddings.float()), impl=impl, **options)
    assert embeddings.dtype == torch.bfloat16
    assert value.dtype == torch.float32
    expected = op(replace(p, rows=embeddings.float()), impl=impl, **options)
    torch.testing.assert_close(value, expected)
    assert torch.equal(wide, expected)
    value.sum().backward()
    assert layer.weight.grad.isfinite().all()
    assert layer.weight.grad.abs().sum() > 0


@OPS
@pytest.mark.parametrize("wanted", ["rows", "columns", "bias"])
def test_second_derivatives_raise(op, wanted):
    if wanted == "bias" and op is lifted:
        pytest.skip("the lifted loss has no bias")
    p = problem(12, 9, 5, bias=op is pair_reduce)
    x = getattr(p, wanted).requires_grad_()
    value = op(p, impl="cpu").square().sum()
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        (gradient.square().sum() + x.sum()).backward()


@OPS
def test_a_first_derivative_in_a_graph_is_what_it_is_without(op):
    p = problem(12, d=5)
    x = p.rows.requires_grad_()
    value = op(p, impl="cpu").sum()
    (kept,) = torch.autograd.grad(value, x, create_graph=True)
    (plain,) = torch.autograd.grad(op(p, impl="cpu").sum(), x)
    assert torch.equal(kept, plain)


@OPS
def test_backward_twice_through_one_graph(op):
    p = problem(12, d=5)
    x = p.rows.requires_grad_()
    value = op(p, impl="cpu").sum()
    value.backward(retain_graph=True)
    once = x.grad.clone()
    value.backward()
    assert torch.equal(x.grad, 2 * once)


@pytest.mark.parametrize("name", ["norm_softmax", "boosted_loss"])
def test_a_backward_pass_leaves_the_outputs_of_a_registered_op(name):
    """Gradients that were computed ahead are outputs too, which the caller has."""
    torch.manual_seed(0)
    rows, labels = torch.randn(12, 6, requires_grad=True), torch.arange(12) // 2
    if name == "norm_softmax":
        settings = "mean", 0.05, 0.0, 0.0, 0.0, -100, False, True, True, "cpu"
        given = rows, torch.randn(7, 6, requires_grad=True), labels, *settings
    else:
        given = rows, labels, [2, 4], "deviance", "eta", 2.0, 0.5, 25.0, 0.5, True, "cpu"
    loss, *others = getattr(torch.ops.dmlfast, name)(*given)
    before = [other.clone() for other in others]
    (3 * loss.sum()).backward()
    assert rows.grad.any()
    for other, copy in zip(others, before, strict=True):
        assert torch.equal(other, copy)
