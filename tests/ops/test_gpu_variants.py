"""What the losses can be asked for besides their defaults, and what torch asks of them, on a GPU or
as far as it goes in Triton's interpreter (`--interpreted`). Truth is float64 on the same device.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from dmlfast.bench import baselines
from dmlfast.bench.batches import problem as unit_rows
from dmlfast.bench.graph import CapturedStep
from dmlfast.bench.memory import gpu_peak_growth
from dmlfast.bench.sizes import Size

from dmlfast import ops
from dmlfast.losses import PDDMLoss
from dmlfast.ops.norm_softmax.op import without
from dmlfast.ops.pairs.op import grad_block, reduce_block
from dmlfast.ops.pairs.term import PairTerm
from dmlfast.ops.pddm.reference import quadruplets
from dmlfast.ops.pddm.triton import mining

from . import test_blocks, test_boosted_triton, test_mining, test_norm_softmax, test_pddm
from .helpers import (
    ULPS,
    Tensors,
    assert_accurate,
    assert_kernels_accurate,
    careful_distances,
    contrastive,
    decided,
    generator,
    gram_distances,
    pair_reduce,
    plain_contrastive,
    plain_pair_reduce,
    plain_triplet,
    problem,
    results,
    triplet,
    upstream_for,
    with_floors,
)
from .test_gpu import (
    BRAIN,
    DEVICE,
    EVERY_IMPL,
    FULL,
    HALF,
    NEEDS_CUDA,
    assert_same_bits,
    on_gpu,
    relative_errors,
)

pytestmark = pytest.mark.gpu
ON_CUDA = DEVICE == "cuda"
REPEATS = 200 if ON_CUDA else 1
TRITON = {"kernels": ("triton",)}
PER = pytest.mark.parametrize("per", ["batch", "class", "anchor"])


def rounded(dtype: torch.dtype) -> float:
    """Units of float32 in one of the dtype; 0 for float32."""
    return 0.0 if dtype == FULL else torch.finfo(dtype).eps / torch.finfo(FULL).eps


def boosted_deviance(boosting: str) -> Callable[..., torch.Tensor]:
    return partial(ops.boosted_deviance_loss, boosting=boosting)


BOOSTED = [
    *[(boosted_deviance("additive"), FULL), (boosted_deviance("additive"), BRAIN)],
    *[(boosted_deviance("derivative"), FULL), (boosted_deviance("derivative"), HALF)],
    *[(boosted_deviance("none"), FULL), (boosted_deviance("none"), BRAIN)],
    *[(ops.boosted_contrastive_loss, dtype) for dtype in (FULL, BRAIN, HALF)],
    (partial(ops.boosted_contrastive_loss, boosting="none"), FULL),
    *[(ops.boosted_triplet_loss, FULL), (ops.boosted_triplet_loss, BRAIN)],
    (partial(ops.boosted_triplet_loss, boosting="none"), FULL),
]


def boosted_batch(loss, n: int, groups: list[int], dtype: torch.dtype):
    """Rows and labels for which no rounding decides a hinge, if the loss has any."""
    for seed in range(50):
        rows, labels = test_boosted_triton.inputs(n, groups, dtype, seed=seed)
        rows, labels = rows.to(DEVICE), labels.to(DEVICE)
        if getattr(loss, "func", loss) is ops.boosted_deviance_loss:
            return rows, labels
        default = 0.2 if "triplet" in getattr(loss, "func", loss).__name__ else 0.5
        around = [
            test_boosted_triton.results(
                partial(loss, margin=default + shift), rows.double(), labels, groups, "reference"
            )[1]
            for shift in (-1e-6, 1e-6)
        ]
        if (around[0] - around[1]).abs().max() < 1e-4 * around[0].abs().max():
            return rows, labels
    raise AssertionError("no seed serves")


@pytest.mark.parametrize(("loss", "dtype"), BOOSTED)
def test_boosted_losses_of_learners(loss, dtype):
    groups = [5, 24, 35]
    rows, labels = boosted_batch(loss, 130 if ON_CUDA else 70, groups, dtype)
    impl_dtypes = ("triton", dtype), ("reference", torch.float64), ("reference", FULL)
    found, exact, plain = (
        test_boosted_triton.results(loss, rows, labels, groups, *each) for each in impl_dtypes
    )
    assert found[0].shape == (3,)
    assert (found[0] > 0).all()
    assert_accurate(found[:1], exact[:1], plain[:1], ULPS + 75)
    assert_accurate(found[1:], exact[1:], plain[1:], ULPS + 75 + rounded(dtype))


def metric_unit(d: int, normalize: bool = False):
    unit = test_pddm.unit_of(d, normalize=normalize)
    return unit.to(DEVICE), test_pddm.wide(unit).to(DEVICE)


def decided_scores(n: int, d: int, per: str, unit, wide, dtype=FULL, normalize=False):
    """Rows and labels of which noise in the scores would choose the same quadruplets."""
    labels = (torch.arange(n) // 4)[torch.randperm(n, generator=generator(n))].to(DEVICE)
    for seed in range(50):
        rows = torch.randn(n, d, generator=generator(seed)).to(DEVICE, dtype)
        if normalize:
            rows = torch.nn.functional.normalize(rows)
        with torch.no_grad():
            scores = ops.pddm_scores(rows.double(), wide, impl="reference")
        expected = quadruplets(scores, labels, per)
        noise = torch.randn(10, n, n, generator=generator(seed)).to(scores)
        noise = (noise + noise.transpose(1, 2)) * (1e-4 * scores.std())
        if all(torch.equal(quadruplets(scores + each, labels, per), expected) for each in noise):
            return rows, labels, expected
    raise AssertionError("no seed serves")


@PER
@pytest.mark.parametrize("normalize", [False, True])
def test_hard_quadruplets_are_those_of_the_reference(per, normalize, monkeypatch):
    """In several blocks of scores."""
    n = 150 if ON_CUDA else 32
    monkeypatch.setattr(mining, "BLOCK_ENTRIES", n * n // 3)
    unit, wide = metric_unit(24, normalize)
    rows, labels, expected = decided_scores(n, 24, per, unit, wide)
    assert (expected >= 0).any()
    found = ops.pddm_hard_quadruplets(rows, labels, unit, per=per, impl="triton")
    assert torch.equal(found, expected)
    found = ops.pddm_hard_quadruplets(rows, labels, per=per, impl="triton")
    exact = ops.pddm_hard_quadruplets(rows.double(), labels, per=per, impl="reference")
    assert torch.equal(found, exact)


@NEEDS_CUDA
@PER
@pytest.mark.parametrize("dtype", [BRAIN, HALF])
def test_hard_quadruplets_are_those_of_the_scores(per, dtype, monkeypatch):
    """To the bit, however the scores are cut into blocks."""
    monkeypatch.setattr(mining, "BLOCK_ENTRIES", 10_000)
    unit, _ = metric_unit(24)
    rows = torch.randn(150, 24, generator=generator(1)).to(DEVICE, dtype)
    labels = torch.arange(150, device=DEVICE) // 3
    with torch.no_grad():
        scores = ops.pddm_scores(rows, unit, impl="triton")
    found = ops.pddm_hard_quadruplets(rows, labels, unit, per=per, impl="triton")
    assert torch.equal(found, quadruplets(scores, labels, per))


@pytest.mark.parametrize("form", ["matrix", "two sets", "pairs"])
@pytest.mark.parametrize(
    ("dtype", "normalize"), [(FULL, False), (FULL, True), (BRAIN, False), (HALF, True)]
)
def test_gradients_of_scores(form, dtype, normalize):
    """Of rows, columns and all weights."""
    unit, wide = metric_unit(24, normalize)
    n, m = (90, 70) if ON_CUDA else (20, 15)
    x, y = (torch.randn(k, 24, generator=generator(k)).to(DEVICE, dtype) for k in (n, m))
    i, j = (t.to(DEVICE) for t in test_pddm.some_pairs(n, m, 200))
    columns = None if form == "matrix" else y
    pairs = (i, j) if form == "pairs" else None

    def solved(impl, unit, kind):
        r = None if columns is None else columns.to(kind)
        return test_pddm.results(impl, x.to(kind), unit, r, pairs)

    found = solved("triton", unit, dtype)
    exact, plain = solved("reference", wide, torch.float64), solved("reference", unit, FULL)
    assert_accurate(found[:1], exact[:1], plain[:1], ULPS + rounded(dtype))
    assert_accurate(found[1:], exact[1:], plain[1:])


@PER
@pytest.mark.parametrize("dtype", [FULL, BRAIN])
def test_pddm_loss(per, dtype):
    """Half-precision scores would choose other quadruplets than exact ones; distances do not."""
    options = {"per": per, "score_margin": 1.0}
    if dtype != FULL:
        options |= {"mining": "distance", "normalize_embeddings": False}
    loss_fn, wide, plain_fn = (PDDMLoss(24, **options).to(DEVICE) for _ in range(3))
    unit = test_pddm.unit_of(24)
    for each, impl in ((loss_fn, "triton"), (wide, "reference"), (plain_fn, "reference")):
        each.unit.load_state_dict(unit.state_dict())
        each.impl = impl
    wide.double()
    rows, labels, _ = decided_scores(
        60 if ON_CUDA else 24, 24, per, loss_fn.unit, wide.unit, dtype, normalize=dtype == FULL
    )

    def solved(loss_fn, dtype):
        x = rows.to(dtype).requires_grad_()
        value = loss_fn(x, labels)
        return [value.detach(), *torch.autograd.grad(value, [x, *loss_fn.parameters()])]

    found = solved(loss_fn, dtype)
    exact, plain = solved(wide, torch.float64), solved(plain_fn, FULL)
    assert exact[0] > 0
    assert_accurate(found[:1], exact[:1], plain[:1], 2 * ULPS + 8 * rounded(dtype))
    assert_accurate(found[1:], exact[1:], plain[1:], 2 * ULPS + rounded(dtype))


SOFTMAX = [
    *[({"temperature": 1.0, "cosine_margin": 0.35}, FULL)],
    *[({"temperature": 0.1, "angular_margin": 0.5}, dtype) for dtype in (FULL, BRAIN)],
    ({"cosine_margin": 0.1, "angular_margin": 0.3, "label_smoothing": 0.4}, HALF),
    *[({"label_smoothing": 0.1, "reduction": "sum"}, dtype) for dtype in (FULL, BRAIN)],
    *[({"ignore_index": 7, "reduction": "none"}, dtype) for dtype in (FULL, HALF)],
    ({"reduction": "none", "angular_margin": 0.2, "low_memory": True}, BRAIN),
    *[({"temperature": 0.01}, dtype) for dtype in (FULL, BRAIN, HALF)],
    ({"temperature": 0.01, "low_memory": True, "reduction": "none"}, FULL),
]


@pytest.mark.parametrize(("options", "dtype"), SOFTMAX, ids=str)
def test_norm_softmax_options(options, dtype):
    """A fifth of the rows does not count; at 0.01 the sums have a running maximum."""
    n, classes = (300, 1500) if ON_CUDA else (65, 300)
    rows, labels, weight = (t.to(DEVICE) for t in test_norm_softmax.problem(n, classes, 40))
    labels = torch.where(labels < 0, options.get("ignore_index", -100), labels)
    rows, weight = rows.to(dtype), weight.to(dtype)
    solve = partial(test_norm_softmax.results, **options)
    exact, plain = (
        solve("reference", rows, labels, weight, kind) for kind in (torch.float64, FULL)
    )
    for impl in {"triton", "cuda"} - set(without(rows.device, dtype, dtype)):
        found = solve(impl, rows, labels, weight)
        assert found[0].shape == ((n,) if options.get("reduction") == "none" else ())
        assert [t.dtype for t in found] == [FULL, dtype, dtype]
        ulps = ULPS + 1 / options.get("temperature", 0.05)
        assert_accurate(found[:1], exact[:1], plain[:1], ulps)
        assert_accurate(found[1:], exact[1:], plain[1:], ulps + 2.5 * rounded(dtype))


@pytest.mark.parametrize(
    ("n", "m", "d", "dtype", "squared", "reduction"),
    [
        *[(150, None, 24, FULL, True, "nonzero"), (150, None, 24, BRAIN, True, "mean")],
        *[(130, 130, 200, HALF, True, "sum"), (130, None, 200, FULL, True, "mean")],
        *[(150, 90, 24, FULL, False, "mean"), (150, None, 24, HALF, False, "sum")],
    ],
)
def test_contrastive_squared_and_its_reductions(n, m, d, dtype, squared, reduction):
    p = problem(n, m, d, selves=m is not None, per_class=4, scale=d**-0.5).to(dtype)
    options = {"pos_margin": 0.5, "neg_margin": 1.3, "squared": squared, "reduction": reduction}
    assert_kernels_accurate(contrastive, plain_contrastive, on_gpu(p), **TRITON, **options)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("mining", "m", "dtype"),
    [("all", None, FULL), ("all", 130, BRAIN), ("semihard", None, HALF), ("hardest", 130, FULL)],
)
def test_reductions_of_triplets(mining, m, dtype, reduction):
    margins = {"all": (0.2,), "semihard": (0.0,), "hardest": ()}[mining]
    shape = {"selves": m is not None, "per_class": 3, "scale": (8 / 24) ** 0.5}
    p = on_gpu(decided(75, m, 24, dtype=dtype, margins=margins, **shape))
    options = {"mining": mining, "reduction": reduction}
    assert_kernels_accurate(triplet, plain_triplet, p, **TRITON, **options)


HINGES = [
    ("negative", "distance", "hinge", None, FULL),
    ("negative", "dot", "squared_hinge", 90, BRAIN),
    ("positive", "distance", "squared_hinge", 90, HALF),
    ("positive", "dot", "hinge", None, FULL),
    ("other", "distance", "squared_hinge", None, BRAIN),
    ("other", "dot", "hinge", 90, HALF),
    ("all", "distance", "hinge", 90, FULL),
    ("all", "dot", "squared_hinge", None, FULL),
    ("negative", "dot", "softplus", 90, FULL),
    ("positive", "dot", "softplus", None, BRAIN),
    ("other", "distance", "softplus", None, FULL),
    ("all", "distance", "softplus", 90, HALF),
]


@pytest.mark.parametrize(("select", "score", "reduce", "m", "dtype"), HINGES)
@pytest.mark.parametrize("d", [24, 200])
def test_hinges_of_the_pair_primitive(select, score, reduce, m, dtype, d):
    p = problem(130, m, d, selves=m is not None, bias=m is not None, per_class=20, scale=d**-0.5)
    assert_kernels_accurate(
        pair_reduce,
        plain_pair_reduce,
        on_gpu(p.to(dtype)),
        # rows that meet themselves coincide with a column
        distances=careful_distances if select == "all" else gram_distances,
        select=select,
        score=score,
        reduce=reduce,
        scale=-1.0,
        offset=1.0,
        **TRITON,
    )


FLOORS = [
    ("negative", "distance", "logsumexp", None, FULL),
    ("negative", "dot", "softplus", 90, BRAIN),
    ("positive", "distance", "hinge", 90, HALF),
    ("positive", "dot", "logsumexp", None, BRAIN),
    ("other", "distance", "sum", None, BRAIN),
    ("other", "dot", "squared_hinge", 90, FULL),
    ("all", "distance", "logsumexp", 90, HALF),
    ("all", "dot", "sum", None, FULL),
]


@pytest.mark.parametrize(("select", "score", "reduce", "m", "dtype"), FLOORS)
@pytest.mark.parametrize("d", [24, 200])
def test_mined_pairs(select, score, reduce, m, dtype, d):
    p = problem(130, m, d, selves=m is not None, bias=m is not None, per_class=20, scale=d**-0.5)
    options = {"score": score, "scale": -3.0, "offset": 1.0}
    p = on_gpu(with_floors(p.to(dtype), **options))
    assert_kernels_accurate(
        pair_reduce,
        plain_pair_reduce,
        p,
        # rows that meet themselves coincide with a column
        distances=careful_distances if select == "all" else gram_distances,
        select=select,
        reduce=reduce,
        **options,
        **TRITON,
    )
    test_mining.assert_greatest(p, "triton", select=select, **options)


@EVERY_IMPL
@pytest.mark.parametrize("with_columns", [False, True])
@pytest.mark.parametrize(
    ("score", "select", "reduce"),
    [
        *[("distance", "negative", "logsumexp"), ("dot", "other", "logsumexp")],
        *[("distance", "positive", "sum"), ("distance", "all", "logsumexp")],
    ],
)
def test_running_statistics_of_columns_in_parts(score, select, reduce, with_columns, impl):
    n, m, bounds = test_blocks.MANY if ON_CUDA else test_blocks.FEW
    parts = [slice(*ends) for ends in pairwise(bounds)]
    p = problem(n, m, 9, selves=True, per_class=n // 3)
    term = PairTerm(score, select, reduce, -0.7, 0.2)
    row_grad, column_grad = (upstream_for(torch.empty(k, device=DEVICE)) for k in (n, m))
    solve = partial(results, pair_reduce, impl="reference", **term._asdict())
    p, wide, turned = (
        each.on(DEVICE)
        for each in (p, p.to(torch.float64), test_blocks.turned(p).to(torch.float64))
    )
    exact = solve(wide, lambda _: row_grad.double())
    column_stat = None
    if with_columns:
        column_stat, *others = solve(turned, lambda _: column_grad.double())
        exact[1:] = exact[1] + others[1], exact[2] + others[0]

    running = None
    for part in parts:
        running = reduce_block(*test_blocks.block(p, part), running, term, impl=impl)
    d_rows, d_columns = torch.zeros_like(p.rows), torch.zeros_like(p.columns)
    for part in parts:
        of_columns = (
            (column_stat[part].float(), column_grad[part]) if with_columns else (None, None)
        )
        grads = (d_rows, d_columns[part]) if part.start else None
        stats = (running, row_grad, *of_columns)
        d_rows, d_columns[part] = grad_block(
            *test_blocks.block(p, part), *stats, grads, term, impl=impl
        )
    for got, truth in zip([running, d_rows, d_columns], exact, strict=True):
        size = truth[truth.isfinite()].abs().max()
        torch.testing.assert_close(got.double(), truth, rtol=0, atol=1e-5 * float(size))


def contrastive_of(embeddings, labels):
    return ops.contrastive_loss(embeddings, labels, neg_margin=4.0, impl="triton")


def triplet_of(embeddings, labels, mining="all"):
    return ops.triplet_loss(embeddings, labels, mining=mining, impl="triton")


def boosted_of(embeddings, labels):
    d = embeddings.shape[1]
    groups = [d // 4, d - d // 4]
    return ops.boosted_deviance_loss(embeddings, labels, groups, impl="triton")


class SoftmaxOf:
    """The normalised softmax with random weights of 90 classes."""

    def __init__(self, d: int, **options) -> None:
        weight = torch.randn(90, d, generator=generator(2)).to(DEVICE)
        self.options = {"weight": weight, "impl": "triton", **options}

    def __call__(self, embeddings, labels):
        weight = self.options["weight"].to(embeddings.dtype)
        return ops.norm_softmax_loss(embeddings, labels % 90, **self.options | {"weight": weight})


class QuadrupletsOf:
    """Scores of hard quadruplets."""

    def __init__(self, d: int) -> None:
        self.unit = test_pddm.unit_of(d).to(DEVICE)

    def __call__(self, embeddings, labels):
        mined = ops.pddm_hard_quadruplets(
            embeddings, labels, self.unit, per="anchor", impl="triton"
        ).clamp_min(0)
        scores = ops.pddm_scores(embeddings, self.unit, impl="triton")
        return scores.gather(1, mined[:, 2:3]).sum() - scores.gather(1, mined[:, 1:2]).sum()


WIDTH = 16
LOSSES = {
    "norm_softmax": partial(SoftmaxOf, WIDTH),
    "boosted": lambda: boosted_of,
    "contrastive": lambda: contrastive_of,
    "triplet": lambda: triplet_of,
    "pddm": partial(QuadrupletsOf, WIDTH),
}
EVERY_LOSS = pytest.mark.parametrize("name", LOSSES)


def batch(n: int, d: int, dtype: torch.dtype = FULL, seed: int = 0) -> dict[str, torch.Tensor]:
    p = problem(n, d=d, per_class=4, seed=seed).to(dtype).on(DEVICE)
    return {"embeddings": p.rows, "labels": p.labels}


def solved(loss: Callable[..., torch.Tensor], given: dict[str, torch.Tensor]) -> Tensors:
    """The loss and the gradient of its rows."""
    x = given["embeddings"].detach().requires_grad_()
    value = loss(x, given["labels"])
    return [value.detach(), *torch.autograd.grad(value, x)]


ROWS = 150 if ON_CUDA else 40


@EVERY_LOSS
def test_a_model_compiles_with_any_loss(name):
    torch._dynamo.reset()
    given, loss = batch(ROWS, 24), LOSSES[name]()
    model = torch.nn.Linear(24, WIDTH, device=DEVICE)

    def step(rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return loss(model(rows).tanh(), labels)

    backend = "inductor" if ON_CUDA else "aot_eager"
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    expected, found = (
        torch.autograd.grad(each(*given.values()), model.parameters()) for each in (step, compiled)
    )
    assert max(relative_errors(found, expected)) < 1e-4


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [BRAIN, HALF])
def test_autocast_reaches_the_layer_before_and_no_loss(name, dtype):
    given, loss = batch(ROWS, 24), LOSSES[name]()
    layer = torch.nn.Linear(24, WIDTH, device=DEVICE)
    with torch.autocast(DEVICE, dtype):
        embeddings = layer(given["embeddings"])
        value = loss(embeddings, given["labels"])
    assert (embeddings.dtype, value.dtype) == (dtype, FULL)
    assert torch.equal(value, loss(embeddings, given["labels"]))
    value.backward()
    assert layer.weight.grad.isfinite().all()
    assert layer.weight.grad.any()


@NEEDS_CUDA
@EVERY_LOSS
def test_work_of_any_loss_goes_to_the_current_stream(name):
    """Which gets its rows late: kernels on another stream would find zeros."""
    given, loss = batch(1000, WIDTH), LOSSES[name]()
    expected = solved(loss, given)
    late = {**given, "embeddings": torch.zeros_like(given["embeddings"])}
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late["embeddings"].copy_(given["embeddings"])
        found = solved(loss, late)
    stream.synchronize()
    assert_same_bits(found, expected)


CAPTURED = {
    "contrastive": contrastive_of,
    "triplet": triplet_of,
    "semihard": partial(triplet_of, mining="semihard"),
    **{
        f"pair_reduce-{impl}": lambda embeddings, labels, impl=impl: ops.pair_reduce(
            embeddings, labels, scale=-1.0, impl=impl
        ).sum()
        for impl in ("triton", "cuda")
    },
}


@NEEDS_CUDA
@pytest.mark.parametrize("name", CAPTURED)
@pytest.mark.parametrize(
    ("n", "d", "dtype"), [(300, 64, FULL), (2000, 64, BRAIN), (5000, 200, BRAIN)]
)
def test_a_captured_loss_replays_with_new_data(name, n, d, dtype):
    """It is captured under torch's ban on waiting for the GPU."""
    loss = CAPTURED[name]
    one, other = (batch(n, d, dtype, seed) for seed in (1, 2))
    held = {name: tensor.clone() for name, tensor in one.items()}
    held["embeddings"].requires_grad_()
    captured = CapturedStep(loss, held)
    for given in (one, other, one):
        with torch.no_grad():
            for name, tensor in given.items():
                held[name].copy_(tensor)
        found = [captured().detach(), held["embeddings"].grad]
        assert_same_bits(found, solved(loss, given))


