"""The pass over the positive pairs of the lifted loss."""

import torch
import triton
import triton.language as tl

from dmlfast.ops.pairs.triton.sides import Pairs
from dmlfast.ops.pairs.triton.statistics import Mean, Stats, store_mean
from dmlfast.ops.pairs.triton.weights import hinge
from dmlfast.ops.triton import configs
from dmlfast.ops.triton.side import Side, arguments
from dmlfast.ops.triton.tile import (
    bands,
    first_chunk,
    products,
    scores,
    selected,
    squared_differences,
)


@triton.jit(do_not_specialize=["n", "m"])
def positives_kernel(
    x, r, n, m, xs, rs, mean, APART: tl.constexpr, DP: tl.constexpr, BD: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Over the positive pairs of a band of rows: the sum of hinge^2, their number, and for each row
    the sum of hinge * exp(L_i) / (exp(L_i) + exp(L_j)), which becomes ``xs.grad``.
    """
    x, r = Side(n, *x), Side(m, *r)
    band = tl.program_id(0)
    i = band * BM + tl.arange(0, BM)
    x_chunk = first_chunk(x, i, DP, BD, OPERAND, BM)
    xn = tl.load(x.norm + i)
    own = tl.load(xs.value + i)
    grad = tl.zeros((BM,), tl.float32)
    loss = tl.zeros((BM,), tl.float32)
    count = tl.zeros((BM,), tl.int32)
    tiles = bands(x, r, i, 0, r.padded // BN, False, True, BM, BN)
    for tile in range(tiles.first, tiles.end):
        j = tile * BN + tl.arange(0, BN)
        s = products(x_chunk, x, r, i, j, DP, BD, OPERAND, PRECISION, BM, BN)
        squared, excess = scores(s, xn, tl.load(r.norm + j), True)
        mask = selected(x, r, i, j, True, APART, False)
        close = mask & (excess <= 0.0)
        if tl.max(close.to(tl.int32)) > 0:
            squared = tl.where(close, squared_differences(x, r, i, j, BM, BN), squared)
        distance = tl.sqrt(tl.maximum(squared, 0.0))
        other = tl.load(rs.value + j)
        h = tl.where(mask, hinge(distance, own, other), 0.0)
        share = 1.0 / (1.0 + tl.exp2(tl.minimum(other[None, :] - own[:, None], 126.0)))
        grad += tl.sum(h * share, 1)
        loss += tl.sum(h * h, 1)
        count += tl.sum(mask.to(tl.int32), 1)
    tl.store(xs.grad + i, grad)
    tl.store(mean.losses + band, tl.sum(loss, 0))
    tl.store(mean.counts + band, tl.sum(count, 0).to(tl.int64))


@triton.jit(do_not_specialize=["n", "m"])
def mean_kernel(x, r, n, m, mean):
    store_mean(mean, Side(n, *x), Side(m, *r))


def mean_of(mean: Mean, x: Side, r: Side) -> torch.Tensor:
    """The loss, where no gradient is wanted: the kernels of a gradient leave it too."""
    mean_kernel[(1,)](*arguments(x, r), mean, **configs.FUSED)
    loss: torch.Tensor = mean.loss
    return loss


def positive_pairs(pairs: Pairs, x: Side, r: Side, xs: Stats, rs: Stats) -> Mean:
    """Leaves the gradients of the statistics of ``x`` in ``xs``; sums of the loss in the result."""
    tile = pairs.reduce_tile
    bands = x.padded // tile.BM
    mean = Mean(
        losses=x.norm.new_empty(bands),
        counts=x.order.new_empty(bands, dtype=torch.int64),
        padded=x.padded,
        height=tile.BM,
        loss=x.norm.new_empty(()),
    )
    positives_kernel[(bands,)](
        *arguments(x, r), xs, rs, mean, APART=pairs.apart, **pairs.products.scores, BM=tile.BM,
        BN=tile.BS, **configs.launch(tile),
    )  # fmt: skip
    return mean
