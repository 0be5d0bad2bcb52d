"""Runs the host code of losses on a GPU that need not be there, on tensors without data.

    python -m tests.ops.weightless waits
    python -m tests.ops.weightless memory

prints a JSON line for each case. Tensors are torch's *meta* tensors that pass for a GPU's, and a
launch does nothing. Whoever looks at a value, which would wait for the GPU, gets an error. What
is allocated is what would be on a GPU.
"""

import ctypes
import dataclasses
import json
import sys
import traceback
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from dmlfast import losses, ops
from dmlfast.ops.cuda import library, side
from dmlfast.ops.dispatch import BACKENDS

from .driver import Driver

DEVICE = "meta"
FULL, BRAIN = torch.float32, torch.bfloat16
PAGE = 512  # bytes in whose multiples torch hands out a GPU's memory
LEARNERS = [96, 160, 256]
MILLION = 1_000_000
Step = Callable[[], object]


def cuda_library(launched: Callable[[str], None]) -> SimpleNamespace:
    """The CUDA kernels' on an H200, which takes no batch at once."""
    answers = {
        "one_pass_fits": lambda n, d: 0,
        "one_pass_scratch": lambda n: 0,
        "reduce_slots": lambda x, r, task: 2 * 132,
        "weights_fit": lambda x, r, task: int(x._obj.chunks > 2),
        "exponentials_fit": lambda: 1,
        "interface": lambda: library.INTERFACE,
        "find_code": lambda: 0,
        "error": lambda status: b"",
    }
    kernels = {name: lambda *_, name=name: launched(name) or 0 for name in library.KERNELS}
    return SimpleNamespace(**kernels, **{f"dml_cuda_{name}": answers[name] for name in answers})


def stand_in(launched: Callable[[str], None]) -> None:
    """Patches this process. ``launched`` hears the names of kernels in the place of launches."""

    def launch(kernel: JITFunction, *args: object, **options: object) -> None:
        launched(kernel.__name__)

    driver.set_active(Driver(90))
    JITFunction.run = launch
    for name in ("triton", "cuda"):
        BACKENDS[name] = dataclasses.replace(
            BACKENDS[name], why_not=lambda: None, declines=lambda *_: None
        )
    ctypes.CDLL = lambda path: cuda_library(launched)
    library.why_no_library = lambda: None
    torch.cuda.current_stream = lambda *_: SimpleNamespace(cuda_stream=0)
    torch.Tensor.is_cuda = property(lambda tensor: tensor.device.type == DEVICE)
    torch.autocast = lambda *_, **__: nullcontext()  # knows no such device
    multiply = torch.addmm  # whose form of `dmlfast.ops.matmul` torch 2.11 takes on a GPU alone
    torch.addmm = lambda *given, **how: (
        how["out"] if "out_dtype" in how else multiply(*given, **how)
    )
    torch.cuda.get_device_properties = lambda *_: SimpleNamespace(multi_processor_count=132)
    side.emulated = lambda: None  # which has fewer of these


