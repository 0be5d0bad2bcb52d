"""Measures the candidates for each kernel's block sizes on this machine's GPU."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import triton

from dmlfast.ops.lifted import triton as lifted
from dmlfast.ops.norm_softmax import triton as norm_softmax
from dmlfast.ops.pddm import triton as pddm
from dmlfast.ops.pddm.unit import Weights
from dmlfast.ops.triton import configs, tuned
from dmlfast.ops.triton.tuned import CANDIDATES, FULL, HALF

DTYPES = {HALF: torch.bfloat16, FULL: torch.float32}
# Rows and components of the batch that decides for a kernel.
PROBLEMS = {
    HALF: {
        "small": (128, 128),
        "reduce": (16384, 128),
        "gradient": (16384, 128),
        "wide_reduce": (16384, 512),
        "weights": (16384, 512),
        "product": (4096, 512),  # of several blocks cuBLAS multiplies
        "scores": (4096, 512),
        "pddm": (2048, 128),
    },
    FULL: {
        "small": (128, 128),
        "reduce": (8192, 64),
        "gradient": (8192, 64),
        "wide_reduce": (8192, 512),
        "weights": (8192, 512),
        "product": (8192, 512),
        "scores": (2048, 512),
        "pddm": (1024, 128),
    },
}
CLASSES = 65536  # of the softmax that decides for scores
TOLERANCE = {HALF: 1e-2, FULL: 1e-4}  # of loss and gradient between two tiles, relative
GAIN = 0.98  # a candidate replaces another only where it takes less than this share of its time


@dataclass(frozen=True)
class Trial:
    """One tile of one kernel, measured within a whole loss with its gradient.

    milliseconds: the median; None where it was left out, for the reason given.
    """

    kind: str
    kernel: str
    tile: tuple[int, ...]
    milliseconds: float | None = None
    reason: str = ""


def median_milliseconds(call: Callable[[], object]) -> float:
    """The median device time of a call."""
    return float(triton.testing.do_bench(call, warmup=20, rep=100, return_mode="median"))


def tune(gpu: str, device: str, seconds: float, known: Iterable[Trial] = ()) -> Iterator[Trial]:
    """Measures candidates until ``seconds`` are over, and keeps the best of each kernel on disk.

    Kernels are taken one after another; what an earlier one has found serves the later. The file is
    written after each, so that nothing found is lost. Those of the ``known`` trials that have a
    time are not made again. Yields every trial.
    """
    end = time.monotonic() + seconds
    found = tuned.read(gpu)
    before = {(t.kind, t.kernel, t.tile): t for t in known if t.milliseconds is not None}
    for kind, problems in PROBLEMS.items():
        for kernel, (n, d) in problems.items():
            if time.monotonic() > end:
                yield Trial(kind, kernel, (), reason="left out: the time is up")
                continue
            make = {"scores": _softmax_step, "pddm": _unit_step}.get(kernel, _step)
            step = make(n, d, DTYPES[kind], device)
            with configs.trying(kind, found.get(kind, {})):
                truth = step()
            best, least = None, math.inf
            now = tuple(getattr(configs.tiles_of(DTYPES[kind]), kernel))
            for tile in dict.fromkeys((now, *CANDIDATES[kind][kernel])):
                trial = before.get((kind, kernel, tile))
                if trial is None:
                    trial = _try(kind, kernel, tile, step, truth, found.get(kind, {}))
                    yield trial
                if trial.milliseconds is not None and trial.milliseconds < GAIN * least:
                    best, least = tile, trial.milliseconds
                if time.monotonic() > end:
                    break
            if best in CANDIDATES[kind][kernel]:
                found.setdefault(kind, {})[kernel] = best
                tuned.write(gpu, found)
    tuned.write(gpu, found)
    configs.forget()


def _try(
    kind: str,
    kernel: str,
    tile: tuple[int, ...],
    step: Callable[[], list[torch.Tensor]],
    truth: list[torch.Tensor],
    found: dict[str, tuple[int, ...]],
) -> Trial:
    with configs.trying(kind, {**found, kernel: tile}):
        try:
            error = max(
                float((got - exact).norm() / exact.norm().clamp_min(1e-30))
                for got, exact in zip(step(), truth, strict=True)
            )
            if not error <= TOLERANCE[kind]:
                return Trial(kind, kernel, tile, reason=f"wrong: relative error {error:.1e}")
            return Trial(kind, kernel, tile, median_milliseconds(step))
        except Exception as error:  # registers, shared memory, the compiler itself
            text = f"{type(error).__name__}: {error}".partition("\n")[0]
            return Trial(kind, kernel, tile, reason=text)


def _step(n: int, d: int, dtype: torch.dtype, device: str) -> Callable[[], list[torch.Tensor]]:
    """The lifted loss and its gradient of a batch in classes of four."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(n, d, generator=generator))
    rows, labels = rows.to(device, dtype), (torch.arange(n) // 4).to(device)

    def step() -> list[torch.Tensor]:
        loss, gradient, _ = lifted.forward(rows, None, labels, None, None, 1.0, True, False)
        assert gradient is not None
        return [loss, gradient]

    return step


def _softmax_step(
    n: int, d: int, dtype: torch.dtype, device: str
) -> Callable[[], list[torch.Tensor]]:
    """The normalised softmax of random rows and its gradients."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n, d, generator=generator).to(device, dtype).float()
    weight = torch.randn(CLASSES, d, generator=generator).to(device, dtype)
    labels, ones = torch.arange(n, device=device) % CLASSES, torch.ones(n, device=device)

    def step() -> list[torch.Tensor]:
        found = norm_softmax.forward(rows, weight, labels, ones, ones, 20.0, False, True, True)
        return [tensor for tensor in found if tensor is not None]

    return step


def _unit_step(n: int, d: int, dtype: torch.dtype, device: str) -> Callable[[], list[torch.Tensor]]:
    """The scores of all pairs by a random unit as wide as the rows."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    rows = random(n, d).to(dtype)
    shapes = (d, d), (d,), (d, d), (d,), (d, 2 * d), (d,), (1, d), (1,)
    weights = Weights(*(random(*shape) / shape[-1] ** 0.5 for shape in shapes))
    return lambda: [pddm.matrix(rows, None, weights, False)]
