"""The product of the mean's layer and half of each row, which pairs add up."""

import torch
import triton
import triton.language as tl

from dmlfast.ops.pddm.triton.layers import operand, turned_weights
from dmlfast.ops.pddm.triton.unit import Plan
from dmlfast.ops.triton import configs


@triton.jit(do_not_specialize=["n"])
def projections_kernel(
    x, weight, out, n, DP: tl.constexpr, HMP: tl.constexpr, WEIGHTS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
    BH: tl.constexpr,
):  # fmt: skip
    """``out`` (n, HMP) for BP rows of x (n, DP) and BH units."""
    blocks = HMP // BH
    i = (tl.program_id(0) // blocks).to(tl.int64) * BP + tl.arange(0, BP)
    h = tl.program_id(0) % blocks * BH + tl.arange(0, BH)
    own = tl.minimum(i, n - 1)
    acc = tl.zeros((BP, BH), tl.float32)
    for first in range(0, DP, BK):
        k = first + tl.arange(0, BK)
        a = tl.load(x + own[:, None] * DP + k[None, :]).to(tl.float32)
        w = turned_weights(weight, DP, h, k, OPERAND)
        acc = tl.dot(operand(a, WEIGHTS, OPERAND), w, acc, input_precision=PRECISION)
    tl.store(out + i[:, None] * HMP + h[None, :], acc * 0.5, mask=(i < n)[:, None])


def projections(x: torch.Tensor, weight: torch.Tensor, plan: Plan) -> torch.Tensor:
    """(n, HMP) float32 of packed rows (n, DP). The bits of a row do not depend on the others."""
    n, tile = len(x), plan.tile
    out = x.new_empty(n, plan.HMP, dtype=torch.float32)
    projections_kernel[(-(-n // tile.pairs) * (plan.HMP // tile.BV),)](
        x, weight, out, n, DP=plan.DP, HMP=plan.HMP, BP=tile.pairs, BK=tile.BK, BH=tile.BV,
        **plan.how, **configs.launch(tile),
    )  # fmt: skip
    return out