@pytest.mark.parametrize("dtype", [FULL, BRAIN])
@pytest.mark.parametrize(
    "make",
    [
        lambda: contrastive_of,
        lambda: triplet_of,
        lambda: partial(triplet_of, mining="semihard"),
        lambda: SoftmaxOf(24, low_memory=True),
    ],
    ids=["contrastive", "triplet", "semihard", "norm_softmax"],
)
def test_losses_repeat_to_the_bit(make, dtype):
    given, loss = batch(1000 if ON_CUDA else 60, 24, dtype), make()
    expected = solved(loss, given)
    for _ in range(REPEATS):
        assert_same_bits(solved(loss, given), expected)


@pytest.mark.parametrize("form", ["matrix", "pairs"])
@pytest.mark.parametrize("dtype", [FULL, BRAIN])
def test_scores_and_their_gradients_repeat_to_the_bit(form, dtype):
    """Also where a row is in many pairs, whose gradients are added up."""
    unit, n = metric_unit(24)[0], 100 if ON_CUDA else 20
    x = torch.randn(n, 24, generator=generator(0)).to(DEVICE, dtype)
    listed = tuple(t.to(DEVICE) for t in test_pddm.some_pairs(n, n, 30 * n))
    pairs = listed if form == "pairs" else None
    expected = test_pddm.results("triton", x, unit, None, pairs)
    for _ in range(REPEATS):
        assert_same_bits(test_pddm.results("triton", x, unit, None, pairs), expected)


