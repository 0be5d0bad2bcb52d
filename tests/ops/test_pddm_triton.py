"""The Triton kernels of a metric unit on pairs: matrices, two sets, lists of pairs."""

import copy
from types import SimpleNamespace

import pytest
import torch

from dmlfast import ops
from dmlfast.ops.pddm import reference
from dmlfast.ops.pddm.unit import Weights, weights_of

from .helpers import ULPS, assert_accurate, generator

pytest.importorskip("triton")
import triton
import triton.language as tl

from dmlfast.ops.pddm import triton as kernels
from dmlfast.ops.pddm.triton import scores
from dmlfast.ops.pddm.triton.unit import plan_of, rounded_to_tf32
from dmlfast.ops.triton import configs

FULL, BRAIN, HALF = torch.float32, torch.bfloat16, torch.float16
DTYPES = pytest.mark.parametrize("dtype", [FULL, BRAIN, HALF])
HALVES = pytest.mark.parametrize("dtype", [BRAIN, HALF])
NORMALIZED = pytest.mark.parametrize("normalize", [False, True])
LAYERS = ("difference", "mean", "joint", "score")


def a_unit(d, h_d=None, h_m=None, h=None, normalize=False, seed=0):
    """Branches and a joint layer of some widths, the first one's by default."""
    h_d = h_d or d
    h_m = h_m or h_d
    h = h or h_m
    random = generator(seed)

    def layer(width, inputs):
        weight = torch.randn(width, inputs, generator=random) / inputs**0.5
        return SimpleNamespace(weight=weight, bias=0.3 * torch.randn(width, generator=random))

    layers = layer(h_d, d), layer(h_m, d), layer(h, h_d + h_m), layer(1, h)
    return SimpleNamespace(**dict(zip(LAYERS, layers, strict=True)), normalize_inputs=normalize)


def changed(unit, change):
    """The unit with other tensors."""
    found = copy.deepcopy(unit)
    for name in LAYERS:
        layer = getattr(found, name)
        layer.weight, layer.bias = change(layer.weight), change(layer.bias)
    return found


def some_rows(n, d, dtype=FULL, seed=1, scale=1.0):
    return (scale * torch.randn(n, d, generator=generator(seed))).to(dtype)


def double(tensor):
    return None if tensor is None else tensor.double()


def check(rows, unit, columns=None, pairs=None, ulps=ULPS):
    """float32 scores against the reference in float64, the yardstick its own in float32."""
    found = ops.pddm_scores(rows, unit, columns, pairs=pairs, impl="triton")
    assert found.dtype == FULL
    exact = ops.pddm_scores(
        rows.double(), changed(unit, double), double(columns), pairs=pairs, impl="reference"
    )
    plain = ops.pddm_scores(rows, unit, columns, pairs=pairs, impl="reference")
    assert_accurate([found], [exact], [plain], ulps)
    return found


def rounded_scores(x, y, weights, normalize, dtype):
    """What the kernels do for half-precision rows, in float64: operands of products are rounded."""

    def operand(tensor):
        tensor = tensor.float()
        return (rounded_to_tf32(tensor) if dtype == HALF else tensor.bfloat16()).double()

    w = Weights(*(operand(t) if t.dim() == 2 and len(t) > 1 else t.double() for t in weights))
    x, y = x.double()[:, None], y.double()[None]
    difference, mean = (x - y).abs(), (x + y) / 2
    u, v = operand(difference) @ w.difference_weight.T, mean @ w.mean_weight.T
    if normalize:
        u = u / difference.norm(dim=-1, keepdim=True).clamp_min(1e-300)
        v = v / mean.norm(dim=-1, keepdim=True).clamp_min(1e-300)
    u, v = (u + w.difference_bias).relu(), (v + w.mean_bias).relu()
    joined = torch.cat(
        [operand(a) / a.norm(dim=-1, keepdim=True).clamp_min(1e-300) for a in (u, v)], -1
    )
    terms = (joined @ w.joint_weight.T + w.joint_bias).relu() * weights.score_weight[0].double()
    return terms.sum(-1) + w.score_bias.double(), terms.abs().sum(-1).max()


