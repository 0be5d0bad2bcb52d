"""What the pictures share: the typeface, the colours and the fitting of images and text."""

import functools
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dmlfast.text import visible

ImageOf = Callable[[str], Image.Image]  # gives the image of a path

SCALE = 2  # pixels to a unit of layout, so that pictures stay sharp on dense screens
INK, GREY, LINE = "#1f2328", "#6e7781", "#d0d7de"
GREEN, RED = "#1a9850", "#d73027"


@functools.cache
def typeface(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib bundles it, `size` units high."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(
        str(folder / f"DejaVuSans{'-Bold' if bold else ''}.ttf"), round(size * SCALE)
    )


@functools.cache
def characters(typeface_path: str) -> frozenset[int]:
    """The code points that a font file has glyphs for."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(typeface_path).get_charmap())


def canvas(width: float, height: float) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A white picture of `width` x `height` units, and what draws on it in pixels."""
    picture = Image.new("RGB", (round(width * SCALE), round(height * SCALE)), "white")
    return picture, ImageDraw.Draw(picture)


def header(draw: ImageDraw.ImageDraw, margin: float, width: float, text: tuple[str, str]) -> None:
    """A bold line and a grey one below it, 46 units high, in a picture `width` units wide."""
    title, subtitle = text
    for line, y, colour, font in [
        (title, margin, INK, typeface(17, bold=True)),
        (subtitle, margin + 25, GREY, typeface(11)),
    ]:
        short = shortened(line, font, (width - 2 * margin) * SCALE, lines=1)
        draw.text((margin * SCALE, y * SCALE), short, colour, font)


def fitted(image: Image.Image, side: int) -> Image.Image:
    """The image as large as it fits into a square of `side` pixels, its proportions kept."""
    factor = side / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS)


def readable(name: str) -> str:
    """A class's name; one all in capitals, like Unicode's, in small letters, easier to read."""
    return visible(name.capitalize() if name.isupper() and len(name) > 3 else name)


def shortened(text: str, font: ImageFont.FreeTypeFont, width: float, lines: int) -> str:
    """The text in at most `lines` lines of `width` pixels, cut with an ellipsis.

    Where the text has lines, only its last is broken; a word is, where it is wider than a line. A
    character that the font has no glyph for is its escape, such as `\\u72ac`: DejaVu Sans lacks the
    scripts of East Asia, among others.
    """
    known = characters(str(font.path))
    text = visible(text, lambda character: character.isspace() or ord(character) in known)
    first, end, rest = text.partition("\n")
    if end and lines > 1:
        return f"{_cut(first, font, width)}\n{shortened(rest, font, width, lines - 1)}"
    words = [part for word in text.split() for part in _parts(word, font, width)]
    rows = [""]
    for position, word in enumerate(words):
        longer = f"{rows[-1]} {word}".strip()
        if font.getlength(longer) <= width or not rows[-1]:
            rows[-1] = longer
        elif len(rows) < lines:
            rows.append(word)
        else:
            rows[-1] = " ".join([rows[-1], *words[position:]])
            break
    return "\n".join(_cut(row, font, width) for row in rows)


def _parts(word: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """A word in as few parts as fit into lines."""
    parts = [""]
    for character in word:
        if parts[-1] and font.getlength(parts[-1] + character) > width:
            parts.append("")
        parts[-1] += character
    return parts


def _cut(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