@NEEDS_CUDA
@pytest.mark.parametrize(
    ("loss", "d"),
    [
        *[
            (partial(ops.lifted_structured_loss, impl=impl), d)
            for impl in ("triton", "cuda")
            for d in (128, 512)
        ],
        (boosted_of, 512),
    ],
)
def test_large_batches_repeat_to_the_bit(loss, d):
    given = batch(20011, d, BRAIN)
    expected = solved(loss, given)
    for _ in range(REPEATS):
        assert_same_bits(solved(loss, given), expected)


def peak_of(loss: Callable[..., torch.Tensor], given: dict[str, torch.Tensor]) -> int:
    """Bytes that a loss and its gradient take beyond the rows, the gradient among them."""
    x = given["embeddings"].requires_grad_()
    loss(x, given["labels"]).backward()
    x.grad = None
    return gpu_peak_growth(lambda: loss(x, given["labels"]).backward())


@NEEDS_CUDA
@pytest.mark.parametrize("dtype", [FULL, BRAIN])
def test_memory_of_boosted_losses(dtype):
    """Of a row: packed, its gradient as it is packed and as it was given, both float32, and some
    hundred bytes of lengths and labels. Beside it 32 MiB of weights.
    """
    n, d = 32768, 512
    packed = d + 32  # components, with those that learners are padded by
    bound = n * (packed * (dtype.itemsize + 4) + 4 * d + 256) + 2**25
    growth = peak_of(boosted_of, batch(n, d, dtype))
    assert n * 4 * d < growth < 1.05 * bound
    assert bound < 4 * n**2 / 15


