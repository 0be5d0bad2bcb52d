"""Block sizes of the Triton kernels by architecture, dtype and width."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from dmlfast.ops.gpu import interpreted


class Products(NamedTuple):
    """How products of prepared rows are taken.

    DP: components of a row with padding; BD: those of a chunk, DP where the rows fit in one.
    OPERAND: dtype of the operands of a score; PRECISION: of a float32 product.
    WEIGHTS: what weights are rounded to for the product that makes a gradient; W_OPERAND and
    W_PRECISION: of that product.
    """

    DP: int
    BD: int
    OPERAND: Any
    PRECISION: str
    WEIGHTS: str
    W_OPERAND: Any
    W_PRECISION: str

    @property
    def by_blocks(self) -> bool:
        """Whether rows are too wide for a program to hold the gradient of a band of them."""
        return self.DP != self.BD

    @property
    def scores(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("DP", "BD", "OPERAND", "PRECISION")}


def width_of(dtype: torch.dtype, d: int) -> tuple[int, int]:
    """DP and BD for rows of d components: one chunk up to 128 (float32: 64), else chunks of 64."""
    if d <= (64 if dtype == torch.float32 else 128):
        width = max(16, triton.next_power_of_2(d))
        return width, width
    return -(-d // 64) * 64, 64


def products_of(dtype: torch.dtype, d: int) -> Products:
    """float32 products are as accurate as float32's own unless torch was told otherwise.

    Weights that meet float16 rows keep the range of float32 in a tf32 product, in which the rows
    are exact.
    """
    width = width_of(dtype, d)
    if dtype == torch.float32:
        exact = torch.get_float32_matmul_precision() == "highest"
        how = "tf32x3" if exact else "tf32"
        return Products(*width, tl.float32, how, "float32" if exact else "tf32", tl.float32, how)
    operand, weights = (tl.float16, "tf32") if dtype == torch.float16 else (tl.bfloat16, "bfloat16")
    if interpreted():  # its half-precision products are wrong
        return Products(*width, tl.float32, "ieee", weights, tl.float32, "ieee")
    if dtype == torch.float16:
        return Products(*width, operand, "ieee", weights, tl.float32, "tf32")
    return Products(*width, operand, "ieee", weights, operand, "ieee")


class Tile(NamedTuple):
    """Rows and columns of a tile, columns of a careful one, warps and pipeline stages."""

    BM: int
    BN: int
    BS: int
    warps: int
    stages: int

    @property
    def blocks(self) -> dict[str, int]:
        return {"BM": self.BM, "BN": self.BN, "BS": self.BS}

    @property
    def launch(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


def reduce_tile(dtype: torch.dtype, d: int) -> Tile:
    if interpreted():
        return Tile(64, 64, 32, 4, 1)
    if dtype == torch.float32:
        return Tile(64, 64, 32 if d <= 64 else 16, 4, 2)
    return Tile(128, 128, 32 if d <= 128 else 16, 8, 3)


def gradient_tile(dtype: torch.dtype, d: int) -> Tile:
    if interpreted():
        return Tile(64, 64, 32, 4, 1)
    if dtype == torch.float32:
        return Tile(64, 32, 16, 4, 2)
    return Tile(128, 64, 16, 8, 3)


class BlockTile(NamedTuple):
    """For wide rows: T rows and columns of a tile of weights, BK components and BC columns of a
    product, BS columns of a careful tile, rows of a block of weights, warps and stages.
    """

    T: int
    BK: int
    BC: int
    BS: int
    block: int
    warps: int
    stages: int


def block_tile(dtype: torch.dtype) -> BlockTile:
    """A block of weights takes 16 to 32 MiB, which a second-level cache holds."""
    if interpreted():
        return BlockTile(64, 512, 64, 32, 128, 4, 1)
    if dtype == torch.float32:
        return BlockTile(64, 64, 32, 16, 2048, 4, 3)
    return BlockTile(128, 128, 64, 16, 4096, 8, 3)


def weights_dtype(how: Products) -> torch.dtype:
    """What weights are kept as between two kernels."""
    return torch.bfloat16 if how.WEIGHTS == "bfloat16" else torch.float32
