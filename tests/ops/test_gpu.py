"""The kernels on a GPU, or as far as it goes in Triton's interpreter (`--interpreted`).

Truth is float64 on the same device. Cheap and broad tests come first, large ones last.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from dmlfast.bench import baselines
from dmlfast.bench.graph import CapturedStep
from dmlfast.bench.memory import gpu_peak_growth
from dmlfast.cli.main import main

from dmlfast.losses import PDDMUnit
from dmlfast.ops import dispatch, lifted_structured_loss, pddm_scores

from .helpers import (
    DEVICE,
    INTERPRETED_PAIRS,
    ON_GPU,
    ULPS,
    Problem,
    assert_accurate,
    assert_kernels_accurate,
    careful_distances,
    contrastive,
    decided,
    direct_distances,
    gram_distances,
    lifted,
    pair_cases,
    pair_reduce,
    plain_contrastive,
    plain_lifted,
    plain_pair_reduce,
    plain_triplet,
    problem,
    results,
    triplet,
    with_duplicates,
)

pytestmark = pytest.mark.gpu
NEEDS_CUDA = pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter has no such thing")
EVERY_IMPL = pytest.mark.parametrize("impl", ON_GPU)
OPS = pytest.mark.parametrize("op", [lifted, pair_reduce])
FULL, BRAIN, HALF = torch.float32, torch.bfloat16, torch.float16
DTYPES = pytest.mark.parametrize("dtype", [FULL, BRAIN, HALF])
CHUNKED = 1000  # rows from which the truth is taken chunk by chunk
# one launch; a program for a band of rows; blocks of weights
# One launch and more on Triton's side; CUDA takes any of them in one, and streams wider ones.
ROUTES = pytest.mark.parametrize(("n", "d"), [(100, 24), (150, 24), (130, 200), (130, 600)])


def on_gpu(p: Problem) -> Problem:
    """The problem where the kernels run; not one that is too large for an interpreter."""
    if DEVICE == "cpu" and p.pairs > INTERPRETED_PAIRS:
        pytest.skip("more pairs than an interpreter takes")
    return p.on(DEVICE)


def lifted_chunked(p: Problem, **_) -> torch.Tensor:
    return baselines.lifted_chunked(p.rows, p.labels)


def pair_reduce_chunked(p: Problem, *, of: Callable[..., torch.Tensor], **options) -> torch.Tensor:
    """``of`` by 256 rows at a time, whose graphs are not all kept."""
    columns = (p.rows, p.labels) if p.columns is None else (p.columns, p.column_labels)

    def part(rows: torch.Tensor, r: torch.Tensor, own: slice) -> torch.Tensor:
        index = None if p.selves is None else p.selves[own]
        return of(Problem(rows, p.labels[own], r, columns[1], index, p.bias), **options)

    owns = [slice(first, first + 256) for first in range(0, len(p.rows), 256)]
    return torch.cat(
        [
            torch.utils.checkpoint.checkpoint(
                part, p.rows[own], columns[0], own, use_reentrant=False
            )
            for own in owns
        ]
    )


def relative_errors(found: list[torch.Tensor], exact: list[torch.Tensor]) -> list[float]:
    norm = torch.linalg.vector_norm
    return [float(norm(f.double() - e) / norm(e)) for f, e in zip(found, exact, strict=True)]


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def assert_same_bits(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert all(map(torch.equal, found, expected))


# Each number of rows and of components that matters, with every dtype on every route.
SMALL = [
    *[(1, 3, FULL), (2, 1, BRAIN), (17, 16, HALF), (127, 65, FULL), (128, 64, FULL)],
    *[(128, 128, BRAIN), (128, 129, HALF), (128, 512, FULL), (127, 200, BRAIN)],
]
BANDS = [
    *[(129, 3, FULL), (129, 64, BRAIN), (1000, 16, HALF), (1000, 128, BRAIN)],
    *[(4096, 64, FULL), (4096, 128, HALF), (4097, 64, FULL)],
]
BLOCKS = [
    *[(127, 1000, BRAIN), (129, 65, FULL), (129, 129, BRAIN), (130, 200, HALF)],
    *[(1000, 1000, FULL), (1000, 4096, BRAIN), (4097, 512, FULL), (4097, 512, BRAIN)],
]
LARGE = [
    *[(20011, 64, FULL), (20011, 128, BRAIN), (20011, 512, BRAIN), (20011, 512, HALF)],
    *[(65536, 128, BRAIN), (65536, 128, FULL)],
]


def assert_lifted_accurate(n: int, d: int, dtype: torch.dtype, impl: str) -> None:
    p = on_gpu(problem(n, d=d, seed=n).to(dtype))
    chunked = n >= CHUNKED
    assert_kernels_accurate(
        lifted,
        lifted_chunked if chunked else plain_lifted,
        p,
        kernels=(impl,),
        truth=lifted_chunked if chunked else None,
    )


@DTYPES
@pytest.mark.parametrize("width", [24, 128, 200])
@pytest.mark.parametrize("normalize", [False, True])
def test_scores_of_a_metric_unit(dtype, width, normalize):
    """Against float64; and to the bit the same in a matrix, between two sets and in a list."""
    torch.manual_seed(0)
    rows, unit = torch.randn(70, width), PDDMUnit(width, normalize_inputs=normalize)
    rows[3] = 1e-5 * rows[4] - rows[5]
    rows, unit = rows.to(DEVICE, dtype), unit.to(DEVICE)
    i, j = torch.randint(0, 70, (2, 300), device=DEVICE)
    with torch.no_grad():
        found = pddm_scores(rows, unit, impl="triton")
        parts = pddm_scores(rows[:40], unit, rows[11:], impl="triton")
        listed = pddm_scores(rows, unit, pairs=(i, j), impl="triton")
        few = pddm_scores(rows, unit, pairs=(i[:9], j[:9]), impl="triton")
        plain = pddm_scores(rows, unit, impl="reference")
        exact = pddm_scores(rows.double(), unit.double(), impl="reference")
    assert torch.equal(found, found.T)
    rounding = 0.0 if dtype == FULL else torch.finfo(dtype).eps / torch.finfo(FULL).eps
    assert_accurate([found], [exact], [plain], ULPS + rounding)
    if DEVICE == "cuda":  # NumPy's products depend on where a row stands
        assert torch.equal(parts, found[:40, 11:])
        assert torch.equal(listed, found[i, j])
        assert torch.equal(few, found[i[:9], j[:9]])


@EVERY_IMPL
@pytest.mark.parametrize(("n", "d", "dtype"), [*SMALL, *BANDS, *BLOCKS])
def test_lifted(n, d, dtype, impl):
    assert_lifted_accurate(n, d, dtype, impl)


@EVERY_IMPL
@pytest.mark.parametrize(
    ("n", "m", "d", "dtype"),
    [(150, 130, 24, FULL), (130, 180, 200, BRAIN), (1000, 3000, 64, HALF), (40, 500, 129, FULL)],
)
def test_lifted_over_columns_of_their_own(n, m, d, dtype, impl):
    p = problem(n, m, d, selves=True, per_class=4, seed=n).to(dtype)
    assert_kernels_accurate(lifted, plain_lifted, on_gpu(p), kernels=(impl,))


@EVERY_IMPL
@pytest.mark.parametrize("case", pair_cases(), ids=str)
def test_pair_reduce(case, impl):
    distances = careful_distances if case.coincide else gram_distances
    # rows that face themselves with a bias get the sum of two gradients, each of rounded weights
    two = case.columns == "themselves, biased"
    ulps = ULPS + two * torch.finfo(case.dtype).eps / torch.finfo(FULL).eps
    assert_kernels_accurate(
        pair_reduce,
        plain_pair_reduce,
        on_gpu(case.problem(129, 150)),
        kernels=(impl,),
        distances=distances,
        ulps=ulps,
        **case.options,
    )


@DTYPES
@pytest.mark.parametrize("m", [None, 130])
@ROUTES
class TestLossesThatTritonAloneServes:
    def test_contrastive(self, n, d, m, dtype):
        p = problem(n, m, d, selves=m is not None, per_class=4, scale=d**-0.5).to(dtype)
        options = {"kernels": ("triton",), "pos_margin": 0.5, "neg_margin": 1.3}
        assert_kernels_accurate(contrastive, plain_contrastive, on_gpu(p), **options)

    @pytest.mark.parametrize("mining", ["all", "semihard", "hardest"])
    def test_triplet(self, n, d, m, dtype, mining):
        margins = {"all": (0.2,), "semihard": (0.0,), "hardest": ()}[mining]
        scale, per_class = (8 / d) ** 0.5, 3
        shape = {"selves": m is not None, "per_class": per_class, "scale": scale}
        p = decided(n // 2, m, d, dtype=dtype, margins=margins, **shape)
        options = {"kernels": ("triton",), "mining": mining}
        assert_kernels_accurate(triplet, plain_triplet, on_gpu(p), **options)


def test_any_two_options_of_the_pair_primitive_meet():
    cases = pair_cases()
    for a, b in itertools.combinations(range(len(cases[0])), 2):
        values = [{case[k] for case in cases} for k in (a, b)]
        assert {(case[a], case[b]) for case in cases} == set(itertools.product(*values))
    assert len({case.dtype for case in cases}) == 3


@EVERY_IMPL
@ROUTES
def test_plain_tf32_where_torch_allows_it(n, d, impl):
    p = on_gpu(problem(n, d=d, per_class=4))
    exact = results(lifted, p.to(torch.float64), impl="reference")
    assert max(relative_errors(results(lifted, p, impl=impl), exact)) < 1e-5
    with matmul_precision("high"):
        found = relative_errors(results(lifted, p, impl=impl), exact)
        plain = relative_errors(results(plain_lifted, p), exact)
    on_chip = impl == "cuda" and d <= 512  # where differences are taken in any case
    assert on_chip or max(found) > 1e-5
    for error, yard in zip(found, plain, strict=True):
        assert error < 2 * yard + 2**-10


@EVERY_IMPL
@pytest.mark.parametrize(
    ("noise", "dtype"), list(itertools.product([0.0, 1e-5, 1e-2], [FULL, BRAIN, HALF]))
)
@ROUTES
def test_duplicates(n, d, noise, dtype, impl):
    p = with_duplicates(problem(n, d=d, per_class=4, seed=d), noise=noise).to(dtype)
    assert_kernels_accurate(
        lifted, plain_lifted, on_gpu(p), kernels=(impl,), distances=direct_distances
    )


@EVERY_IMPL
@pytest.mark.parametrize("size", [1e-4, 1e-2, 1e2, 1e4])
@ROUTES
def test_embeddings_of_every_size(n, d, size, impl):
    p = on_gpu(problem(n, d=d, per_class=4, scale=size))
    assert_kernels_accurate(lifted, plain_lifted, p, kernels=(impl,))
    options = {"kernels": (impl,), "scale": 1 / size**2}
    assert_kernels_accurate(pair_reduce, plain_pair_reduce, p, score="dot", **options)


@EVERY_IMPL
@pytest.mark.parametrize("columns", [None, 140])
def test_terms_of_every_span(columns, impl):
    """A running maximum, and statistics too far apart for one exponential a pair."""
    p = problem(150, columns, 24, bias=columns is not None, per_class=5)
    p = on_gpu(replace(p, rows=p.rows * torch.logspace(-1.5, 1.5, 150)[:, None]))
    for scale in (-15.0, 5.0):
        assert_kernels_accurate(pair_reduce, plain_pair_reduce, p, kernels=(impl,), scale=scale)


@EVERY_IMPL
@pytest.mark.parametrize("labels", [torch.zeros, torch.arange], ids=["one class", "alone"])
@ROUTES
def test_without_negatives_or_positives_the_loss_is_zero_and_so_is_its_gradient(n, d, labels, impl):
    p = on_gpu(replace(problem(n, d=d), labels=labels(n).long()))
    loss, gradient = results(lifted, p, impl=impl)
    assert loss == 0
    assert not gradient.any()


@EVERY_IMPL
@pytest.mark.parametrize(("n", "m"), [(0, None), (0, 5), (5, 0), (1, None)])
def test_nothing_to_pair(n, m, impl):
    p = on_gpu(problem(n, m))
    assert not any(t.any() for t in results(lifted, p, impl=impl))
    value, *gradients = results(pair_reduce, p, select="other", impl=impl)
    assert torch.equal(value, torch.full_like(value, -torch.inf))
    assert not any(gradient.any() for gradient in gradients)


@EVERY_IMPL
@DTYPES
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@ROUTES
def test_a_value_that_is_not_finite_makes_everything_nan(n, d, value, dtype, impl):
    p = problem(n, d=d)
    p.rows[n - 1, d // 2] = value
    p = on_gpu(p.to(dtype))
    assert all(t.isnan().all() for t in results(lifted, p, impl=impl))
    if dtype == FULL:
        assert all(t.isnan().all() for t in results(pair_reduce, p, impl=impl))


@EVERY_IMPL
@ROUTES
def test_labels_are_opaque(n, d, impl):
    p = on_gpu(problem(n, d=d))
    expected = results(lifted, p, impl=impl)
    for labels in (p.labels * 2**40 - 2**62, p.labels + (2**63 - 1 - n), p.labels.to(torch.int16)):
        assert_same_bits(results(lifted, replace(p, labels=labels), impl=impl), expected)


@OPS
@EVERY_IMPL
@ROUTES
def test_any_layout_gives_the_same_result(op, n, d, impl):
    p = on_gpu(problem(n, d=d))
    expected = results(op, p, torch.ones_like, impl=impl)
    gaps = p.rows.new_full((2 * n, 3 * d), torch.nan)
    for view in (p.rows.T.contiguous().T, gaps[1::2, 2::3].copy_(p.rows)):
        assert not view.is_contiguous()
        x = view.requires_grad_()
        value = op(replace(p, rows=x), impl=impl)
        (gradient,) = torch.autograd.grad(value, x, torch.ones_like(value))
        torch.testing.assert_close([value.detach(), gradient], expected, rtol=1e-6, atol=1e-6)


@EVERY_IMPL
@ROUTES
def test_no_gradient_is_wanted(n, d, impl):
    p = on_gpu(problem(n, d=d))
    loss, _ = results(lifted, p, impl=impl)
    with torch.no_grad():
        torch.testing.assert_close(lifted(p, impl=impl), loss, rtol=2e-6, atol=0)


def test_fresh_memory_is_poisoned():
    """As the kernels are given it, which is how a read before a write is seen."""
    names = {"torch": torch, "x": torch.zeros(3, device=DEVICE), "__name__": "dmlfast.anything"}
    exec("made = torch.empty(4, device=x.device), x.new_empty(5), torch.empty_like(x)", names)
    assert all(tensor.isnan().all() for tensor in names["made"])


def test_auto_serves_a_gpu_by_its_kernels(capsys):
    dtypes = FULL, BRAIN, HALF, torch.float64
    chosen = [dispatch._choose("op", "auto", DEVICE, dtype) for dtype in dtypes]
    kernels = dispatch.FASTEST if DEVICE == "cuda" else "cpu"
    assert chosen == [kernels] * 3 + ["reference"]
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(found["backends"][impl] is None for impl in ON_GPU)
    assert bool(found["machine"]["gpus"]) == (DEVICE == "cuda")


@OPS
@EVERY_IMPL
@pytest.mark.parametrize("dtype", [BRAIN, HALF])
def test_autocast_reaches_the_layer_before_and_not_the_loss(op, dtype, impl):
    p = on_gpu(problem(150, d=24))
    layer = torch.nn.Linear(24, 16, device=DEVICE)
    with torch.autocast(DEVICE, dtype):
        embeddings = layer(p.rows)
        value = op(replace(p, rows=embeddings), impl=impl)
    assert (embeddings.dtype, value.dtype) == (dtype, FULL)
    assert torch.equal(value, op(replace(p, rows=embeddings), impl=impl))
    value.sum().backward()
    assert layer.weight.grad.isfinite().all()
    assert layer.weight.grad.any()


@OPS
@EVERY_IMPL
def test_a_model_compiles_with_its_loss(op, impl):
    torch._dynamo.reset()
    p = on_gpu(problem(150, d=24))
    model = torch.nn.Linear(24, 16, device=DEVICE)

    def step(rows: torch.Tensor) -> torch.Tensor:
        return op(replace(p, rows=model(rows).relu()), impl=impl).square().sum()

    backend = "inductor" if DEVICE == "cuda" else "aot_eager"
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    expected = torch.autograd.grad(step(p.rows), model.parameters())
    found = torch.autograd.grad(compiled(p.rows), model.parameters())
    assert max(relative_errors(found, expected)) < 1e-4


@OPS
@EVERY_IMPL
def test_gradients_accumulate(op, impl):
    p, q = (on_gpu(problem(150, d=24, seed=seed)) for seed in (1, 2))
    weight = torch.eye(24, device=DEVICE, requires_grad=True)

    def value(p: Problem) -> torch.Tensor:
        return op(replace(p, rows=p.rows @ weight), impl=impl).sum()

    parts = [torch.autograd.grad(value(each), weight)[0] for each in (p, q)]
    for each in (p, q):
        value(each).backward()
    torch.testing.assert_close(weight.grad, parts[0] + parts[1])


SIZES = [
    *[(100, 64, FULL), (2000, 64, FULL), (2000, 64, BRAIN), (5000, 512, FULL)],
    (5000, 512, BRAIN),
]


@NEEDS_CUDA
@EVERY_IMPL
@pytest.mark.parametrize(("n", "d", "dtype"), SIZES)
def test_a_captured_step_replays_with_new_data(n, d, dtype, impl):
    """It is captured under torch's ban on waiting for the GPU."""
    p, q = (problem(n, d=d, seed=seed).to(dtype).on(DEVICE) for seed in (1, 2))
    batch = {"embeddings": p.rows.clone().requires_grad_(), "labels": p.labels.clone()}
    captured = CapturedStep(partial(lifted_structured_loss, impl=impl), batch)
    for given in (p, q, p):
        with torch.no_grad():
            batch["embeddings"].copy_(given.rows)
            batch["labels"].copy_(given.labels)
        value = captured().detach()
        expected = results(lifted, given, torch.ones_like, impl=impl)
        assert_same_bits([value, batch["embeddings"].grad], expected)


