"""Options that name a picture to write."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dmlfast.errors import UserError
from dmlfast.files import atomic_write_path, check_writable

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


def save_picture(picture: "Image.Image", path: Path) -> None:
    """Writes a picture, whole or not at all, and says so on stderr."""
    with atomic_write_path(path) as temporary:
        picture.save(temporary)
    click.echo(f"wrote {path}", err=True)
