"""Images that are made when they are asked for, and the processes that do it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from dmlfast.data.transforms import Transform, own_generator
from dmlfast.errors import UserError

Batch = tuple[Tensor, Tensor]


class Pictures(Protocol):
    """A data set of pictures of any size: `Dataset`, and data sets whose pictures are files."""

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def paths(self) -> Sequence[str]: ...
    @property
    def class_names(self) -> list[str]: ...
    def __len__(self) -> int: ...
    def image(self, index: int, /) -> Image.Image:
        """Picture `index`."""
        ...


@runtime_checkable
class Readable(Protocol):
    """Pictures of which some may be passed over."""

    def read(self, index: int, /) -> tuple[Image.Image, int]:
        """Picture `index`, or one in its place, and the index of what it is."""
        ...


class Images(Protocol):
    """A data set whose images are of one size, as a network takes them."""

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def paths(self) -> Sequence[str]: ...
    @property
    def class_names(self) -> list[str]: ...
    @property
    def channels(self) -> int: ...
    def __len__(self) -> int: ...
    def take(self, indices: Sequence[int] | np.ndarray, /) -> Batch:
        """The images (B, C, H, W) uint8 and labels (B,) int64 at `indices`, in that order."""
        ...


class TransformedImages:
    """The pictures of a data set as a network takes them.

    Args:
        pictures: the data set.
        transform: makes an image of a picture.

    Attributes:
        role: (N,) uint8 as in embedding files, where the data set has queries and a gallery.
    """

    channels = 3

    def __init__(self, pictures: Pictures, transform: Transform) -> None:
        self.pictures = pictures
        self.transform = transform
        self.name, self.split = pictures.name, pictures.split
        self.labels, self.paths = pictures.labels, pictures.paths
        self.class_names = pictures.class_names
        self.role = getattr(pictures, "role", None)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image `index`, (3, size, size) uint8, and its label.

        What a transform for training draws depends on torch's random numbers.
        """
        generator = own_generator(self.transform)
        images, labels = self.take([index], None if generator is None else [generator])
        return images[0], int(labels[0])

    def take(
        self,
        indices: Sequence[int] | np.ndarray,
        generators: Sequence[np.random.Generator] | None = None,
    ) -> Batch:
        """Images (B, 3, size, size) uint8, and labels (B,) int64.

        `generators`, one for each image, give the random numbers of a transform for training.
        """
        size = self.transform.size
        images = np.empty((len(indices), size, size, 3), dtype=np.uint8)
        rows = np.empty(len(indices), dtype=np.int64)
        for place, index in enumerate(indices):
            generator = None if generators is None else generators[place]
            picture, rows[place] = self._read(int(index))
            images[place] = self.transform(picture, generator)
        labels = torch.from_numpy(np.asarray(self.labels[rows], dtype=np.int64))
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels

    def _read(self, index: int) -> tuple[Image.Image, int]:
        """The picture, or what stands in for one that cannot be read, and its index."""
        if isinstance(self.pictures, Readable):
            return self.pictures.read(index)
        return self.pictures.image(index), index


class RowBatches(TorchDataset[Batch]):
    """The images of a data set in its order, `batch_size` at a time."""

    def __init__(self, images: Images, batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        start = number * self.batch_size
        return self.images.take(np.arange(start, min(start + self.batch_size, len(self.images))))


class Loader:
    """Batches in a given order, made by other processes ahead of time.

    It can be gone through again and again, with the same processes, which end with a block that it
    is the context of, or when nothing refers to it.

    Args:
        batches: by number; each is made in one process.
        order: the numbers of the batches, in the order in which they come.
        workers: how many processes; with 0 this one makes each batch when it is asked for.
        pin_memory: put batches where a GPU reads them without waiting.
        start_worker: called first in each process, with its number.
    """

    def __init__(
        self,
        batches: TorchDataset[Batch],
        order: Sequence[int],
        *,
        workers: int = 0,
        pin_memory: bool = False,
        start_worker: Callable[[int], None] | None = None,
    ) -> None:
        self.workers = workers
        self.loader: DataLoader[Any] = DataLoader(
            _Guarded(batches),
            sampler=order,
            batch_size=None,
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=start_worker,
        )

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        # an error that is under way refers to it, and who ignores SIGTERM is waited for at exit
        iterator, self.loader._iterator = self.loader._iterator, None
        if self.workers and iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _Guarded(TorchDataset[Any]):
    """Hands a `UserError` on as a value, since processes hand on the text of their traceback."""

    def __init__(self, batches: TorchDataset[Batch]) -> None:
        self.batches = batches

    def __getitem__(self, number: int) -> Batch | UserError:
        try:
            return self.batches[number]
        except UserError as error:
            return error


def load_rows(
    images: Images,
    batch_size: int,
    *,
    workers: int = 0,
    pin_memory: bool = False,
    start_worker: Callable[[int], None] | None = None,
) -> Loader:
    """The images of a data set in its order, as (B, C, H, W) uint8 and labels (B,) int64.

    Args:
        images: the data set.
        batch_size: B; the last batch may be smaller.
        workers: processes that make images; data sets in memory need none and get none.
        pin_memory, start_worker: as of `Loader`.
    """
    batches = RowBatches(images, batch_size)
    return Loader(
        batches,
        range(len(batches)),
        workers=workers if isinstance(images, TransformedImages) else 0,
        pin_memory=pin_memory,
        start_worker=start_worker,
    )