@NEEDS_CUDA
@EVERY_IMPL
def test_the_pair_primitive_does_not_wait_for_the_gpu(impl):
    for case in pair_cases():
        p = case.problem(129, 150).on(DEVICE)
        results(pair_reduce, p, torch.ones_like, impl=impl, **case.options)
        torch.cuda.set_sync_debug_mode("error")
        try:
            results(pair_reduce, p, torch.ones_like, impl=impl, **case.options)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@NEEDS_CUDA
@EVERY_IMPL
@pytest.mark.parametrize(
    ("n", "d", "dtype"),
    [(100, 64, FULL), (2000, 64, FULL), (5000, 64, FULL), (5000, 512, BRAIN)],
)
def test_work_goes_to_the_current_stream(n, d, dtype, impl):
    """Which gets its rows late: kernels on another stream would find zeros."""
    p = problem(n, d=d).to(dtype).on(DEVICE)
    expected = results(lifted, p, torch.ones_like, impl=impl)
    x = torch.zeros_like(p.rows, requires_grad=True)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        with torch.no_grad():
            x.copy_(p.rows)
        loss = lifted(replace(p, rows=x), impl=impl)
        (gradient,) = torch.autograd.grad(loss, x)
    stream.synchronize()
    assert_same_bits([loss.detach(), gradient], expected)


