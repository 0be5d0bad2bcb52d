"""The normalised softmax of bfloat16 rows on sm_90a: exponentials by the CUDA kernels of csrc/cuda,
everything else by Triton's.

README.md has the maths, docs/cuda_kernels.md the structure.
"""

import ctypes
from ctypes import byref
from functools import partial

import torch
from torch.nn.functional import pad

from dmlfast.ops.cuda.library import Rows as RowsStruct
from dmlfast.ops.cuda.library import address, launch
from dmlfast.ops.cuda.side import BAND, CHUNK, TILE, splits_of
from dmlfast.ops.norm_softmax import triton
from dmlfast.ops.norm_softmax.triton.rows import are_far
from dmlfast.ops.norm_softmax.triton.scores import Classes, Rows
from dmlfast.ops.triton.tile import LOG2E

LAID_OUT = 32 << 20  # bytes of classes whose sums are taken at a time, in a second-level cache


class ExponentialsStruct(ctypes.Structure):
    """``dml_exponentials``."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("classes", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("padded", ctypes.c_int64),
        ("m", ctypes.c_int64),
        ("padded_m", ctypes.c_int64),
        ("chunks", ctypes.c_int32),
        ("labels", ctypes.c_void_p),
        ("first", ctypes.c_int64),
        ("by_row", ctypes.c_void_p),
        ("by_class", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("kept", ctypes.c_void_p),
        ("pitch", ctypes.c_int64),
        ("kept_by", ctypes.c_void_p),
        ("parts", ctypes.c_int32),
    )


class Sides(triton.Sides):
    """Rows and classes of a call, laid out in tiles: all rows, of the classes some at a time.

    by_row: (n,), powers of two of a cosine over a row's score. by_class: (C padded,), 1 / lengths.
    kept_by: the same but for their powers.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        scale: float,
        low_memory: bool,
    ):
        super().__init__(rows, weight, labels, scale, low_memory)
        self.row_bytes = self.laid_out(rows.shape[1])
        self.tiles = self._laid_out(self.copy, len(self.copy), False)
        self.by_row = scale * LOG2E.value * _mantissas(self.inverse)
        lengths = self.classes.inverse
        kept_by = torch.where(are_far(lengths), _mantissas(lengths), lengths)
        padding = 0, self.classes.padded - len(lengths)
        self.by_class, self.kept_by = pad(lengths, padding), pad(kept_by, padding)
        self.laid: tuple[int, int, torch.Tensor] | None = None

    def laid_out(self, d: int) -> int:
        chunks = -(-2 * d // CHUNK)
        return CHUNK * (1 << (chunks - 1).bit_length())

    @property
    def summed(self) -> int:
        return max(BAND, LAID_OUT // self.row_bytes // BAND * BAND)

    def slots(self, x: Rows, part: Classes) -> int:
        pairs_of_bands = -(-len(x.scaled) // (2 * BAND))  # which share a tile of classes
        return splits_of(2 * pairs_of_bands, part.padded // TILE, self.given.device)

    def score(
        self,
        x: Rows,
        part: Classes,
        *,
        sums: torch.Tensor | None = None,
        kept: torch.Tensor | None = None,
        shift: torch.Tensor | None = None,
    ) -> None:
        n, first = len(x.labels), part.first
        rows = self.tiles[x.first * self.row_bytes :]
        of_rows = self.by_row[x.first :]
        of_classes = self.by_class[first:], self.kept_by[first:]
        how = ExponentialsStruct(
            rows=address(rows),
            classes=address(self._classes(part)),
            n=n,
            padded=len(x.scaled),
            m=len(part.weight),
            padded_m=part.padded,
            chunks=self.row_bytes // CHUNK,
            labels=address(x.labels),
            first=first,
            by_row=address(of_rows),
            by_class=address(of_classes[0]),
            shift=address(shift),
            sums=address(sums),
            kept=address(kept),
            pitch=0 if kept is None else kept.stride(0),
            kept_by=address(of_classes[1]),
            parts=self.slots(x, part),
        )
        running = self.plan.running and shift is None
        _launch("dml_cuda_exponentials", x.labels, byref(how), running)

    def log_sums(self, x: Rows, kept: torch.Tensor | None) -> torch.Tensor:
        found = super().log_sums(x, kept)
        self.laid = None  # before a block is allocated
        return found

    def _classes(self, part: Classes) -> torch.Tensor:
        """Some classes laid out, those at hand or others in their place."""
        known = (part.first, len(part.weight))
        if self.laid is None or self.laid[:2] != known:
            self.laid = None  # before others are allocated
            self.laid = *known, self._laid_out(part.weight, part.padded, True)
        return self.laid[2]

    def _laid_out(self, rows: torch.Tensor, padded_rows: int, classes: bool) -> torch.Tensor:
        tiles = rows.new_empty(padded_rows * self.row_bytes, dtype=torch.uint8)
        how = classes, padded_rows, self.row_bytes // CHUNK
        _launch("dml_cuda_lay_out", rows, byref(RowsStruct(rows)), *how, address(tiles))
        return tiles


def _mantissas(inverse: torch.Tensor) -> torch.Tensor:
    """What is left of inverse lengths beside their powers of two, from 1 to 2, or 0."""
    return 2 * torch.frexp(inverse).mantissa


_launch = partial(launch, "norm_softmax_loss")
forward = partial(triton.forward, sides_of=Sides)
gradients = partial(triton.gradients, sides_of=Sides)
