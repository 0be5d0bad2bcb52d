"""A data set in memory."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image


@dataclass(frozen=True)
class Dataset:
    """Labelled images of one size, all in memory.

    Attributes:
        name: the name of the data set.
        split: "train", "val" or "test"; "all" before it is split.
        images: (N, C, H, W) uint8.
        labels: (N,) int64, the same numbering in every split.
        paths: one stable and unique identifier per image.
        class_names: the names of the classes of every split, indexed by label.
        closed_set: whether the test images are of the classes that training sees.
    """

    name: str
    split: str
    images: torch.Tensor
    labels: np.ndarray
    paths: list[str]
    class_names: list[str]
    closed_set: bool = False

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for RGB."""
        return self.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""
        return self.images.shape[2], self.images.shape[3]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Image `index`, (C, H, W) uint8, and its label."""
        return self.images[index], int(self.labels[index])

    def image(self, index: int) -> Image.Image:
        """Image `index` as a picture, grey or RGB."""
        pixels = self.images[index].permute(1, 2, 0).numpy()
        return Image.fromarray(pixels[:, :, 0] if self.channels == 1 else pixels)

    def take(self, indices: Sequence[int] | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The images (B, C, H, W) uint8 and labels (B,) int64 at `indices`, in that order."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return self.images[rows], torch.from_numpy(self.labels)[rows]

    def with_classes(self, classes: np.ndarray, split: str) -> "Dataset":
        """The images whose labels are among `classes`, as the split of that name."""
        return self.with_rows(np.flatnonzero(np.isin(self.labels, classes)), split)

    def with_rows(self, rows: np.ndarray, split: str) -> "Dataset":
        """The images at `rows`, as the split of that name."""
        return dataclasses.replace(
            self,
            split=split,
            images=self.images[torch.from_numpy(rows)],
            labels=self.labels[rows],
            paths=[self.paths[row] for row in rows],
        )
