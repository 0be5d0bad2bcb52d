"""Stanford Cars: 98 classes train, 98 test, in the order of their official numbers.

There are three packs, with other names for the same images. The newer two come in halves of a
closed-set split, which are put together here and divided by class.
"""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dmlfast.data.images import ImageDataset
from dmlfast.data.listing import (
    COUNTS,
    TEST,
    TRAIN,
    Listing,
    check_count,
    find_file,
    find_root,
    integers,
    listed_paths,
    read_lines,
)
from dmlfast.errors import UserError

MARKERS = {"old": "cars_annos.mat", "devkit": "devkit", "by class": "anno_train.csv"}
BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


class _Annotations(NamedTuple):
    paths: list[str]
    class_ids: np.ndarray  # (N,), from 1
    boxes: np.ndarray  # (N, 4)
    class_names: list[str]
    source: Path


def load_cars196(data_dir: str | None, *, crop: bool = False) -> Listing:
    """Reads whichever pack is there."""
    root = find_root("cars196", data_dir, list(MARKERS.values()), "stanford_cars")
    if (root / MARKERS["old"]).exists():
        annotations = _read_old(root)
    elif (root / MARKERS["devkit"]).exists():
        annotations = _read_devkit(root)
    else:
        annotations = _read_by_class(root)
    labels = annotations.class_ids - 1
    parts = np.where(labels < COUNTS["cars196"]["train"][1], TRAIN, TEST)
    check_count("cars196", "train", labels[parts == TRAIN], annotations.source)
    check_count("cars196", "test", labels[parts == TEST], annotations.source)
    dataset = ImageDataset(
        name="cars196",
        split="all",
        root=root,
        labels=labels,
        paths=listed_paths(root, annotations.paths, annotations.source),
        class_names=annotations.class_names,
        boxes=annotations.boxes if crop else None,
    )
    return Listing(dataset, parts)


def _read_old(root: Path) -> _Annotations:
    file = root / "cars_annos.mat"
    table = _read_mat(file, "annotations")
    paths = _field(table, "relative_im_path", file).tolist()
    names = _read_mat(file, "class_names").tolist()
    return _Annotations(paths, _class_ids(table, file), _boxes(table, file), names, file)


def _read_devkit(root: Path) -> _Annotations:
    names = _read_mat(find_file("cars196", root, "devkit/cars_meta.mat"), "class_names").tolist()
    labelled = "cars_test_annos_withlabels.mat"  # the devkit's own cars_test_annos has no classes
    halves = {
        "cars_train": find_file("cars196", root, "devkit/cars_train_annos.mat"),
        "cars_test": find_file("cars196", root, labelled, f"devkit/{labelled}"),
    }
    paths, class_ids, boxes = [], [], []
    for folder, file in halves.items():
        table = _read_mat(file, "annotations")
        paths += [f"{folder}/{name}" for name in _field(table, "fname", file)]
        class_ids.append(_class_ids(table, file))
        boxes.append(_boxes(table, file))
    source = halves["cars_train"]
    return _Annotations(paths, np.concatenate(class_ids), np.concatenate(boxes), names, source)


def _read_by_class(root: Path) -> _Annotations:
    names = [line.strip() for line in read_lines(find_file("cars196", root, "names.csv"))]
    names = [name.strip('"') for name in names if name]
    images = "car_data/car_data" if (root / "car_data/car_data").is_dir() else "car_data"
    paths: list[str] = []
    numbers: list[str] = []
    for half in ("train", "test"):
        file = find_file("cars196", root, f"anno_{half}.csv")
        for row in csv.reader(read_lines(file)):
            if len(row) != 6 or not row[5].strip().isdigit() or not 0 < int(row[5]) <= len(names):
                raise UserError(
                    f"{file}: expected 'file, x1, y1, x2, y2, class id', found '{','.join(row)}'"
                )
            folder = names[int(row[5]) - 1].replace("/", "-")
            paths.append(f"{images}/{half}/{folder}/{row[0]}")
            numbers += row[1:]
    source = root / "anno_train.csv"
    table = integers(numbers, "coordinate", source).reshape(-1, 5)
    return _Annotations(paths, table[:, 4], table[:, :4], names, source)


def _read_mat(file: Path, variable: str) -> Any:
    from scipy.io import loadmat  # slow to import

    try:
        return np.atleast_1d(loadmat(file, squeeze_me=True)[variable])
    except KeyError:
        raise UserError(f"{file} has no {variable}") from None
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise UserError(f"cannot read {file}: {error}") from error


def _field(table: np.ndarray, name: str, file: Path) -> np.ndarray:
    if name not in (table.dtype.names or ()):
        raise UserError(f"{file} has no {name}")
    return table[name]


def _class_ids(table: np.ndarray, file: Path) -> np.ndarray:
    return _field(table, "class", file).astype(np.int64)


def _boxes(table: np.ndarray, file: Path) -> np.ndarray:
    return np.stack([_field(table, side, file).astype(np.int64) for side in BOX], axis=1)
