"""The losses with weights of their own on a GPU, or as far as it goes in Triton's interpreter
(`--interpreted`). Truth is float64 on the same device.
"""

from functools import partial

import pytest
import torch
from dmlfast.bench import baselines, boosted, cosines
from dmlfast.bench.graph import CapturedStep
from dmlfast.bench.memory import gpu_peak_growth

from dmlfast import ops
from dmlfast.losses import (
    MultiSimilarityLoss,
    NTXentLoss,
    PDDMLoss,
    ProxyAnchorLoss,
    SupConLoss,
)
from dmlfast.ops.boosted import group_sizes
from dmlfast.ops.norm_softmax.op import without

from .helpers import DEVICE, ON_GPU, ULPS, assert_accurate, cut_off, generator

pytestmark = pytest.mark.gpu
NEEDS_CUDA = pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter has no such thing")
FULL, BRAIN, HALF = torch.float32, torch.bfloat16, torch.float16
DTYPES = pytest.mark.parametrize("dtype", [FULL, BRAIN, HALF])
IMPLS = pytest.mark.parametrize(
    ("impl", "dtype"), [("triton", FULL), ("triton", BRAIN), ("triton", HALF), ("cuda", BRAIN)]
)
INTERPRETED_LOGITS = 100_000


def softmax(impl, **options):
    """The loss on a backend that serves it here."""
    if impl == "cuda" and impl in without(torch.device(DEVICE), BRAIN, BRAIN):
        pytest.skip("kernels for sm_90")
    return partial(ops.norm_softmax_loss, impl=impl, **options)


def softmax_problem(n, d, classes, dtype=FULL, seed=0):
    """Rows around the weights of their classes, and labels."""
    if DEVICE == "cpu" and n * classes > INTERPRETED_LOGITS:
        pytest.skip("more logits than an interpreter takes")
    random = generator(seed + n)
    weight = torch.randn(classes, d, generator=random)
    labels = torch.randint(0, classes, (n,), generator=random)
    rows = weight[labels] + torch.randn(n, d, generator=random)
    given = {"embeddings": rows, "weight": weight}
    placed = {name: t.to(DEVICE, dtype).requires_grad_() for name, t in given.items()}
    return {**placed, "labels": labels.to(DEVICE)}


def solved(loss, problem):
    """The loss and its gradients."""
    value = loss(**problem)
    leaves = [problem["embeddings"], problem["weight"]]
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def in_dtype(problem, dtype):
    return {
        name: t.detach().to(dtype).requires_grad_() if t.is_floating_point() else t
        for name, t in problem.items()
    }


SIZES = [(1, 2, 3), (75, 512, 333), (130, 40, 513), (1000, 64, 5000), (333, 2048, 4001)]


@IMPLS
@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize(("n", "d", "classes"), SIZES)
def test_norm_softmax(n, d, classes, low_memory, impl, dtype):
    if impl == "cuda" and d > 512:
        pytest.skip("wider than its kernels")
    problem = softmax_problem(n, d, classes, dtype)
    exact = solved(baselines.norm_softmax_chunked, in_dtype(problem, torch.float64))
    plain = solved(baselines.norm_softmax_naive, in_dtype(problem, FULL))
    found = solved(softmax(impl, low_memory=low_memory), problem)
    # exponentials and rows times their factors are rounded to the precision of the rows
    rounded = 0.0 if dtype == FULL else 2.5 * torch.finfo(dtype).eps / torch.finfo(FULL).eps
    assert_accurate(found[:1], exact[:1], plain[:1], 24)
    assert_accurate(found[1:], exact[1:], plain[1:], 24 + rounded)


def at_length_1(normalize, rows, upstream):
    """The rows, and their gradient."""
    units = normalize(rows)
    return [units.detach(), *torch.autograd.grad(units, rows, upstream.to(units.dtype))]


