"""What every loss of pairs promises, of those that have no kernels in CUDA: what may be given, what
batches at the edge come to, torch's own tools, the same bits.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dmlfast import ops
from dmlfast.ops import dispatch, native

from .covering import shortly
from .helpers import (
    NOT_CUDA,
    Problem,
    assert_kernels_accurate,
    contrastive,
    decided,
    direct_distances,
    generator,
    instruction_sets,
    plain_contrastive,
    plain_triplet,
    problem,
    results,
    triplet,
    with_duplicates,
)

near = partial(contrastive, neg_margin=3.0)  # with the hinges of half the negatives on
PLAIN = {near: partial(plain_contrastive, neg_margin=3.0), triplet: plain_triplet}
EVERY_IMPL = pytest.mark.parametrize("impl", ["reference", *NOT_CUDA])
KERNELS = pytest.mark.parametrize("impl", NOT_CUDA)
OPS = pytest.mark.parametrize("op", [near, triplet], ids=["contrastive", "triplet"])
MININGS = pytest.mark.parametrize(
    "op",
    [near, *(partial(triplet, mining=mining) for mining in ("all", "semihard", "hardest"))],
    ids=["contrastive", "all", "semihard", "hardest"],
)
NAMES = {near: "contrastive_loss", triplet: "triplet_loss"}
BATCH = decided(12, d=5)
BESIDE = decided(12, 9, 5, selves=True)


def same_bits(found, expected) -> bool:
    return all(map(torch.equal, found, expected))


@OPS
@EVERY_IMPL
def test_any_stride_and_any_labels_give_the_same(op, impl):
    p = decided(30, 20, 9, selves=True)
    gaps = torch.full((60, 18), 77.0)
    gaps[::2, ::2] = p.rows
    q = replace(
        p,
        rows=gaps[::2, ::2],
        columns=p.columns.T.contiguous().T,
        labels=(p.labels - 2**62).repeat_interleave(2)[::2],
        column_labels=p.column_labels - 2**62,
        self_index=p.self_index.int(),
    )
    expected = results(op, p, torch.ones_like, impl=impl)
    for got, truth in zip(results(op, q, torch.ones_like, impl=impl), expected, strict=True):
        torch.testing.assert_close(got, truth, rtol=0, atol=0 if impl == "cpu" else 1e-6)
    small = replace(p, labels=p.labels.to(torch.uint8), column_labels=p.column_labels.short())
    assert same_bits(results(op, small, torch.ones_like, impl=impl), expected)


@OPS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "m", "d"), [(33, None, 17), (20, 30, 130)])
def test_half_precision_is_rounded_once(op, dtype, n, m, d):
    shape = {"selves": m is not None, "per_class": 4, "scale": (8 / d) ** 0.5}
    p = decided(n, m, d, dtype=dtype, **shape)
    assert_kernels_accurate(op, PLAIN[op], p, kernels=NOT_CUDA)


@OPS
@KERNELS
def test_a_scaled_gradient_does_not_underflow_in_half_precision(op, impl):
    p = decided(120, d=16, per_class=3, scale=0.5).to(torch.float16)

    def scaled(value):
        return torch.full_like(value, 65536)

    unscaled = results(op, p.to(torch.float64), torch.ones_like, impl="reference")[1]
    found = results(op, p, scaled, impl=impl)[1]
    torch.testing.assert_close(found.double(), unscaled * 65536, rtol=2e-3, atol=0.2)
    assert ((found == 0) == (unscaled == 0)).all()


@OPS
@EVERY_IMPL
def test_gradients_only_where_wanted(op, impl):
    full = results(op, BESIDE, torch.ones_like, impl=impl)
    assert not op(BESIDE, impl=impl).requires_grad
    for k, name in ((1, "rows"), (2, "columns")):
        tensor = getattr(BESIDE, name).clone().requires_grad_()
        op(replace(BESIDE, **{name: tensor}), impl=impl).backward()
        torch.testing.assert_close(tensor.grad, full[k], rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        x = BESIDE.rows.clone().requires_grad_()
        assert not op(replace(BESIDE, rows=x), impl=impl).requires_grad


@MININGS
@EVERY_IMPL
@pytest.mark.parametrize(("n", "classes"), [(0, 1), (1, 1), (9, 9), (70, 70)])
def test_without_positives_only_negatives_of_the_contrastive_loss_count(op, impl, n, classes):
    p = replace(problem(n), labels=torch.arange(n) % classes)
    x = p.rows.clone().requires_grad_()
    loss = op(replace(p, rows=x), impl=impl)
    loss.backward()
    if op is not near or n < 2:
        assert loss.item() == 0
        assert not x.grad.any()
    assert x.grad.isfinite().all()


@MININGS
@EVERY_IMPL
def test_one_class_has_no_negatives(op, impl):
    p = replace(problem(70), labels=torch.zeros(70, dtype=torch.long))
    loss, gradient = results(op, p, impl=impl)
    if op is near:
        distance = direct_distances(p.rows, p.rows)
        torch.testing.assert_close(loss, distance.sum() / (70 * 69))
    else:
        assert loss == 0
        assert not gradient.any()


@OPS
@EVERY_IMPL
@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0)])
def test_no_rows_or_no_columns(op, impl, n, m):
    loss, d_rows, d_columns = results(op, problem(n, m), impl=impl)
    assert loss == 0
    assert d_rows.shape == (n, 8)
    assert d_columns.shape == (m, 8)
    assert not d_rows.any()
    assert not d_columns.any()


@MININGS
@EVERY_IMPL
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["rows", "columns"])
def test_a_value_that_is_not_finite_makes_loss_and_gradients_nan(op, impl, value, place):
    p = problem(12, 14, 7)
    getattr(p, place)[3, 3] = value
    found = results(op, p, impl=impl)
    assert found[0].isnan()
    if impl != "reference":
        assert all(t.isnan().all() for t in found)


@OPS
@pytest.mark.parametrize("size", [1e-4, 1e4])
@pytest.mark.parametrize("m", [None, 50])
def test_embeddings_of_every_size(op, size, m):
    p = problem(60, m, 12, per_class=4, seed=1)
    p = p if m is None else replace(p, columns=p.columns * size)
    p = replace(p, rows=p.rows * size)
    op_name = "neg_margin" if op is near else "margin"
    options = {op_name: size * (3.0 if op is near else 0.2)}
    plain = plain_contrastive if op is near else plain_triplet
    base = contrastive if op is near else triplet
    assert_kernels_accurate(base, plain, p, kernels=NOT_CUDA, **options)


@OPS
@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_duplicates_within_a_class(op, noise):
    p = problem(60, d=24, per_class=4)
    rows = p.rows[torch.arange(60) // 2]
    rows = rows + noise * torch.randn(60, 24, generator=generator(1))
    p = Problem(rows, torch.arange(60) // 6)
    # at a noise of 0 the plain form counts roundings of 0 as distances, but for direct ones
    assert_kernels_accurate(op, PLAIN[op], p, distances=direct_distances, kernels=NOT_CUDA)


def test_nearly_coinciding_negatives_of_the_contrastive_loss():
    p = with_duplicates(problem(120, d=16, per_class=4), noise=1e-4)
    assert_kernels_accurate(near, PLAIN[near], p, distances=direct_distances, kernels=NOT_CUDA)


@OPS
@pytest.mark.parametrize("p", [BATCH, BESIDE], ids=["batch", "columns"])
def test_gradients_of_the_reference(op, p):
    p = p.to(torch.float64)
    inputs = [t.clone().requires_grad_() for t in (p.rows, p.columns) if t is not None]

    def loss(rows, columns=None):
        return op(replace(p, rows=rows, columns=columns), impl="reference")

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize(
    ("impl", "p", "requires_grad"), shortly(NOT_CUDA, [BATCH, BESIDE], [False, True])
)
class TestOpcheck:
    @staticmethod
    def check(name, p, requires_grad, *options):
        rows, columns = (
            None if t is None else t.clone().requires_grad_(requires_grad)
            for t in (p.rows, p.columns)
        )
        tensors = (rows, columns, p.labels, p.column_labels, p.self_index)
        *options, impl = options
        wants = requires_grad, requires_grad and columns is not None
        op = getattr(torch.ops.dmlfast, name).default
        torch.library.opcheck(op, (*tensors, *options, *wants, impl))

    def test_contrastive(self, p, requires_grad, impl):
        self.check("contrastive_loss", p, requires_grad, 0.0, 2.0, True, "mean", impl)

    def test_triplet(self, p, requires_grad, impl):
        self.check("triplet_loss", p, requires_grad, 0.2, "semihard", "nonzero", impl)

    def test_hinges(self, p, requires_grad, impl):
        if p is BESIDE:
            pytest.skip("as over a batch")
        x = p.rows.clone().requires_grad_(requires_grad)
        term = ("distance", "negative", "hinge", -1.0, 3.0, impl)
        torch.library.opcheck(
            torch.ops.dmlfast.pair_reduce.default,
            (x, None, p.labels, None, None, None, None, *term),
        )


@OPS
@KERNELS
def test_fake_tensors_have_the_shapes_and_dtypes_of_real_ones(op, impl):
    p = BESIDE.to(torch.bfloat16)
    real = results(op, p, torch.ones_like, impl=impl)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {k: mode.from_tensor(t) for k, t in vars(p).items() if t is not None}
        found = results(op, replace(p, **fake), torch.ones_like, impl=impl)
    for got, expected in zip(found, real, strict=True):
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)


@MININGS
@pytest.mark.parametrize("impl", ["auto", "reference", *NOT_CUDA])
def test_a_whole_graph_compiles(op, impl):
    torch._dynamo.reset()
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    expected = results(op, BESIDE, torch.ones_like, impl=impl)
    torch.testing.assert_close(results(compiled, BESIDE, torch.ones_like, impl=impl), expected)


@OPS
def test_second_derivatives_raise(op):
    x = BATCH.rows.clone().requires_grad_()
    loss = op(replace(BATCH, rows=x), impl="cpu")
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        (gradient.square().sum() + x.sum()).backward()


@MININGS
@pytest.mark.parametrize(("n", "m"), [(50, None), (300, None), (200, 700)])
def test_threads_and_what_memory_held_do_not_change_a_bit(op, threads, n, m):
    """Two of three sizes have bands and blocks of several rows for each thread."""
    p = problem(n, m, 6, selves=True, per_class=5)
    for _ in instruction_sets():
        threads(1)
        expected = results(op, p, impl="cpu")
        for count in (2, 3):
            threads(count)
            assert same_bits(results(op, p, impl="cpu"), expected)
        native.cpu_library().dml_cpu_poison(0)
        assert same_bits(results(op, p, impl="cpu"), expected)
        native.cpu_library().dml_cpu_poison(1)


@MININGS
def test_triton_repeats_to_the_bit(op):
    p = problem(40, 30, 6, selves=True, per_class=5)
    assert same_bits(results(op, p, impl="triton"), results(op, p, impl="triton"))


@OPS
def test_cuda_says_that_it_has_no_kernels(op, monkeypatch):
    with pytest.raises(RuntimeError, match=rf"{NAMES[op]}: impl='cuda' cannot .* no kernels"):
        op(BATCH, impl="cuda")
    monkeypatch.setenv("DMLFAST_IMPL", "cuda")
    with pytest.raises(RuntimeError, match=rf"{NAMES[op]}: DMLFAST_IMPL='cuda' cannot .* no kern"):
        op(BATCH)


@pytest.mark.parametrize("reduce", ["hinge", "squared_hinge", "softplus"])
def test_cuda_says_so_of_hinges_alone(reduce):
    pairs = (BATCH.rows, BATCH.labels)
    assert ops.pair_reduce(*pairs, reduce="sum", impl="cuda").isfinite().all()
    with pytest.raises(RuntimeError, match=r"pair_reduce: impl='cuda' cannot serve .* no kernels"):
        ops.pair_reduce(*pairs, reduce=reduce, impl="cuda")


def test_auto_takes_triton_on_a_gpu_where_cuda_has_no_kernels(monkeypatch):
    for name in ("triton", "cuda"):
        usable = replace(
            dispatch.BACKENDS[name],
            why_not=lambda: None,
            declines=lambda device, dtype: None,
            by_name_only=lambda: False,
        )
        monkeypatch.setitem(dispatch.BACKENDS, name, usable)
    monkeypatch.delenv("DMLFAST_IMPL", raising=False)
    choose = partial(dispatch._choose, "triplet_loss", "auto", "cuda", torch.bfloat16)
    assert choose() == dispatch.FASTEST
    assert choose(("cuda",)) == "triton"
