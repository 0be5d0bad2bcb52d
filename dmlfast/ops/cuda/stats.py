"""Statistics of rows as the CUDA kernels take them: ``dml_stats``."""

import ctypes
from typing import NamedTuple

import torch

from dmlfast.ops.cuda.library import address
from dmlfast.ops.cuda.side import LOG2E, Side

NOTHING = -1e30  # stands for -inf
SAFE_SPAN = 100.0  # powers of two that statistics may span where one exponential serves a pair


class StatsStruct(ctypes.Structure):
    """``dml_stats``."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("factor", ctypes.c_void_p),
    )


class Stats(NamedTuple):
    """Powers of two and their gradients by position, (padded,); None where there are none."""

    value: torch.Tensor | None = None
    grad: torch.Tensor | None = None
    factor: torch.Tensor | None = None

    @property
    def struct(self) -> StatsStruct:
        return StatsStruct(*map(address, self))


NO_STATS = Stats()


def given(
    side: Side, value: torch.Tensor | None, grad: torch.Tensor | None, logsumexp: bool
) -> Stats:
    """Statistics and gradients (n,) of the rows of a side, if there are any."""
    if value is None or grad is None:
        return NO_STATS
    grad = side.by_position(grad.float(), 0.0)
    if not logsumexp:
        return Stats(None, grad)
    value = side.by_position(value.float(), -torch.inf)
    some = value != -torch.inf
    return Stats(torch.where(some, value * LOG2E, NOTHING), torch.where(some, grad, 0.0))


def with_factors(*sides: Stats) -> tuple[torch.Tensor, list[Stats]]:
    """The middle of all statistics, whether they span too much for one exponential a pair, (2,);
    and the statistics with their factors.
    """
    values = [stats.value for stats in sides if stats.value is not None]
    if not values:
        grad = next(stats.grad for stats in sides if stats.grad is not None)
        return grad.new_zeros(2), list(sides)
    lowest = torch.stack([torch.where(v > NOTHING / 2, v, torch.inf).amin() for v in values]).amin()
    highest = torch.stack([v.amax() for v in values]).amax()
    span = (highest - lowest).clamp_min(0)
    middle = torch.where(highest > NOTHING / 2, (lowest + highest) / 2, 0.0)
    found = [
        stats if stats.value is None else stats._replace(factor=_factor(stats, middle))
        for stats in sides
    ]
    return torch.stack([middle, (~(span <= SAFE_SPAN)).to(middle.dtype)]), found


def _factor(stats: Stats, middle: torch.Tensor) -> torch.Tensor | None:
    if stats.value is None or stats.grad is None:
        return None
    some = stats.value > NOTHING / 2
    return torch.where(some, stats.grad * (middle - stats.value).exp2(), 0.0)
