"""The loss and its gradients from what the kernels do: the part that is O(N D), in float32.

Kernels take each row's logits of all classes but its own. Here are the row's own logit with its
margins, the smoothing of labels, and rows that do not count.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812

from dmlfast.ops.norm_softmax.reference import angles
from dmlfast.ops.norm_softmax.settings import PARALLEL, Settings

# (rows (N, D) float32, of values that weight's dtype has, weight (C, D), labels (N,) int64, -1
# where none, target (N,), row weights (N,), scale, low_memory, want_rows, want_weight) ->
# log-sum-exps L (N,) of scale * cosine over all classes but the label's, -inf over none; and the
# gradients of sum_i row_weight_i softplus(L_i - target_i) for rows and weight, with the targets
# held fixed, float32, None where not wanted
Kernels = Callable[..., tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]]
Found = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]

CHUNK = 4096  # classes that are normalised at a time where labels are smoothed


def counting(labels: torch.Tensor, settings: Settings) -> torch.Tensor:
    """(N,) 1 for the rows that count, else 0."""
    return (labels != settings.ignore_index).float()


def losses_and_gradients(
    kernels: Kernels,
    rows: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    row_weights: torch.Tensor,
    settings: Settings,
    want_rows: bool,
    want_weight: bool,
) -> Found:
    """The loss of each row, (N,), and the gradients of their sum by ``row_weights`` (N,)."""
    if not len(rows):
        d_rows = rows.float() if want_rows else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if want_weight else None
        return row_weights.float(), d_rows, d_weight
    if rows.dtype != weight.dtype:  # kernels compute in the dtype of the weights
        weight = weight.float()
    C = len(weight)
    counts = labels != settings.ignore_index
    labels, unknown = _known(labels, counts, C)
    x = torch.where(counts[:, None], rows.float(), 0)
    own = weight.index_select(0, labels).float()
    (x_unit, x_inverse), (own_unit, own_inverse) = _units(x), _units(own)
    angle = angles(x_unit, own_unit)
    scale, smoothing = 1 / settings.temperature, settings.label_smoothing
    margined = angle + settings.angular_margin
    target = scale * (margined.cos() - settings.cosine_margin)
    row_weights = torch.where(unknown, math.nan, torch.where(counts, row_weights, 0))
    others, d_rows, d_weight = kernels(
        x,
        weight,
        torch.where(counts, labels, -1),
        target,
        row_weights,
        scale,
        settings.low_memory,
        want_rows,
        want_weight,
    )
    # log sum exp of all logits less the own one, which does not cancel where the own one is large
    losses = F.softplus(others - target)
    d_target = -torch.sigmoid(others - target)
    d_angle = d_target + smoothing * (1 - 1 / C) if smoothing else d_target
    d_angle = -scale * d_angle * margined.sin()
    if smoothing:
        share = smoothing / C
        total = _sum_of_units(weight)
        everyone = scale * (x_unit @ total - angle.cos()) + target
        losses = losses + smoothing * target - share * everyone
        d_angle = d_angle - share * scale * angle.sin()
        d_everyone = -share * scale * row_weights
        if d_rows is not None:
            d_rows += _through_norm(d_everyone[:, None] * total, x_unit, x_inverse)
        if d_weight is not None:
            _add_to_all(d_weight, weight, d_everyone @ x_unit)
    d_angle = (row_weights * d_angle)[:, None]
    if d_rows is not None:
        d_rows -= d_angle * _tangents(x_unit, own_unit, angle) * x_inverse
    if d_weight is not None:
        d_own = -d_angle * _tangents(own_unit, x_unit, angle) * own_inverse
        if d_weight.is_cuda:  # sorts, and so adds in one order
            d_weight.index_put_((labels,), d_own, accumulate=True)
        else:
            d_weight.index_add_(0, labels, d_own)
    losses = torch.where(counts, losses, 0).masked_fill(unknown, math.nan)
    return losses, d_rows, d_weight


def _known(labels: torch.Tensor, counts: torch.Tensor, C: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels that are classes, 0 in the place of others, and (N,) which of them are neither a class
    nor ignored.
    """
    labels = torch.where(counts, labels, 0).long()
    unknown = (labels < 0) | (labels >= C)
    if not labels.is_cuda and unknown.any():
        label = labels[unknown][0].item()
        raise ValueError(f"labels must be from 0 to {C - 1}, or ignore_index: there is {label}")
    return labels.masked_fill(unknown, 0), unknown


def _units(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows at length 1 (N, D), and 1 / length (N, 1); both 0 for a row of zeros."""
    largest = rows.abs().amax(1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1)
    scaled = rows / largest
    norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    inverse = torch.where(norm == 0, 0, 1 / norm)
    return scaled * inverse, inverse / largest


def _tangents(a: torch.Tensor, b: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """(N, D) the direction from each a to its b on the sphere, of length 1; 0 where they are
    parallel.
    """
    # b - cos(angle) a, of small differences where the angle is small
    towards = (b - a) + (2 * torch.sin(angle / 2).square())[:, None] * a
    sine = torch.linalg.vector_norm(towards, dim=1, keepdim=True)
    return torch.where(sine < PARALLEL, 0, towards / torch.where(sine > 0, sine, 1))


def _through_norm(
    gradient: torch.Tensor, unit: torch.Tensor, inverse: torch.Tensor
) -> torch.Tensor:
    """The gradient of rows from that of the rows at length 1, (N, D)."""
    return (gradient - (gradient * unit).sum(1, keepdim=True) * unit) * inverse


def _sum_of_units(weight: torch.Tensor) -> torch.Tensor:
    """(D,) the sum of all classes at length 1."""
    parts = [_units(part.float())[0].sum(0) for part in weight.split(CHUNK)]
    return torch.stack(parts).sum(0)


def _add_to_all(d_weight: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> None:
    """Adds to the gradient of the weights that of a gradient (D,) of all classes at length 1."""
    for out, part in zip(d_weight.split(CHUNK), weight.split(CHUNK), strict=True):
        out += _through_norm(gradient.expand(part.shape), *_units(part.float()))
