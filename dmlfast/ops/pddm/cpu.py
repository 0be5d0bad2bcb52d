"""Scores of a unit on the CPU kernels of csrc/cpu."""

import ctypes

import torch

from dmlfast.ops import native
from dmlfast.ops.pddm.mining import hard_quadruplets
from dmlfast.ops.pddm.unit import Weights

__all__ = ["hard_quadruplets", "matrix", "pairs"]


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
