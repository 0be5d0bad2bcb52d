"""What may be given: any stride, any integer label, half precision, with and without gradients."""

from dataclasses import replace

import pytest
import torch

from .helpers import (
    IMPLS,
    KERNELS,
    ON_GPU,
    Problem,
    assert_kernels_accurate,
    generator,
    lifted,
    pair_reduce,
    plain_lifted,
    plain_pair_reduce,
    problem,
    results,
)

EVERY_IMPL = pytest.mark.parametrize("impl", IMPLS)
OPS = pytest.mark.parametrize("op", [lifted, pair_reduce])


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with gaps between them."""
    gaps = torch.full([2 * s for s in tensor.shape], 77, dtype=tensor.dtype)
    view = gaps[tuple(slice(1, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


LAYOUTS = {
    "transposed": lambda x: x.T.contiguous().T,
    "sliced": wide,
    "offset": lambda x: torch.cat([x.new_zeros(1, x.shape[1]), x])[1:],
    "permuted": lambda x: x[:, None].expand(-1, 3, -1).permute(1, 0, 2)[1],
}


@OPS
@EVERY_IMPL
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same_bits(op, impl, layout):
    p = problem(60, 70, 9, selves=True)
    expected = results(op, p, impl=impl)
    inputs = [LAYOUTS[layout](t).requires_grad_() for t in (p.rows, p.columns)]
    integers = [wide(t) for t in (p.labels, p.column_labels, p.self_index)]
    q = Problem(inputs[0], integers[0], inputs[1], integers[1], integers[2])
    value = op(q, impl=impl)
    upstream = torch.ones_like(value)
    value.backward(upstream)
    expected = results(op, p, torch.ones_like, impl=impl)
    for found, truth in zip([value, *(t.grad for t in inputs)], expected, strict=True):
        torch.testing.assert_close(found, truth, rtol=0, atol=0 if impl == "cpu" else 1e-6)


@OPS
@EVERY_IMPL
def test_one_row_expanded_to_many(op, impl):
    row = torch.randn(1, 9, generator=generator(0), requires_grad=True)
    p = Problem(row.expand(20, 9), torch.arange(20) // 4)
    value = op(p, impl=impl).sum()
    value.backward()
    assert value.isfinite()
    assert torch.equal(row.grad, torch.zeros_like(row))


@OPS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_are_left_unchanged(op, dtype):
    p = problem(60, 70, 9, selves=True).to(dtype)
    tensors = [p.rows, p.columns, p.labels, p.column_labels, p.self_index]
    for tensor in tensors[:2]:
        tensor.requires_grad_()
    before, versions = [t.detach().clone() for t in tensors], [t._version for t in tensors]
    op(p, impl="cpu").sum().backward()
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))
    assert [t._version for t in tensors] == versions


LABELS = {
    "int8": lambda y: (y - 10).to(torch.int8),
    "uint8": lambda y: (y * 12).to(torch.uint8),
    "int16": lambda y: (y * 3000 - 30000).to(torch.int16),
    "int32": lambda y: (y * 2**27 - 2**30).to(torch.int32),
    "negative": lambda y: y - 1000,
    "alike in the low 32 bits": lambda y: y * 2**32 + 5,
    "near -2^62 and 2^62": lambda y: torch.where(y < 10, y - 2**62, y + 2**62),
    "the least and the greatest": lambda y: torch.where(y < 10, -(2**63) + y, 2**63 - 21 + y),
}


@OPS
@EVERY_IMPL
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("columns", [None, 90])
def test_labels_are_opaque(op, impl, kind, columns):
    p = problem(80, columns, 6)
    labels = torch.randint(0, 20, (80,), generator=generator(1))
    others = None if columns is None else torch.randint(0, 20, (90,), generator=generator(2))
    expected = results(op, replace(p, labels=labels, column_labels=others), impl=impl)
    rename = LABELS[kind]
    renamed = replace(
        p, labels=rename(labels), column_labels=others if others is None else rename(others)
    )
    assert all(map(torch.equal, results(op, renamed, impl=impl), expected))


@EVERY_IMPL
@OPS
def test_labels_of_rows_and_columns_may_differ_in_dtype(op, impl):
    p = problem(40, 50, 6)
    expected = op(p, impl=impl)
    found = op(replace(p, labels=p.labels.int(), column_labels=p.column_labels.short()), impl=impl)
    assert torch.equal(found, expected)


@OPS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "m", "d"), [(33, None, 17), (300, None, 64), (129, 200, 128)])
def test_half_precision_is_rounded_once(op, dtype, n, m, d):
    p = problem(n, m, d, selves=True, bias=op is pair_reduce, per_class=4, scale=0.3).to(dtype)
    plain = plain_lifted if op is lifted else plain_pair_reduce
    assert_kernels_accurate(op, plain, p)


@OPS
@EVERY_IMPL
def test_a_memory_in_float32_beside_a_batch_in_half(op, impl):
    p = problem(30, 40, 8)
    p = replace(p, rows=p.rows.bfloat16())
    value, d_rows, d_columns = results(op, p, torch.ones_like, impl=impl)
    full = results(op, replace(p, rows=p.rows.float()), torch.ones_like, impl=impl)
    assert (value.dtype, d_rows.dtype, d_columns.dtype) == (
        torch.float32,
        torch.bfloat16,
        torch.float32,
    )
    torch.testing.assert_close([value, d_columns], [full[0], full[2]])
    torch.testing.assert_close(d_rows, full[1].bfloat16(), rtol=2**-7, atol=0)


@pytest.mark.parametrize(
    ("op", "plain", "options"),
    [
        (lifted, plain_lifted, {"margin": -6.2}),  # almost every hinge is off
        (pair_reduce, plain_pair_reduce, {"scale": 1e-7}),
    ],
)
def test_a_scaled_gradient_does_not_underflow_in_half_precision(op, plain, options):
    """A gradient scaler sends 65536, without which a part of these gradients is 0 in float16."""
    p = problem(320, d=32, per_class=160, scale=0.2).to(torch.float16)
    unscaled = results(op, p.to(torch.float64), torch.ones_like, impl="reference", **options)[1]
    assert (unscaled.half() == 0).sum() > 0.1 * unscaled.numel()

    def upstream(value: torch.Tensor) -> torch.Tensor:
        return torch.full_like(value, 65536)

    assert_kernels_accurate(op, plain, p, upstream=upstream, **options)
    assert (unscaled * 65536).half().all()
    assert results(op, p, upstream, impl="cpu", **options)[1].all()


@OPS
@EVERY_IMPL
class TestGradientsOnlyWhereWanted:
    def test_neither_side(self, op, impl):
        p = problem(30, 40, 5)
        assert not op(p, impl=impl).requires_grad

    @pytest.mark.parametrize("side", ["rows", "columns"])
    def test_one_side_alone(self, op, impl, side):
        p = problem(30, 40, 5)
        full = results(op, p, torch.ones_like, impl=impl)[1 + (side == "columns")]
        tensor = getattr(p, side).clone().requires_grad_()
        op(replace(p, **{side: tensor}), impl=impl).sum().backward()
        torch.testing.assert_close(tensor.grad, full, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_modes_without_gradients(self, op, impl, mode):
        p = problem(30, d=5)
        expected = op(p, impl=impl)
        with mode():
            found = op(replace(p, rows=p.rows.clone().requires_grad_()), impl=impl)
        assert torch.equal(found, expected)
        assert not found.requires_grad

    def test_a_detached_side_stays_without(self, op, impl):
        x = problem(30, d=5).rows.requires_grad_()
        p = Problem(x, torch.arange(30) // 3, x.detach(), torch.arange(30) // 3, torch.arange(30))
        both = results(op, replace(p, rows=x.detach()), torch.ones_like, impl=impl)
        op(p, impl=impl).sum().backward()
        torch.testing.assert_close(x.grad, both[1], rtol=1e-5, atol=1e-7)

    def test_a_parameter_is_a_tensor_like_any_other(self, op, impl):
        p = problem(30, d=5)
        parameter = torch.nn.Parameter(p.rows.clone())
        op(replace(p, rows=parameter), impl=impl).sum().backward()
        expected = results(op, p, torch.ones_like, impl=impl)[1]
        torch.testing.assert_close(parameter.grad, expected)


@OPS
@pytest.mark.parametrize("set_default", ["dtype", "device"])
def test_torchs_defaults_do_not_matter(op, set_default):
    p = problem(30, 40, 5)
    expected = results(op, p, torch.ones_like, impl="cpu")
    upstream = torch.ones_like(expected[0])
    try:
        if set_default == "dtype":
            torch.set_default_dtype(torch.float64)
        else:
            torch.set_default_device("meta")
        found = results(op, p, lambda _: upstream, impl="cpu")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert all(map(torch.equal, found, expected))


@pytest.fixture
def precision():
    """Sets the precision of float32 products for a test."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("impl", ON_GPU)