@NEEDS_CUDA
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
@EVERY_IMPL
@ROUTES
def test_the_second_gpu_while_the_first_is_current(n, d, impl):
    p = problem(n, d=d)
    with torch.cuda.device(0):
        expected = results(lifted, p.on("cuda:0"), torch.ones_like, impl=impl)
        found = results(lifted, p.on("cuda:1"), torch.ones_like, impl=impl)
    assert all(t.device.index == 1 for t in found)
    assert_same_bits([t.to("cuda:0") for t in found], expected)


@NEEDS_CUDA
@EVERY_IMPL
@pytest.mark.parametrize(
    ("n", "d", "dtype", "most"),
    [
        *[(2, 16, FULL, 1), (128, 128, BRAIN, 1), (128, 512, FULL, 1)],
        *[(129, 64, FULL, 6), (1000, 512, FULL, 6), (4096, 64, FULL, 6), (4096, 128, BRAIN, 6)],
    ],
)
def test_launches_of_a_loss_with_its_gradient(n, d, dtype, most, impl, monkeypatch):
    monkeypatch.undo()  # filling fresh memory is a launch as well
    p = problem(n, d=d).to(dtype).on(DEVICE)
    x = p.rows.requires_grad_()
    lifted(p, impl=impl)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        loss = lifted(replace(p, rows=x), impl=impl)
        torch.cuda.synchronize()
    assert loss.requires_grad
    on_device = torch.autograd.DeviceType.CUDA
    names = [event.name for event in profile.events() if event.device_type == on_device]
    if impl == "cuda" and n > 2048:
        most = 60  # torch sorts the labels and brings statistics in order
    assert 1 <= len(names) <= most, names


