"""Block sizes of these kernels by architecture and dtype."""

from typing import Any, NamedTuple

import torch
import triton

from dmlfast.ops.gpu import interpreted
from dmlfast.ops.triton.configs import FUSED, kind_of
from dmlfast.ops.triton.tuned import FULL, HALF


class WeightsTile(NamedTuple):
    """Rows and columns of a tile of pairs."""

    BM: int
    BN: int
    warps: int
    stages: int


class ProductTile(NamedTuple):
    """Rows and components of a tile of a gradient, and the weights of a row taken at once."""

    BM: int
    BK: int
    BC: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    weights: WeightsTile
    product: ProductTile

    @property
    def whole(self) -> int:
        """What the number of rows is padded to a multiple of; all are powers of two."""
        return max(*self.weights[:2], self.product.BM, self.product.BC)


# By compute capability; others take those of 80, which fit in the shared memory of all of them.
# FULL also has the products of float16 rows, whose weights are float32.
TILES = {
    80: {
        HALF: Tiles(WeightsTile(64, 64, 8, 3), ProductTile(128, 64, 64, 8, 3)),
        FULL: Tiles(WeightsTile(64, 64, 8, 3), ProductTile(128, 64, 32, 8, 3)),
    },
    90: {
        HALF: Tiles(WeightsTile(64, 64, 4, 3), ProductTile(128, 64, 64, 8, 4)),
        FULL: Tiles(WeightsTile(64, 64, 8, 3), ProductTile(128, 64, 32, 8, 3)),
    },
    100: {
        HALF: Tiles(WeightsTile(64, 64, 8, 3), ProductTile(128, 64, 64, 8, 3)),
        FULL: Tiles(WeightsTile(64, 64, 8, 3), ProductTile(128, 64, 32, 8, 3)),
    },
}
INTERPRETED = Tiles(WeightsTile(64, 64, 4, 1), ProductTile(64, 128, 64, 4, 1))


def tiles_of(rows: torch.dtype, weights: torch.dtype) -> Tiles:
    """For rows and weights of these dtypes on the GPU that kernels are started on."""
    if interpreted():
        return INTERPRETED
    capability = triton.runtime.driver.active.get_current_target().arch
    table = TILES.get(capability, TILES[80])
    return Tiles(table[kind_of(rows)].weights, table[kind_of(weights)].product)


def launch(tile: WeightsTile | ProductTile) -> dict[str, Any]:
    """What Triton takes beside a kernel's arguments; all registers may be used."""
    registers = min(255, 65536 // (32 * tile.warps))
    return {"num_warps": tile.warps, "num_stages": tile.stages, "maxnreg": registers, **FUSED}
