"""Images of one's own, listed in a CSV file with open-metric-learning's columns."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dmlfast.data.images import BOTH, GALLERY, QUERY, ImageDataset
from dmlfast.data.listing import (
    TEST,
    TRAIN,
    Listing,
    class_order,
    existing_path,
    integers,
    listed_paths,
    missing_file,
    names_in,
    read_lines,
)
from dmlfast.errors import UserError

REQUIRED = ("label", "path", "split")
BOX = ("x_1", "y_1", "x_2", "y_2")
PARTS = {"train": TRAIN, "validation": TEST}
TRUE, FALSE = {"true", "1", "1.0"}, {"false", "0", "0.0", "", "none", "nan"}
ROLES = {(True, True): BOTH, (True, False): QUERY, (False, True): GALLERY}

logger = logging.getLogger(__name__)
Rows = Sequence[dict[str, str]]


def load_csv(data_dir: str | None, *, crop: bool = False) -> Listing:
    """Reads a CSV file, given itself or as the only one in a folder; its folder is the root.

    What it calls "validation" is the test split.
    """
    file = _find_table(existing_path("csv", data_dir))
    rows = _read_table(file)
    names = class_order({row["label"] for row in rows})
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[row["label"]] for row in rows], dtype=np.int64)
    parts = np.array([PARTS[row["split"]] for row in rows], dtype=np.int64)
    shared = np.intersect1d(labels[parts == TRAIN], labels[parts == TEST])
    categories, category_names = _read_categories(rows)
    dataset = ImageDataset(
        name="csv",
        split="all",
        root=file.parent,
        labels=labels,
        paths=listed_paths(file.parent, [row["path"] for row in rows], file),
        class_names=names,
        boxes=_read_boxes(rows, file) if crop else None,
        role=_read_roles(rows, file),
        categories=categories,
        category_names=category_names,
        closed_set=len(shared) > 0,
        upright=True,
    )
    return Listing(dataset, parts)


def _find_table(path: Path) -> Path:
    if path.is_file():
        return path
    tables = [name for name in names_in(path) if name.lower().endswith(".csv")]
    if len(tables) != 1:
        raise missing_file("csv", path, "one .csv file, or its path as --data-dir,")
    return path / tables[0]


def _read_table(file: Path) -> list[dict[str, str]]:
    reader = csv.DictReader(read_lines(file), restval="")
    missing = [column for column in REQUIRED if column not in (reader.fieldnames or ())]
    if missing:
        found = ", ".join(reader.fieldnames or ()) or "nothing"
        raise UserError(f"{file} has no column {', '.join(missing)}; it has {found}")
    rows = list(reader)
    for number, row in enumerate(rows, start=2):
        if row["split"] not in PARTS:
            raise UserError(
                f"{file}, line {number}: the split '{row['split']}' is not one of "
                f"{', '.join(PARTS)}"
            )
    if not rows:
        raise UserError(f"{file} lists nothing")
    if any(row.get("sequence") for row in rows):
        logger.warning("%s: the column sequence is not used", file)
    return rows


def _read_roles(rows: Rows, file: Path) -> np.ndarray | None:
    roles = np.zeros(len(rows), dtype=np.uint8)
    for i, row in enumerate(rows):
        if row["split"] == "validation":
            flags = tuple(_flag(row, column, i + 2, file) for column in ("is_query", "is_gallery"))
            if flags not in ROLES:
                raise UserError(f"{file}, line {i + 2}: neither a query nor in the gallery")
            roles[i] = ROLES[flags]
    return roles if roles.any() else None


def _flag(row: dict[str, str], column: str, line: int, file: Path) -> bool:
    value = row.get(column, "").strip().lower()
    if value not in TRUE | FALSE:
        raise UserError(f"{file}, line {line}: {column} is '{row[column]}', neither True nor False")
    return value in TRUE


def _read_boxes(rows: Rows, file: Path) -> np.ndarray:
    """(N, 4); zeros, the whole image, where all four columns are empty."""
    missing = [column for column in BOX if column not in rows[0]]
    if missing:
        raise UserError(f"{file} has no column {', '.join(missing)}, which crop needs")
    cells = [[row[column].strip() for column in BOX] for row in rows]
    values = [cell for row in cells for cell in (row if any(row) else ["0"] * 4)]
    boxes = integers(values, "coordinate", file).reshape(-1, 4)
    given = boxes.any(axis=1)
    wrong = given & (boxes[:, :2] >= boxes[:, 2:]).any(axis=1)
    if wrong.any():
        line = int(np.argmax(wrong)) + 2
        raise UserError(
            f"{file}, line {line}: the box is empty: x_1 < x_2 and y_1 < y_2 are needed"
        )
    return boxes


def _read_categories(rows: Rows) -> tuple[np.ndarray | None, list[str] | None]:
    if "category" not in rows[0]:
        return None, None
    names, categories = np.unique([row["category"] for row in rows], return_inverse=True)
    return categories.astype(np.int64), names.tolist()