@DTYPES
@pytest.mark.parametrize("impl", ON_GPU)
@pytest.mark.parametrize(
    ("n", "d"), [(1, 3), (128, 128), (1001, 513), (7, 4099), (2**20 + 1, 128), (2**24 + 1, 3)]
)
def test_rows_at_length_1(n, d, impl, dtype):
    """Any number of them, lying along or across, and 50 times to the bit."""
    if DEVICE == "cpu" and n * d > INTERPRETED_LOGITS:
        pytest.skip("more components than an interpreter takes")
    random = torch.Generator(DEVICE).manual_seed(n)
    shape = (n, d) if d > 3 else (d, n)  # where they are few, they lie across
    rows, upstream = (torch.randn(shape, generator=random, device=DEVICE) for _ in range(2))
    if d <= 3:
        rows, upstream = rows.T, upstream.T
    rows, upstream = rows.to(dtype).requires_grad_(), upstream.to(dtype)
    naive = partial(torch.nn.functional.normalize, eps=0)
    exact = at_length_1(naive, rows.detach().double().requires_grad_(), upstream)
    plain = at_length_1(naive, rows.detach().float().requires_grad_(), upstream)
    ours = partial(ops.normalize, impl=impl)
    found = at_length_1(ours, rows, upstream)
    assert_accurate(found, exact, plain, ULPS + cut_off(dtype, impl), impl)
    for _ in range(50 if DEVICE == "cuda" and n < 10**6 else 1):
        assert all(map(torch.equal, at_length_1(ours, rows, upstream), found))


@IMPLS
def test_norm_softmax_repeats_to_the_bit(impl, dtype):
    problem, loss = softmax_problem(130, 64, 700, dtype), softmax(impl)
    expected = solved(loss, problem)
    for _ in range(200 if DEVICE == "cuda" else 1):
        assert all(map(torch.equal, solved(loss, problem), expected))


@NEEDS_CUDA
@IMPLS
@pytest.mark.parametrize("low_memory", [False, True])
def test_a_captured_norm_softmax_replays_with_new_data(low_memory, impl, dtype):
    loss = softmax(impl, low_memory=low_memory)
    problem, other = (softmax_problem(500, 128, 3000, dtype, seed) for seed in (1, 2))
    captured = CapturedStep(loss, problem)
    with torch.no_grad():
        for name, tensor in other.items():
            problem[name].copy_(tensor)
    value = captured().detach()
    found = [value, problem["embeddings"].grad, problem["weight"].grad]
    assert all(map(torch.equal, found, solved(loss, other)))


@NEEDS_CUDA
@pytest.mark.parametrize("label", [-1, 3000])
def test_a_label_that_is_no_class_gives_nan_on_a_gpu(label):
    problem = softmax_problem(500, 128, 3000)
    problem["labels"][7] = label
    assert softmax("triton")(**problem).isnan()


@NEEDS_CUDA
@pytest.mark.parametrize("impl", ["triton", "cuda"])
@pytest.mark.parametrize(("low_memory", "mib"), [(False, 3072), (True, 64)])
def test_memory_over_a_million_classes(low_memory, mib, impl):
    problem = softmax_problem(4096, 512, 1_000_000, BRAIN)
    loss = softmax(impl, low_memory=low_memory)
    step = partial(solved, loss, problem)
    step()
    gradients = problem["weight"].nbytes + problem["embeddings"].nbytes
    assert gpu_peak_growth(step) <= (mib << 20) + gradients


OF_COSINES = {
    "supcon": (SupConLoss, cosines.supcon, ("triton", "cuda")),
    "ntxent": (NTXentLoss, cosines.ntxent, ("triton",)),
    "multi-similarity": (MultiSimilarityLoss, cosines.multi_similarity, ("triton", "cuda")),
}