@pytest.mark.parametrize("score", ["dot", "distance"])
def test_rows_and_columns_of_two_dtypes_at_lower_precision(precision, score, impl):
    precision("high")
    p = problem(40, 30)
    mixed = replace(p, rows=p.rows.bfloat16())
    options = {"score": score, "reduce": "logsumexp", "scale": 0.5}
    found = pair_reduce(mixed, impl=impl, **options)
    expected = pair_reduce(replace(p, rows=mixed.rows.float()), impl="reference", **options)
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize("scale", [1.0, 1100.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@OPS
def test_rows_and_columns_of_two_dtypes(op, dtype, scale, impl):
    """Far from 0 the sum of some rows is beyond float16, and beyond the digits of bfloat16."""
    p = problem(40, 30, 12)
    p = replace(p, rows=(p.rows + scale).to(dtype), columns=p.columns + scale)
    exact = op(replace(p, rows=p.rows.double(), columns=p.columns.double()), impl="reference")
    torch.testing.assert_close(op(p, impl=impl), exact.float(), atol=1e-4, rtol=1e-4)


@EVERY_IMPL
@OPS
@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32]
)
def test_places_of_rows_are_integers_of_any_dtype(op, dtype, impl):
    p = problem(20, 30, 5, selves=True)
    p = replace(p, self_index=p.self_index.clamp_min(0))
    places = replace(p, self_index=p.self_index.to(dtype))
    assert all(map(torch.equal, results(op, places, impl=impl), results(op, p, impl=impl)))
