"""From pictures to the images that a network takes: the transforms of the papers, by name.

Each has two steps. The first resizes the whole picture and is the same every time, so that its
result can be cached; the second cuts out a square, at random and perhaps mirrored for training,
from the centre for a test.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from dmlfast.errors import UserError, unknown_name

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
WHITE = (255, 255, 255)
ALMOST_WHITE = 250  # from this grey on, what surrounds a product is background
TRIM_MARGIN = 15  # pixels of it that stay
MAX_SIDE = 8192


FITS = {
    "stretch": "stretched to {0} x {0}",
    "short": "short side {0}",
    "pad": "padded to {0} x {0}",
    "trim": "trimmed and padded to {0} x {0}",
}


@dataclass(frozen=True)
class Resize:
    """Brings a picture to a size that depends on its shape alone.

    Attributes:
        fit: "stretch" to a square; "short", so that the short side is `side`; "pad", so that the
            long side is, with white beside the picture to make a square; "trim", which does so
            after it has cut off the white around what is shown. A square of that side is taken to
            be trimmed.
        side: in pixels.
        interpolation: one of `INTERPOLATIONS`; all take in every pixel when they make smaller.
    """

    fit: str
    side: int
    interpolation: str = "bilinear"

    def __call__(self, picture: Image.Image) -> Image.Image:
        """The picture in RGB and resized; what it makes of its own result is the same again."""
        picture = picture.convert("RGB")
        if self.fit == "trim" and picture.size != (self.side, self.side):
            picture = _trim(picture)
        width, height = picture.size
        if self.fit == "stretch":
            size = (self.side, self.side)
        else:
            scale = self.side / (min(width, height) if self.fit == "short" else max(width, height))
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
        if size != picture.size:
            picture = picture.resize(size, INTERPOLATIONS[self.interpolation])
        if self.fit in ("pad", "trim") and size != (self.side, self.side):
            square = Image.new("RGB", (self.side, self.side), WHITE)
            square.paste(picture, ((self.side - size[0]) // 2, (self.side - size[1]) // 2))
            return square
        return picture

    @property
    def key(self) -> str:
        """Names what the resized images depend on."""
        return f"{self.fit}-{self.side}-{self.interpolation}"

    def __str__(self) -> str:
        return FITS[self.fit].format(self.side)


@dataclass(frozen=True)
class Crop:
    """Cuts a square out of an image.

    Attributes:
        size: the square's side in pixels.
        scale: None for squares of that size in the image; for others the smallest share of the
            image's area, of rectangles with sides as 3 to 4 at most, which are then resized.
        interpolation: of those.
    """

    size: int
    scale: float | None = None
    interpolation: str = "bilinear"

    def centre(self, image: Image.Image) -> Image.Image:
        """The square in the middle."""
        left, top = (round((side - self.size) / 2) for side in image.size)
        return image.crop((left, top, left + self.size, top + self.size))

    def random(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        """A square anywhere, mirrored in half of the cases."""
        if self.scale is None:
            left, top = (int(generator.integers(side - self.size + 1)) for side in image.size)
            square = image.crop((left, top, left + self.size, top + self.size))
        else:
            box = _rectangle(image.size, self.scale, generator)
            resample = INTERPOLATIONS[self.interpolation]
            square = image.resize((self.size, self.size), resample, box=box)
        if generator.random() < 0.5:
            square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return square

    def describe(self, train: bool) -> str:
        """What is cut out, in a few words."""
        if not train:
            return f"centre {self.size}"
        if self.scale is None:
            return f"{self.size} anywhere, mirrored or not"
        return f"{100 * self.scale:.0f} to 100 % of the area, mirrored or not"


@dataclass(frozen=True)
class Transform:
    """Makes an image of one size of a picture of any.

    Attributes:
        resize: the first step, which is the same every time.
        crop: the second.
        train: whether the second is random.
    """

    resize: Resize
    crop: Crop
    train: bool

    @property
    def size(self) -> int:
        """Height and width of the images, in pixels."""
        return self.crop.size

    def __call__(
        self, picture: Image.Image, generator: np.random.Generator | None = None
    ) -> np.ndarray:
        """A picture of any size and mode -> (size, size, 3) uint8, RGB.

        `generator` gives the random numbers of one for training; without it torch's seed another.
        """
        image = self.resize(picture)
        if self.train:
            return np.asarray(self.crop.random(image, generator or _torch_generator()))
        return np.asarray(self.crop.centre(image))


@dataclass(frozen=True)
class _Recipe:
    """A paper's transform at the size it was made for."""

    fit: str
    size: int
    scale: float | None = None
    resized: int = 256