@EVERY_IMPL
@ROUTES
def test_calls_repeat_to_the_bit_while_the_gpu_is_busy(n, d, impl):
    p = on_gpu(problem(n, d=d, per_class=4))
    options = {"scale": -1.0, "impl": impl}
    expected = results(lifted, p, impl=impl) + results(pair_reduce, p, **options)
    work = torch.randn(2048, 2048, device=DEVICE)
    other = torch.cuda.Stream() if DEVICE == "cuda" else None
    for _ in range(200 if DEVICE == "cuda" else 2):
        with torch.cuda.stream(other):
            if other is not None:
                work @ work
        found = results(lifted, p, impl=impl) + results(pair_reduce, p, **options)
        assert_same_bits(found, expected)


@EVERY_IMPL
@pytest.mark.parametrize("dtype", [FULL, BRAIN])
@pytest.mark.parametrize(("n", "m"), [(20011, None), (4097, 20011), (300, 70)])
def test_pair_reduce_of_many_rows(n, m, dtype, impl):
    p = on_gpu(problem(n, m, 64, selves=True, bias=m is not None, per_class=50).to(dtype))
    assert_kernels_accurate(
        pair_reduce,
        partial(pair_reduce_chunked, of=plain_pair_reduce),
        p,
        kernels=(impl,),
        truth=partial(pair_reduce_chunked, of=pair_reduce),
        scale=-1.0,
    )


@EVERY_IMPL
@pytest.mark.parametrize(("n", "d", "dtype"), LARGE)
def test_lifted_of_many_rows(n, d, dtype, impl):
    assert_lifted_accurate(n, d, dtype, impl)


@NEEDS_CUDA
@EVERY_IMPL
@pytest.mark.parametrize("dtype", [FULL, BRAIN])
def test_memory_of_65536_rows(dtype, impl):
    """Of a row, at the peak of one of two moments: the prepared row, its gradient in float32, 32
    partial statistics of two numbers and some 100 bytes of order and labels; or its gradient in
    float32, and that times what arrives in the dtype. Beside it a block of 32 MiB.
    """
    n, d = 65536, 128
    p = problem(n, d=d).to(dtype).on(DEVICE)
    x = p.rows.requires_grad_()
    lifted(replace(p, rows=x), impl=impl).backward()
    x.grad = None
    row = d * x.element_size()
    bound = n * max(row + 4 * d + 32 * 8 + 128, 4 * d + row) + 2**25
    growth = gpu_peak_growth(lambda: lifted(replace(p, rows=x), impl=impl).backward())
    assert n * 4 * d < growth < 1.05 * bound
    assert bound < 4 * n**2 / 50
