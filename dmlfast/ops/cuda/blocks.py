"""The gradient of wide rows on sm_90a: blocks of weights in memory, times the columns by cuBLAS."""

import ctypes
from ctypes import byref
from typing import Any

import torch

from dmlfast.ops.cuda.library import address, launch, library
from dmlfast.ops.cuda.side import BAND, TILE, Pairs, near_of
from dmlfast.ops.cuda.stats import Stats
from dmlfast.ops.matmul import add_product

# Weights that are held at a time, 32 MiB, and rows of them at most: 8,192 x 512 of a gradient are
# 128 tiles of 128 x 256, about one for each multiprocessor.
WEIGHTS, ROWS = 2**24, 8192
ALIGNED = 8  # components of 16 bytes: cuBLAS is slow with rows of another multiple


class BlockStruct(ctypes.Structure):
    """``dml_block``."""

    _fields_ = (
        ("band", ctypes.c_int32),
        ("bands", ctypes.c_int32),
        ("part", ctypes.c_int32),
        ("parts", ctypes.c_int32),
    )


def fit(pairs: Pairs) -> bool:
    """Whether the gradient of the rows of ``pairs.x`` is to come of blocks of weights."""
    given = byref(pairs.x.struct), byref(pairs.r.struct), byref(pairs.task())
    return bool(library().dml_cuda_weights_fit(*given))


def gradient_of(
    pairs: Pairs,
    xs: Stats,
    rs: Stats,
    middle: torch.Tensor,
    factor: float,
    share: torch.Tensor | None,
    *,
    lifted: bool,
) -> torch.Tensor:
    """The gradient (n, d), float32, of the rows of ``pairs.x``."""
    x, r = pairs.x, pairs.r
    bands, tiles = x.padded // BAND, -(-r.n // TILE)
    groups = -(-bands // (ROWS // BAND))
    high = -(-bands // groups)  # bands of a block
    high += high % 2  # two programs share tiles
    blocks = -(-tiles // max(1, WEIGHTS // (high * BAND * TILE)))  # of columns
    parts = pairs.splits(high, tiles // blocks)  # of a block
    splits = blocks * parts
    bounds = [tiles * k // blocks * TILE for k in range(blocks + 1)]

    width = -(-x.given.shape[1] // ALIGNED) * ALIGNED
    columns = r.given.new_empty(tiles * TILE, width)
    weights = columns.new_empty(high * BAND, -(-tiles // blocks) * TILE)
    products = x.norm.new_empty(high * BAND, width)
    sums = x.norm.new_empty(splits, high * BAND)
    nears = x.rows.new_zeros(bands, splits)
    out = x.norm.new_empty(x.given.shape)

    given = byref(x.struct), byref(r.struct), byref(pairs.task(splits))
    statistics = byref(xs.struct), byref(rs.struct), address(middle)
    weighing = *given, *statistics, near_of(pairs.dtype), lifted
    gradient = factor, address(share), address(out)

    def launched(name: str, *arguments: Any) -> None:
        launch("pair_grad", f"dml_cuda_{name}", out, *arguments)

    launched("columns", byref(r.struct), address(columns), width)
    for band in range(0, bands, high):
        count = min(high, bands - band)
        of_band = products[: count * BAND]
        for k in range(blocks):
            block = byref(BlockStruct(band, count, k * parts, parts))
            of_block = weights[: count * BAND, : bounds[k + 1] - bounds[k]]
            places = address(weights), weights.shape[1], address(sums), address(nears)
            launched("weights", *weighing, block, *places)
            add_product(of_band, of_block, columns[bounds[k] : bounds[k + 1]], again=k > 0)
        made = address(sums), address(products), width
        launched("finish", *given, byref(BlockStruct(band, count)), *made, *gradient)
    launched("near", *weighing, address(nears), *gradient)
    return out
