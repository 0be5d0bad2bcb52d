"""A small data set of picture files of many sizes, some grey."""

from pathlib import Path

import numpy as np
from PIL import Image

from dmlfast.errors import UserError


class PictureFiles:
    """What `dmlfast.data.loading.Pictures` asks for, with the pictures in files."""

    def __init__(self, folder: Path, count: int = 12):
        self.folder = folder
        self.name, self.split = "files", "train"
        self.labels = np.arange(count) // 3
        self.paths = [f"{row}.png" for row in range(count)]
        self.class_names = [str(label) for label in range(-(-count // 3))]
        self.opened: list[int] = []
        generator = np.random.default_rng(0)
        for row, path in enumerate(self.paths):
            height, width = 20 + 7 * row, 90 - 5 * row
            shape = (height, width) if row % 3 == 0 else (height, width, 3)
            pixels = generator.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / path)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        self.opened.append(index)
        try:
            with Image.open(self.folder / self.paths[index]) as image:
                image.load()
                return image
        except OSError as error:
            raise UserError(f"cannot read {self.paths[index]}") from error
