"""The base loss of a tile of pairs, its slope, and what is carried from learner to learner.

``same`` says which pairs are of one class; the diagonal and the padding have a share of 0.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from dmlfast.ops.boosted import settings
from dmlfast.ops.triton.tile import log1p

START = tl.constexpr(settings.START)
SHRINKAGE = tl.constexpr(settings.SHRINKAGE)
NEGATIVES = tl.constexpr(settings.NEGATIVES)
CERTAIN = tl.constexpr(-128.0)  # a prediction whose pairs weigh 1, to the last digit


class Constants(NamedTuple):
    """Of the settings, those that a kernel is not compiled for."""

    beta1: Any
    beta2: Any
    negative_cost: Any
    margin: Any


@triton.jit
def slope_of(same, c):
    """dz / ds."""
    return tl.where(same, c.beta1, -c.negative_cost * c.beta1)


@triton.jit
def base_loss(s, z, same, slope, c, BASE: tl.constexpr):
    """The loss of pairs of score s, and its derivative by s."""
    if BASE == "contrastive":
        short = tl.where(same, s - 1.0, tl.maximum(s - c.margin, 0.0))
        loss, by_score = short * short, 2.0 * short
    else:
        e = tl.exp(-tl.abs(z))
        loss = tl.maximum(-z, 0.0) + log1p(e)
        by_score = -slope * (tl.where(z > 0.0, e, 1.0) / (1.0 + e))
    return loss, by_score


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def start_of(BASE: tl.constexpr, BOOSTING: tl.constexpr):
    """What is carried to the first learner."""
    start = CERTAIN
    if BOOSTING == "additive":
        start = START
    return start


@triton.jit
def boost(carry, same, c, m, BASE: tl.constexpr, BOOSTING: tl.constexpr):
    """What pairs weigh for learner m = 0, 1, ... by what was carried: 1 for the first."""
    if BASE == "contrastive":
        weight = 2.0 * tl.where(same, 1.0 - carry, tl.maximum(carry - c.margin, 0.0))
        weight = tl.where(m > 0, weight, 1.0)
    else:
        weight = sigmoid(-carry)
        if BOOSTING == "additive":
            weight = tl.where(same, weight, NEGATIVES * weight)
            weight = tl.where(m > 0, weight, 1.0)
        elif BOOSTING == "derivative":
            positive = tl.abs(c.beta1)
            negative = tl.abs(c.negative_cost * c.beta1)
            weight *= tl.where(same, tl.where(m > 0, positive, 1.0), tl.where(m > 0, negative, 1.0))
    return weight


@triton.jit
def carried(carry, s, z, m, BASE: tl.constexpr, BOOSTING: tl.constexpr):
    """What is carried on from learner m = 0, 1, ... The averages of z are what b' is taken at with
    those of scores, z being one slope times a score less beta2.
    """
    if BOOSTING == "additive":
        carry += SHRINKAGE * z
    else:
        eta = 2.0 / (m + 2)
        new = z
        if BASE == "contrastive":
            new = s
        carry = (1.0 - eta) * carry + eta * new
    return carry
