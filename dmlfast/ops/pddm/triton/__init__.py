"""The scores of a unit as Triton kernels.

../README.md has the maths, docs/triton_kernels.md the structure.
"""

import torch

from dmlfast.ops.gpu import multiprocessors, on_its_device
from dmlfast.ops.pddm.triton.loss import quadruplet_loss
from dmlfast.ops.pddm.triton.mining import hard_quadruplets
from dmlfast.ops.pddm.triton.projections import projections
from dmlfast.ops.pddm.triton.scores import ALL, LISTED, UPPER, pair_scores_kernel
from dmlfast.ops.pddm.triton.unit import in_blocks, packed, plan_of
from dmlfast.ops.pddm.unit import Weights
from dmlfast.ops.triton import configs

__all__ = ["hard_quadruplets", "matrix", "pairs", "quadruplet_loss"]

MULTIPROCESSORS = 1  # where kernels are interpreted


@on_its_device
def matrix(
    rows: torch.Tensor, columns: torch.Tensor | None, weights: Weights, normalize_inputs: bool
) -> torch.Tensor:
    """(N, M) float32 scores of all pairs of rows and columns, or of rows with themselves."""
    n, m = len(rows), len(rows if columns is None else columns)
    out = rows.new_empty(n, m, dtype=torch.float32)
    if n and m:
        _score(rows, columns, None, weights, normalize_inputs, out)
    return out


@on_its_device
def pairs(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    i: torch.Tensor,
    j: torch.Tensor,
    weights: Weights,
    normalize_inputs: bool,
) -> torch.Tensor:
    """(P,) float32 scores of rows i with columns j, or with rows j where there are no columns; NaN
    where there are none of either.
    """
    out = rows.new_empty(len(i), dtype=torch.float32)
    others = rows if columns is None else columns
    if not len(rows) or not len(others):
        return out.fill_(torch.nan)
    if not len(i):
        return out
    if 2 * len(i) < len(rows) + (0 if columns is None else len(columns)):  # the rest is left out
        rows, columns = rows[i], others[j]
        i = j = torch.arange(len(i), device=i.device)
    _score(rows, columns, (i.contiguous(), j.contiguous()), weights, normalize_inputs, out)
    return out


def _score(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    listed: tuple[torch.Tensor, torch.Tensor] | None,
    weights: Weights,
    normalize_inputs: bool,
    out: torch.Tensor,
) -> None:
    """Fills ``out`` with the scores of listed pairs or of all."""
    plan = plan_of(rows.dtype, rows.shape[1], weights)
    tile, unit = plan.tile, packed(weights, plan)
    x = in_blocks(rows, len(rows), plan.DP)
    x_mean = projections(x, unit.mean, plan)
    y, y_mean = x, x_mean
    if columns is not None:
        y = in_blocks(columns, len(columns), plan.DP)
        y_mean = projections(y, unit.mean, plan)
    count, across = 0, -(-len(y) // tile.BJ)
    if listed:
        form, count = LISTED, len(out)
        tiles = -(-count // tile.pairs)
    elif columns is None:
        form, tiles = UPPER, tile.BJ // tile.BI * (across * (across + 1) // 2)
    else:
        form, tiles = ALL, -(-len(x) // tile.BI) * across
    first, second = listed or (x.new_empty(2, 0, dtype=torch.int64))
    programs = tiles if plan.narrow else min(tiles, _programs(tile))
    scratch = x.new_empty(0, dtype=plan.dtype)
    if not plan.narrow:
        scratch = x.new_empty(programs, tile.pairs, plan.HDP, dtype=plan.dtype)
    pair_scores_kernel[(programs,)](
        x, y, x_mean, y_mean, unit, out, len(x), len(y), first, second, count, tiles, form.value,
        scratch, NORMALIZE=normalize_inputs, NARROW=plan.narrow, DP=plan.DP, HDP=plan.HDP,
        HMP=plan.HMP, HP=plan.HP, **plan.how, **tile.blocks, **configs.launch(tile),
    )  # fmt: skip


def _programs(tile: configs.PairsTile) -> int:
    """How many programs go through all tiles of a wide unit: as many as are on the GPU at once."""
    return multiprocessors(MULTIPROCESSORS) * max(1, 8 // tile.warps)
