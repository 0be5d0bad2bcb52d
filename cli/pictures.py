"""Options that name a picture to write."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dmlfast.errors import UserError
from dmlfast.files import atomic_write_path, check_writable
from dmlfast.text import visible

if TYPE_CHECKING:
    from PIL import Image

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def picture_path(ctx: click.Context, param: click.Parameter, path: str | None) -> Path | None:
    """A path that a picture can be written to; anything else is found before the work begins."""
    if path is None:
        return None
    if Path(path).suffix.lower() not in PICTURES:
        raise click.BadParameter(f"'{path}' must end in one of {', '.join(PICTURES)}", ctx, param)
    if not Path(path).absolute().parent.is_dir():
        raise click.BadParameter(f"the folder of '{path}' does not exist", ctx, param)
    try:
        check_writable(path)
    except UserError as error:
        raise click.BadParameter(str(error), ctx, param) from None
    return Path(path)


def refuse_overwriting(
    pictures: Mapping[str, Path | None], others: Mapping[str, str | Path | None]
) -> None:
    """Raises the wrong usage of a picture that is one of the other files, or another picture.

    Both are by what names them on the command line.
    """
    names = {os.path.realpath(path): name for name, path in others.items() if path}
    for option, path in pictures.items():
        name = names.setdefault(os.path.realpath(path), option) if path else option
        if name != option:
            raise click.UsageError(f"{option} would overwrite the file of {name}, '{path}'")


def save_picture(picture: "Image.Image", path: Path) -> None:
    """Writes a picture, whole or not at all, and says so on stderr."""
    with atomic_write_path(path) as temporary:
        picture.save(temporary)
    click.echo(visible(f"wrote {path}"), err=True)
