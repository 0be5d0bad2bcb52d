"""The gradient of wide rows: weights of a block of pairs in scratch memory, then their products.

A program cannot hold the gradient of a band of rows as wide as these. So the pairs are taken block
by block: one kernel writes the weights of a block, which stay in the second-level cache, and
another multiplies them with the rows of either side, or has torch's library do so where that can
and there is more than one block. Blocks follow each other in a fixed order.
"""

import torch
import triton
import triton.language as tl

from dmlfast.ops.gpu import multiprocessors
from dmlfast.ops.matmul import add_product
from dmlfast.ops.pairs.term import PairTerm
from dmlfast.ops.pairs.triton.products import add_kernel, product_kernel
from dmlfast.ops.pairs.triton.sides import Pairs, unit_of
from dmlfast.ops.pairs.triton.statistics import NO_MEAN, Mean, Stats
from dmlfast.ops.pairs.triton.weights import (
    careful_weights,
    factor_of,
    free_weights,
    middle_of,
)
from dmlfast.ops.triton import configs
from dmlfast.ops.triton.side import Side, arguments
from dmlfast.ops.triton.tile import (
    TINY,
    bands,
    first_chunk,
    free_count,
    products,
    rounded_weights,
    scores,
)

MULTIPROCESSORS = 2  # where kernels are interpreted, so that some programs take two tiles


