"""Both sides of the pairs, prepared."""

from typing import Any, NamedTuple

import torch

from dmlfast.ops.pairs.term import PairTerm
from dmlfast.ops.triton import configs
from dmlfast.ops.triton.side import Side, positions_of, prepare
from dmlfast.ops.triton.tile import LOG2E


class Pairs(NamedTuple):
    """Both sides of the pairs and how they face each other.

    half: the statistics of the rows are those of the columns too, one half of the pairs is enough.
    apart: both sides are the same rows, and none meets itself.
    """

    x: Side
    r: Side
    half: bool
    apart: bool
    dtype: torch.dtype
    products: configs.Products
    tiles: configs.Tiles

    def asks(self, term: PairTerm) -> dict[str, bool | str]:
        """What every kernel is compiled for."""
        return {
            "DISTANCE": term.score == "distance",
            "REDUCE": term.reduce,
            "INSIDE": term.select == "positive",
            "APART": self.apart,
        }

    @property
    def reduce_tile(self) -> configs.Tile:
        return self.tiles.wide_reduce if self.products.by_blocks else self.tiles.reduce


def unit_of(term: PairTerm) -> float:
    """What terms are multiplied by: those of a log-sum-exp become powers of two."""
    return float(LOG2E.value) if term.reduce == "logsumexp" else 1.0


def floors_of(side: Side, row_floor: torch.Tensor | None, term: PairTerm) -> torch.Tensor | None:
    """(padded,) what the terms of the row at a position must be above, in their unit."""
    if row_floor is None:
        return None
    return row_floor.to(torch.float32).index_select(0, side.order) * unit_of(term)


def pairs_of(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    row_labels: torch.Tensor | None,
    column_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
    column_bias: torch.Tensor | None,
    term: PairTerm,
) -> Pairs:
    """Prepares both sides, neither of them empty."""
    same = columns is None
    dtype = rows.dtype if columns is None or columns.dtype == rows.dtype else torch.float32
    how, tiles = configs.products_of(dtype, rows.shape[1]), configs.tiles_of(dtype)
    full = dtype == torch.float32
    common: dict[str, Any] = {
        "dtype": dtype,
        "width": how.DP,
        "chunk": how.BD,
        "rounded": full and how.PRECISION == "tf32",
        "unit": unit_of(term),
    }
    row_labels, column_labels = (
        labels.to(torch.int64).contiguous() if labels is not None and term.by_label else None
        for labels in (row_labels, column_labels)
    )
    centred = full and term.score == "distance"
    x = prepare(
        rows,
        centre=True if centred else None,
        labels=row_labels,
        other_labels=column_labels,
        itself=same and term.select == "other",
        bias=column_bias if same else None,
        **common,
    )
    if columns is None:
        half = column_bias is None and term.select != "all"
        return Pairs(x._replace(bias=None), x, half, term.select != "all", dtype, how, tiles)
    r = prepare(
        columns,
        centre=x if centred else None,
        labels=column_labels,
        other_labels=row_labels,
        bias=column_bias,
        **common,
    )
    if self_index is not None and term.select in ("positive", "other"):
        positions = positions_of(self_index, x, r)
        by_label = term.select == "positive"
        x = x._replace(**{"itself" if by_label else "left_out": positions})
    return Pairs(x, r, False, False, dtype, how, tiles)
