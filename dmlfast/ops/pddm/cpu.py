"""Scores of a unit on the CPU, for now in plain PyTorch."""

import torch

from dmlfast.ops.pddm import reference
from dmlfast.ops.pddm.unit import Weights


def matrix(
    rows: torch.Tensor, columns: torch.Tensor | None, weights: Weights, normalize_inputs: bool
) -> torch.Tensor:
    """(N, M) float32 scores of all pairs of rows and columns, or of rows with themselves."""
    return reference.pddm_scores(rows, columns, None, weights, normalize_inputs)


def pairs(
    rows: torch.Tensor,
    columns: torch.Tensor,
    i: torch.Tensor,
    j: torch.Tensor,
    weights: Weights,
    normalize_inputs: bool,
) -> torch.Tensor:
    """(P,) float32 scores of rows i with columns j."""
    return reference.pddm_scores(rows, columns, (i, j), weights, normalize_inputs)
