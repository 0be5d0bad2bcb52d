"""The normalised softmax of bfloat16 rows on sm_90a: exponentials by the CUDA kernels of csrc/cuda,
everything else by Triton's.

README.md has the maths, docs/cuda_kernels.md the structure.
"""

import ctypes
from ctypes import byref
from functools import partial
from typing import NamedTuple

import torch

from dmlfast.ops.cuda.library import Rows as RowsStruct
from dmlfast.ops.cuda.library import address, launch
from dmlfast.ops.cuda.side import BAND, CHUNK, TILE, splits_of
from dmlfast.ops.norm_softmax import triton
from dmlfast.ops.norm_softmax.triton import sides
from dmlfast.ops.norm_softmax.triton.rows import FAR
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


class LaidOut(NamedTuple):
    """``m`` classes from ``first`` on.

    tiles: bytes. by_class, kept_by: (padded,), 1 / lengths, and these but for their powers.
    """

    first: int
    m: int
    tiles: torch.Tensor
    by_class: torch.Tensor
    kept_by: torch.Tensor


class Sides(sides.Sides):
    """Rows and classes of a call, laid out in tiles: all rows, of the classes some at a time.

    by_row: (n,), the exponent that a row has over its score with a class of length 1.
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
        self.row_bytes = self.layout_bytes(rows.shape[1])
        self.tiles = self._lay_out(self.copy, len(self.copy))
        self.by_row = 2 * scale * LOG2E.value * torch.frexp(self.inverse).mantissa
        self.classes_at_hand: LaidOut | None = None

    def layout_bytes(self, d: int) -> int:
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
        classes = self._laid_out(part)
        how = ExponentialsStruct(
            rows=address(self.tiles[x.first * self.row_bytes :]),
            classes=address(classes.tiles),
            n=len(x.labels),
            padded=len(x.scaled),
            m=len(part.weight),
            padded_m=part.padded,
            chunks=self.row_bytes // CHUNK,
            labels=address(x.labels),
            first=part.first,
            by_row=address(self.by_row[x.first :]),
            by_class=address(classes.by_class),
            shift=address(shift),
            sums=address(sums),
            kept=address(kept),
            pitch=0 if kept is None else kept.stride(0),
            kept_by=address(classes.kept_by),
            parts=self.slots(x, part) if sums is None else len(sums),
        )
        running = self.plan.running and shift is None
        _launch("dml_cuda_exponentials", x.labels, byref(how), running)

    def log_sums(self, x: Rows, kept: torch.Tensor | None) -> torch.Tensor:
        found = super().log_sums(x, kept)
        self.classes_at_hand = None  # before a block is allocated
        return found

    def _laid_out(self, part: Classes) -> LaidOut:
        """Some classes, those at hand or others in their place."""
        wanted = part.first, len(part.weight)
        found = self.classes_at_hand
        if found is None or found[:2] != wanted:
            found = self.classes_at_hand = None  # before others are allocated
            by = part.inverse.new_empty(2, part.padded)
            tiles = self._lay_out(part.weight, part.padded, part.inverse, *by)
            found = self.classes_at_hand = LaidOut(*wanted, tiles, *by)
        return found

    def _lay_out(
        self, rows: torch.Tensor, padded: int, *lengths: torch.Tensor | None
    ) -> torch.Tensor:
        """Rows in tiles; of classes their inverse lengths, and where what comes of these goes."""
        tiles = rows.new_empty(padded * self.row_bytes, dtype=torch.uint8)
        inverse, by_class, kept_by = map(address, lengths or (None, None, None))
        how = padded, self.row_bytes // CHUNK, address(tiles), inverse, FAR.value, by_class, kept_by
        _launch("dml_cuda_lay_out", rows, byref(RowsStruct(rows)), *how)
        return tiles


_launch = partial(launch, "norm_softmax_loss")
forward = partial(triton.forward, sides_of=Sides)
gradients = partial(triton.gradients, sides_of=Sides)
own_pairs, own_losses = triton.own_pairs, triton.own_losses
