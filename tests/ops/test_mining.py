"""What pairs are mined by: the greatest term of a row, and a floor that terms must be above."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dmlfast import ops
from dmlfast.ops import native
from dmlfast.ops.pairs import reference
from dmlfast.ops.pairs.op import fused, reduce_block
from dmlfast.ops.pairs.term import MAX, PairTerm

from .covering import covering, shortly
from .helpers import (
    NOT_CUDA,
    Problem,
    assert_accurate,
    assert_kernels_accurate,
    careful_distances,
    direct_distances,
    generator,
    gram_distances,
    instruction_sets,
    pair_max,
    pair_reduce,
    plain_pair_reduce,
    problem,
    results,
    selected,
    with_duplicates,
    with_floors,
)

IMPLS = pytest.mark.parametrize("impl", ["reference", *NOT_CUDA])
KERNELS = pytest.mark.parametrize("impl", NOT_CUDA)
SCORES = pytest.mark.parametrize("score", ["dot", "distance"])
SELECTIONS = ("negative", "positive", "other", "all")
# (n, m, d, scale, bias); m is left out where the rows face themselves
SHAPES = [
    (1, 1, 1, -1.0, True),
    (2, 7, 3, 2.0, False),
    (7, 2, 64, -0.5, True),
    (33, 32, 17, -9.0, False),
    (129, 31, 100, -0.3, True),
    (150, 90, 200, 0.5, False),
    (130, 170, 5, 40.0, True),
    (300, 127, 16, -3.0, False),
]
CASES = covering(
    SHAPES,
    SELECTIONS,
    ["themselves", "others", "gathered"],
    ["dot", "distance"],
    ["logsumexp", "sum", "hinge", "squared_hinge", "softplus"],
)


def itself_among(select: str, columns: str) -> bool:
    """Whether rows meet a column that coincides with them."""
    return select == "all" and columns != "others"


@pytest.mark.parametrize(("shape", "select", "columns", "score", "reduce"), CASES)
def test_floors_in_values_and_gradients(shape, select, columns, score, reduce):
    n, m, d, scale, bias = shape
    width = None if columns == "themselves" else m
    options = {"score": score, "scale": scale, "offset": 0.3}
    seed = CASES.index((shape, select, columns, score, reduce))
    p = problem(n, width, d, selves=columns == "gathered", bias=bias, seed=seed)
    distances = careful_distances if itself_among(select, columns) else gram_distances
    assert_kernels_accurate(
        pair_reduce,
        plain_pair_reduce,
        with_floors(p, **options),
        distances=distances,
        kernels=NOT_CUDA,
        select=select,
        reduce=reduce,
        **options,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("m", "d"), [(None, 20), (90, 20), (None, 140)])
def test_floors_of_half_precision(dtype, m, d):
    options = {"score": "distance", "scale": -2.0, "offset": 1.0}
    p = with_floors(problem(70, m, d, per_class=4).to(dtype), **options)
    assert_kernels_accurate(pair_reduce, plain_pair_reduce, p, kernels=NOT_CUDA, **options)


@pytest.mark.parametrize("reduce", ["logsumexp", "squared_hinge"])
@pytest.mark.parametrize("d", [20, 150])
def test_floors_of_close_pairs(reduce, d):
    """Terms of pairs that are computed from their differences, on both sides of a floor."""
    p = with_duplicates(problem(120, d=d, per_class=4), share=0.3, noise=1e-3)
    options = {"score": "distance", "scale": -30.0, "offset": 2.0}
    assert_kernels_accurate(
        pair_reduce,
        plain_pair_reduce,
        with_floors(p, **options),
        distances=careful_distances,
        kernels=NOT_CUDA,
        reduce=reduce,
        **options,
    )


@KERNELS
def test_statistics_that_span_more_than_an_exponential(impl):
    p = problem(140, d=12, per_class=5)
    p = replace(p, rows=p.rows * torch.logspace(-1.5, 1.5, 140)[:, None])
    options = {"score": "distance", "scale": 5.0, "offset": 0.0}
    assert_kernels_accurate(
        pair_reduce, plain_pair_reduce, with_floors(p, **options), kernels=(impl,), **options
    )


@IMPLS
@pytest.mark.parametrize("m", [None, 50])
@pytest.mark.parametrize("reduce", ["logsumexp", "sum", "hinge"])
def test_infinite_floors_leave_out_nothing_or_all(impl, m, reduce):
    p = problem(70, m, 9)
    options = {"reduce": reduce, "scale": -1.0, "offset": 3.0, "impl": impl}
    found = results(pair_reduce, replace(p, floor=torch.full((70,), -torch.inf)), **options)
    for got, expected in zip(found, results(pair_reduce, p, **options), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    value, *gradients = results(
        pair_reduce, replace(p, floor=torch.full((70,), torch.inf)), **options
    )
    assert torch.equal(value, torch.full((70,), -torch.inf if reduce == "logsumexp" else 0.0))
    assert not any(gradient.any() for gradient in gradients)


@IMPLS
def test_a_term_must_be_above_its_floor(impl):
    """Whole numbers, which no rounding touches."""
    rows = torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]])
    labels = torch.tensor([0, 1, 1, 1])
    floor = torch.tensor([2.0, 1, 3, 3])
    found = ops.pair_reduce(rows, labels, score="dot", reduce="sum", row_floor=floor, impl=impl)
    assert found.tolist() == [3 + 4, 2, 0, 4]
    x = rows.clone().requires_grad_()
    ops.pair_reduce(x, labels, score="dot", reduce="sum", row_floor=floor, impl=impl)[0].backward()
    assert x.grad[:, 0].tolist() == [3 + 4, 0, 1, 1]


@KERNELS
@pytest.mark.parametrize("m", [None, 50])
def test_hinges_above_their_floors_are_counted(impl, m):
    options = {"score": "distance", "scale": -1.0, "offset": 4.0}
    p = with_floors(problem(70, m, 9), **options)
    term = PairTerm(select="negative", reduce="hinge", **options)
    given = p.rows, p.columns, p.labels, p.column_labels, None, None, p.floor, term
    found, expected = fused(*given, impl), reference.pair_reduce(*given)
    assert torch.equal(found[1], expected[1])
    without = reference.pair_reduce(*given[:-2], None, term)
    assert (expected[1] < without[1]).any()


@IMPLS
@pytest.mark.parametrize("reduce", ["logsumexp", "hinge"])
def test_a_floor_that_is_no_number_makes_its_row_none(impl, reduce):
    p = problem(9)
    floor = torch.full((9,), -torch.inf)
    floor[4] = torch.nan
    found = pair_reduce(replace(p, floor=floor), reduce=reduce, impl=impl)
    assert found.isnan().nonzero().flatten().tolist() == [4]


@IMPLS
def test_floors_have_no_gradient(impl):
    floor = torch.zeros(9, requires_grad=True)
    p = problem(9)
    x = p.rows.clone().requires_grad_()
    value = pair_reduce(replace(p, rows=x, floor=floor), impl=impl)
    value[value > -torch.inf].sum().backward()
    assert floor.grad is None
    assert x.grad.any()


def greatest(
    p: Problem,
    *,
    score: str,
    select: str,
    scale: float,
    offset: float,
    distances: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = direct_distances,
) -> torch.Tensor:
    """The greatest of all terms, in the dtype of the problem."""
    r = p.rows if p.columns is None else p.columns
    scores = p.rows @ r.T if score == "dot" else distances(p.rows, r)
    terms = (scale * scores + offset).masked_fill(~selected(p, select), -torch.inf)
    return torch.cat([terms, terms.new_full((len(terms), 1), -torch.inf)], 1).amax(1)


def assert_greatest(p: Problem, impl: str, **options) -> torch.Tensor:
    found = pair_max(p, impl=impl, **options)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    exact = greatest(p.to(torch.float64), **options)
    plain = greatest(p.to(torch.float32), distances=careful_distances, **options)
    assert_accurate([found], [exact], [plain], name=impl)
    return found


@SCORES
@IMPLS
@pytest.mark.parametrize(
    ("n", "m", "d"),
    [
        (1, None, 3),
        (70, None, 9),
        (140, None, 33),
        (130, 75, 200),
        (3, 140, 5),
        (0, 4, 2),
        (4, 0, 2),
    ],
)
def test_the_greatest_term(score, impl, n, m, d):
    p = problem(n, m, d, selves=True, per_class=4)
    for select in SELECTIONS:
        for scale in (1.0, -3.0):
            assert_greatest(p, impl, score=score, select=select, scale=scale, offset=0.3)


@pytest.mark.parametrize("m", [None, 9])
@IMPLS
def test_the_greatest_term_has_no_gradient(impl, m):
    p = problem(12, m)
    x = p.rows.clone().requires_grad_()
    r = None if m is None else p.columns.clone().requires_grad_()
    assert not pair_max(replace(p, rows=x, columns=r), impl=impl).requires_grad
    if impl != "reference":
        term = ("distance", "negative", "max", 1.0, 0.0, impl)
        given = (x, r, p.labels, p.column_labels, None, None, None)
        assert not torch.ops.dmlfast.pair_reduce(*given, *term).requires_grad


@SCORES
@pytest.mark.parametrize("size", [700, 2600])
def test_the_greatest_term_of_many_rows_in_threads(score, size, threads):
    p = problem(size, d=6, per_class=5)
    options = {"score": score, "select": "negative", "scale": -1.0, "offset": 0.0}
    for _ in instruction_sets():
        threads(1)
        found = assert_greatest(p, "cpu", **options)
        for count in (2, 3):
            threads(count)
            assert torch.equal(pair_max(p, impl="cpu", **options), found)


@KERNELS
def test_columns_in_parts_have_the_greatest_term_of_all(impl):
    p = problem(40, 75, 9, per_class=13)
    found = None
    for part in (slice(0, 33), slice(33, 34), slice(34, 75)):
        sides = p.rows, p.columns[part], p.labels, p.column_labels[part], None
        term = PairTerm("dot", "positive", MAX, -0.7, 0.2)
        found = reduce_block(*sides, found, term, impl=impl)
    options = {"score": "dot", "select": "positive", "scale": -0.7, "offset": 0.2}
    torch.testing.assert_close(found, pair_max(p, impl=impl, **options))


@KERNELS
def test_the_greatest_term_of_close_pairs(impl):
    p = with_duplicates(problem(200, d=20, per_class=4), share=0.3, noise=1e-3)
    for select, scale in (("negative", -1.0), ("other", 1.0)):
        found = assert_greatest(p, impl, score="distance", select=select, scale=scale, offset=0.0)
    assert (found > 5).all()


@KERNELS
def test_the_greatest_term_of_close_pairs_among_many_columns(impl):
    """In tiles of which every pair is selected."""
    p = problem(64, 320, 20, seed=1)
    noise = 1e-3 * torch.randn(64, 20, generator=generator(2))
    columns = torch.cat([p.columns[64:], p.rows + noise])
    p = replace(p, columns=columns, column_labels=p.labels.max() + 1 + torch.arange(320))
    for select in ("negative", "all"):
        found = assert_greatest(p, impl, score="distance", select=select, scale=-1.0, offset=0.0)
        assert ((found < 0) & (found > -0.02)).all()


@KERNELS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_greatest_term_of_half_precision(impl, dtype):
    p = problem(70, d=20, per_class=4).to(dtype)
    assert_greatest(p, impl, score="distance", select="positive", scale=1.0, offset=0.0)


@IMPLS
def test_terms_of_every_size_are_compared(impl):
    """Also those far beyond what an exponential takes."""
    p = problem(20, d=4)
    p = replace(p, rows=p.rows * torch.logspace(-4, 15, 20)[:, None])
    options = {"score": "dot", "select": "other", "scale": -1e3, "offset": 1.0}
    expected = greatest(p.to(torch.float64), **options)
    assert expected.max() > 1e20
    found = pair_max(p, impl=impl, **options)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@IMPLS
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_makes_the_greatest_terms_nan(impl, value):
    p = problem(12)
    p.rows[3, 3] = value
    assert pair_max(p, impl=impl).isnan().all()


@KERNELS
@pytest.mark.parametrize("m", [None, 300])
@pytest.mark.parametrize("reduce", ["logsumexp", "sum", "hinge"])
def test_floors_give_the_same_bits_whatever_memory_held_and_in_threads(impl, m, reduce, threads):
    options = {"score": "distance", "scale": -1.0, "offset": 3.0}
    few = (150, None if m is None else 70)
    p = with_floors(problem(*(few if impl != "cpu" else (700, m)), 6, per_class=5), **options)
    options = {**options, "reduce": reduce, "impl": impl}
    threads(1)
    expected = results(pair_reduce, p, **options)
    threads(3)
    assert all(map(torch.equal, results(pair_reduce, p, **options), expected))
    native.cpu_library().dml_cpu_poison(0)
    try:
        assert all(map(torch.equal, results(pair_reduce, p, **options), expected))
    finally:
        native.cpu_library().dml_cpu_poison(1)


BATCH = problem(12, d=5)
BESIDE = problem(12, 9, 5, selves=True, bias=True)
TERM = ("distance", "negative", "logsumexp", -1.0, 0.5)


@pytest.mark.parametrize(
    ("impl", "p", "requires_grad"), shortly(NOT_CUDA, [BATCH, BESIDE], [False, True])
)
def test_opcheck(impl, p, requires_grad):
    p = with_floors(p, score="distance", scale=-1.0, offset=0.5)
    rows, columns, bias = (
        None if t is None else t.clone().requires_grad_(requires_grad) for t in p.inputs
    )
    pairs = (rows, columns, p.labels, p.column_labels, p.self_index, bias, p.floor)
    torch.library.opcheck(torch.ops.dmlfast.pair_reduce.default, (*pairs, *TERM, impl))
    stat = torch.ops.dmlfast.pair_reduce(*pairs, *TERM, impl).detach()
    wants = True, columns is not None, bias is not None
    given = (torch.ones(12), *pairs, stat, *wants, *TERM, impl)
    torch.library.opcheck(torch.ops.dmlfast.pair_grad.default, given)
    term = ("distance", "negative", "max", -1.0, 0.5)
    given = (rows, columns, p.labels, p.column_labels, p.self_index, None, None, *term, impl)
    torch.library.opcheck(torch.ops.dmlfast.pair_reduce.default, given)


def mined(p: Problem, impl: str) -> torch.Tensor:
    """A loss of the negatives that are nearer than a row's furthest positive."""
    floor = -pair_max(p, select="positive", impl=impl)
    found = pair_reduce(replace(p, floor=floor), reduce="softplus", scale=-1.0, impl=impl)
    return found.sum()


