"""Runs every kernel for GPUs on small shapes, for sanitizers.

    compute-sanitizer python3 -m tests.ops.sanitize [--device cuda] [--seconds 180]

Cases that do not fit in the time are left out. The last line but one is a digest of all results;
the last one says how many cases ran, and which kernels (of CUDA: functions) they launched.
"""

import argparse
import hashlib
import time
from collections.abc import Callable, Iterator

import torch
from triton.runtime.jit import KernelInterface

from dmlfast.losses import PDDMUnit
from dmlfast.ops import (
    boosted_contrastive_loss,
    boosted_deviance_loss,
    gpu,
    norm_softmax_loss,
    pddm_scores,
)
from dmlfast.ops.cuda import library

from .helpers import (
    ON_GPU,
    Tensors,
    contrastive,
    lifted,
    pair_cases,
    pair_reduce,
    problem,
    results,
    triplet,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cases(device: str, n: int, m: int, impl: str) -> Iterator[Callable[[], Tensors]]:
    """Calls with n rows and m columns: one launch, bands of rows and blocks of weights; then the
    pair primitive with any two of its options together.
    """
    for rows, columns, d in ((n // 2, None, 24), (n, None, 24), (n, None, 200), (n, m, 24)):
        for dtype in DTYPES:
            p = problem(rows, columns, d, selves=True, per_class=4).to(dtype).on(device)
            yield lambda p=p: results(lifted, p, impl=impl)
    p = problem(n, d=24).on(device)
    yield lambda: [lifted(p, impl=impl)]
    for columns in (None, m) if impl == "triton" else ():
        p = problem(n, columns, 24, selves=True, per_class=4).on(device)
        yield lambda p=p: results(contrastive, p, neg_margin=5.0, impl=impl)
        for mining in ("all", "semihard", "hardest"):
            yield lambda p=p, mining=mining: results(triplet, p, mining=mining, impl=impl)
    for options in ({}, {"low_memory": True}, {"temperature": 0.01}) if impl == "triton" else ():
        for dtype in DTYPES:
            yield lambda dtype=dtype, options=options: softmax(device, n, m, dtype, options)
    for width in (24, 200) if impl == "triton" else ():
        for dtype in DTYPES:
            yield lambda width=width, dtype=dtype: unit_scores(device, n, m, dtype, width)
    for loss in (boosted_deviance_loss, boosted_contrastive_loss) if impl == "triton" else ():
        for dtype in DTYPES:
            yield lambda dtype=dtype, loss=loss: boosted(device, n, dtype, loss)
    for case in pair_cases():
        p = case.problem(n, m).on(device)
        yield lambda p=p, case=case: results(pair_reduce, p, impl=impl, **case.options)


def softmax(device: str, n: int, classes: int, dtype: torch.dtype, options: dict) -> Tensors:
    """The normalised softmax of n rows, and its gradients."""
    random = torch.Generator().manual_seed(0)
    rows, weight = (
        torch.randn(count, 24, generator=random).to(device, dtype).requires_grad_()
        for count in (n, classes)
    )
    labels = torch.randint(0, classes, (n,), generator=random).to(device)
    loss = norm_softmax_loss(rows, labels, weight, impl="triton", **options)
    return [loss.detach(), *torch.autograd.grad(loss, (rows, weight))]


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
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--rows", type=int, default=129)
    parser.add_argument("--columns", type=int, default=150)
    given = parser.parse_args()
    end, names = time.monotonic() + given.seconds, launched()
    calls = [
        call for impl in given.impl for call in cases(given.device, given.rows, given.columns, impl)
    ]
    done, digest = 0, hashlib.sha256()
    for call in calls:
        if time.monotonic() > end:
            break
        for tensor in call():
            digest.update(tensor.detach().float().cpu().numpy().tobytes())
        done += 1
        print(f"case {done} of {len(calls)}", flush=True)
    print(f"digest {digest.hexdigest()}")
    print(
        f"sanitized {done} of {len(calls)} cases, {len(names)} kernels: {' '.join(sorted(names))}"
    )


if __name__ == "__main__":
    main()
