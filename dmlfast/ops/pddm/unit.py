"""The weights of a position-dependent metric unit, as kernels and reference take them."""

from typing import Any, NamedTuple, Protocol

import torch

from dmlfast.ops import checks
from dmlfast.ops.numerics import computed


class LinearLayer(Protocol):
    """What is used of a `torch.nn.Linear`."""

    weight: torch.Tensor
    bias: torch.Tensor | None


class PairUnit(Protocol):
    """What is used of a `dmlfast.losses.PDDMUnit`: four layers; and, where there is one, a true or
    false attribute ``normalize_inputs``.
    """

    difference: Any
    mean: Any
    joint: Any
    score: Any


class Weights(NamedTuple):
    """The eight tensors of a unit; README.md has the maths.

    H_d and H_m, the widths of the branches of difference and mean, and H of the joint layer are
    what the tensors say; a `PDDMUnit` has all three alike.
    """

    difference_weight: torch.Tensor  # (H_d, D)
    difference_bias: torch.Tensor  # (H_d,)
    mean_weight: torch.Tensor  # (H_m, D)
    mean_bias: torch.Tensor  # (H_m,)
    joint_weight: torch.Tensor  # (H, H_d + H_m)
    joint_bias: torch.Tensor  # (H,)
    score_weight: torch.Tensor  # (1, H)
    score_bias: torch.Tensor  # (1,)

    def computed(self) -> "Weights":
        """In the dtype that the maths is done in."""
        return Weights(*map(computed, self))


def weights_of(unit: PairUnit, rows: torch.Tensor) -> Weights:
    """The weights of a unit for rows (N, D); a layer without bias has one of zeros.

    Raises:
        TypeError, ValueError: a layer is missing, or has a wrong shape, dtype or device.
    """
    tensors: list[torch.Tensor] = []
    for name in ("difference", "mean", "joint", "score"):
        layer = getattr(unit, name, None)
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
            raise TypeError(f"unit.{name} must be a linear layer with a weight (out, in)")
        checks.floats(f"unit.{name}.weight", weight, rows)
        if bias is None:
            bias = weight.new_zeros(len(weight))
        checks.floats(f"unit.{name}.bias", bias, rows)
        if bias.shape != weight.shape[:1]:
            raise ValueError(
                f"unit.{name}.bias must have shape ({len(weight)},), not {tuple(bias.shape)}"
            )
        tensors += [weight, bias]
    weights = Weights(*tensors)
    D = rows.shape[1]
    branches = len(weights.difference_weight) + len(weights.mean_weight)
    expected = {
        "difference": (weights.difference_weight, len(weights.difference_weight), D),
        "mean": (weights.mean_weight, len(weights.mean_weight), D),
        "joint": (weights.joint_weight, len(weights.joint_weight), branches),
        "score": (weights.score_weight, 1, len(weights.joint_weight)),
    }
    for name, (weight, *shape) in expected.items():
        if list(weight.shape) != shape or not weight.numel():
            raise ValueError(
                f"unit.{name}.weight must have shape {tuple(shape)}, not {tuple(weight.shape)}"
            )
    return weights
