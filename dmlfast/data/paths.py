"""Many paths below one folder, kept compactly and never left."""

import os
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from dmlfast.errors import UserError


class PathList(Sequence[str]):
    """A read-only list of strings in two buffers: their bytes, and 8 bytes a string.

    Processes that are forked share them, since reading changes no reference counts.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        text, ends = bytearray(), array("q", [0])
        for path in paths:
            text += _utf8(path)
            ends.append(len(text))
        self._text = bytes(text)
        self._ends = np.frombuffer(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        row = range(len(self))[index]
        return self._text[self._ends[row] : self._ends[row + 1]].decode()

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))


def _utf8(path: str) -> bytes:
    try:
        return path.encode()
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        reason = "is not UTF-8"
        if encoding != "utf-8":
            reason = f"cannot be read in the locale's encoding, {encoding}: try LC_ALL=C.UTF-8"
        raise UserError(f"the file name {path!a} {reason}") from None


def check_relative(path: str, source: str | Path) -> str:
    """The path, if it is relative and does not climb; `source` is the file that names it."""
    if path.startswith(("/", "\\")) or ".." in path.replace("\\", "/").split("/"):
        raise UserError(f"{source} names '{path}', which is not inside its folder")
    return path


def check_inside(root: Path, path: str | Path) -> Path:
    """`root / path`, if no link on the way leads out of `root`."""
    place = os.path.join(root, path)
    inside = os.path.join(os.path.realpath(root), "")
    if not os.path.realpath(place).startswith(inside):
        raise UserError(f"{place} leads outside {root}")
    return Path(place)
