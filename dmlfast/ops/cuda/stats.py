"""Statistics of rows as the CUDA kernels take them: ``dml_stats``."""

import ctypes
from ctypes import byref
from typing import NamedTuple

import torch

from dmlfast.ops.cuda.library import address, launch
from dmlfast.ops.cuda.side import Pairs, Side


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


def given(pairs: Pairs, side: Side, value: torch.Tensor | None, grad: torch.Tensor | None) -> Stats:
    """Statistics and gradients (n,) of the rows of a side, if there are any."""
    if value is None or grad is None:
        return NO_STATS
    by_row = value.float().contiguous(), grad.float().contiguous()
    values, grads = side.norm.new_empty(2, side.padded)
    structs = byref(side.struct), byref(pairs.task())
    addresses = map(address, (*by_row, values, grads))
    launch("pair_grad", "dml_cuda_order_statistics", grad, *structs, *addresses)
    return Stats(values if pairs.term.reduce == "logsumexp" else None, grads)


def with_factors(pairs: Pairs, xs: Stats, rs: Stats) -> tuple[torch.Tensor, Stats, Stats]:
    """The middle of all statistics, and whether they span too much for one exponential a pair,
    (2,); and the statistics with their factors.
    """
    x, r = pairs.x, pairs.r
    if xs.value is None and rs.value is None:
        return x.norm.new_zeros(2), xs, rs
    middle = x.norm.new_empty(2)
    of_x = None if xs.value is None else torch.empty_like(x.norm)
    of_r = None if rs.value is None or rs is xs else torch.empty_like(r.norm)
    structs = (one.struct for one in (x, r, xs, NO_STATS if rs is xs else rs))
    launch(
        "pair_grad",
        "dml_cuda_factors",
        middle,
        *map(byref, structs),
        *map(address, (of_x, of_r, middle)),
    )
    xs_with = xs._replace(factor=of_x)
    return middle, xs_with, xs_with if rs is xs else rs._replace(factor=of_r)