@triton.jit(do_not_specialize=["n", "m", "count"])
def weights_kernel(
    x, r, n, m, xs, rs, weights, row_sums, column_sums, flags, first_i, first_j, count, height,
    pitch, scale, offset, DISTANCE: tl.constexpr, REDUCE: tl.constexpr, INSIDE: tl.constexpr,
    APART: tl.constexpr, POSITIVES: tl.constexpr, NEAR: tl.constexpr, DP: tl.constexpr,
    BD: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, WEIGHTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Weights of ``count`` tiles of pairs beside each other in a block (height, pitch), and their
    sums.

    row_sums: (pitch / BN, height), of each tile in a row. column_sums: (height / BM, pitch).
    The flag of a tile says that it has near pairs, which weigh nothing.
    """
    x, r = Side(n, *x), Side(m, *r)
    a = tl.program_id(0)
    own = a * BM + tl.arange(0, BM)
    i = first_i + own
    middle, wide = middle_of(xs, rs, REDUCE)
    first_b = tl.program_id(1) * count
    for b in tl.range(first_b, first_b + count, disable_licm=True):
        x_chunk = first_chunk(x, i, DP, BD, OPERAND, BM)
        xn = tl.load(x.norm + i)
        tile = first_j // BN + b
        free = free_count(bands(x, r, i, tile, tile + 1, wide, INSIDE, BM, BN), INSIDE)
        at = weights + own.to(tl.int64)[:, None] * pitch + b * BN
        row_sum = row_sums + b * height + own
        column_sum = column_sums + a * pitch + b * BN
        flag = 0
        careful = free == 0
        if free > 0:
            j = tile * BN + tl.arange(0, BN)
            s = products(x_chunk, x, r, i, j, DP, BD, OPERAND, PRECISION, BM, BN)
            score, excess = scores(s, xn, tl.load(r.norm + j), DISTANCE)
            inverse = 1.0
            if DISTANCE:
                # of rows first, which takes fewer registers
                close = tl.min(tl.min(excess, 1, keep_dims=True)) <= 0.0
                careful = close
                # 0 of close pairs, and of those at no distance, which weigh nothing here
                inverse = tl.where(excess > TINY, tl.rsqrt(score), 0.0)
                score = score * inverse
            row_factor = factor_of(xs, i, middle, REDUCE)
            w = free_weights(score, x, r, i, j, row_factor, rs, middle, scale, offset, REDUCE)
            if DISTANCE:
                w *= inverse
            w = rounded_weights(w, WEIGHTS)
            tl.store(at + tl.arange(0, BN)[None, :], w)
            tl.store(row_sum, tl.sum(w.to(tl.float32), 1))
            tl.store(column_sum + tl.arange(0, BN), tl.sum(w.to(tl.float32), 0))
        if careful:
            tl.debug_barrier()
            total = tl.zeros((BM,), tl.float32)
            for piece in range(0, BN, BS):
                j = tile * BN + piece + tl.arange(0, BS)
                s = products(x_chunk, x, r, i, j, DP, BD, OPERAND, PRECISION, BM, BS)
                score, excess = scores(s, xn, tl.load(r.norm + j), DISTANCE)
                w, near = careful_weights(
                    score, excess, xn, x, r, i, j, xs, rs, scale, offset, DISTANCE, REDUCE, INSIDE,
                    APART, POSITIVES, NEAR,
                )  # fmt: skip
                if DISTANCE:
                    flag = tl.maximum(flag, near)
                own_j = piece + tl.arange(0, BS)
                w = rounded_weights(w, WEIGHTS)
                tl.store(at + own_j[None, :], w)
                total += tl.sum(w.to(tl.float32), 1)
                tl.store(column_sum + own_j, tl.sum(w.to(tl.float32), 0))
            tl.store(row_sum, total)
        if DISTANCE:
            tl.store(flags + a * (pitch // BN) + b, flag)


def tiles_at_once(down: int, across: int, programs: int) -> int:
    """How many tiles beside each other a program takes, a divisor of ``across``.

    What it does before the first is worth doing once, as long as there are about as many
    ``programs`` as the GPU has multiprocessors.
    """
    most = -(-down * across // programs)
    return max(count for count in range(1, min(most, across) + 1) if across % count == 0)


def gradient_of(
    pairs: Pairs,
    x: Side,
    r: Side,
    xs: Stats,
    rs: Stats,
    term: PairTerm,
    factor: float,
    mean: Mean,
) -> torch.Tensor:
    """The gradient (n, d), float32, of the rows of ``x``, one of the sides of ``pairs``.

    Where both sides have the same rows and statistics, the weights of a block serve both.
    """
    out = x.norm.new_empty(x.n, x.d)
    how = pairs.products
    tile = pairs.tiles.hinges if term.is_hinge else pairs.tiles.weights
    product_tile = pairs.tiles.product
    if x.d % 16:  # stored one by one: addresses take the registers of half a tile
        product_tile = product_tile._replace(BK=product_tile.BK // 2)
    mutual = x.rows is r.rows and xs is rs and x.bias is None and r.bias is None
    rows, columns = min(tile.block, x.padded), min(tile.block, r.padded)
    down, across = rows // tile.T, columns // tile.T
    weights = x.norm.new_empty(rows, columns, dtype=configs.weights_dtype(how))
    row_sums, column_sums = x.norm.new_empty(across, rows), x.norm.new_empty(down, columns)
    flags = x.order.new_empty(down, across) if term.score == "distance" else None
    product = None
    if weights.dtype == torch.bfloat16 and (rows < x.padded or columns < r.padded):
        product = x.norm.new_empty(max(rows, columns), how.DP)
    unit = unit_of(term)
    scaled = term.scale * unit, term.offset * unit
    kind = {
        **pairs.asks(term),
        "POSITIVES": mean is not NO_MEAN,
        "NEAR": configs.near_of(pairs.dtype),
    }
    begun: set[int] = set()

    def multiply(first_i: int, first_j: int, height: int, width: int, turned: bool) -> None:
        """Adds what the block gives for the rows from first_i on."""
        a, b, a_stats, b_stats = (r, x, rs, xs) if turned else (x, r, xs, rs)
        sums = column_sums if turned else row_sums
        sides = *arguments(a, b), a_stats, b_stats, out
        block = sums, flags, first_i, first_j, width, columns, sums.shape[1], int(first_i in begun)
        shape = height // product_tile.BM, -(-a.d // product_tile.BK)
        same = {**kind, "TURNED": turned, "DP": how.DP, "T": tile.T, "BM": product_tile.BM}
        if product is None:
            product_kernel[shape](
                *sides, weights, *block, factor, mean, *scaled, **same, OPERAND=how.OPERAND,
                W_OPERAND=how.W_OPERAND, W_PRECISION=how.W_PRECISION, BK=product_tile.BK,
                BC=product_tile.BC, **configs.launch(product_tile),
            )  # fmt: skip
        else:
            some = weights[:width, :height].T if turned else weights[:height, :width]
            add_product(product[:height], some, b.rows[first_j : first_j + width], again=False)
            add_kernel[shape](
                *sides, product, *block, factor, mean, *scaled, **same, BK=product_tile.BK,
                **configs.launch(product_tile),
            )  # fmt: skip
        begun.add(first_i)

    for first_i in range(0, x.padded, rows):
        height = min(rows, x.padded - first_i)
        for first_j in range(first_i if mutual else 0, r.padded, columns):
            width = min(columns, r.padded - first_j)
            down, across = height // tile.T, width // tile.T
            count = tiles_at_once(down, across, multiprocessors(MULTIPROCESSORS))
            weights_kernel[(down, across // count)](
                *arguments(x, r), xs, rs, weights, row_sums, column_sums, flags, first_i, first_j,
                count, rows, columns, *scaled, **kind, **how.scores, WEIGHTS=how.WEIGHTS, BM=tile.T,
                BN=tile.T, BS=tile.BS, **configs.launch(tile),
            )  # fmt: skip
            multiply(first_i, first_j, height, width, turned=False)
            if mutual and first_j > first_i:
                multiply(first_j, first_i, width, height, turned=True)
    return out
