"""Gradients of scores, a block of pairs at a time, computed again in plain PyTorch.

What they cost is products of matrices, which PyTorch takes as fast as a kernel of our own would.
"""

from collections.abc import Iterator
from math import isqrt
from typing import NamedTuple

import torch

from dmlfast.ops.numerics import add_rows, computed, through_norm
from dmlfast.ops.pddm.unit import Weights

BLOCK_FLOATS = 2**22  # that a block of pairs may take, 16 MiB;
GPU_BLOCK_FLOATS = 2**26  # a GPU wants more work a launch


class Gradients(NamedTuple):
    """Of rows (N, D), columns (M, D) or None, and weights, in the dtype of the maths."""

    rows: torch.Tensor
    columns: torch.Tensor | None
    weights: Weights


def gradients(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    pairs: tuple[torch.Tensor, torch.Tensor] | None,
    weights: Weights,
    normalize_inputs: bool,
    grad: torch.Tensor,
) -> Gradients:
    """The gradients of the sum of scores times ``grad``, (N, M) or, of pairs, (P,)."""
    x, weights = computed(rows), weights.computed()
    y = x if columns is None else computed(columns)
    grad = grad.to(x.dtype)
    d_x = torch.zeros_like(x, memory_format=torch.contiguous_format)
    d_y = d_x if columns is None else torch.zeros_like(y, memory_format=torch.contiguous_format)
    d_weights = Weights(*(torch.zeros_like(each) for each in weights))
    count = _pairs_of_a_block(x, weights)
    with torch.autocast(x.device.type, enabled=False):
        if pairs:
            for i, j, g in zip(*(each.split(count) for each in (*pairs, grad)), strict=True):
                found = _block_gradients(x[i], y[j], weights, normalize_inputs, g, d_weights)
                for out, index, part in zip((d_x, d_y), (i, j), found, strict=True):
                    add_rows(out, index, part)
        else:
            for a, b, g in _blocks(grad, isqrt(count), columns is None):
                shape = (*g.shape, x.shape[1])
                xa, yb = x[a, None].expand(shape), y[None, b].expand(shape)
                xa, yb = xa.flatten(0, 1), yb.flatten(0, 1)
                d_xa, d_yb = _block_gradients(
                    xa, yb, weights, normalize_inputs, g.flatten(), d_weights
                )
                d_x[a] += d_xa.view(shape).sum(1)
                d_y[b] += d_yb.view(shape).sum(0)
    return Gradients(d_x, None if columns is None else d_y, d_weights)


def _pairs_of_a_block(x: torch.Tensor, weights: Weights) -> int:
    floats = GPU_BLOCK_FLOATS if x.is_cuda else BLOCK_FLOATS
    H, branches = weights.joint_weight.shape
    return max(1, floats // (6 * x.shape[1] + 4 * branches + 2 * H))


def _blocks(
    grad: torch.Tensor, side: int, symmetric: bool
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Rows, columns and gradients of blocks of pairs; each unordered pair once where they are
    symmetric.
    """
    side = max(1, side)
    N, M = grad.shape
    for first in range(0, N, side):
        a = slice(first, min(first + side, N))
        for start in range(first if symmetric else 0, M, side):
            b = slice(start, min(start + side, M))
            g = grad[a, b]
            if symmetric:
                g = g + grad[b, a].T
                if start == first:  # each row with itself was counted twice
                    g = g.triu() - grad[a, a].diagonal().diag()
            yield a, b, g


def _block_gradients(
    x: torch.Tensor,
    y: torch.Tensor,
    weights: Weights,
    normalize_inputs: bool,
    grad: torch.Tensor,
    d_weights: Weights,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of x and y (P, D), of the sum of their scores times ``grad`` (P,); those of the
    weights are added to ``d_weights``.
    """
    w, d_w = weights, d_weights
    difference = x - y
    inputs = [difference.abs(), (x + y) / 2]
    scales = [_inverse_norm(each) if normalize_inputs else None for each in inputs]
    inputs = [_times(each, scale) for each, scale in zip(inputs, scales, strict=True)]
    layers = (w.difference_weight, w.difference_bias), (w.mean_weight, w.mean_bias)
    active = [
        torch.addmm(bias, each, weight.T).relu_()
        for each, (weight, bias) in zip(inputs, layers, strict=True)
    ]
    inverse = [_inverse_norm(each) for each in active]
    joined = torch.cat([a * s for a, s in zip(active, inverse, strict=True)], dim=1)
    joint = torch.addmm(w.joint_bias, joined, w.joint_weight.T).relu_()

    d_w.score_weight.add_(grad @ joint)
    d_w.score_bias.add_(grad.sum())
    d_joint = (grad[:, None] * w.score_weight).mul_(joint > 0)
    d_w.joint_weight.addmm_(d_joint.T, joined)
    d_w.joint_bias.add_(d_joint.sum(0))
    d_joined = d_joint @ w.joint_weight

    widths = [each.shape[1] for each in active]
    d_inputs = []
    for k, (unit, d_unit) in enumerate(
        zip(joined.split(widths, 1), d_joined.split(widths, 1), strict=True)
    ):
        d_active = through_norm(d_unit, unit, inverse[k]).mul_(active[k] > 0)
        d_w[2 * k].addmm_(d_active.T, inputs[k])
        d_w[2 * k + 1].add_(d_active.sum(0))
        d_input = d_active @ layers[k][0]
        scale = scales[k]
        d_inputs.append(d_input if scale is None else through_norm(d_input, inputs[k], scale))
    d_difference, d_mean = d_inputs[0].mul_(difference.sign()), d_inputs[1].div_(2)
    return d_mean + d_difference, d_mean - d_difference


def _inverse_norm(rows: torch.Tensor) -> torch.Tensor:
    """(P, 1) one over the norm, 0 for zeros."""
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(norm == 0, 0, 1 / norm)


def _times(rows: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return rows if scale is None else rows * scale