WIDTHS = [
    (1, 1, 1, 1),
    (3, 5, 2, 7),
    (20, 20, 20, 20),
    (17, 129, 1, 130),
    (131, 7, 67, 33),
    (64, 64, 64, 64),
    (200, 65, 300, 129),
]


@NORMALIZED
@pytest.mark.parametrize("widths", WIDTHS)
def test_float32_is_as_accurate_as_the_reference(widths, normalize):
    rows = some_rows(19, widths[0])
    unit = a_unit(*widths, normalize=normalize)
    found = check(rows, unit)
    assert torch.equal(found, found.T)


@pytest.mark.long
@pytest.mark.parametrize("widths", [(1024, 1024, 1024, 1024), (515, 1021, 3, 600)])
def test_wide_layers(widths):
    check(some_rows(9, widths[0]), a_unit(*widths))
    check(some_rows(9, widths[0]), a_unit(*widths, normalize=True))


@NORMALIZED
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 70), (33, 5), (41, 40)])
def test_two_sets(n, m, normalize):
    check(some_rows(n, 12), a_unit(12, normalize=normalize), some_rows(m, 12, seed=2))


@NORMALIZED
@pytest.mark.parametrize("columns", [None, 23])
def test_lists_of_pairs(columns, normalize):
    y = None if columns is None else some_rows(columns, 12, seed=2)
    i = torch.randint(0, 40, (300,), generator=generator(3))
    j = torch.randint(0, columns or 40, (300,), generator=generator(4))
    check(some_rows(40, 12), a_unit(12, normalize=normalize), y, (i, j))


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_lengths_of_rows(scale):
    check(some_rows(20, 12, scale=scale), a_unit(12))
    check(some_rows(20, 12, scale=scale), a_unit(12, normalize=True))


@NORMALIZED
@HALVES
@pytest.mark.parametrize("widths", WIDTHS[1:])
def test_halves_round_the_operands_of_products_and_nothing_else(widths, dtype, normalize):
    rows = some_rows(24, widths[0], dtype)
    unit = a_unit(*widths, normalize=normalize)
    weights = weights_of(unit, rows)
    found = ops.pddm_scores(rows, unit, impl="triton")
    expected, size = rounded_scores(rows, rows, weights, normalize, dtype)
    exact = reference.pddm_scores(
        rows.double(), None, None, Weights(*map(double, weights)), normalize
    )
    eps = torch.finfo(dtype).eps
    # an activation on the edge between two values may fall to the other side
    assert (found - expected).abs().max() <= 0.1 * eps * size
    error = (found - exact).abs().max() / (eps * size)
    assert 1e-3 < error <= 1.0


@HALVES
@pytest.mark.parametrize("scale", [1e-4, 3e3])
def test_halves_keep_the_range_of_float32(dtype, scale):
    rows = some_rows(20, 64, dtype, scale=scale)
    unit = a_unit(64, 64, 64, 10)
    found = ops.pddm_scores(rows, unit, impl="triton")
    expected, size = rounded_scores(rows, rows, weights_of(unit, rows), False, dtype)
    assert (found - expected).abs().max() <= 0.1 * torch.finfo(dtype).eps * size


@HALVES
def test_weights_may_be_halves_too(dtype):
    rows, unit = some_rows(12, 20, dtype), a_unit(20)
    low = changed(unit, lambda t: t.to(dtype))
    high = changed(low, lambda t: t.float())
    expected = ops.pddm_scores(rows, high, impl="triton")
    assert torch.equal(ops.pddm_scores(rows, low, impl="triton"), expected)


