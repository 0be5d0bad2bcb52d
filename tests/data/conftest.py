"""Small trees of image files, in the layouts of real data sets."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dmlfast.data import listing


@pytest.fixture
def write_image(tmp_path) -> Callable[..., Path]:
    """Writes a plain image of one colour below `tmp_path`, by default a tiny red JPEG."""

    def write(path, color="red", size=(8, 6), mode="RGB", **options) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, color).convert(mode).save(file, **options)
        return file

    return write


@pytest.fixture
def write_text(tmp_path) -> Callable[..., Path]:
    """Writes lines into a text file below `tmp_path`."""

    def write(path, *lines) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n")
        return file

    return write


@pytest.fixture
def set_counts(monkeypatch) -> Callable[..., None]:
    """Makes a data set as small as its tree: images and classes of each part."""

    def set_to(name, **parts) -> None:
        monkeypatch.setitem(listing.COUNTS, name, parts)

    return set_to
