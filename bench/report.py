"""Rows of results: as a CSV file that keeps one row a case, and as a table."""

import csv
import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmlfast.bench.sizes import Size

from dmlfast.errors import UserError
from dmlfast.files import atomic_write_path


@dataclass
class Row:
    """What one competitor came to at one size. None where it was not measured.

    ratio_to_dmlfast: the median over the rounds of its time over dmlfast's in the same round.
    extra_mib: peak memory beyond inputs, loss and gradients.
    flops: of the one matrix product that scores all pairs.
    gemm_ratio: the time over that of these flops at the machine's best rate.
    tflops: useful TFLOP/s, counting two such products, for a loss and for its gradient.
    gradient_error: relative to float64.
    busy_elsewhere: the share of all cores that other processes used meanwhile.
    reason: why there is no result, or only a part of one.
    triton, cuda: versions, on a GPU.
    classes: of a loss over classes.
    """

    op: str
    provider: str
    n: int
    d: int
    dtype: str
    threads: int
    machine: str
    mode: str = "forward+backward"
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    rounds: int = 0
    ratio_to_dmlfast: float | None = None
    extra_mib: float | None = None
    gemm_ratio: float | None = None
    tflops: float | None = None
    flops: float | None = None
    gradient_error: float | None = None
    busy_elsewhere: float | None = None
    reason: str = ""
    dmlfast: str = ""
    torch: str = ""
    triton: str = ""
    cuda: str = ""
    date: str = ""
    command: str = ""
    classes: int = 0

    @property
    def conditions(self) -> tuple[str | int, ...]:
        """What rows must share to be compared."""
        return (self.op, self.mode, self.dtype, self.threads, self.machine)

    @property
    def key(self) -> tuple[str | int, ...]:
        """What makes a row replace another."""
        return (*self.conditions, self.provider, self.n, self.d, self.classes)

    @property
    def size(self) -> Size:
        """Where it was measured."""
        return Size(self.n, self.d, self.classes)


FIELDS = [field.name for field in dataclasses.fields(Row)]
LATER_FIELDS = {"tflops", "triton", "cuda", "classes"}  # that older files lack


def merge(rows: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """The rows, each replaced where a new one has its key, and then the other new ones."""
    return list(({row.key: row for row in rows} | {row.key: row for row in new}).values())


def read_csv(path: str | Path) -> list[Row]:
    """The rows of a file; none where there is no file. Raises `UserError` for a foreign one."""
    if os.path.exists(path) and not os.path.isfile(path):  # a device may have no end
        raise UserError(f"{path} is not a regular file")
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not set(FIELDS) - LATER_FIELDS <= set(reader.fieldnames or ()) <= set(FIELDS):
                raise UserError(f"{path} is not a table of dmlfast bench")
            return [_parse(line) for line in reader]
    except FileNotFoundError:
        return []
    except (UnicodeDecodeError, csv.Error, ValueError, TypeError):
        raise UserError(f"{path} is not a table of dmlfast bench") from None


def update_csv(path: str | Path, new: Iterable[Row]) -> None:
    """Adds rows to a file, each in the place of one with its key."""
    write_csv(path, merge(read_csv(path), new))


def latest(rows: Sequence[Row], op: str) -> list[Row]:
    """The rows of an op that were measured like the last of them: they can stand side by side."""
    same = [row for row in rows if row.op == op]
    return [row for row in same if row.conditions == same[-1].conditions]


def write_csv(path: str | Path, rows: Iterable[Row]) -> None:
    """Writes the whole file or none of it."""
    with (
        atomic_write_path(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        writer.writerows([_format(getattr(row, name)) for name in FIELDS] for row in rows)


def _format(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _parse(line: dict[str, str]) -> Row:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Row):
        if field.name not in line:  # one of the later fields
            continue
        text = line[field.name]
        if field.type is int:
            values[field.name] = int(text)
        elif field.type is str:
            values[field.name] = text
        else:
            values[field.name] = float(text) if text else None
    return Row(**values)


COLUMNS = (  # heading, the row's field, format
    ("median ms", "median_ms", ".3f"),
    ("p20", "p20_ms", ".3f"),
    ("p80", "p80_ms", ".3f"),
    ("ratio", "ratio_to_dmlfast", ".2f"),
    ("TFLOP/s", "tflops", ".3g"),
    ("x GEMM", "gemm_ratio", ".2f"),
    ("extra MiB", "extra_mib", ".1f"),
    ("gradient error", "gradient_error", ".0e"),
)


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text, one block a size."""
    on_gpu = any(row.cuda for row in rows)  # elsewhere TFLOP/s are zeros
    columns = [column for column in COLUMNS if on_gpu or column[1] != "tflops"]
    over_classes = any(row.classes for row in rows)
    lines = [
        (
            "N x D x C" if over_classes else "N x D",
            "provider",
            *(heading for heading, _, _ in columns),
            "",
        )
    ]
    seen: set[Size] = set()
    for row in rows:
        size = "" if row.size in seen else str(row.size).replace("x", " x ")
        seen.add(row.size)
        values = [(getattr(row, field), spec) for _, field, spec in columns]
        cells = ["" if value is None else format(value, spec) for value, spec in values]
        lines.append((size, row.provider, *cells, row.reason))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for line in lines:
        left = "  ".join(
            cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)
        )
        right = "  ".join(
            cell.rjust(width) for cell, width in zip(line[2:-1], widths[2:-1], strict=True)
        )
        text.append(f"{left}  {right}  {line[-1]}".rstrip())
    return "\n".join(text)
