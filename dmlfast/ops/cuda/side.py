"""Both sides of the pairs as the CUDA kernels take them: ``dml_side`` and ``dml_task``."""

import ctypes
import functools
from typing import NamedTuple

import torch

from dmlfast.ops import gpu
from dmlfast.ops.cuda.library import DTYPES, Rows, address, emulated, launch
from dmlfast.ops.native import REDUCTIONS, SCORES, SELECTIONS
from dmlfast.ops.pairs.term import PairTerm

# As in csrc/cuda/tiles.h: rows of a band and of a tile, bytes of a chunk.
BAND, TILE, CHUNK = 128, 64, 128
COUNTED = 8192  # rows and columns up to which counting brings labels in order, sorting above
ROUNDS = 8  # of programs, one after another on a multiprocessor, at most where columns are cut
BEGINNING = 3  # tiles that a program could have taken in the time that it takes to begin and to end
TILE_BYTES = 2 << 20  # that are cleared, and added up, in the time of a tile
PARTS_BYTES = 64 << 20  # of all parts at most, besides their sum
LOG2E = 1.4426950408889634

Range = tuple[torch.Tensor | None, torch.Tensor | None]
NO_RANGE: Range = None, None


class SideStruct(ctypes.Structure):
    """``dml_side``."""

    _fields_ = (
        ("given", Rows),
        ("order", ctypes.c_void_p),
        ("low", ctypes.c_void_p),
        ("high", ctypes.c_void_p),
        ("self", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("largest", ctypes.c_void_p),
        ("padded", ctypes.c_int64),
        ("chunks", ctypes.c_int32),
    )


class TaskStruct(ctypes.Structure):
    """``dml_task``."""

    _fields_ = (
        ("dtype", ctypes.c_int32),
        ("fast", ctypes.c_int32),
        ("score", ctypes.c_int32),
        ("select", ctypes.c_int32),
        ("reduce", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("offset", ctypes.c_float),
        ("apart", ctypes.c_int32),
        ("splits", ctypes.c_int32),
    )


class Side(NamedTuple):
    """One side, its rows in the order of their labels and padded to whole bands of positions.

    given: (n, d). order: (n,) int64, which row is at a position, None where each is at its own.
    low, high, itself: (n,) int32 and bias: (n,) float32, as in the header; None where there is
    none. rows: prepared, bytes. norm: (padded,) float32. largest: (1,), of these.
    """

    given: torch.Tensor
    order: torch.Tensor | None
    low: torch.Tensor | None
    high: torch.Tensor | None
    itself: torch.Tensor | None
    bias: torch.Tensor | None
    rows: torch.Tensor
    norm: torch.Tensor
    largest: torch.Tensor
    chunks: int

    @property
    def n(self) -> int:
        return len(self.given)

    @property
    def padded(self) -> int:
        return len(self.norm)

    @property
    def struct(self) -> SideStruct:
        parts = (self.order, self.low, self.high, self.itself, self.bias)
        made = (self.rows, self.norm, self.largest)
        return SideStruct(
            Rows(self.given), *map(address, (*parts, *made)), self.padded, self.chunks
        )

    def by_row(self, values: torch.Tensor) -> torch.Tensor:
        """Values (padded,) by position as (n,) by row."""
        values = values[: self.n]
        return (
            values
            if self.order is None
            else torch.empty_like(values).scatter_(0, self.order, values)
        )


class Pairs(NamedTuple):
    """Both sides, and what is taken over their pairs. ``same``: the rows face themselves."""

    x: Side
    r: Side
    same: bool
    dtype: torch.dtype
    term: PairTerm

    def task(self, splits: int = 1) -> TaskStruct:
        term, unit = self.term, unit_of(self.term)
        return TaskStruct(
            DTYPES[self.dtype],
            _is_fast(self.dtype),
            SCORES[term.score],
            SELECTIONS[term.select],
            REDUCTIONS[term.reduce],
            term.scale * unit,
            term.offset * unit,
            self.same and term.select != "all",
            splits,
        )

    @property
    def poison(self) -> torch.Tensor:
        """(1,) NaN where anything given is not finite, else 0."""
        return 0.0 * (self.x.largest + self.r.largest)

    def splits(self, programs: int, tiles: int | None = None, part_bytes: int = 0) -> int:
        """Parts of the columns, or of so many tiles of them, see `splits_of`."""
        tiles = tiles or -(-self.r.n // TILE)
        return splits_of(programs, tiles, self.x.given.device, part_bytes)


def splits_of(programs: int, tiles: int, device: torch.device, part_bytes: int = 0) -> int:
    """In how many parts so many tiles of columns are taken, each by so many programs: as few as
    have all multiprocessors done the soonest. ``part_bytes``: of a part, which are added up.
    """
    processors = 4 if emulated() else _multiprocessors(device)
    return _splits_of(programs, tiles, processors, part_bytes)


@functools.lru_cache(maxsize=1024)
def _splits_of(programs: int, tiles: int, processors: int, part_bytes: int) -> int:
    most = min(ROUNDS * processors // programs, tiles // 4)
    if part_bytes:
        most = min(most, PARTS_BYTES // part_bytes)

    def time(parts: int) -> float:
        rounds = -(-programs * parts // processors)
        return rounds * (-(-tiles // parts) + BEGINNING) + parts * part_bytes / TILE_BYTES

    return min(range(1, max(1, most) + 1), key=time)


def unit_of(term: PairTerm) -> float:
    """What terms are multiplied by: those of a log-sum-exp become powers of two."""
    return LOG2E if term.reduce == "logsumexp" else 1.0


def near_of(dtype: torch.dtype) -> float:
    """The share of the norms below which a squared distance makes a pair near: see the header."""
    return 2.0**-11 if dtype == torch.float32 else 2.0**-20


def pairs_of(
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    row_labels: torch.Tensor | None,
    column_labels: torch.Tensor | None,
    self_index: torch.Tensor | None,
    column_bias: torch.Tensor | None,
    term: PairTerm,
    select: str | None = None,
) -> Pairs:
    """Prepares both sides, neither of them empty.

    ``select``: of the pairs for which the row itself is sought, where it is not that of the term.
    """
    dtype = rows.dtype if columns is None or columns.dtype == rows.dtype else torch.float32
    x_order, x_range = _in_order(row_labels, column_labels, term)
    r_order, r_range = x_order, x_range
    if columns is not None:
        r_order, r_range = _in_order(column_labels, row_labels, term)
    itself = None
    if self_index is not None and (select or term.select) in ("positive", "other"):
        itself = _positions_of(
            self_index, x_order, r_order, len(rows if columns is None else columns)
        )
    centre = None
    if dtype == torch.float32 and term.score == "distance":
        centre = rows.float().mean(0)
    bias = None if column_bias is None else column_bias.float() * unit_of(term)
    if bias is not None and r_order is not None:
        bias = bias[r_order]
    x = _prepared(rows, x_order, x_range, itself, centre, dtype)
    r = x if columns is None else _prepared(columns, r_order, r_range, None, centre, dtype)
    if bias is not None:
        r = r._replace(bias=bias, largest=r.largest + 0.0 * bias.sum())
    return Pairs(x, r, columns is None, dtype, term)


def _in_order(
    labels: torch.Tensor | None, others: torch.Tensor | None, term: PairTerm
) -> tuple[torch.Tensor | None, Range]:
    """Which row is at each position, and where its label begins and ends among the others in order,
    or among all labels; where they are looked at.
    """
    if labels is None or not term.by_label:
        return None, NO_RANGE
    labels = labels.to(torch.int64).contiguous()
    others = None if others is None else others.to(torch.int64).contiguous()
    faced = labels if others is None else others
    if max(len(labels), len(faced)) > COUNTED:
        ordered, order = labels.sort(stable=True)
        faced = ordered if others is None else others.sort().values
        low = torch.searchsorted(faced, ordered, out_int32=True)
        return order, (low, torch.searchsorted(faced, ordered, out_int32=True, right=True))
    order = torch.empty_like(labels)
    low, high = order.new_empty(2, len(labels), dtype=torch.int32)
    given = address(labels), len(labels), address(others), len(faced)
    launch("ordering labels", "dml_cuda_order", labels, *given, *map(address, (order, low, high)))
    return order, (low, high)


def _positions_of(
    self_index: torch.Tensor,
    x_order: torch.Tensor | None,
    r_order: torch.Tensor | None,
    columns: int,
) -> torch.Tensor:
    """By position of a row, the position of the column that is itself, -1 for none."""
    index = self_index if x_order is None else self_index[x_order]
    known = (index >= 0) & (index < columns)
    place = torch.arange(columns, device=index.device)
    if r_order is not None:
        place = torch.empty_like(r_order).scatter_(0, r_order, place)
    return torch.where(known, place[index.clamp(0, columns - 1).long()], -1).to(torch.int32)


def _prepared(
    given: torch.Tensor,
    order: torch.Tensor | None,
    ranges: Range,
    itself: torch.Tensor | None,
    centre: torch.Tensor | None,
    dtype: torch.dtype,
) -> Side:
    n, d = given.shape
    padded = -(-n // BAND) * BAND
    chunks = max(1, -(-d * dtype.itemsize // CHUNK))
    rows = given.new_empty(padded * chunks * CHUNK, dtype=torch.uint8)
    norm = given.new_empty(padded, dtype=torch.float32)
    largest = norm.new_zeros(1)
    side = Side(given, order, *ranges, itself, None, rows, norm, largest, chunks)
    task = TaskStruct(dtype=DTYPES[dtype], fast=_is_fast(dtype))
    arguments = (ctypes.byref(side.struct), ctypes.byref(task), address(centre))
    launch("preparing rows", "dml_cuda_prepare", given, *arguments)
    return side


def _is_fast(dtype: torch.dtype) -> bool:
    return dtype == torch.float32 and not gpu.exact_products()


def _multiprocessors(device: torch.device) -> int:
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