_RECIPES = {
    "lifted": _Recipe("stretch", 227),
    "lifted-sop": _Recipe("trim", 227),
    "norm-softmax": _Recipe("stretch", 224),
    "padded": _Recipe("pad", 224),
    "reality-check": _Recipe("short", 227, scale=0.16),
    "weights": _Recipe("short", 224, scale=0.08),
}


def transform_names() -> list[str]:
    """The names that `create_transform` knows."""
    return sorted(_RECIPES)


def transform_size(name: str) -> int:
    """The size of the images that the transform of that name makes by default, in pixels."""
    if name not in _RECIPES:
        raise unknown_name("transform", name, _RECIPES)
    return _RECIPES[name].size


def create_transform(
    name: str,
    size: int | None = None,
    train: bool = False,
    *,
    interpolation: str = "bilinear",
    crop_pct: float | None = None,
) -> Transform:
    """The transform of a paper, or the one that suits pretrained weights.

    Args:
        name: "lifted", "lifted-sop", "norm-softmax", "padded", "reality-check" or "weights";
            docs/backbones.md says what each does and which paper it is from.
        size: height and width of the images in pixels; by default the paper's.
        train: crop at random and mirror; otherwise cut out the centre.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        crop_pct: the size as a share of the side to which the picture is resized first; by default
            the paper's.

    Raises:
        UserError: for an unknown name and for numbers that make no image.
    """
    size = transform_size(name) if size is None else size
    recipe = _RECIPES[name]
    if interpolation not in INTERPOLATIONS:
        raise unknown_name("interpolation", interpolation, INTERPOLATIONS)
    crop_pct = recipe.size / recipe.resized if crop_pct is None else crop_pct
    if not 0 < crop_pct <= 1:
        raise UserError(f"crop_pct must be above 0 and at most 1, not {crop_pct}")
    if not 1 <= size <= MAX_SIDE:
        raise UserError(f"the image size must be from 1 to {MAX_SIDE}, not {size}")
    side = max(size, round(size / crop_pct))
    return Transform(
        Resize(recipe.fit, side, interpolation), Crop(size, recipe.scale, interpolation), train
    )


def own_generator(transform: object) -> np.random.Generator | None:
    """What a transform for training draws from where nobody gives it a generator: one that torch's
    random numbers seed, which differ between the processes of a `DataLoader`. None in evaluation.
    """
    return _torch_generator() if getattr(transform, "train", False) else None


def _torch_generator() -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**63 - 1, ())))


def _trim(picture: Image.Image) -> Image.Image:
    """The picture without the white around what it shows, but for a margin."""
    shown = picture.convert("L").point([255] * ALMOST_WHITE + [0] * (256 - ALMOST_WHITE)).getbbox()
    if shown is None:
        return picture
    left, top, right, bottom = shown
    width, height = picture.size
    return picture.crop(
        (
            max(0, left - TRIM_MARGIN),
            max(0, top - TRIM_MARGIN),
            min(width, right + TRIM_MARGIN),
            min(height, bottom + TRIM_MARGIN),
        )
    )


def _rectangle(
    size: tuple[int, int], scale: float, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random rectangle in an image of (width, height): left, top, right, bottom.

    Its area is uniform from `scale` to 1 of the image's, and its shape uniform, on a logarithmic
    scale, from 3 : 4 to 4 : 3. After ten that do not fit it is the largest in the middle that has
    such a shape.
    """
    width, height = size
    limit = math.log(4 / 3)
    for _ in range(10):
        area = width * height * generator.uniform(scale, 1)
        shape = math.exp(generator.uniform(-limit, limit))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            left = int(generator.integers(width - w + 1))
            top = int(generator.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
