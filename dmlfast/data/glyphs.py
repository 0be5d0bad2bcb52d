"""`glyphs`: the characters of the typefaces that matplotlib bundles, a class a character."""

import functools
import hashlib
import logging
import os
import string
import unicodedata
import zipfile
import zlib
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont, features

from dmlfast.data.dataset import Dataset
from dmlfast.errors import UserError
from dmlfast.files import atomic_write_path

SIZE = 32
MARGIN = 1
FONT_SIZES = range(20, 5, -1)  # a character is drawn at the largest at which it fits
MIN_DRAWINGS = 4

FAMILIES = {
    "DejaVuSans": ["", "-Oblique", "-Bold", "-BoldOblique"],
    "DejaVuSansMono": ["", "-Oblique", "-Bold", "-BoldOblique"],
    "DejaVuSerif": ["", "-Italic", "-Bold", "-BoldItalic"],
    "STIXGeneral": ["", "Italic", "Bol", "BolIta"],
}
FACES = [family + style for family, styles in FAMILIES.items() for style in styles]
ASCII_FACES = ["cmr10", "cmti10", "cmb10", "cmss10", "cmtt10"]  # their other codes are TeX's own
ASCII = {ord(character) for character in string.ascii_letters + string.digits}
PRIVATE_USE = range(0xE000, 0xF900)  # stands for something else in every family

logger = logging.getLogger(__name__)


def load_glyphs(data_dir: str | None = None) -> Dataset:
    """All glyphs, not split, rendered the first time and then read from a file in `data_dir`.

    The default is `$XDG_CACHE_HOME/dmlfast` or `~/.cache/dmlfast`. Where nothing can be written, a
    warning is logged, and the next process renders again.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(data_dir or Path(cache, "dmlfast")).expanduser()
    return _load(folder / f"glyphs-{_version()}.npz")


@functools.lru_cache(maxsize=1)
def _load(path: Path) -> Dataset:
    try:
        return read_glyphs(path)
    except OSError:
        pass
    except (EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        logger.warning("%s is damaged: rendering the glyphs again", path)
    glyphs = render_glyphs()
    try:
        write_glyphs(glyphs, path)
    except (OSError, UserError) as error:
        logger.warning("the rendered glyphs are not kept: %s", error)
    return glyphs


def _version() -> str:
    """Changes with all that the images depend on: this file, the typefaces and FreeType."""
    libraries = f"{matplotlib.__version__} {features.version('freetype2')}"
    return hashlib.sha256(libraries.encode() + Path(__file__).read_bytes()).hexdigest()[:12]


def read_glyphs(path: Path) -> Dataset:
    """The data set that `write_glyphs` has written."""
    with np.load(path, allow_pickle=False) as arrays:
        return Dataset(
            name="glyphs",
            split="all",
            images=torch.from_numpy(arrays["images"]),
            labels=arrays["labels"],
            paths=arrays["paths"].tolist(),
            class_names=arrays["class_names"].tolist(),
        )


def write_glyphs(glyphs: Dataset, path: Path) -> None:
    """Writes a file that appears whole or not at all; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write_path(path) as temporary:
        np.savez_compressed(
            temporary,
            images=glyphs.images.numpy(),
            labels=glyphs.labels,
            paths=glyphs.paths,
            class_names=glyphs.class_names,
        )


def render_glyphs() -> Dataset:
    """Draws every character in every face and sorts the drawings into classes.

    A class is a character that at least four faces draw, together with those that look the same,
    if that makes at least four different images: some faces share their symbols. The classes are
    numbered in the order of their lowest code points.
    """
    drawings: dict[int, dict[str, bytes]] = defaultdict(dict)  # code point -> face -> pixels
    for face in FACES + ASCII_FACES:
        for code, pixels in draw_face(face).items():
            drawings[code][face] = pixels
    drawings = {code: by_face for code, by_face in drawings.items() if len(by_face) >= MIN_DRAWINGS}

    images: dict[int, dict[bytes, str]] = defaultdict(dict)  # class's code -> pixels -> path
    for code, lowest in merge_lookalikes(drawings).items():
        for face, pixels in drawings[code].items():
            images[lowest].setdefault(pixels, f"U+{code:04X}/{face}")
    codes = sorted(code for code, paths in images.items() if len(paths) >= MIN_DRAWINGS)

    pixels = b"".join(pixels for code in codes for pixels in images[code])
    return Dataset(
        name="glyphs",
        split="all",
        images=torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(-1, 1, SIZE, SIZE),
        labels=np.repeat(np.arange(len(codes)), [len(images[code]) for code in codes]),
        paths=[path for code in codes for path in images[code].values()],
        class_names=[unicodedata.name(chr(code), f"U+{code:04X}") for code in codes],
    )


def draw_face(face: str) -> dict[int, bytes]:
    """The pixels of all characters of a face, by code point."""
    file = str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf"))
    basic = ImageFont.Layout.BASIC  # draws the glyph alone, with or without a shaping library
    fonts = [ImageFont.truetype(file, size, layout_engine=basic) for size in FONT_SIZES]
    drawings = {}
    for code in FT2Font(file).get_charmap():
        if code in PRIVATE_USE or (face in ASCII_FACES and code not in ASCII):
            continue
        image = draw(chr(code), fonts)
        if image is not None:
            drawings[code] = image.tobytes()
    return drawings


def draw(character: str, fonts: list[ImageFont.FreeTypeFont]) -> Image.Image | None:
    """The character in white on black, centred by its ink, in the first font in which it fits.

    None if it is blank or fits in no font.
    """
    for font in fonts:
        canvas = Image.new("L", (4 * SIZE, 4 * SIZE))
        origin = (2 * SIZE, 2 * SIZE)
        ImageDraw.Draw(canvas).text(origin, character, fill=255, font=font, anchor="ls")
        ink = canvas.getbbox()
        if ink is None:
            return None
        width, height = ink[2] - ink[0], ink[3] - ink[1]
        if max(width, height) <= SIZE - 2 * MARGIN:
            left, top = ink[0] - (SIZE - width) // 2, ink[1] - (SIZE - height) // 2
            return canvas.crop((left, top, left + SIZE, top + SIZE))
    return None


def merge_lookalikes(drawings: dict[int, dict[str, bytes]]) -> dict[int, int]:
    """For every code point the lowest one that looks the same.

    Two characters look the same if a face draws them with the same pixels, or if both look the
    same as a third one. `drawings` holds the pixels by code point and face.
    """
    parent = {code: code for code in drawings}

    def root(code: int) -> int:
        while parent[code] != code:
            code = parent[code]
        return code

    seen: dict[tuple[str, bytes], int] = {}
    for code, by_face in drawings.items():
        for drawing in by_face.items():
            lower, higher = sorted((root(seen.setdefault(drawing, code)), root(code)))
            parent[higher] = lower
    return {code: root(code) for code in drawings}
