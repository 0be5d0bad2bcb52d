"""Block sizes of the Triton kernels by architecture, dtype and width."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from dmlfast.ops.gpu import exact_products, interpreted
from dmlfast.ops.triton import tuned
from dmlfast.ops.triton.tile import CLOSE
from dmlfast.ops.triton.tuned import FULL, HALF

NARROW = 16  # components
TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])


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
    """DP and BD for d components: one chunk up to 128 (float32: 64), else some of 64 (32)."""
    whole, chunk = (64, 32) if dtype == torch.float32 else (128, 64)
    if d <= whole:
        width = max(16, triton.next_power_of_2(d))
        return width, width
    return -(-d // chunk) * chunk, chunk


def products_of(dtype: torch.dtype, d: int) -> Products:
    """float32 products are as accurate as float32's own unless torch was told otherwise.

    Three products of tf32 err by up to 2^-22 of every component's product: less than float32 loses
    in a sum of many, more than in one of a few. So scores of narrow rows are float32's own.

    Weights that meet float16 rows keep the range of float32 in a tf32 product, in which the rows
    are exact.
    """
    width = width_of(dtype, d)
    if dtype == torch.float32:
        exact = exact_products()
        how = "tf32x3" if exact else "tf32"
        weights = "float32" if exact else "tf32"
        scores = "ieee" if exact and d <= NARROW else how
        return Products(*width, tl.float32, scores, weights, tl.float32, how)
    operand, weights = (tl.float16, "tf32") if dtype == torch.float16 else (tl.bfloat16, "bfloat16")
    if interpreted():  # its half-precision products are wrong
        return Products(*width, tl.float32, "ieee", weights, tl.float32, "ieee")
    if dtype == torch.float16:
        return Products(*width, operand, "ieee", weights, tl.float32, "tf32")
    return Products(*width, operand, "ieee", weights, operand, "ieee")


def near_of(dtype: torch.dtype) -> float:
    """The share of the norms below which the square of a distance makes a pair near.

    Its gradient in a product would be lost to cancellation. Half-precision rows are exact in a
    product, which loses only those of pairs that are nearer yet. All near pairs must be close.
    """
    return float(CLOSE.value) / 2 if dtype == torch.float32 else 2.0**-20


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


class WeightsTile(NamedTuple):
    """Rows and columns of a tile of weights, columns of a careful one, rows of a block."""

    T: int
    BS: int
    block: int
    warps: int
    stages: int


class ProductTile(NamedTuple):
    """Rows and components of a tile of a product, and the weights of a row taken at once."""

    BM: int
    BK: int
    BC: int
    warps: int
    stages: int

    @property
    def blocks(self) -> dict[str, int]:
        return {"BM": self.BM, "BK": self.BK, "BC": self.BC}


class ScoresTile(NamedTuple):
    """Rows and classes of a tile of a softmax."""

    BM: int
    BN: int
    warps: int
    stages: int


class PairsTile(NamedTuple):
    """For a unit on pairs: rows and columns of a tile of pairs; and what is taken at once of
    components, of units of the difference, of the mean, and of the joint layer.
    """

    BI: int
    BJ: int
    BK: int
    BH: int
    BV: int
    BC: int
    warps: int
    stages: int

    @property
    def pairs(self) -> int:
        """BP, those of a tile."""
        return self.BI * self.BJ

    @property
    def blocks(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("BI", "BJ", "BK", "BH", "BV", "BC")}


class SmallTile(NamedTuple):
    """For a batch in one launch: components of a piece, BW of rows wider than 128, and columns."""

    BD: int
    BW: int
    BN: int
    warps: int
    stages: int


FUSED = {"enable_fp_fusion": True}  # the default, of which Triton 3.9 warns


def launch(
    tile: Tile | WeightsTile | ProductTile | ScoresTile | PairsTile | SmallTile,
) -> dict[str, int]:
    """What Triton takes beside a kernel's arguments.

    The assembler is told that it may use all registers: it may else spill to use fewer.
    """
    registers = min(255, 65536 // (32 * tile.warps))
    stages = 1 if isinstance(tile, PairsTile) and _overwrites_registers() else tile.stages
    return {"num_warps": tile.warps, "num_stages": stages, "maxnreg": registers, **FUSED}


def _overwrites_registers() -> bool:
    """Whether a loop that loads ahead may overwrite registers, an operand of a product, before the
    product has read them: by Triton before 3.8, on sm_90 (triton-lang/triton#9433).
    """
    return TRITON < (3, 8) and not interpreted() and _capability() == 90


class Tiles(NamedTuple):
    """What a dtype takes on an architecture.

    reduce, wide_reduce, gradient: of rows that fit in one chunk, and of wider ones. A block of
    weights takes 16 to 32 MiB, which a second-level cache holds. hinges: weights of hinges, which
    take more registers than exponentials.
    """

    reduce: Tile
    wide_reduce: Tile
    gradient: Tile
    weights: WeightsTile
    hinges: WeightsTile
    product: ProductTile
    scores: ScoresTile
    pddm: PairsTile
    small: SmallTile


# By compute capability; others take those of 80, which fit in the shared memory of all of them.
TILES = {
    80: {
        HALF: Tiles(
            reduce=Tile(128, 128, 32, 8, 3),
            wide_reduce=Tile(128, 64, 16, 8, 3),
            gradient=Tile(64, 32, 16, 8, 3),
            weights=WeightsTile(64, 16, 4096, 8, 3),
            hinges=WeightsTile(64, 16, 4096, 8, 3),
            product=ProductTile(128, 128, 64, 8, 3),
            scores=ScoresTile(128, 64, 8, 3),
            pddm=PairsTile(8, 16, 64, 128, 32, 64, 8, 2),
            small=SmallTile(64, 32, 32, 8, 1),
        ),
        FULL: Tiles(
            reduce=Tile(64, 32, 16, 8, 2),
            wide_reduce=Tile(64, 32, 16, 8, 2),
            gradient=Tile(64, 16, 8, 8, 2),
            weights=WeightsTile(64, 8, 2048, 8, 3),
            hinges=WeightsTile(32, 8, 2048, 4, 3),
            product=ProductTile(128, 64, 32, 8, 3),
            scores=ScoresTile(64, 64, 4, 2),
            pddm=PairsTile(8, 8, 16, 64, 16, 64, 8, 2),
            small=SmallTile(32, 16, 32, 8, 1),
        ),
    },
    90: {
        HALF: Tiles(
            reduce=Tile(128, 128, 32, 8, 3),
            wide_reduce=Tile(128, 128, 32, 8, 2),
            gradient=Tile(128, 32, 16, 8, 3),
            weights=WeightsTile(128, 16, 4096, 8, 2),
            hinges=WeightsTile(64, 16, 4096, 4, 2),
            product=ProductTile(128, 128, 64, 8, 3),
            scores=ScoresTile(128, 128, 4, 3),
            pddm=PairsTile(8, 8, 32, 128, 32, 128, 4, 2),
            small=SmallTile(128, 32, 32, 8, 1),
        ),
        FULL: Tiles(
            reduce=Tile(64, 64, 32, 4, 2),
            wide_reduce=Tile(64, 64, 32, 4, 2),
            gradient=Tile(64, 32, 16, 4, 1),
            weights=WeightsTile(64, 16, 2048, 4, 3),
            hinges=WeightsTile(64, 16, 2048, 4, 3),
            product=ProductTile(128, 64, 32, 8, 3),
            scores=ScoresTile(64, 64, 4, 2),
            pddm=PairsTile(8, 8, 32, 128, 32, 64, 8, 2),
            small=SmallTile(32, 16, 32, 8, 1),
        ),
    },
    100: {
        HALF: Tiles(
            reduce=Tile(128, 64, 32, 8, 2),
            wide_reduce=Tile(128, 64, 32, 8, 3),
            gradient=Tile(128, 64, 16, 8, 2),
            weights=WeightsTile(128, 16, 4096, 8, 3),
            hinges=WeightsTile(64, 16, 4096, 4, 3),
            product=ProductTile(128, 128, 64, 8, 3),
            scores=ScoresTile(128, 64, 8, 3),
            pddm=PairsTile(8, 16, 64, 128, 32, 64, 8, 2),
            small=SmallTile(128, 32, 32, 8, 1),
        ),
        FULL: Tiles(
            reduce=Tile(64, 64, 32, 8, 2),
            wide_reduce=Tile(64, 64, 32, 8, 2),
            gradient=Tile(64, 32, 16, 4, 2),
            weights=WeightsTile(64, 16, 2048, 8, 3),
            hinges=WeightsTile(64, 16, 2048, 8, 3),
            product=ProductTile(128, 64, 32, 8, 3),
            scores=ScoresTile(64, 64, 8, 2),
            pddm=PairsTile(8, 8, 32, 128, 32, 64, 8, 2),
            small=SmallTile(32, 16, 32, 8, 1),
        ),
    },
}
INTERPRETED = Tiles(
    reduce=Tile(64, 64, 32, 4, 1),
    wide_reduce=Tile(64, 64, 32, 4, 1),
    gradient=Tile(64, 64, 32, 4, 1),
    weights=WeightsTile(64, 32, 128, 4, 1),
    hinges=WeightsTile(64, 32, 128, 4, 1),
    product=ProductTile(64, 512, 64, 4, 1),
    scores=ScoresTile(64, 64, 4, 1),
    pddm=PairsTile(8, 32, 64, 64, 64, 64, 4, 1),
    small=SmallTile(32, 32, 32, 4, 1),
)


def kind_of(dtype: torch.dtype) -> str:
    return FULL if dtype == torch.float32 else HALF


def tiles_of(dtype: torch.dtype) -> Tiles:
    """For the GPU that kernels are started on: what was found by tuning there, else the table's."""
    kind = kind_of(dtype)
    tiles = INTERPRETED if interpreted() else _tiles(_current_device(), kind)
    return replaced(tiles, _tried[kind]) if kind in _tried else tiles


_tried: dict[str, Mapping[str, tuple[int, ...]]] = {}  # by kind of dtype, the tiles of some kernels


@contextmanager
def trying(kind: str, found: Mapping[str, tuple[int, ...]]) -> Iterator[None]:
    """Lets some kernels take other tiles for a while."""
    before = _tried.copy()
    _tried[kind] = found
    try:
        yield
    finally:
        _tried.clear()
        _tried.update(before)


def _current_device() -> int:
    return torch.cuda.current_device() if torch.cuda.is_available() else -1


def _capability() -> int:
    return int(triton.runtime.driver.active.get_current_target().arch)


@functools.cache
def _tiles(device: int, kind: str) -> Tiles:
    name = torch.cuda.get_device_name(device) if device >= 0 else ""
    return replaced(TILES.get(_capability(), TILES[80])[kind], tuned.read(name).get(kind, {}))


def forget() -> None:
    """Lets the next call read again what was found by tuning."""
    _tiles.cache_clear()


def replaced(tiles: Tiles, found: Mapping[str, tuple[int, ...]]) -> Tiles:
    """``tiles`` with those of some kernels as they were found by tuning."""
    return tiles._replace(
        **{kernel: type(getattr(tiles, kernel))(*tile) for kernel, tile in found.items()}
    )


def weights_dtype(how: Products) -> torch.dtype:
    """What weights are kept as between two kernels."""
    return torch.bfloat16 if how.WEIGHTS == "bfloat16" else torch.float32
