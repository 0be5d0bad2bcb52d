"""From a data set to the images that a network takes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmlfast.data.cache import cache_pictures
from dmlfast.data.dataset import Dataset
from dmlfast.data.loading import Images, Pictures, TransformedImages
from dmlfast.data.transforms import create_transform
from dmlfast.errors import UserError


def prepare_images(
    dataset: Pictures,
    transform: Mapping[str, Any] | None,
    train: bool = False,
    *,
    cache_dir: str | Path | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Images:
    """The data set's images as a network takes them, made when they are asked for.

    Args:
        dataset: of pictures of any size; without a transform it must be in memory.
        transform: the arguments of `create_transform`; None for images that go in as they are.
        train: crop at random and mirror.
        cache_dir: where decoded and resized pictures are kept, if anywhere. All of them must be
            readable, as those of `ImageDataset.readable` are.
        workers: processes that fill the cache.
        progress: show a bar on stderr while the cache is filled.

    Raises:
        UserError: where there is no such transform, no room for the cache, or a picture that
            cannot be read.
    """
    if transform is None:
        if not isinstance(dataset, Dataset):
            what = f"the images of {dataset.name} have different sizes"
            raise UserError(f"{what}: give a --transform")
        return dataset
    made = create_transform(**{**transform, "train": train})
    if cache_dir is not None and len(dataset):
        dataset = cache_pictures(
            dataset, made.resize, cache_dir, workers=workers, progress=progress
        )
    return TransformedImages(dataset, made)