def test_plain_tf32_is_taken_where_torch_was_told_to(monkeypatch):
    rows, unit = some_rows(20, 20), a_unit(20)
    expected = ops.pddm_scores(rows, unit, impl="triton")
    monkeypatch.setattr("dmlfast.ops.triton.configs.exact_products", lambda: False)
    found = ops.pddm_scores(rows, unit, impl="triton")
    assert 1e-6 < (found - expected).abs().max() / expected.abs().max() < 5e-3


@DTYPES
def test_any_strides(dtype):
    rows, columns, unit = some_rows(9, 20, dtype), some_rows(11, 20, dtype, 2), a_unit(20, 9, 7, 5)
    expected = ops.pddm_scores(rows, unit, columns, impl="triton")
    turned = changed(unit, lambda t: t.t().contiguous().t() if t.dim() == 2 else t)
    spread = torch.stack([columns, columns], 1)[:, 1]
    found = ops.pddm_scores(rows.T.contiguous().T, turned, spread, impl="triton")
    assert torch.equal(found, expected)
    i = torch.arange(9).repeat_interleave(2)[::2]
    found = ops.pddm_scores(rows, unit, columns, pairs=(i, i), impl="triton")
    assert torch.allclose(found, expected.diagonal(), atol=1e-6)


def test_offsets_take_64_bits():
    rows, unit = some_rows(3, 8, BRAIN), a_unit(8)
    far = torch.empty(2 * 2**30 + 8, dtype=BRAIN).as_strided((3, 8), (2**30, 1))
    far.copy_(rows)
    expected = ops.pddm_scores(rows, unit, impl="triton")
    assert torch.equal(ops.pddm_scores(far, unit, impl="triton"), expected)


@pytest.fixture
def ordered_products(monkeypatch):
    """Products that do not depend on where in an operand a row stands, as NumPy's do."""

    def product(a, b, dtype):
        return (a.astype("f8") @ b.astype("f8")).astype(dtype)

    monkeypatch.setattr("numpy.matmul", product)


@NORMALIZED
@pytest.mark.parametrize("dtype", [FULL, BRAIN])
@pytest.mark.parametrize("widths", [(7, 5, 6, 9), (70, 130, 67, 65)])
def test_a_pair_has_the_same_bits_wherever_it_is_asked_for(
    ordered_products, widths, dtype, normalize
):
    rows = some_rows(35, widths[0], dtype)
    rows[30] = -rows[4] + 1e-5 * rows[3]
    rows[31] = rows[5]
    rows[32] = 0
    unit = a_unit(*widths, normalize=normalize)
    found = ops.pddm_scores(rows, unit, impl="triton")
    assert torch.equal(found, found.T)
    order = torch.randperm(35, generator=generator(2))
    permuted = ops.pddm_scores(rows[order], unit, impl="triton")
    assert torch.equal(permuted, found[order][:, order])
    two = ops.pddm_scores(rows[:20], unit, rows[3:], impl="triton")
    assert torch.equal(two, found[:20, 3:])
    turned = ops.pddm_scores(rows[3:], unit, rows[:20], impl="triton")
    assert torch.equal(turned, two.T)
    for count in (400, 7):
        i, j = torch.randint(0, 35, (2, count), generator=generator(3))
        listed = ops.pddm_scores(rows, unit, pairs=(i, j), impl="triton")
        assert torch.equal(listed, found[i, j])