@NEEDS_CUDA
@pytest.mark.parametrize("dtype", [FULL, BRAIN])
@pytest.mark.parametrize(
    ("loss", "mebibytes"),
    [
        (contrastive_of, {FULL: 32, BRAIN: 32}),  # a block of weights
        # distances, sums and weights of a band
        (triplet_of, {FULL: 3 * 16, BRAIN: 2.5 * 64}),
        (partial(triplet_of, mining="semihard"), {FULL: 3 * 16, BRAIN: 2.5 * 64}),
    ],
)
def test_memory_of_pair_and_triplet_losses(loss, mebibytes, dtype):
    """Of a row: prepared, four gradients (of positives, of negatives, times what arrives, in the
    dtype), 32 partial statistics of two numbers and some 100 bytes of order and labels.
    """
    n, d = 16384, 128
    row = d * dtype.itemsize + 4 * 4 * d + 32 * 8 + 128
    bound = n * row + mebibytes[dtype] * 2**20
    assert n * 4 * d < peak_of(loss, batch(n, d, dtype)) < 1.05 * bound
    assert bound < 4 * n**2 / 5


@NEEDS_CUDA
def test_memory_of_wide_rows():
    """Of a row: its gradient in float32, the same times what arrives, and that in the dtype; or
    prepared, once more as a product takes it, and its gradient. Beside it 32 MiB of weights, and
    products of 8,192 rows.
    """
    n, d = 32768, 512
    loss = partial(ops.lifted_structured_loss, impl="cuda")
    bound = n * (2 * 4 * d + 2 * d + 32 * 8 + 128) + 2**25 + 8192 * 4 * d
    assert n * 4 * d < peak_of(loss, batch(n, d, BRAIN)) < 1.05 * bound
    assert bound < 4 * n**2 / 15