@DTYPES
@pytest.mark.parametrize(("n", "d"), [(100, 24), (150, 200), (1000, 64), (4001, 128)])
@pytest.mark.parametrize(
    ("name", "impl"), [(name, impl) for name in OF_COSINES for impl in OF_COSINES[name][2]]
)
def test_losses_over_cosines(name, impl, n, d, dtype):
    """Against PyTorch in the same dtype, which rounds cosines too."""
    if DEVICE == "cpu" and n > 200:
        pytest.skip("more pairs than an interpreter takes")
    module, formula, _ = OF_COSINES[name]
    rows = torch.randn(n, d, generator=generator(n)).to(DEVICE, dtype)
    labels = (torch.arange(n, device=DEVICE) * 7) % (n // 4)

    def solution(loss, rows):
        rows = rows.clone().requires_grad_()
        value = loss(rows, labels)
        return [value.detach(), *torch.autograd.grad(value, rows)]

    plain = partial(cosines.naive, formula=formula)
    found = solution(module(impl=impl), rows)
    # rows are rounded once more when they have length 1
    rounded = 0 if dtype == FULL else 24
    exact = solution(plain, rows.double())
    assert_accurate(found, exact, solution(plain, rows), ULPS + rounded)


@DTYPES
@pytest.mark.parametrize("impl", ["triton", "cuda"])
def test_proxies(impl, dtype):
    """Against the reference in float64 with rows and proxies rounded as here; and no class, NaN."""
    torch.manual_seed(0)
    loss = ProxyAnchorLoss(300, 48, impl=impl).to(DEVICE)
    exact = ProxyAnchorLoss(300, 48, impl="reference").to(DEVICE, torch.float64)
    with torch.no_grad():
        loss.weight.copy_(torch.nn.functional.normalize(loss.weight).to(dtype))
        exact.weight.copy_(loss.weight)
    rows = torch.randn(70, 48, generator=generator(0)).to(DEVICE, dtype)
    rows = torch.nn.functional.normalize(rows.float()).to(dtype).requires_grad_()
    labels = (torch.arange(70, device=DEVICE) * 11) % 300
    wide = rows.detach().double().requires_grad_()
    value, truth = loss(rows, labels), exact(wide, labels)
    value.backward()
    truth.backward()
    close = 1e-5 if dtype == FULL else 24 * torch.finfo(dtype).eps
    found = [value.detach(), rows.grad, loss.weight.grad]
    for one, other in zip(found, [truth.detach(), wide.grad, exact.weight.grad], strict=True):
        assert (one.double() - other).abs().max() <= close * other.abs().max()
    if DEVICE == "cuda":
        labels[3] = 300
        assert loss(rows, labels).isnan()


def boosted_problem(n, d, dtype=FULL, seed=0):
    random = generator(seed + n)
    labels = torch.arange(n)[torch.randperm(n, generator=random)] // 4
    rows = torch.randn(n // 4 + 1, d, generator=random)[labels]
    rows = rows + torch.randn(n, d, generator=random)
    return {"embeddings": rows.to(DEVICE, dtype).requires_grad_(), "labels": labels.to(DEVICE)}


def boosted_loss(embeddings, labels, impl="triton"):
    groups = group_sizes(embeddings.shape[1], boosted.LEARNERS)
    return ops.boosted_deviance_loss(embeddings, labels, groups, impl=impl)


def boosted_results(loss, problem):
    value = loss(**problem)
    return [value.detach(), *torch.autograd.grad(value, problem["embeddings"])]


@DTYPES
@pytest.mark.parametrize(("n", "d"), [(5, 6), (130, 96), (1000, 512), (4097, 512)])
def test_boosted_deviance(n, d, dtype):
    if DEVICE == "cpu" and n > 200:
        pytest.skip("more pairs than an interpreter takes")
    problem = boosted_problem(n, d, dtype)
    exact = boosted_results(boosted.chunked, in_dtype(problem, torch.float64))
    plain = boosted_results(boosted.chunked, in_dtype(problem, FULL))
    found = boosted_results(boosted_loss, problem)
    rounded = 0.0 if dtype == FULL else torch.finfo(dtype).eps / torch.finfo(FULL).eps
    assert_accurate(found[:1], exact[:1], plain[:1], 40)
    assert_accurate(found[1:], exact[1:], plain[1:], 40 + rounded)


@DTYPES
def test_boosted_deviance_repeats_to_the_bit(dtype):
    problem = boosted_problem(130, 96, dtype)
    expected = boosted_results(boosted_loss, problem)
    for _ in range(200 if DEVICE == "cuda" else 1):
        assert all(map(torch.equal, boosted_results(boosted_loss, problem), expected))


@NEEDS_CUDA
@DTYPES
def test_a_captured_boosted_deviance_replays_with_new_data(dtype):
    problem, other = (boosted_problem(1000, 512, dtype, seed) for seed in (1, 2))
    captured = CapturedStep(boosted_loss, problem)
    with torch.no_grad():
        for name, tensor in other.items():
            problem[name].copy_(tensor)
    found = [captured().detach(), problem["embeddings"].grad]
    assert all(map(torch.equal, found, boosted_results(boosted_loss, other)))


@NEEDS_CUDA
@DTYPES
@pytest.mark.parametrize("per", ["batch", "class", "anchor"])
def test_a_captured_pddm_loss_replays_with_new_data(per, dtype):
    """Also: nothing in it waits for the GPU."""
    loss_fn = PDDMLoss(64, per=per, impl="triton").to(DEVICE)
    problem, other = (boosted_problem(300, 64, dtype, seed) for seed in (1, 2))
    captured = CapturedStep(loss_fn, problem)
    with torch.no_grad():
        for name, tensor in other.items():
            problem[name].copy_(tensor)
    found = [captured().detach(), problem["embeddings"].grad]
    assert all(map(torch.equal, found, boosted_results(loss_fn, other)))
