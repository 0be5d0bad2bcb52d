"""A data set's pictures, decoded and resized once, in a file that is mapped into memory."""

import functools
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from dmlfast.data.loading import Pictures
from dmlfast.data.transforms import Resize
from dmlfast.errors import UserError
from dmlfast.files import atomic_folder, write_error
from dmlfast.text import counted

PIXELS, SIZES = "pixels.bin", "sizes.npy"
SAMPLE = 32  # pictures from which the size of all is estimated
SPARE = 1 << 30  # bytes that are left free on the disk


class CachedPictures:
    """A data set whose pictures are read from a cache, resized. Made by `cache_pictures`.

    `pixels.bin` holds the pictures one after the other, uint8 (height, width, 3) each, and
    `sizes.npy` their (N, 2) heights and widths.
    """

    def __init__(self, pictures: Pictures, folder: Path) -> None:
        self.pictures = pictures
        self.folder = folder
        self.name, self.split = pictures.name, pictures.split
        self.labels, self.paths = pictures.labels, pictures.paths
        self.class_names = pictures.class_names
        self.role = getattr(pictures, "role", None)

    def __reduce__(self) -> tuple[type["CachedPictures"], tuple[Pictures, Path]]:
        return CachedPictures, (self.pictures, self.folder)  # and not what is mapped

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def _sizes(self) -> np.ndarray:
        sizes: np.ndarray = np.load(self.folder / SIZES, allow_pickle=False)
        return sizes

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(3 * self._sizes.prod(axis=1))

    @functools.cached_property
    def _pixels(self) -> np.ndarray:
        return np.memmap(self.folder / PIXELS, dtype=np.uint8, mode="r")

    def image(self, index: int) -> Image.Image:
        """Picture `index`, resized."""
        height, width = self._sizes[index]
        end = self._ends[index]
        pixels = self._pixels[end - 3 * height * width : end].reshape(height, width, 3)
        return Image.fromarray(np.array(pixels))


def cache_pictures(
    pictures: Pictures,
    resize: Resize,
    folder: str | Path,
    *,
    workers: int = 0,
    progress: bool = False,
) -> CachedPictures:
    """The data set with its pictures read from a cache, which is filled first if need be.

    A cache is a folder of its own for each data set, split and size, and for what a few of its
    pictures look like. It appears when it is whole. A process that is stopped begins again.

    Args:
        pictures: the data set.
        resize: what is done with each picture.
        folder: where the caches are; it is made if need be.
        workers: processes that decode; with 0 this one does.
        progress: show a bar on stderr.

    Raises:
        UserError: where the disk has no room for it, or cannot be written.
    """
    place = (
        Path(folder) / f"{pictures.name}-{pictures.split}-{resize.key}-{_digest(pictures, resize)}"
    )
    if not place.is_dir():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(place.parent, error) from error
        _check_room(pictures, resize, place.parent)
        try:
            _fill(pictures, resize, place, workers, progress)
        except UserError:
            if not place.is_dir():  # another process may have been faster
                raise
    return CachedPictures(pictures, place)


def _fill(pictures: Pictures, resize: Resize, place: Path, workers: int, progress: bool) -> None:
    decoded = DataLoader(_Decoded(pictures, resize), batch_size=None, num_workers=workers)
    sizes = np.empty((len(pictures), 2), dtype=np.int64)
    bar = tqdm(total=len(pictures), desc="caching", unit="image", leave=False, disable=not progress)
    with bar, atomic_folder(place) as temporary:
        with open(temporary / PIXELS, "wb") as file:
            for row, pixels in enumerate(decoded):
                if isinstance(pixels, UserError):
                    raise pixels
                sizes[row] = pixels.shape[:2]
                file.write(pixels.numpy())
                bar.update()
        np.save(temporary / SIZES, sizes, allow_pickle=False)


class _Decoded(TorchDataset["torch.Tensor | UserError"]):
    """The resized pictures, (H, W, 3) uint8, or the `UserError` of one that cannot be read."""

    def __init__(self, pictures: Pictures, resize: Resize) -> None:
        self.pictures, self.resize = pictures, resize

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> "torch.Tensor | UserError":
        try:
            return torch.from_numpy(np.array(self.resize(self.pictures.image(index))))
        except UserError as error:
            return error


def _sample(pictures: Pictures, count: int) -> Sequence[int]:
    """Indices spread over the data set."""
    rows = np.linspace(0, len(pictures) - 1, min(count, len(pictures)))
    return [int(row) for row in rows]


def _digest(pictures: Pictures, resize: Resize) -> str:
    """Changes with the paths, and with what a few pictures look like, such as other cut-outs."""
    digest = hashlib.sha256("\n".join(pictures.paths).encode())
    for row in _sample(pictures, 3):
        digest.update(resize(pictures.image(row)).tobytes())
    return digest.hexdigest()[:12]


def _check_room(pictures: Pictures, resize: Resize, folder: Path) -> None:
    rows = _sample(pictures, SAMPLE)
    sizes = [3 * np.prod(resize(pictures.image(row)).size, dtype=np.int64) for row in rows]
    needed = int(np.mean(sizes) * len(pictures))
    free = shutil.disk_usage(folder).free
    if needed + SPARE > free:
        images = counted(len(pictures), "image")
        raise UserError(
            f"a cache of {images} takes {needed / 1e9:.1f} GB and {folder} "
            f"has {free / 1e9:.1f} GB free: train without --cache-images, or give another folder"
        )