@IMPLS
def test_a_mined_loss_compiles_in_one_graph(impl):
    torch._dynamo.reset()
    compiled = torch.compile(mined, fullgraph=True, backend="aot_eager")
    expected = results(mined, BATCH, torch.ones_like, impl=impl)
    assert expected[1].any()
    torch.testing.assert_close(results(compiled, BATCH, torch.ones_like, impl=impl), expected)


@KERNELS
def test_a_mined_loss_within_torch_func(impl):
    def loss(rows):
        return mined(replace(BATCH, rows=rows), impl)

    expected = results(mined, BATCH, torch.ones_like, impl="reference")[1]
    torch.testing.assert_close(torch.func.grad(loss)(BATCH.rows), expected, rtol=1e-4, atol=1e-6)


@KERNELS
def test_fake_tensors(impl):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {k: mode.from_tensor(t) for k, t in vars(BATCH).items() if t is not None}
        p = replace(BATCH, **fake)
        assert pair_max(p, impl=impl).shape == (12,)
        value, gradient = results(mined, p, torch.ones_like, impl=impl)
    assert (value.shape, gradient.shape) == ((), (12, 5))


def test_gradients_of_the_reference():
    p = BATCH.to(torch.float64)
    rows = p.rows.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: mined(replace(p, rows=rows), "reference"), rows)


def test_cuda_says_that_it_has_no_kernels():
    p = replace(BATCH, floor=torch.zeros(12))
    with pytest.raises(RuntimeError, match=r"pair_reduce: impl='cuda' cannot serve .* no kernels"):
        pair_reduce(p, impl="cuda")
    with pytest.raises(RuntimeError, match=r"pair_max: impl='cuda' cannot serve .* no kernels"):
        pair_max(p, impl="cuda")
