"""Scores of a unit on the CPU kernels of csrc/cpu."""

import ctypes

import torch

from dmlfast.ops import native
from dmlfast.ops.numerics import nan_unless_finite
from dmlfast.ops.pddm.gradient import gradients
from dmlfast.ops.pddm.mining import hard_quadruplets
from dmlfast.ops.pddm.settings import Hinges
from dmlfast.ops.pddm.unit import Weights

__all__ = ["hard_quadruplets", "matrix", "pairs", "quadruplet_loss"]


def matrix(
    rows: torch.Tensor, columns: torch.Tensor | None, weights: Weights, normalize_inputs: bool
) -> torch.Tensor:
    """(N, M) float32 scores of all pairs of rows and columns, or of rows with themselves."""
    sides = native.Pairs(rows, columns, None, None, None)
    unit = native.MetricUnit(weights, normalize_inputs)
    scores = native.empty(sides.n, sides.m)
    status = native.cpu_library().dml_cpu_pddm_matrix(
        ctypes.byref(sides), ctypes.byref(unit), native.address(scores)
    )
    native.check(status, "pddm_scores")
    return scores


def pairs(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    i: torch.Tensor,
    j: torch.Tensor,
    weights: Weights,
    normalize_inputs: bool,
) -> torch.Tensor:
    """(P,) float32 scores of rows i with columns j, or with rows j."""
    sides = native.Pairs(rows, columns, None, None, None)
    unit = native.MetricUnit(weights, normalize_inputs)
    indices = native.int_labels(i), native.int_labels(j)
    scores = native.empty(len(i))
    status = native.cpu_library().dml_cpu_pddm_pairs(
        ctypes.byref(sides),
        ctypes.byref(unit),
        *map(native.address, indices),
        len(i),
        native.address(scores),
    )
    native.check(status, "pddm_scores")
    return scores


def quadruplet_loss(
    rows: torch.Tensor,
    quadruplets: torch.Tensor,
    weights: Weights,
    normalize_inputs: bool,
    hinges: Hinges,
    want: bool,
) -> tuple[torch.Tensor, ...]:
    """The loss (); and where they are wanted the gradients of the rows, of the weights of the first
    three layers, and of the rest of the weights in one, all float32.
    """
    x, some = rows.float(), quadruplets[:, 0] >= 0
    i, j, k, l = quadruplets.clamp_min(0).unbind(1)  # noqa: E741
    first, second = (torch.cat(each[: 1 + hinges.ends]) for each in ([i, i, j], [j, k, l]))
    shape = 1 + hinges.ends, len(quadruplets)
    S = pairs(rows, None, first, second, weights, normalize_inputs).view(shape)
    difference = x[first] - x[second]
    D = difference.square().sum(1) if hinges.squared else difference.norm(dim=1)
    on_scores = hinges.score_margin + S[1:] - S[0]
    on_distances = hinges.embedding_margin + D.view(shape)[0] - D.view(shape)[1:]
    both = on_scores.relu().sum(0) + hinges.embedding_weight * on_distances.relu().sum(0)
    share = some.sum(dtype=S.dtype).clamp_min(1).reciprocal()
    loss = torch.where(some, both, 0).sum() * share + nan_unless_finite(rows, *weights)
    if not want:
        return (loss,)
    over = ((on_scores > 0) & some) * share
    d_scores = torch.cat([-over.sum(0, keepdim=True), over])
    over = ((on_distances > 0) & some) * (share * hinges.embedding_weight)
    d_distances = torch.cat([over.sum(0, keepdim=True), -over]).flatten()
    by = 2 if hinges.squared else torch.where(D == 0, 0, 1 / D)
    along = difference * (d_distances * by)[:, None]
    g = d_scores.flatten()
    d_rows, _, d = gradients(rows, None, (first, second), weights, normalize_inputs, g)
    d_rows.index_add_(0, first, along).index_add_(0, second, along, alpha=-1)
    rest = d.difference_bias, d.mean_bias, d.joint_bias, d.score_weight[0], d.score_bias
    return loss, d_rows, d.difference_weight, d.mean_weight, d.joint_weight, torch.cat(rest)
