"""Rows and weights as the kernels take them: rounded, in whole blocks and one after another.

Everything that decides how a kernel is compiled follows from the dtype and the widths alone, so
that one and the same binary serves matrices, two sets and lists of pairs.
"""

from typing import Any, NamedTuple

import torch
import triton

from dmlfast.ops.pddm.unit import Weights
from dmlfast.ops.triton import configs
from dmlfast.ops.triton.configs import PairsTile, Products

ALIGNED = 16  # bytes; a kernel is compiled anew for a tensor that is not


class Packed(NamedTuple):
    """The weights of a unit; zero in the padding.

    difference: (HDP, DP). mean: (HMP, DP). joint: (HP, HDP + HMP). score: (HP,).
    """

    difference: Any
    difference_bias: Any
    mean: Any
    mean_bias: Any
    joint: Any
    joint_bias: Any
    score: Any
    score_bias: Any


class Plan(NamedTuple):
    """How a unit is computed for rows of a dtype: widths with padding, blocks, products."""

    products: Products
    tile: PairsTile
    DP: int
    HDP: int
    HMP: int
    HP: int

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, and of what lies between two layers."""
        return configs.weights_dtype(self.products)

    @property
    def narrow(self) -> bool:
        """Whether u' is one block, which a program holds."""
        return self.products.WEIGHTS == "bfloat16" and self.HDP == self.tile.BH

    @property
    def how(self) -> dict[str, Any]:
        """What says how products are taken."""
        how = self.products
        return {"WEIGHTS": how.WEIGHTS, "OPERAND": how.W_OPERAND, "PRECISION": how.W_PRECISION}


def plan_of(dtype: torch.dtype, d: int, weights: Weights) -> Plan:
    """For rows of d components. Operands are rounded like weights that meet such rows elsewhere:
    float16 to tf32, which keeps the range of float32.
    """
    products = configs.products_of(dtype, d)
    tile = configs.tiles_of(configs.weights_dtype(products)).pddm
    widths = {
        "BK": d,
        "BH": len(weights.difference_weight),
        "BV": len(weights.mean_weight),
        "BC": len(weights.joint_weight),
    }
    blocks = {
        name: min(getattr(tile, name), max(16, triton.next_power_of_2(width)))
        for name, width in widths.items()
    }
    padded = [-(-width // blocks[name]) * blocks[name] for name, width in widths.items()]
    return Plan(products, tile._replace(**blocks), *padded)


def packed(weights: Weights, plan: Plan) -> Packed:
    """The weights in whole blocks, themselves where they are so already."""
    w, HDP, HMP, HP = weights, plan.HDP, plan.HMP, plan.HP
    parts = w.joint_weight.split([len(w.difference_weight), len(w.mean_weight)], dim=1)
    joint = w.joint_weight
    if joint.shape[1] != HDP + HMP:
        joint = joint.new_zeros(len(joint), HDP + HMP)
        for first, part in zip((0, HDP), parts, strict=True):
            joint[:, first : first + part.shape[1]] = part

    def matrix(given: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        if plan.products.WEIGHTS == "tf32":
            given = rounded_to_tf32(given)
        return in_blocks(given.to(plan.dtype), rows, columns)

    def vector(given: torch.Tensor, width: int) -> torch.Tensor:
        return in_blocks(given.view(1, -1), 1, width)  # kernels take any precision

    return Packed(
        matrix(w.difference_weight, HDP, plan.DP),
        vector(w.difference_bias, HDP),
        matrix(w.mean_weight, HMP, plan.DP),
        vector(w.mean_bias, HMP),
        matrix(joint, HP, HDP + HMP),
        vector(w.joint_bias, HP),
        vector(w.score_weight, HP),
        vector(w.score_bias, 1),
    )


def in_blocks(given: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """(rows, columns) contiguous and aligned, zero beyond what is given."""
    if given.shape == (rows, columns):
        return aligned(given)
    found = given.new_zeros(rows, columns)
    found[: given.shape[0], : given.shape[1]] = given
    return found


def aligned(given: torch.Tensor) -> torch.Tensor:
    """Contiguous and aligned, itself where it is."""
    given = given.contiguous()
    return given if given.data_ptr() % ALIGNED == 0 else given.clone()


def rounded_to_tf32(given: torch.Tensor) -> torch.Tensor:
    """Float32 with ten bits of mantissa, the nearest; NaN and infinity remain."""
    given = given.float().contiguous()
    bits = given.view(torch.int32)
    rounded = (bits + 0xFFF + ((bits >> 13) & 1)) & -8192
    return torch.where(given == given, rounded.view(torch.float32), given)
