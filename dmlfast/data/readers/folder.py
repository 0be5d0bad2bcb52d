"""Images of one's own, or ImageNet's: a folder per class."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dmlfast.data.images import ImageDataset
from dmlfast.data.listing import (
    PARTS,
    TEST,
    TRAIN,
    Listing,
    existing_path,
    missing_file,
    read_lines,
)
from dmlfast.data.paths import PathList, check_inside, check_relative
from dmlfast.errors import UserError, unknown_name
from dmlfast.text import counted

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def load_folder(
    data_dir: str | None, *, train_classes: str | None = None, test_classes: str | None = None
) -> Listing:
    """Lists `root/<class>/*`, or `root/train|val|test/<class>/*` where there is a `root/train`.

    Without such folders the first half of the classes trains, in the order of their names, unless
    two text files list the classes of each half, a folder's name a line.
    """
    root = existing_path("folder", data_dir)
    if (train_classes is None) != (test_classes is None):
        raise UserError("train_classes and test_classes must be given together or not at all")
    if train_classes is not None and test_classes is not None:
        return _list_halves(root, *_read_class_lists(root, train_classes, test_classes))
    if (root / "train").is_dir():
        return _list_parts(root)
    classes = _folders(root)
    return _list_halves(root, classes[: len(classes) // 2], classes[len(classes) // 2 :])


def _list_halves(root: Path, train: Sequence[str], test: Sequence[str]) -> Listing:
    paths, labels = _list_images(root, [(name, name) for name in (*train, *test)])
    dataset = _dataset(root, paths, labels, [*train, *test])
    return Listing(dataset, np.where(dataset.labels < len(train), TRAIN, TEST))


def _list_parts(root: Path) -> Listing:
    folders = {part: _folders(root / part) for part in PARTS if (root / part).is_dir()}
    names = sorted(set().union(*folders.values()))
    listed = [(f"{part}/{name}", name) for part in folders for name in folders[part]]
    paths, labels = _list_images(root, listed)
    part_of = {part: number for part, number in PARTS.items() if part in folders}
    parts = np.array([part_of[path.partition("/")[0]] for path in paths], dtype=np.int64)
    dataset = _dataset(root, paths, labels, names)
    dataset.closed_set = sum(map(len, folders.values())) > len(names)
    return Listing(dataset, parts)


def _dataset(root: Path, paths: PathList, labels: list[str], names: list[str]) -> ImageDataset:
    if not len(paths):
        raise missing_file("folder", root, "a folder of images per class")
    numbers = {name: number for number, name in enumerate(names)}
    return ImageDataset(
        name="folder",
        split="all",
        root=root,
        labels=np.array([numbers[name] for name in labels], dtype=np.int64),
        paths=paths,
        class_names=names,
        upright=True,
    )


def _list_images(root: Path, folders: Sequence[tuple[str, str]]) -> tuple[PathList, list[str]]:
    """The paths of all images in the folders, and the class of each, which is given with these."""
    labels: list[str] = []

    def paths() -> Iterator[str]:
        for folder, name in folders:
            for file in _files(root, folder):
                labels.append(name)
                yield f"{folder}/{file}"

    return PathList(paths()), labels


def _files(root: Path, folder: str) -> list[str]:
    with os.scandir(root / folder) as entries:
        return sorted(entry.name for entry in entries if _is_image(entry.name))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _folders(root: Path) -> list[str]:
    """The folders in `root` with images, in the order of their names, each below it in truth."""
    with os.scandir(root) as entries:
        names = sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith((".", "__MACOSX")) and entry.is_dir()
        )
    return [name for name in names if _has_images(check_inside(root, name))]


def _has_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) for entry in entries)


def _read_class_lists(root: Path, *files: str) -> list[list[str]]:
    there = set(_folders(root))
    lists = []
    for file in files:
        source = Path(file).expanduser()
        source = source if source.exists() else root / file
        names = [line.strip() for line in read_lines(source) if line.strip()]
        for name in names:
            if check_relative(name, source) not in there:
                raise unknown_name(f"class folder in {root}", name, there)
        lists.append(sorted(set(names)))
    shared = set(lists[0]) & set(lists[1])
    if shared:
        raise UserError(
            f"{files[0]} and {files[1]} both list {counted(len(shared), 'class', 'classes')}, "
            f"such as {min(shared)}"
        )
    return lists
