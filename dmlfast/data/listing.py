"""What the readers of image folders have in common: finding files, reading lists, checking counts.

`COUNTS` holds, for each part of a data set, the number of images and of classes that its official
files have. Where what is there differs, reading stops with one line that says how.
"""

import difflib
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dmlfast.data.dataset import Dataset
from dmlfast.data.images import ImageDataset
from dmlfast.data.paths import PathList, check_relative
from dmlfast.errors import UserError
from dmlfast.text import counted

COUNTS = {
    "cub200": {"train": (5864, 100), "test": (5924, 100)},
    "cars196": {"train": (8054, 98), "test": (8131, 98)},
    "sop": {"train": (59551, 11318), "test": (60502, 11316)},
    "inshop": {"train": (25882, 3997), "query": (14218, 3985), "gallery": (12612, 3985)},
    "vehicleid": {
        "train": (113346, 13164),
        "800": (6493, 800),
        "1600": (13377, 1600),
        "2400": (19777, 2400),
    },
    "imagenet-lt": {"train": (115846, 1000), "val": (20000, 1000), "test": (50000, 1000)},
    "places-lt": {"train": (62500, 365), "val": (7300, 365), "test": (36500, 365)},
}
TRAIN, VAL, TEST = 0, 1, 2  # the values of `Listing.parts`
PARTS = {"train": TRAIN, "val": VAL, "test": TEST}

logger = logging.getLogger(__name__)


class Listing(NamedTuple):
    """All images of a data set, and the part that its authors put each of them in, (N,)."""

    dataset: Dataset | ImageDataset
    parts: np.ndarray


def find_root(name: str, data_dir: str | None, markers: Sequence[str], folder: str = "") -> Path:
    """The folder with a file or folder of `markers` in it: `data_dir` or its subfolder `folder`."""
    given = existing_path(name, data_dir)
    for root in (given, given / folder):
        if any((root / marker).exists() for marker in markers):
            return root
    raise missing_file(name, given, " or ".join(markers), folder)


def existing_path(name: str, data_dir: str | None) -> Path:
    """The path of the data set's files, or an error that suggests a neighbour of that name."""
    if data_dir is None:
        raise UserError(f"{name} is read from files of your own: give their folder as --data-dir")
    path = Path(data_dir).expanduser()
    if not path.exists():
        close = difflib.get_close_matches(path.name, names_in(path.parent), n=1)
        hint = f": did you mean {path.with_name(close[0])}?" if close else ""
        raise UserError(f"there is no {path}, the data-dir of {name}{hint}")
    return path


def find_file(name: str, root: Path, *places: str) -> Path:
    """The first of the files that is there."""
    for place in places:
        if (root / place).is_file():
            return root / place
    raise missing_file(name, root, " or ".join(places))


def missing_file(name: str, root: Path, expected: str, folder: str = "") -> UserError:
    """The error for what `root`, or its subfolder, should have, telling what it has."""
    found = names_in(root)
    shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
    places = f"{root} or {root / folder}" if folder else root
    return UserError(f"{name} needs {expected} in {places}; {root} holds {shown or 'nothing'}")


def names_in(folder: Path) -> list[str]:
    """What is in a folder, in the order of the names, less what starts with a dot."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []


def read_columns(file: Path, columns: Sequence[str], header: int = 0) -> list[list[str]]:
    """The columns of a text file, which any white space parts; the last may have some inside.

    Args:
        file: UTF-8 text.
        columns: what they hold, at least two, for the error that names a line with fewer.
        header: the number of lines to leave out.
    """
    rows = []
    for number, line in enumerate(read_lines(file), start=1):
        fields = line.split(None, len(columns) - 1)
        if number <= header or not fields:
            continue
        if len(fields) != len(columns):
            raise UserError(
                f"{file}, line {number}: expected '{' '.join(columns)}', found '{line.strip()}'"
            )
        rows.append(fields)
    if not rows:
        raise UserError(f"{file} lists nothing")
    return [[field.strip() for field in column] for column in zip(*rows, strict=True)]


def read_lines(file: Path) -> list[str]:
    """The lines of a text file in UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"cannot read {file}: {reason}") from error


def integers(values: Iterable[str], what: str, file: Path) -> np.ndarray:
    """The values as (N,) int64; `what` and `file` say what and where one is that is none."""
    numbers = []
    for value in values:
        try:
            numbers.append(round(float(value)))
        except (ValueError, OverflowError):
            raise UserError(f"{file}: the {what} '{value}' is not a number") from None
    return np.array(numbers, dtype=np.int64)


def listed_paths(root: Path, paths: Sequence[str], source: Path) -> PathList:
    """The paths that `source` lists, each once, of files that are there and below `root`."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folder, _, file = check_relative(path, source).rpartition("/")
        by_folder[folder].append(file)
    missing = []
    for folder, files in by_folder.items():
        there = set(os.listdir(root / folder)) if (root / folder).is_dir() else set()
        missing += [f"{folder}/{file}" for file in files if file not in there]
        if len(set(files)) < len(files):
            twice = next(file for file in files if files.count(file) > 1)
            raise UserError(f"{source} lists {folder}/{twice} more than once")
    if missing:
        of = f"of the {counted(len(paths), 'image')} that {source} lists"
        lost = counted(len(missing), f"{of} is", f"{of} are")
        raise UserError(f"{lost} not under {root}, such as {missing[0]}")
    return PathList(paths)


def number_classes(train: Sequence[str], test: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Labels of the training and then the test images, and the names of the classes.

    The classes of training come first, each part in the order of `class_order`.
    """
    names = class_order(set(train)) + class_order(set(test) - set(train))
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers[name] for name in (*train, *test)], dtype=np.int64), names


def class_order(names: Iterable[str]) -> list[str]:
    """The names in the order of the numbers, if all are numbers, and of the alphabet otherwise."""
    names = list(names)
    return sorted(names, key=int if all(name.isdecimal() for name in names) else str)


def check_count(
    name: str, part: str, labels: np.ndarray, source: Path, *, warn: bool = False
) -> None:
    """Raises, or warns, where a part is not as large as its authors made it."""
    expected = COUNTS[name].get(part)
    found = (len(labels), len(np.unique(labels)))
    if expected is None or found == expected:
        return
    message = (
        f"{source}: {counted(found[0], f'{part} image')} of "
        f"{counted(found[1], 'class', 'classes')}, where {name} has "
        f"{expected[0]:,} of {expected[1]:,}"
    )
    if not warn:
        raise UserError(message)
    logger.warning("%s", message)
