"""Text as it is shown to people."""

from collections.abc import Callable, Iterator, Sequence


def visible(text: str, shown: Callable[[str], bool] = str.isprintable) -> str:
    r"""The text with an escape for whatever does not print, such as `\n` for the end of a line.

    `shown` says of a character whether it is left as it is.

    >>> visible("Gr\u00fcn\n\x1b[31m")
    'Gr\u00fcn\\n\\x1b[31m'
    """
    return "".join(c if shown(c) else c.encode("unicode_escape").decode() for c in text)


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A line for each row, its cells below each other and two blanks apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def counted(number: int, one: str, more: str = "") -> str:
    """A number and what it is of, whose plural is given where it has more than an s at its end.

    >>> counted(1, "query", "queries"), counted(2000, "step")
    ('1 query', '2,000 steps')
    """
    return f"{number:,} {one if number == 1 else more or one + 's'}"
