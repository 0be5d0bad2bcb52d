"""ImageNet-LT and Places-LT: few images of most classes to train on, all classes in every part."""

import functools

import numpy as np

from dmlfast.data.images import ImageDataset
from dmlfast.data.listing import (
    PARTS,
    Listing,
    check_count,
    find_file,
    find_root,
    integers,
    listed_paths,
    read_lines,
)
from dmlfast.errors import UserError


def _load(name: str, prefix: str, data_dir: str | None) -> Listing:
    folders = ["", f"{prefix}/", f"{prefix}_v2/"]
    lists = [f"{folder}{prefix}_train.txt" for folder in folders]
    root = find_root(name, data_dir, lists)
    paths: list[str] = []
    labels: dict[str, np.ndarray] = {}
    for part in PARTS:
        file = find_file(name, root, *(f"{folder}{prefix}_{part}.txt" for folder in folders))
        rows = [line.rsplit(None, 1) for line in read_lines(file) if line.strip()]
        wrong = next((row for row in rows if len(row) != 2), None)
        if wrong:
            raise UserError(f"{file}: expected 'path label', found '{wrong[0]}'")
        labels[part] = integers((row[1] for row in rows), "label", file)
        check_count(name, part, labels[part], file)
        if not set(labels[part].tolist()) <= set(range(len(set(labels["train"].tolist())))):
            raise UserError(f"{file}: the labels are not those of the training classes, from 0")
        paths += [row[0] for row in rows]
    example = dict(zip(labels["train"].tolist(), paths, strict=False))  # training comes first
    dataset = ImageDataset(
        name=name,
        split="all",
        root=root,
        labels=np.concatenate(list(labels.values())),
        paths=listed_paths(root, paths, root / f"{prefix}_*.txt"),
        class_names=[_class_name(example[label]) for label in range(len(example))],
        closed_set=True,
    )
    sizes = [len(part) for part in labels.values()]
    return Listing(dataset, np.repeat(list(PARTS.values()), sizes))


def _class_name(path: str) -> str:
    """The folders of an image below the first: `f/field/wild` of `data_256/f/field/wild/1.jpg`."""
    folders = path.split("/")[:-1]
    return "/".join(folders[1:] or folders)


load_imagenet_lt = functools.partial(_load, "imagenet-lt", "ImageNet_LT")
load_places_lt = functools.partial(_load, "places-lt", "Places_LT")