def test_every_form_is_one_binary(monkeypatch):
    """What the compiler is told does not depend on the numbers of rows, or on the form."""
    told = []
    start = scores.pair_scores_kernel.run

    def run(*args, **options):
        names = dict(zip(scores.pair_scores_kernel.arg_names, args, strict=False))
        told.append((options["NARROW"], {k: v for k, v in options.items() if k != "grid"}))
        aligned = "x", "y", "x_mean", "y_mean", "out", "scratch"
        assert all(names[name].data_ptr() % 16 == 0 for name in aligned)
        assert all(t.data_ptr() % 16 == 0 for t in names["unit"])
        return start(*args, **options)

    monkeypatch.setattr(scores.pair_scores_kernel, "run", run)
    rows, unit, i = some_rows(40, 15), a_unit(15), torch.arange(7)
    unit.joint.weight = torch.cat([torch.zeros(1), unit.joint.weight.flatten()])[1:].view(15, 30)
    for given in ((rows, None, None), (rows[1:], rows[3:], None), (rows[:1], None, None),
                  (rows[3:], None, (i[1:], i[1:]))):  # fmt: skip
        ops.pddm_scores(given[0], unit, given[1], pairs=given[2], impl="triton")
    assert len(told) == 4
    assert all(each == told[0] for each in told)


@pytest.mark.parametrize("distance", [0.0, 1e-6, 1e-3, 0.1])
@pytest.mark.parametrize("n", [4, 24])
def test_opposite_rows_have_an_exact_midpoint(distance, n):
    """Whose direction is all that counts where inputs are normalised."""
    rows = some_rows(n, 24)
    noise = distance * some_rows(n, 24, seed=5)
    unit = a_unit(24, normalize=True)
    i = torch.arange(n)
    check(rows, unit, noise - rows, (i, i))
    check(rows, a_unit(24), noise - rows)


def test_the_sum_of_projections_serves_no_opposite_rows(monkeypatch):
    """The test above sees the difference."""
    monkeypatch.setattr("dmlfast.ops.pddm.triton.layers.OPPOSITE", tl.constexpr(0.0))
    with pytest.raises(AssertionError, match="allowed"):
        test_opposite_rows_have_an_exact_midpoint(1e-6, 4)


@DTYPES
@NORMALIZED
def test_duplicates_and_zeros(dtype, normalize):
    rows = some_rows(20, 9, dtype)
    rows[3:7], rows[9:11] = rows[2], 0
    unit = a_unit(9, normalize=normalize)
    if dtype == FULL:
        check(rows, unit)
        unit.difference.bias = unit.mean.bias = torch.zeros(9)  # zeros have no direction
        check(rows, unit)
    assert ops.pddm_scores(rows, unit, impl="triton").isfinite().all()


@pytest.mark.parametrize("branch", ["difference", "mean"])
def test_a_branch_may_be_dead(branch):
    unit = a_unit(12)
    getattr(unit, branch).bias = torch.full((12,), -1e3)
    check(some_rows(20, 12), unit)


@DTYPES
@NORMALIZED
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_makes_its_pairs_nan(value, normalize, dtype):
    rows, unit = some_rows(20, 9, dtype), a_unit(9, normalize=normalize)
    expected = ops.pddm_scores(rows, unit, impl="triton")
    rows[4, 2] = value
    found = ops.pddm_scores(rows, unit, impl="triton")
    broken = torch.zeros(20, 20, dtype=torch.bool)
    broken[4] = broken[:, 4] = True
    assert torch.equal(found.isnan(), broken)
    assert torch.equal(found[~broken], expected[~broken])


@pytest.mark.parametrize("dtype", [FULL, BRAIN])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", [(name, part) for name in LAYERS for part in ("weight", "bias")])
def test_a_weight_that_is_not_finite_makes_all_nan(value, which, dtype):
    unit = a_unit(9, 5, 6, 7)
    getattr(getattr(unit, which[0]), which[1]).view(-1)[-1] = value
    rows = some_rows(6, 9, dtype)
    assert ops.pddm_scores(rows, unit, impl="triton").isnan().all()