@NEEDS_CUDA
def test_a_million_rows():
    """Against a truth in float32, whose gradient is that of a sample of rows."""
    given = unit_rows(Size(2**20, 128))
    x = given["embeddings"].detach().to(DEVICE, BRAIN)
    labels = given["labels"].to(DEVICE)
    wide = x.float().requires_grad_()
    truth = baselines.lifted_chunked(wide, labels, sampled_chunks=16)
    (exact,) = torch.autograd.grad(truth, wide)
    sample = ~exact.isnan().any(1)
    assert 1000 < sample.sum() < 100_000
    x.requires_grad_()
    for impl in ("triton", "cuda"):
        x.grad = None
        losses: list[torch.Tensor] = []
        growth = gpu_peak_growth(partial(loss_and_gradient, x, labels, impl, losses))
        assert growth - x.grad.nbytes < 2 << 30
        torch.testing.assert_close(losses[0], truth.detach(), rtol=1e-4, atol=0)
        (error,) = relative_errors([x.grad[sample]], [exact[sample].double()])
        assert error < torch.finfo(BRAIN).eps


def loss_and_gradient(x: torch.Tensor, labels: torch.Tensor, impl: str, losses: Tensors) -> None:
    value = ops.lifted_structured_loss(x, labels, impl=impl)
    value.backward()
    losses.append(value.detach())
