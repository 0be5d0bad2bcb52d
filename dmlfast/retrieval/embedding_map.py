"""A picture of an embedding: images laid out in the plane, similar ones together."""

import colorsys

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageOps

from dmlfast.retrieval.drawing import (
    INK,
    SCALE,
    ImageOf,
    canvas,
    fitted,
    header,
    readable,
    shortened,
    typeface,
)
from dmlfast.retrieval.features import DISTANCES, Features, check_paths
from dmlfast.text import counted

WIDTH, HEIGHT, MARGIN, TOP = 1000, 800, 28, 66  # units
MAX_IMAGES = 480
NAME_WIDTH = 110
FRAME = 3  # around an image
LEGEND_CLASSES, LEGEND_COLUMNS, LEGEND_ROW, SWATCH = 40, 5, 14, 9


def draw_map(
    features: Features, *, image_of: ImageOf | None = None, classes: int = 40, seed: int = 0
) -> Image.Image:
    """Draws up to 480 images of some classes where t-SNE puts their embeddings.

    The classes, `classes` of those with at least two images, are drawn by `seed`; every class has
    its own colour. With `image_of`, which gives the image of a path, the images themselves are
    shown: grey ones as ink of the class's colour, others in a frame of it, above a legend of up to
    40 classes; without it, dots with the names of the classes. Takes seconds.
    """
    if image_of is not None:
        check_paths(features)
    rows = _sample(features.labels, classes, seed)
    shown, class_of = np.unique(features.labels[rows], return_inverse=True)
    side = 28 if image_of else 9
    points = _lay_out(features, rows, side, seed)
    colours = [_colour(i, len(shown)) for i in range(len(shown))]

    names = [features.class_name(label) for label in shown]
    legend = names if image_of and len(names) <= LEGEND_CLASSES else []
    legend_rows = -(-len(legend) // LEGEND_COLUMNS)

    picture, draw = canvas(WIDTH, HEIGHT + legend_rows * LEGEND_ROW)
    title = f"Map of the embedding: {features.title}"
    total = len(np.unique(features.labels))
    of_all = f", of {total:,}" if len(shown) < total else ""
    images, of = counted(len(rows), "image"), counted(len(shown), "class", "classes")
    text = f"t-SNE of {images} of {of}{of_all}; a colour a class"
    header(draw, MARGIN, WIDTH, (title, text))
    for row, point, colour in zip(rows, points, class_of, strict=True):
        if image_of is None:
            _draw_dot(draw, point, side, colours[colour])
        else:
            _paste(picture, image_of(features.paths[row]), point, side, colours[colour])
    if image_of is None:
        for index, name in enumerate(names):
            _draw_name(draw, points[class_of == index], name, colours[index])
    for index, name in enumerate(legend):
        _draw_legend(draw, *divmod(index, legend_rows), name, colours[index])
    return picture


def _sample(labels: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Rows of some classes, an equal share of each at most."""
    generator = np.random.default_rng(seed)
    known, counts = np.unique(labels, return_counts=True)
    chosen = generator.permutation(known[counts >= min(2, counts.max(initial=0))])[:classes]
    share = MAX_IMAGES // max(1, len(chosen))
    parts = [generator.permutation(np.flatnonzero(labels == label))[:share] for label in chosen]
    return np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int64)


def _lay_out(features: Features, rows: np.ndarray, side: float, seed: int) -> np.ndarray:
    """Centres (n, 2) in units, spread over the picture, tiles of `side` pushed off each other."""
    plane = _plane(features.floats(rows), DISTANCES[features.distance], seed)
    low, high = plane.min(axis=0, initial=0), plane.max(axis=0, initial=0)
    corner = np.array([MARGIN, TOP + MARGIN]) + side / 2
    size = np.array([WIDTH, HEIGHT]) - MARGIN - side / 2 - corner
    points = corner + (plane - low) / np.where(high > low, high - low, 1) * size
    for _ in range(120):
        points = np.clip(points + _push(points, side), corner, corner + size)
    return points


def _plane(embeddings: np.ndarray, metric: str, seed: int) -> np.ndarray:
    """t-SNE coordinates (n, 2)."""
    from sklearn.manifold import TSNE

    n = len(embeddings)
    if n < 4:
        return np.stack([np.arange(n), np.zeros(n)], axis=1)
    perplexity, seed = min(12, (n - 1) / 3), seed % 2**32  # which scikit-learn takes
    tsne = TSNE(perplexity=perplexity, init="random", metric=metric, random_state=seed)
    plane: np.ndarray = tsne.fit_transform(embeddings.astype(np.float32)).astype(np.float64)
    return plane


def _push(points: np.ndarray, side: float) -> np.ndarray:
    """A step (n, 2) that moves overlapping tiles apart on the axis where they overlap least."""
    apart = points[:, None] - points[None]
    overlap = np.maximum(0, side - np.abs(apart)).min(axis=2)
    np.fill_diagonal(overlap, 0)
    axis = np.abs(apart).argmax(axis=2)
    sign = np.sign(np.take_along_axis(apart, axis[..., None], 2)[..., 0])
    step = 0.25 * overlap * sign
    return np.stack([(step * (axis == 0)).sum(1), (step * (axis == 1)).sum(1)], axis=1)


def _colour(index: int, count: int) -> tuple[int, int, int]:
    """Colour `index` of `count`: hues all around, in turn darker and lighter, legible on white."""
    rgb = np.array(colorsys.hls_to_rgb(index / max(1, count), (0.32, 0.45, 0.55)[index % 3], 0.75))
    rgb *= min(1, 0.5 / (rgb @ (0.3, 0.59, 0.11)))
    red, green, blue = (round(255 * float(value)) for value in rgb)
    return red, green, blue


def _paste(
    picture: Image.Image,
    image: Image.Image,
    point: np.ndarray,
    side: float,
    colour: tuple[int, int, int],
) -> None:
    """A grey image as ink of `colour` on the picture's white, another in a frame of it."""
    border = 0 if image.mode == "L" else FRAME * SCALE
    small = fitted(image, round(side * SCALE) - 2 * border)
    x, y = (round(float(c) * SCALE - s / 2) for c, s in zip(point, small.size, strict=True))
    if small.mode == "L":
        ground = Image.new("L", small.size, small.getpixel((0, 0)))
        picture.paste(colour, (x, y), ImageChops.difference(small, ground))
    else:
        framed = ImageOps.expand(small.convert("RGB"), border, colour)
        picture.paste(framed, (x - border, y - border))


def _draw_dot(
    draw: ImageDraw.ImageDraw, point: np.ndarray, side: float, colour: tuple[int, int, int]
) -> None:
    draw.circle(tuple(point * SCALE), side / 2 * SCALE, fill=colour, outline="white")


def _draw_legend(
    draw: ImageDraw.ImageDraw, column: int, row: int, name: str, colour: tuple[int, int, int]
) -> None:
    """A swatch of a class's colour and its name, below the map."""
    wide = (WIDTH - 2 * MARGIN) / LEGEND_COLUMNS
    x, y = MARGIN + column * wide, HEIGHT + row * LEGEND_ROW - MARGIN / 2
    box = [SCALE * unit for unit in (x, y, x + SWATCH, y + SWATCH)]
    draw.rectangle(box, fill=colour)
    font = typeface(8)
    text = shortened(readable(name), font, (wide - 2.5 * SWATCH) * SCALE, lines=1)
    draw.text(((x + 1.5 * SWATCH) * SCALE, (y + SWATCH / 2) * SCALE), text, INK, font, anchor="lm")


def _draw_name(
    draw: ImageDraw.ImageDraw, points: np.ndarray, name: str, colour: tuple[int, int, int]
) -> None:
    """The name of a class below those of its dots that lie together."""
    middle = points[np.abs(points - np.median(points, axis=0)).sum(axis=1).argmin()]
    together = points[np.abs(points - middle).max(axis=1) < NAME_WIDTH / 3]
    font = typeface(7.5)
    text = shortened(readable(name), font, NAME_WIDTH * SCALE, lines=2)
    x = np.clip(middle[0], NAME_WIDTH / 2, WIDTH - NAME_WIDTH / 2)
    draw.multiline_text(
        (x * SCALE, (together[:, 1].max() + 6) * SCALE),
        text,
        colour,
        font,
        anchor="ma",
        align="center",
        spacing=SCALE,
        stroke_width=SCALE,
        stroke_fill="white",
    )
