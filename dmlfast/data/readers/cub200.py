"""CUB-200-2011: birds; the first 100 classes train, the last 100 test."""

from pathlib import Path

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
    read_columns,
)
from dmlfast.errors import UserError
from dmlfast.text import counted


def load_cub200(data_dir: str | None, *, crop: bool = False) -> Listing:
    """Reads `images.txt` and `image_class_labels.txt`; `train_test_split.txt` is another split."""
    root = find_root("cub200", data_dir, ["images.txt"], "CUB_200_2011")
    source = find_file("cub200", root, "images.txt")
    ids, files = read_columns(source, ["image_id", "path"])
    classes_file = find_file("cub200", root, "image_class_labels.txt")
    class_of = dict(zip(*read_columns(classes_file, ["image_id", "class_id"]), strict=True))
    if class_of.keys() != set(ids):
        raise _other_images(classes_file, len(class_of), source, len(ids))
    labels = integers((class_of[id] for id in ids), "class id", classes_file) - 1
    parts = np.where(labels < COUNTS["cub200"]["train"][1], TRAIN, TEST)
    check_count("cub200", "train", labels[parts == TRAIN], classes_file)
    check_count("cub200", "test", labels[parts == TEST], classes_file)
    name_of = dict(zip(labels.tolist(), (file.split("/")[0] for file in files), strict=True))
    dataset = ImageDataset(
        name="cub200",
        split="all",
        root=root,
        labels=labels,
        paths=listed_paths(root, [f"images/{file}" for file in files], source),
        class_names=[name_of[label] for label in sorted(name_of)],
    )
    if crop:
        file = find_file("cub200", root, "bounding_boxes.txt")
        columns = read_columns(file, ["image_id", "x", "y", "width", "height"])
        box_of = {id: row for id, *row in zip(*columns, strict=True)}
        if not box_of.keys() >= set(ids):
            raise _other_images(file, len(box_of), source, len(ids))
        boxes = integers((number for id in ids for number in box_of[id]), "coordinate", file)
        boxes = boxes.reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        dataset.boxes = boxes
    return Listing(dataset, parts)


def _other_images(file: Path, found: int, source: Path, listed: int) -> UserError:
    return UserError(
        f"{file} describes {counted(found, 'image')}, which are not the "
        f"{counted(listed, 'image')} of {source}"
    )
