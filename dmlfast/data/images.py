"""Data sets whose images are files, read when they are asked for."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from dmlfast.data.paths import PathList, check_inside
from dmlfast.data.transforms import own_generator
from dmlfast.errors import UserError
from dmlfast.text import counted, visible

ON_ERROR = ("stop", "skip")
BOTH, QUERY, GALLERY = 0, 1, 2  # the values of `role`

Transform = Callable[[Image.Image, np.random.Generator | None], np.ndarray]

NAMED = 3  # files that a warning names
logger = logging.getLogger(__name__)


@dataclass(eq=False)
class ImageDataset:
    """Labelled image files below one folder, listed but not loaded.

    Attributes:
        name: the name of the data set.
        split: "train", "val" or "test"; "all" before it is split.
        root: the folder that the paths are relative to.
        labels: (N,) int64, the same numbering in every split.
        paths: one path per image, unique.
        class_names: the names of the classes of every split, indexed by label.
        boxes: (N, 4) int64, x0, y0, x1, y1 in pixels, that the images are cropped to; a row of
            zeros, or None, stands for the whole image.
        role: (N,) uint8, 0 both, 1 query, 2 gallery; None where all images are both.
        categories: (N,) int64, coarser classes, where the data set has them.
        category_names: their names, indexed by category.
        closed_set: whether the test images are of the classes that training sees.
        upright: turn photos as their camera says (EXIF); the boxes are those of the turned image.
        on_error: "stop" at a file that cannot be read, or "skip" it.
        transform: makes (H, W, 3) uint8 of one size from a picture; its random numbers come from
            the generator, and None asks for the transform of evaluation.
        unreadable: the images met so far that could not be read, by index, and why.
    """

    name: str
    split: str
    root: Path
    labels: np.ndarray
    paths: Sequence[str]
    class_names: list[str]
    boxes: np.ndarray | None = None
    role: np.ndarray | None = None
    categories: np.ndarray | None = None
    category_names: list[str] | None = None
    closed_set: bool = False
    upright: bool = False
    on_error: str = "stop"
    transform: Transform | None = None
    unreadable: dict[int, str] = field(default_factory=dict, repr=False)

    @property
    def channels(self) -> int:
        """3: every image is made RGB."""
        return 3

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of what the transform makes."""
        images, _ = self.take([0])
        return images.shape[2], images.shape[3]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Image `index`, (3, H, W) uint8, and its label; as it is where there is no transform.

        What one for training draws depends on torch's random numbers.
        """
        picture, row = self.read(index)
        pixels = self._pixels(picture, own_generator(self.transform))
        return _to_tensor([pixels])[0], int(self.labels[row])

    def image(self, index: int) -> Image.Image:
        """Image `index` as an RGB picture, cropped to its box; a `UserError` names a bad file."""
        path = check_inside(self.root, self.paths[index])
        try:
            picture = open_image(path, upright=self.upright)
            if self.boxes is None or not self.boxes[index].any():
                return picture
            return _crop(picture, self.boxes[index], path)
        except UserError as error:
            if self.on_error == "skip":
                raise
            hint = f"{self.name} leaves such images out with the option on_error=skip"
            raise UserError(f"{error}; {hint}") from None

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Image `index` and that index, or an image that stands in for it and its index.

        Only where "skip" is chosen does one stand in: the next of its class that can be read, or
        of any class where none can.
        """
        for row in self._stand_ins(index):
            picture = self.try_image(row)
            if picture is not None:
                return picture, row
        raise UserError(f"none of the {len(self)} images of {self.name} can be read")

    def try_image(self, index: int) -> Image.Image | None:
        """Image `index`, or None where it cannot be read and "skip" is chosen."""
        if index in self.unreadable:
            return None
        try:
            return self.image(index)
        except UserError as error:
            if self.on_error == "stop":
                raise
            self.unreadable[index] = str(error)
            text = "%s: skipped (%d so far in %s)"
            logger.warning(text, visible(str(error)), len(self.unreadable), self.name)
            return None

    def take(
        self,
        indices: Sequence[int] | np.ndarray,
        generators: Sequence[np.random.Generator] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The images (B, 3, H, W) uint8 and labels (B,) int64 at `indices`, in that order.

        Where "skip" is chosen, another image stands in for one that cannot be read, always the
        same: the next of its class.

        Args:
            indices: (B,) integers.
            generators: what the transform draws from, one for each image; none in evaluation.

        Raises:
            UserError: where there is no transform, or an image cannot be read.
        """
        self._check_transform()
        pixels, rows = [], []
        for place, index in enumerate(indices):
            picture, row = self.read(int(index))
            pixels.append(self._pixels(picture, generators[place] if generators else None))
            rows.append(row)
        return _to_tensor(pixels), torch.from_numpy(self.labels[rows])

    def take_readable(
        self, indices: Sequence[int] | np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """What `take` returns of the images that can be read, and their indices (B',) int64.

        This is for evaluation, where nothing may stand in for an image.
        """
        self._check_transform()
        pixels, rows = [], []
        for index in indices:
            picture = self.try_image(int(index))
            if picture is not None:
                pixels.append(self._pixels(picture, None))
                rows.append(int(index))
        kept = np.array(rows, dtype=np.int64)
        return _to_tensor(pixels), torch.from_numpy(self.labels[kept]), kept

    def readable(self, workers: int = 0) -> "ImageDataset":
        """The images that can be read. Each is decoded once to find out, by this process or by
        ``workers`` others; one warning counts those that are left out and names some.
        """
        rows = self.readable_rows(workers)
        return self if len(rows) == len(self) else self.with_rows(rows, self.split)

    def readable_rows(self, workers: int = 0) -> np.ndarray:
        """Their rows, ascending. Decodes and warns as `readable` does."""
        found = DataLoader(_Faults(self), batch_size=None, num_workers=workers)
        faults = {row: fault for row, fault in enumerate(found) if fault}
        if faults:
            some = visible("; ".join(list(faults.values())[:NAMED]))
            of = f"of the {counted(len(self), 'image')} of {self.name} ({self.split})"
            logger.warning("%s left out: %s", counted(len(faults), f"{of} is", f"{of} are"), some)
        return np.setdiff1d(np.arange(len(self)), list(faults))

    def with_classes(self, classes: np.ndarray, split: str) -> "ImageDataset":
        """The images whose labels are among `classes`, as the split of that name."""
        return self.with_rows(np.flatnonzero(np.isin(self.labels, classes)), split)

    def with_rows(self, rows: np.ndarray, split: str) -> "ImageDataset":
        """The images at `rows`, as the split of that name."""
        return replace(
            self,
            split=split,
            labels=self.labels[rows],
            paths=PathList(self.paths[row] for row in rows),
            boxes=None if self.boxes is None else self.boxes[rows],
            role=None if self.role is None else self.role[rows],
            categories=None if self.categories is None else self.categories[rows],
            unreadable={},
        )

    def _check_transform(self) -> None:
        if self.transform is None:
            raise UserError(
                f"the images of {self.name} have different sizes: without a transform they cannot "
                "form a batch"
            )

    def _pixels(self, picture: Image.Image, generator: np.random.Generator | None) -> np.ndarray:
        return self.transform(picture, generator) if self.transform else np.asarray(picture)

    def _stand_ins(self, index: int) -> Iterator[int]:
        """`index`, then the others of its class, then all, each time going round from there."""
        yield index
        rows = np.flatnonzero(self.labels == self.labels[index])
        yield from np.roll(rows, -np.searchsorted(rows, index, side="right")).tolist()
        yield from (row % len(self) for row in range(index + 1, index + len(self)))


def open_image(path: str | Path, *, upright: bool = False) -> Image.Image:
    """Reads an image file of any mode as RGB.

    Args:
        path: the file.
        upright: turn it as its camera says.

    Raises:
        UserError: for what is no image, or damaged, or has more pixels than Pillow takes for safe.
    """
    try:
        with Image.open(path) as image:
            return _to_rgb(ImageOps.exif_transpose(image) if upright else image)
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except UnidentifiedImageError:
        raise UserError(f"{path} is not an image") from None
    except Exception as error:  # a damaged file can fail anywhere in a decoder
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"cannot read {path}: {reason}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB; of 16 bits the upper 8, which Pillow would clip instead."""
    if image.mode == "F":
        raise UserError("holds floating-point numbers, whose range is not known")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _crop(picture: Image.Image, box: np.ndarray, path: Path) -> Image.Image:
    limits = np.array([*picture.size, *picture.size])
    x0, y0, x1, y1 = np.clip(box, 0, limits).tolist()
    if x0 >= x1 or y0 >= y1:
        raise UserError(
            f"{path}: the box {box.tolist()} covers no part of the image of "
            f"{picture.width} x {picture.height}"
        )
    return picture.crop((x0, y0, x1, y1))


def _to_tensor(pixels: list[np.ndarray]) -> torch.Tensor:
    """(B, 3, H, W) from B arrays (H, W, 3), whose size is 0 x 0 where there are none."""
    batch = np.stack(pixels) if pixels else np.empty((0, 0, 0, 3), np.uint8)
    return torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))


class _Faults(TorchDataset[str]):
    """What is wrong with each image; nothing where it can be read."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> str:
        try:
            self.dataset.image(index)
        except UserError as error:
            return str(error)
        return ""