class Memory(TorchDispatchMode):
    """The bytes that are allocated while it is on: now, and at most."""

    def __init__(self, others: Sequence[torch.Tensor]):
        super().__init__()
        self.now = self.most = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in others}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == DEVICE:
                self._add(tensor.untyped_storage())
        return found

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.known:
            return
        size = -(-storage.nbytes() // PAGE) * PAGE
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


class Copies(TorchDispatchMode):
    """Ops that bring data from the host to the GPU, or back."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, found)) if isinstance(t, torch.Tensor)]
        if len({t.device for t in tensors if t.dim()}) > 1:  # a number enters a launch by value
            self.found.append(str(func))
        return found


class Launches(TorchDispatchMode):
    """Ops of torch that start a kernel, or more, on a GPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(("empty", "new_empty")):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def leaf(*shape: int, dtype: torch.dtype = BRAIN) -> torch.Tensor:
    return torch.empty(*shape, device=DEVICE, dtype=dtype, requires_grad=True)


def labels(n: int) -> torch.Tensor:
    return torch.empty(n, device=DEVICE, dtype=torch.int64)


def step(loss: Callable[..., torch.Tensor], *given: torch.Tensor) -> Step:
    """A loss and its gradients, whose upstream is a tensor as after other layers."""

    def run() -> None:
        value = loss(*given)
        value.backward(torch.empty_like(value))

    return run


def pairs(
    loss: Callable[..., torch.Tensor], n: int, d: int, impl: str = "triton", **options: object
) -> Step:
    return step(partial(loss, impl=impl, **options), leaf(n, d), labels(n))


def columns(
    loss: Callable[..., torch.Tensor], n: int, m: int, d: int, impl: str = "triton"
) -> Step:
    given = leaf(n, d), labels(n), leaf(m, d), labels(m)
    return step(partial(loss, impl=impl, self_index=labels(n)), *given)


def softmax_given(
    n: int, d: int, classes: int, dtype: torch.dtype = BRAIN
) -> tuple[torch.Tensor, ...]:
    return leaf(n, d, dtype=dtype), labels(n), leaf(classes, d, dtype=dtype)


def softmax(n: int, d: int, classes: int, impl: str, **options: object) -> Step:
    return step(partial(ops.norm_softmax_loss, impl=impl, **options), *softmax_given(n, d, classes))


def pddm(n: int, d: int, **options: object) -> Step:
    return step(losses.PDDMLoss(d, impl="triton", **options).to(DEVICE), leaf(n, d), labels(n))


def multi_similarity(n: int, d: int) -> Step:
    return step(losses.MultiSimilarityLoss(epsilon=0.1, impl="triton"), leaf(n, d), labels(n))


def unit(n: int, d: int, listed: bool) -> Step:
    scores = partial(ops.pddm_scores, unit=losses.PDDMUnit(d).to(DEVICE), impl="triton")
    some = (labels(n), labels(n)) if listed else None
    return step(partial(scores, pairs=some), leaf(n, d))


WAITS: dict[str, Callable[[], Step]] = {
    **{
        f"{loss.__name__} {n} x {d}": partial(pairs, loss, n, d)
        for loss in (ops.lifted_structured_loss, ops.pair_reduce, ops.contrastive_loss)
        for n, d in ((100, 64), (2000, 64), (5000, 512))
    },
    **{
        f"{loss.__name__} of columns": partial(columns, loss, 300, 500, 200)
        for loss in (ops.lifted_structured_loss, ops.pair_reduce, ops.contrastive_loss)
    },
    **{
        f"{loss.__name__} on cuda {n} x {d}": partial(pairs, loss, n, d, "cuda")
        for loss in (ops.lifted_structured_loss, ops.pair_reduce)
        for n, d in ((2000, 64), (20_000, 64), (20_000, 500))
    },
    **{
        f"{loss.__name__} on cuda of columns": partial(columns, loss, 300, 500, 200, "cuda")
        for loss in (ops.lifted_structured_loss, ops.pair_reduce)
    },
    **{
        f"triplet_loss {mining} {n} x {d}": partial(pairs, ops.triplet_loss, n, d, mining=mining)
        for mining in ("all", "semihard", "hardest")
        for n, d in ((100, 64), (5000, 512))
    },
    **{
        f"norm_softmax_loss {impl} {reduction} {options}": partial(
            softmax, 500, 128, 3000, impl, reduction=reduction, **options
        )
        for impl in ("triton", "cuda")
        for reduction in ("mean", "none")
        for options in (
            {},
            {"label_smoothing": 0.1},
            {"low_memory": True},
            {"low_memory": True, "label_smoothing": 0.1},
        )
    },
    **{
        f"{loss.__name__} {n}": partial(pairs, loss, n, 512, groups=LEARNERS)
        for loss in (ops.boosted_deviance_loss, ops.boosted_contrastive_loss)
        for n in (130, 5000)
    },
    **{
        f"mined multi-similarity {n} x {d}": partial(multi_similarity, n, d)
        for n, d in ((100, 64), (5000, 512))
    },
    **{f"pddm_scores, listed {some}": partial(unit, 300, 128, some) for some in (False, True)},
    **{
        f"PDDMLoss {per} {mining}": partial(pddm, 300, 128, per=per, mining=mining)
        for per in ("batch", "class", "anchor")
        for mining in ("score", "distance")
    },
}


def waits(name: str, launches: list[str]) -> dict[str, object]:
    """Why a case would wait, or None; how many kernels it launched, and how many ops of torch."""
    launches.clear()
    copies, others = Copies(), Launches()
    reason = None
    try:
        run = WAITS[name]()
        with copies, others:
            run()
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "dmlfast" in f.filename]
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        reason = f"{type(error).__name__} at {place}: {error}"
    if reason is None and copies.found:
        reason = f"copies by {', '.join(copies.found)}"
    return {"case": name, "reason": reason, "launches": len(launches), "others": others.found}


def lifted_memory(n: int, d: int, impl: str) -> tuple[Step, tuple[torch.Tensor, ...]]:
    given = leaf(n, d), labels(n)
    return step(partial(ops.lifted_structured_loss, impl=impl), *given), given


def boosted_memory() -> tuple[Step, tuple[torch.Tensor, ...]]:
    given = leaf(4096, 512), labels(4096)
    loss = partial(ops.boosted_deviance_loss, groups=LEARNERS, impl="triton")
    return step(loss, *given), given


def softmax_memory(
    impl: str, dtype: torch.dtype, **options: object
) -> tuple[Step, tuple[torch.Tensor, ...]]:
    given = softmax_given(4096, 512, MILLION, dtype)
    return step(partial(ops.norm_softmax_loss, impl=impl, **options), *given), given


MEMORY: dict[str, Callable[[], tuple[Step, tuple[torch.Tensor, ...]]]] = {
    "lifted": partial(lifted_memory, 2**20, 128, "triton"),
    "lifted on cuda": partial(lifted_memory, 2**20, 128, "cuda"),
    "lifted on cuda, in parts": partial(lifted_memory, 20_000, 128, "cuda"),
    "lifted on cuda, wide": partial(lifted_memory, 2**15, 512, "cuda"),
    "boosted": boosted_memory,
    **{
        f"softmax {name} {mode}": partial(softmax_memory, impl, dtype, **options)
        for name, impl, dtype in (
            ("bfloat16", "triton", BRAIN),
            ("float16", "triton", torch.float16),
            ("float32", "triton", FULL),
            ("on cuda", "cuda", BRAIN),
        )
        for mode, options in (
            ("fast", {}),
            ("low", {"low_memory": True}),
            ("smoothed", {"low_memory": True, "label_smoothing": 0.1}),
        )
    },
}


def memory(name: str) -> dict[str, object]:
    """The peak of a case beyond inputs and gradients, as `dmlfast.bench.memory` counts it."""
    run, given = MEMORY[name]()
    with Memory(given) as allocated:
        run()
    gradients = sum(tensor.nbytes for tensor in given if tensor.requires_grad)
    return {"case": name, "MiB": (allocated.most - gradients) / 2**20}


def main(what: str, only: str = "") -> None:
    launches: list[str] = []
    stand_in(launches.append)
    for name in WAITS if what == "waits" else MEMORY:
        if only in name:
            found = waits(name, launches) if what == "waits" else memory(name)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
