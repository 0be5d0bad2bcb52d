"""DeepFashion In-Shop: 3,997 items train; queries of 3,985 others search in a gallery of these."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dmlfast.data.images import BOTH, GALLERY, QUERY, ImageDataset
from dmlfast.data.listing import (
    TEST,
    TRAIN,
    Listing,
    check_count,
    find_file,
    find_root,
    integers,
    listed_paths,
    missing_file,
    number_classes,
    read_columns,
    read_lines,
)
from dmlfast.errors import UserError
from dmlfast.text import counted

PARTITION = "list_eval_partition.txt"
COLUMNS = ["image_name", "item_id", "evaluation_status"]
ROLES = {"train": BOTH, "query": QUERY, "gallery": GALLERY}
FOLDERS = ("img", "Img/img", "img_highres", "Img/img_highres")
BOXES = "list_bbox_inshop.txt"
MANY = 5  # how many names an error lists


def load_inshop(data_dir: str | None, *, crop: bool = False) -> Listing:
    """Reads `list_eval_partition.txt`; "test" is the queries and the gallery."""
    root = find_root("inshop", data_dir, [PARTITION, f"Eval/{PARTITION}"])
    source = find_file("inshop", root, f"Eval/{PARTITION}", PARTITION)
    images, items, statuses = read_columns(source, COLUMNS, header=2)
    unknown = set(statuses) - ROLES.keys()
    if unknown:
        raise UserError(f"{source}: '{min(unknown)}' is not one of {', '.join(ROLES)}")
    status = np.array(statuses)
    item = np.array(items)
    for part in ROLES:
        check_count("inshop", part, item[status == part], source)
    _check_gallery(item[status == "query"], item[status == "gallery"], source)

    order = np.argsort(status != "train", kind="stable")  # training first
    train = np.count_nonzero(status == "train")
    labels, names = number_classes(item[order][:train].tolist(), item[order][train:].tolist())
    images = [images[row] for row in order]
    folder = _image_folder(root)
    dataset = ImageDataset(
        name="inshop",
        split="all",
        root=root,
        labels=labels,
        paths=listed_paths(root, [f"{folder}/{_below_img(path)}" for path in images], source),
        class_names=names,
        boxes=_read_boxes(root, images) if crop else None,
        role=np.array([ROLES[part] for part in status[order].tolist()], dtype=np.uint8),
    )
    return Listing(dataset, np.where(np.arange(len(labels)) < train, TRAIN, TEST))


def _check_gallery(queries: np.ndarray, gallery: np.ndarray, source: Path) -> None:
    lost = sorted(set(queries.tolist()) - set(gallery.tolist()))
    if lost:
        items = counted(len(lost), "item that is queried", "items that are queried")
        more = f" and {len(lost) - MANY} more" if len(lost) > MANY else ""
        raise UserError(f"{source}: no gallery image of {items}: {', '.join(lost[:MANY])}{more}")


def _image_folder(root: Path) -> str:
    for folder in FOLDERS:
        if (root / folder).is_dir():
            return folder
    raise missing_file("inshop", root, " or ".join(FOLDERS))


def _below_img(path: str) -> str:
    return path.removeprefix("img/")


def _read_boxes(root: Path, images: Sequence[str]) -> np.ndarray:
    file = find_file("inshop", root, f"Anno/{BOXES}", BOXES)
    columns = "".join(read_lines(file)[1:2]).split()
    sides = ["x_1", "y_1", "x_2", "y_2"]
    if not {"image_name", *sides} <= set(columns):
        raise UserError(f"{file}, line 2: expected image_name and {', '.join(sides)}")
    table = dict(zip(columns, read_columns(file, columns, header=2), strict=True))
    row_of = {path: row for row, path in enumerate(table["image_name"])}
    missing = [path for path in images if path not in row_of]
    if missing:
        images = counted(len(missing), "image")
        raise UserError(f"{file} has no box for {images}, such as {missing[0]}")
    rows = [row_of[path] for path in images]
    boxes = [integers(table[side], "coordinate", file)[rows] for side in sides]
    return np.stack(boxes, axis=1)
