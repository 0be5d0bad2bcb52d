"""Text as it is shown to people."""

from collections.abc import Iterator, Sequence


def visible(text: str) -> str:
    r"""The text with an escape for whatever does not print, such as `\n` for the end of a line.

    >>> visible("Gr\u00fcn\n\x1b[31m")
    'Gr\u00fcn\\n\\x1b[31m'
    """
    return "".join(c if c.isprintable() else escaped(c) for c in text)


def escaped(character: str) -> str:
    r"""A character as Python writes it in ASCII, such as `\x1b` or `\u72ac`."""
    return character.encode("unicode_escape").decode()


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A line for each row, its cells below each other and two blanks apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
