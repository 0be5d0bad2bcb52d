"""The triplet loss as Triton kernels: loss and gradients in one call.

Anchors are taken in bands, whose distances from all columns are kept in memory for a while. A
program for each anchor finds its triplets and leaves the weights of its pairs, which the products
of wide rows turn into gradients. README.md has the maths.
"""

from typing import NamedTuple

import torch

from dmlfast.ops.gpu import on_its_device
from dmlfast.ops.pairs.term import PairTerm
from dmlfast.ops.pairs.triton.products import product_kernel
from dmlfast.ops.pairs.triton.sides import Pairs, pairs_of
from dmlfast.ops.pairs.triton.statistics import NO_MEAN, NO_STATS
from dmlfast.ops.triplet.triton.anchors import anchors_kernel
from dmlfast.ops.triplet.triton.bands import apart_kernel, distances_kernel, weigh_kernel
from dmlfast.ops.triton import configs
from dmlfast.ops.triton.side import TILE, Side, arguments

TERM = PairTerm("distance", "positive", "sum", 1.0, 0.0)


class Band(NamedTuple):
    """Memory for the pairs of a band of anchors with all columns.

    distances, sums, weights: (height, pitch). row_sums, column_sums: of the weights of each tile.
    """

    height: int
    pitch: int
    distances: torch.Tensor
    sums: torch.Tensor
    weights: torch.Tensor
    row_sums: torch.Tensor
    column_sums: torch.Tensor
    flags: torch.Tensor


def band_of(pairs: Pairs) -> Band:
    """As many pairs as a block of weights has, and at least one tile of anchors."""
    tile, floats = pairs.tiles.weights, pairs.x.norm
    pitch = pairs.r.padded
    height = min(pairs.x.padded, max(1, tile.block**2 // (TILE * pitch)) * TILE)
    return Band(
        height,
        pitch,
        floats.new_empty(height, pitch),
        floats.new_empty(height, pitch),
        floats.new_empty(height, pitch, dtype=configs.weights_dtype(pairs.products)),
        floats.new_empty(pitch // tile.T, height),
        floats.new_empty(height // tile.T, pitch),
        pairs.x.order.new_empty(height // tile.T, pitch // tile.T),
    )


@on_its_device
def forward(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    row_labels: torch.Tensor,
    column_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
    margin: float,
    mining: str,
    reduction: str,
    want_rows: bool,
    want_columns: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Loss () and gradients for rows (N, D) and columns (M, D), float32; None where not wanted."""
    pairs = pairs_of(rows, columns, row_labels, column_labels, self_index, None, TERM)
    x, r = pairs.x, pairs.r
    place = torch.empty_like(r.order)
    place[r.order[: r.n].long()] = torch.arange(r.n, dtype=torch.int32, device=place.device)
    sums = x.norm.new_empty(x.n)
    above, counts = x.order.new_empty(2, x.n, dtype=torch.int64)
    d_rows = x.norm.new_zeros(x.n, x.d) if want_rows else None
    d_columns = x.norm.new_zeros(r.n, r.d) if want_columns else None
    band = band_of(pairs)
    for first in range(0, x.padded, band.height):
        height = min(band.height, x.padded - first)
        _distances(pairs, band, first, height)
        anchors_kernel[(min(height, x.n - first),)](
            *arguments(x, r), band.distances, band.sums, sums, above, counts, place, first,
            band.pitch, margin, MINING=mining, APART=pairs.apart, BQ=4, BN=1024,
            **configs.launch(pairs.tiles.weights),
        )  # fmt: skip
        if not want_rows and not want_columns:
            continue
        _weigh(pairs, band, height)
        if d_rows is not None:
            _add(pairs, band, x, r, d_rows, first, height, turned=False)
        into = d_rows if columns is None else d_columns
        if into is not None:
            _add(pairs, band, r, x, into, first, height, turned=True)
    loss = sums.double().sum()
    share = torch.ones_like(loss)
    if reduction != "sum":
        share = 1.0 / (above if reduction == "nonzero" else counts).sum().clamp_min(1)
    loss = loss * share + x.poison.sum() + r.poison.sum()
    share = share.float()
    made = [None if d is None else d.mul_(share) for d in (d_rows, d_columns)]
    return loss.float(), made[0], made[1]


def _distances(pairs: Pairs, band: Band, first: int, height: int) -> None:
    tile = pairs.reduce_tile
    distances_kernel[(band.pitch // tile.BN, height // tile.BM)](
        *arguments(pairs.x, pairs.r), band.distances, band.sums, first, band.pitch,
        APART=pairs.apart, **pairs.products.scores, **tile.blocks, **configs.launch(tile),
    )  # fmt: skip


def _weigh(pairs: Pairs, band: Band, height: int) -> None:
    tile = pairs.tiles.weights
    weigh_kernel[(band.pitch // tile.T, height // tile.T)](
        *band[2:], band.height, band.pitch, WEIGHTS=pairs.products.WEIGHTS, T=tile.T, BS=tile.BS,
        **configs.launch(tile),
    )  # fmt: skip


def _add(
    pairs: Pairs,
    band: Band,
    one: Side,
    other: Side,
    out: torch.Tensor,
    first: int,
    height: int,
    turned: bool,
) -> None:
    """Adds to ``out`` what a band gives for its rows, or turned for its columns, ``one``."""
    tile, product, how = pairs.tiles.weights, pairs.tiles.product, pairs.products
    if one.d % 16:  # stored one by one: addresses take the registers of half a tile
        product = product._replace(BK=product.BK // 2)
    own, others = (band.pitch, height) if turned else (height, band.pitch)
    first_i, first_j = (0, first) if turned else (first, 0)
    sums = band.column_sums if turned else band.row_sums
    product_kernel[(own // product.BM, -(-one.d // product.BK))](
        *arguments(one, other), NO_STATS, NO_STATS, out, band.weights, sums,
        None, first_i, first_j, others, band.pitch, sums.shape[1], 1, 1.0,
        NO_MEAN, TERM.scale, TERM.offset, TURNED=turned, **pairs.asks(TERM), POSITIVES=False,
        NEAR=configs.near_of(pairs.dtype), DP=how.DP, OPERAND=how.OPERAND,
        W_OPERAND=how.W_OPERAND, W_PRECISION=how.W_PRECISION, T=tile.T, **product.blocks,
        **configs.launch(product),
    )  # fmt: skip
    apart_kernel[(own // tile.T,)](
        *arguments(one, other), out, band.distances, band.flags, first_i, first_j,
        others // tile.T, band.pitch, TURNED=turned, T=tile.T, **configs.launch(tile),
    )  # fmt: skip
