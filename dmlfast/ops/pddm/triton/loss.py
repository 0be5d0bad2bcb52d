"""The loss of quadruplets, and its gradients of rows and weights."""

import torch
import triton
import triton.language as tl

from dmlfast.ops.gpu import exact_products, on_its_device
from dmlfast.ops.pddm.settings import Hinges
from dmlfast.ops.pddm.triton.quadruplets import Kept, quadruplets_kernel
from dmlfast.ops.pddm.triton.unit import aligned
from dmlfast.ops.pddm.unit import Weights
from dmlfast.ops.triton.configs import FUSED

BLOCK_FLOATS = 2**26  # that quadruplets may take at once, 256 MiB
QUADRUPLETS = 4  # of a tile
ROWS = 32  # that a program looks at
WIDTH = 64  # components, or units, that are taken at once
HOW = {"num_warps": 8, "num_stages": 2, "maxnreg": 255, **FUSED}


@triton.jit
def _owner(quadruplets, e, count, ENDS: tl.constexpr):
    """The row that the e-th gradient is of, two for each slot; -1 where there is none."""
    q, s, other = e // 8, e // 2 % 4, e % 2 > 0
    end = tl.where(other, s + 1, s // 2)
    known = (q < count) & (s < 1 + ENDS)
    return tl.load(quadruplets + q.to(tl.int64) * 4 + end, mask=known, other=-1)


@triton.jit(do_not_specialize=["count", "fresh"], do_not_specialize_on_alignment=["quadruplets"])
def rows_kernel(
    quadruplets, count, ends, out, fresh, ENDS: tl.constexpr, D: tl.constexpr, BE: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The gradient of a row: of the ends of slots those that are its own, added up in their order.

    ends: (8 count, D). out: (n, D), to which is added unless it is ``fresh``.
    """
    row = tl.program_id(0)
    k = tl.program_id(1) * BD + tl.arange(0, BD)
    out += row.to(tl.int64) * D + k
    total = tl.load(out, mask=(k < D) & (k * 0 + fresh < 1), other=0.0)
    for first in range(0, 8 * count, BE):
        owner = _owner(quadruplets, first + tl.arange(0, BE), count, ENDS)
        if tl.max((owner == row).to(tl.int32), 0) > 0:
            for start in range(first, first + BE, BT):
                e = start + tl.arange(0, BT)
                own = _owner(quadruplets, e, count, ENDS) == row
                if tl.max(own.to(tl.int32), 0) > 0:
                    at = ends + e.to(tl.int64)[:, None] * D + k[None, :]
                    total += tl.sum(tl.load(at, mask=own[:, None] & (k < D)[None, :], other=0.0), 0)
    tl.store(out, total, mask=k < D)


@on_its_device
def quadruplet_loss(
    rows: torch.Tensor,
    quadruplets: torch.Tensor,
    weights: Weights,
    normalize_inputs: bool,
    hinges: Hinges,
    want: bool,
) -> tuple[torch.Tensor, ...]:
    """As `dmlfast.ops.pddm.cpu.quadruplet_loss`, a part of the quadruplets after the other."""
    (n, D), count = rows.shape, len(quadruplets)
    quadruplets = quadruplets.contiguous()
    unit = Weights(*map(aligned, weights))
    H, B = weights.joint_weight.shape
    floats = 4 * QUADRUPLETS * (4 * D + 2 * B + H)  # of a tile
    tiles = min(-(-count // QUADRUPLETS), max(1, BLOCK_FLOATS // floats))
    size = tiles * QUADRUPLETS
    programs = max(tiles, -(-n // ROWS))
    kept = _room(rows, tiles, programs, weights, want)
    width = max(16, min(WIDTH, triton.next_power_of_2(max(D, B, H))))
    shape = D, len(weights.difference_weight), len(weights.mean_weight), H, QUADRUPLETS, width
    d_rows = rows.new_empty(n, D, dtype=torch.float32)
    found: list[torch.Tensor] = []
    for first in range(0, count, size):
        quadruplets_kernel[(programs,)](
            rows, *rows.stride(), 0 if first else n, quadruplets, first, count, tiles, unit, kept,
            hinges.score_margin, hinges.embedding_margin, hinges.embedding_weight,
            NORMALIZE=normalize_inputs, SQUARED=hinges.squared, ENDS=hinges.ends, WANT=want,
            SHAPE=shape, PRECISION="tf32x3" if exact_products() else "tf32", BR=ROWS, **HOW,
        )  # fmt: skip
        part = [kept.losses.sum()]
        if want:
            width = min(128, max(16, triton.next_power_of_2(D)))
            rows_kernel[(n, -(-D // width))](
                quadruplets[first:], min(size, count - first), kept.ends, d_rows, int(not first),
                ENDS=hinges.ends, D=D, BE=512, BT=32, BD=width, **FUSED,
            )  # fmt: skip
            part += _products(kept, len(weights.difference_weight))
        found = [a.add_(b) for a, b in zip(found, part, strict=True)] if first else part
    return found[0], *((d_rows, *found[1:]) if want else ())


def _room(rows: torch.Tensor, tiles: int, programs: int, weights: Weights, want: bool) -> Kept:
    slots, D = 4 * QUADRUPLETS * tiles, rows.shape[1]
    H, B = weights.joint_weight.shape

    def room(*shape: int, wanted: bool = True) -> torch.Tensor:
        return rows.new_empty(shape if wanted else 0, dtype=torch.float32)

    return Kept(
        inputs=room(2, slots, D),
        joined=room(slots, B),
        joint=room(slots, H),
        d_joined=room(slots, B, wanted=want),
        ends=room(slots, 2, D, wanted=want),
        sums=room(tiles, B + 2 * H + 1, wanted=want),
        losses=room(programs),
    )


def _products(kept: Kept, h_d: int) -> list[torch.Tensor]:
    """The gradients of three weights, and of the rest of them in one."""
    u, v = kept.inputs
    with torch.autocast(u.device.type, enabled=False):
        return [
            kept.d_joined[:, :h_d].T @ u,
            kept.d_joined[:, h_d:].T @ v,
            kept.joint.T @ kept.joined,
            kept.sums.sum(0),
        ]