def test_nothing_to_score():
    rows, unit, none = some_rows(5, 9), a_unit(9), torch.empty(0, dtype=torch.long)
    for n, m in ((0, 0), (0, 3), (3, 0)):
        assert ops.pddm_scores(rows[:n], unit, rows[:m], impl="triton").shape == (n, m)
    assert ops.pddm_scores(rows[:0], unit, impl="triton").shape == (0, 0)
    assert ops.pddm_scores(rows, unit, pairs=(none, none), impl="triton").shape == (0,)
    assert ops.pddm_scores(rows[:0], unit, pairs=(none, none), impl="triton").shape == (0,)
    zero = torch.zeros(2, dtype=torch.long)  # as on a GPU, where it is not looked at
    found = kernels.pairs(rows[:0], rows, zero, zero, weights_of(unit, rows), False)
    assert found.isnan().all()


@DTYPES
def test_repeat_to_the_bit(dtype):
    rows, unit = some_rows(30, 33, dtype), a_unit(33)
    expected = ops.pddm_scores(rows, unit, impl="triton")
    assert torch.equal(ops.pddm_scores(rows, unit, impl="triton"), expected)


def test_inputs_stay_as_they_are():
    rows, unit = some_rows(9, 15), a_unit(15)
    before = rows.clone(), copy.deepcopy(unit)
    ops.pddm_scores(rows, unit, impl="triton")
    assert torch.equal(rows, before[0])
    for name in LAYERS:
        assert torch.equal(getattr(unit, name).weight, getattr(before[1], name).weight)


@NORMALIZED
@pytest.mark.parametrize("per", ["batch", "class", "anchor"])
def test_mining_finds_what_the_reference_does(per, normalize):
    rows, unit = some_rows(40, 12), a_unit(12, normalize=normalize)
    labels = torch.randint(0, 9, (40,), generator=generator(6))
    found = ops.pddm_hard_quadruplets(rows, labels, unit, per=per, impl="triton")
    expected = ops.pddm_hard_quadruplets(rows, labels, unit, per=per, impl="reference")
    assert torch.equal(found, expected)
    assert (found >= 0).any()


def test_have_gradients():
    rows = some_rows(8, 6).requires_grad_()
    unit = changed(a_unit(6), lambda t: t.requires_grad_())
    weights = list(weights_of(unit, rows))
    upstream = torch.linspace(-1, 2, 64).view(8, 8)
    given = [rows, *weights]
    found, expected = (
        torch.autograd.grad(ops.pddm_scores(rows, unit, impl=impl), given, upstream)
        for impl in ("triton", "reference")
    )
    for got, truth in zip(found, expected, strict=True):
        assert torch.allclose(got, truth, atol=1e-5)


@triton.jit
def _squares(t, out):
    k = tl.arange(0, 1024)
    row, column = scores.upper_square(tl.load(t + k))
    tl.store(out + k, row)
    tl.store(out + 1024 + k, column)


@pytest.mark.parametrize("around", [0, 600, 10**6, 78_132_250, 2**31 - 2000])
def test_squares_above_the_diagonal_are_found_exactly(around):
    corner = int(((8 * around + 1) ** 0.5 - 1) / 2)
    first = max(0, corner * (corner + 1) // 2 - 512)
    t = torch.arange(first, first + 1024)
    out = torch.empty(2, 1024, dtype=torch.int32)
    _squares[(1,)](t.int(), out)
    row, column = out.long()
    assert ((row >= 0) & (row <= column)).all()
    assert torch.equal(column * (column + 1) // 2 + row, t)


@pytest.mark.parametrize("capability", configs.TILES)
@pytest.mark.parametrize("kind", [configs.HALF, configs.FULL])
def test_shipped_tiles_cover_the_upper_triangle(capability, kind):
    tile = configs.TILES[capability][kind].pddm
    assert tile.BJ % tile.BI == 0
    for size in tile[:6]:
        assert size & (size - 1) == 0


def test_blocks_are_no_wider_than_layers():
    weights = weights_of(a_unit(20, 5, 100, 17), some_rows(1, 20))
    plan = plan_of(FULL, 20, weights)
    assert (plan.DP, plan.HDP, plan.HMP, plan.HP) == (32, 16, 128, 32)
