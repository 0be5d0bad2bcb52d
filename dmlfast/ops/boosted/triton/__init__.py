"""The boosted pair losses as Triton kernels.

../README.md has the maths, docs/triton_kernels.md the structure.
"""

import math
from collections.abc import Iterator, Sequence

import torch

from dmlfast.ops.boosted.settings import Settings
from dmlfast.ops.boosted.triton import tiles
from dmlfast.ops.boosted.triton.blocks import Block, Pairs, add_products, weigh
from dmlfast.ops.boosted.triton.classes import classes_of
from dmlfast.ops.boosted.triton.rows import BLOCK, pack, through_norm
from dmlfast.ops.gpu import on_its_device
from dmlfast.ops.triton import configs

SCRATCH = 32 << 20  # bytes of the weights of a block, which a second-level cache holds
WASTE = 1.1  # padding that larger chunks may cost, as a factor


def chunk_of(dtype: torch.dtype, groups: Sequence[int]) -> int:
    """Components that a product takes at once, to which those of each learner are padded."""
    chunks = (32, 16) if dtype == torch.float32 else (64, 32, 16)
    widths = {chunk: sum(-(-size // chunk) for size in groups) * chunk for chunk in chunks}
    return next(c for c in chunks if widths[c] <= WASTE * min(widths.values()))


def block_of(padded: int, learners: int, itemsize: int, whole: int) -> int:
    """Rows of a block, in whole tiles, of ``padded`` in all: all blocks about as many."""
    most = math.isqrt(SCRATCH // (learners * itemsize)) // whole * whole
    count = -(-padded // max(most, whole))
    return -(-padded // count // whole) * whole


def blocks_of(padded: int, size: int) -> Iterator[Block]:
    """Those on and above the diagonal."""
    for first_i in range(0, padded, size):
        for first_j in range(first_i, padded, size):
            yield Block(first_i, first_j, min(size, padded - first_i), min(size, padded - first_j))


@on_its_device
def forward(
    rows: torch.Tensor, labels: torch.Tensor, groups: Sequence[int], settings: Settings, want: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(M,) the loss of each learner, and the gradient of their sum for rows, (N, D), where wanted;
    float32.
    """
    n, d = rows.shape
    d_rows = rows.new_empty(n, d, dtype=torch.float32) if want else None
    if not n:
        return rows.new_zeros(len(groups), dtype=torch.float32), d_rows
    products = configs.products_of(rows.dtype, d)
    kept_dtype = configs.weights_dtype(products)
    how = tiles.tiles_of(rows.dtype, kept_dtype)
    whole = max(how.whole, BLOCK["BM"])
    padded = -(-n // whole) * whole
    chunk = chunk_of(rows.dtype, groups)
    rounded = rows.dtype == torch.float32 and products.PRECISION == "tf32"
    packed = pack(rows, list(groups), padded, chunk, rounded)
    pairs = Pairs(n, packed, *classes_of(labels, padded, whole), settings, products, how)
    size = block_of(padded, len(groups), kept_dtype.itemsize, whole)
    slots = (size // how.weights.BM) * (size // how.weights.BN)
    sums = rows.new_zeros(len(groups), slots, dtype=torch.float64)
    kept = gradient = None
    if want:
        kept = rows.new_empty(len(groups), size, size, dtype=kept_dtype)
        gradient = torch.zeros_like(packed.rows, dtype=torch.float32)
    widths = [-(-width // chunk) * chunk for width in groups]
    for block in blocks_of(padded, size):
        weigh(pairs, block, sums, kept)
        if kept is not None and gradient is not None:
            add_products(pairs, block, kept, gradient, widths)
    if d_rows is not None and gradient is not None:
        through_norm(d_rows, packed, gradient)
    return sums.sum(1).float() + packed.poison, d_rows
