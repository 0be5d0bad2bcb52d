"""Runs every kernel for GPUs on small shapes, for sanitizers.

    compute-sanitizer python3 -m tests.ops.sanitize [--device cuda] [--until TIME] [--cases NAMES]

Cases that are not begun by that time are left out; each is named when it is done. The last line but
one is a digest of all results; the last one says how many cases ran, and which kernels (of CUDA:
functions) they launched.
"""

import argparse
import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import torch
from triton.runtime.jit import KernelInterface

from dmlfast.losses import PDDMLoss, PDDMUnit
from dmlfast.ops import (
    boosted_contrastive_loss,
    boosted_deviance_loss,
    gpu,
    norm_softmax_loss,
    normalize,
    pddm_scores,
)
from dmlfast.ops.cuda import library
from dmlfast.ops.pddm.triton import mining as pddm_mining
from dmlfast.ops.triton import configs

from . import interpreter
from .helpers import (
    ON_GPU,
    Problem,
    Tensors,
    contrastive,
    lifted,
    pair_cases,
    pair_max,
    pair_reduce,
    problem,
    results,
    triplet,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Case = tuple[str, Callable[[], Tensors]]


def cases(device: str, n: int, m: int, impl: str) -> Iterator[Case]:
    """Names and calls with n rows and m columns: one launch, bands of rows and blocks of weights;
    then the pair primitive with any two of its options together.
    """

    def case(name: str, call: Callable[..., Tensors], *arguments, **options) -> Case:
        return f"{impl} {name}", partial(call, *arguments, **options)

    def short(dtype: torch.dtype) -> str:
        return str(dtype).removeprefix("torch.")

    def solved(op: Callable[..., torch.Tensor], p: Problem, **options) -> Tensors:
        return results(op, p.on(device), impl=impl, **options)

    beside = problem(n, m, 24, selves=True, per_class=4)
    for rows, columns, d in ((n // 2, None, 24), (n, None, 24), (n, None, 200), (n, m, 24)):
        for dtype in DTYPES:
            p = problem(rows, columns, d, selves=True, per_class=4).to(dtype)
            yield case(f"lifted {rows}x{columns or rows}x{d} {short(dtype)}", solved, lifted, p)
    if impl == "triton":
        tiles = configs.TILES[90][configs.HALF] if device == "cuda" else configs.INTERPRETED
        p = problem(tiles.weights.block + n, None, 200, selves=True, per_class=4)
        yield case("lifted of several blocks of weights", solved, lifted, p.to(torch.bfloat16))
    else:
        for d in (64, 200) if device == "cuda" else ():  # several passes over the pairs
            p = problem(2100, None, d, per_class=4).to(torch.bfloat16)
            yield case(f"lifted of many rows {d}", solved, lifted, p)
        shape = (300, 40_000) if device == "cuda" else (130, 700)
        for d in (64, 200):  # a ring of tiles goes round, and several blocks share them
            p = problem(*shape, d, selves=True, per_class=4).to(torch.bfloat16)
            yield case(f"pair_reduce of many columns {d}", solved, pair_reduce, p, select="all")
    yield case("lifted without gradient", lambda: [lifted(beside.on(device), impl=impl)])
    for at, each in enumerate(pair_cases()):
        of = f"pair_reduce {at}: {each.select}, {each.columns}, {each.score}, {each.reduce}"
        yield case(of, solved, pair_reduce, each.problem(n, m), **each.options)
    softmaxes = {}, {"low_memory": True}, {"temperature": 0.01}
    if impl == "cuda":
        absent = device == "cuda" and not torch.cuda.is_available()  # all are listed then
        fits = absent or library.exponentials_fit(torch.device(device))
        for options in softmaxes if fits else ():
            rest = device, n, 6 * m, torch.bfloat16, options, impl
            yield case(f"norm_softmax {options} bfloat16", softmax, *rest)
        return
    for columns in (None, m):
        p, shape = problem(n, columns, 24, selves=True, per_class=4), f"{n}x{columns or n}"
        for reduce in ("logsumexp", "softplus"):
            yield case(f"mined {reduce} {shape}", mined, device, p, reduce, impl)
        yield case(f"contrastive {shape}", solved, contrastive, p, neg_margin=5.0)
        for mining in ("all", "semihard", "hardest"):
            yield case(f"triplet {mining} {shape}", solved, triplet, p, mining=mining)
    for dtype in DTYPES:
        yield case(f"normalize {short(dtype)}", units, device, n, dtype, impl)
        for options in softmaxes:
            rest = device, n, m, dtype, options, impl
            yield case(f"norm_softmax {options} {short(dtype)}", softmax, *rest)
        for width in (24, 200):
            yield case(
                f"pddm_scores {width} {short(dtype)}", unit_scores, device, n, m, dtype, width
            )
        for per in ("batch", "class", "anchor"):
            yield case(f"pddm {per} {short(dtype)}", quadruplets, device, n, dtype, per)
        for loss in (boosted_deviance_loss, boosted_contrastive_loss):
            yield case(f"{loss.__name__} {short(dtype)}", boosted, device, n, dtype, loss)


def alternating(lists: Iterable[list[Case]]) -> list[Case]:
    """The cases of several lists in turns."""
    turns = itertools.zip_longest(*lists)
    return [case for turn in turns for case in turn if case is not None]


def softmax(
    device: str, n: int, classes: int, dtype: torch.dtype, options: dict, impl: str
) -> Tensors:
    """The normalised softmax of n rows, and its gradients."""
    random = torch.Generator().manual_seed(0)
    rows, weight = (
        torch.randn(count, 24, generator=random).to(device, dtype).requires_grad_()
        for count in (n, classes)
    )
    labels = torch.randint(0, classes, (n,), generator=random).to(device)
    loss = norm_softmax_loss(rows, labels, weight, impl=impl, **options)
    return [loss.detach(), *torch.autograd.grad(loss, (rows, weight))]


def mined(device: str, p: Problem, reduce: str, impl: str) -> Tensors:
    """The negatives that are nearer than a row's furthest positive, and gradients."""
    p = p.on(device)
    furthest = pair_max(p, select="positive", impl=impl)
    options = {"reduce": reduce, "scale": -1.0, "impl": impl}
    return [furthest, *results(pair_reduce, replace(p, floor=-furthest), **options)]


def units(device: str, n: int, dtype: torch.dtype, impl: str) -> Tensors:
    """n rows at length 1, which lie across, and their gradient."""
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(200, n, generator=random).to(device, dtype).T.requires_grad_()
    found = normalize(rows, impl=impl)
    return [found.detach(), *torch.autograd.grad(found.sum(), rows)]


def unit_scores(device: str, n: int, m: int, dtype: torch.dtype, width: int) -> Tensors:
    """Scores by a metric unit whose layers have that width: of all pairs, two sets and a list."""
    torch.manual_seed(0)
    x, y = torch.randn(n, 24), torch.randn(m, 24)
    x[n // 2] = -y[0]
    x, y = x.to(device, dtype), y.to(device, dtype)
    unit = PDDMUnit(24, width, normalize_inputs=width > 128).to(device)
    pairs = torch.arange(min(n, m), device=device), torch.arange(min(n, m), device=device)
    calls = {}, {"ref_emb": y}, {"ref_emb": y, "pairs": pairs}
    with torch.no_grad():
        return [pddm_scores(x, unit, impl="triton", **options) for options in calls]


def quadruplets(device: str, n: int, dtype: torch.dtype, per: str) -> Tensors:
    """The loss of hard quadruplets, mined in two blocks of scores, and its gradients."""
    torch.manual_seed(0)
    rows = torch.randn(n, 24).to(device, dtype).requires_grad_()
    labels = (torch.arange(n) // 4).to(device)
    loss = PDDMLoss(24, 40, per=per, normalize_inputs=per == "class", impl="triton").to(device)
    entries, pddm_mining.BLOCK_ENTRIES = pddm_mining.BLOCK_ENTRIES, n * n * 2 // 3
    found = loss(rows, labels)
    pddm_mining.BLOCK_ENTRIES = entries
    return [found.detach(), *torch.autograd.grad(found, [rows, *loss.parameters()])]


def boosted(device: str, n: int, dtype: torch.dtype, loss: Callable) -> Tensors:
    """A boosted loss of n rows on two learners, and its gradient."""
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(n, 24, generator=random).to(device, dtype).requires_grad_()
    labels = (torch.arange(n) // 4).to(device)
    found = loss(rows, labels, [5, 19], impl="triton")
    return [found.detach(), *torch.autograd.grad(found, rows)]


def launched() -> set[str]:
    """The names of the kernels that are launched from now on."""
    names: set[str] = set()
    launch = KernelInterface.__getitem__

    def spy(kernel, grid):
        names.add(kernel.fn.__name__)
        return launch(kernel, grid)

    KernelInterface.__getitem__ = spy
    for name in library.KERNELS if gpu.why_no_cuda() is None else ():
        setattr(library.library(), name, named(getattr(library.library(), name), names, name))
    return names


def named(function: Callable[..., int], names: set[str], name: str) -> Callable[..., int]:
    def call(*arguments):
        names.add(name)
        return function(*arguments)

    return call


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--impl", choices=ON_GPU, nargs="+", default=ON_GPU)
    parser.add_argument("--rows", type=int, default=129)
    parser.add_argument("--columns", type=int, default=150)
    parser.add_argument("--until", type=float, default=float("inf"), help="of time.time()")
    parser.add_argument("--list", action="store_true", help="print the names of cases")
    parser.add_argument("--cases", nargs="+", help="their names; all of them by default")
    given = parser.parse_args()
    if gpu.interpreted():
        interpreter.hasten()
    shape = given.device, given.rows, given.columns
    calls = dict(alternating([*cases(*shape, impl)] for impl in given.impl))
    if given.list:
        print("\n".join(calls))
        return
    chosen, names = given.cases or list(calls), launched()
    done, digest = 0, hashlib.sha256()
    for name in chosen:
        if time.time() > given.until:
            break
        for tensor in calls[name]():
            digest.update(tensor.detach().float().cpu().numpy().tobytes())
        done += 1
        print(f"done: {name}", flush=True)
    print(f"digest {digest.hexdigest()}")
    print(
        f"sanitized {done} of {len(chosen)} cases, {len(names)} kernels: {' '.join(sorted(names))}"
    )


if __name__ == "__main__":
    main()
