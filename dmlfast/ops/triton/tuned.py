"""Block sizes found by `dmlfast tune`, kept on disk for a GPU and a version of Triton and dmlfast.

Nothing here may break a run: a file that cannot be used is a warning, and the tables serve.
"""

import json
import os
import re
import warnings
from pathlib import Path

import triton

import dmlfast
from dmlfast.files import atomic_write_path

Found = dict[str, dict[str, tuple[int, ...]]]  # kind of dtype -> kernel -> tile
HALF, FULL = "half", "float32"
# What is tried, and all that a file may hold. In the order of a tile's fields in `configs`.
CANDIDATES: dict[str, dict[str, tuple[tuple[int, ...], ...]]] = {
    HALF: {
        "reduce": (
            (128, 128, 32, 8, 2),
            (128, 128, 32, 8, 3),
            (128, 128, 16, 8, 3),
            (128, 64, 32, 8, 3),
            (128, 64, 32, 8, 4),
            (128, 64, 32, 4, 3),
            (64, 128, 32, 4, 3),
            (64, 64, 32, 4, 3),
        ),
        "wide_reduce": (
            (128, 128, 32, 8, 2),
            (128, 128, 32, 8, 3),
            (128, 128, 32, 8, 4),
            (128, 64, 32, 8, 3),
            (128, 64, 32, 4, 4),
            (64, 128, 32, 4, 3),
        ),
        "gradient": (
            (128, 128, 16, 8, 2),
            (128, 64, 16, 8, 2),
            (128, 64, 16, 8, 3),
            (128, 64, 32, 8, 2),
            (128, 32, 16, 8, 3),
            (64, 64, 16, 4, 2),
            (64, 64, 32, 8, 2),
            (64, 32, 16, 4, 3),
        ),
        "weights": (
            (128, 16, 4096, 8, 2),
            (128, 16, 4096, 8, 3),
            (128, 16, 4096, 8, 4),
            (128, 32, 4096, 8, 3),
            (128, 16, 2048, 8, 3),
            (64, 16, 4096, 4, 3),
        ),
        "product": (
            (128, 128, 64, 8, 2),
            (128, 128, 64, 8, 3),
            (128, 128, 64, 8, 4),
            (128, 128, 32, 8, 4),
            (128, 256, 64, 8, 3),
            (128, 64, 64, 4, 3),
            (64, 128, 64, 4, 3),
        ),
        "scores": (
            (128, 128, 4, 2),
            (128, 128, 4, 3),
            (128, 128, 8, 3),
            (128, 128, 8, 4),
            (128, 64, 4, 3),
            (128, 64, 8, 3),
            (64, 128, 4, 3),
        ),
        "pddm": (
            (8, 8, 32, 128, 32, 128, 4, 2),
            (8, 8, 32, 128, 32, 128, 4, 3),
            (8, 8, 64, 128, 32, 128, 4, 1),
            (8, 16, 64, 128, 32, 128, 8, 1),
            (8, 16, 32, 128, 32, 128, 8, 3),
            (8, 16, 64, 128, 32, 64, 8, 2),
            (8, 16, 64, 128, 64, 128, 8, 2),
        ),
        "small": (
            (128, 32, 32, 8, 1),
            (128, 32, 16, 8, 1),
            (64, 32, 32, 8, 1),
            (32, 32, 32, 8, 1),
            (128, 32, 16, 16, 1),
            (64, 32, 16, 16, 1),
        ),
    },
    FULL: {
        "reduce": (
            (64, 64, 32, 8, 2),
            (64, 64, 32, 4, 2),
            (64, 64, 16, 4, 2),
            (64, 32, 32, 4, 2),
            (128, 64, 32, 8, 2),
        ),
        "wide_reduce": (
            (64, 64, 32, 8, 2),
            (64, 64, 32, 8, 3),
            (64, 64, 32, 4, 3),
            (128, 64, 32, 8, 2),
        ),
        "gradient": (
            (64, 64, 16, 8, 2),
            (64, 32, 16, 8, 2),
            (64, 32, 16, 4, 2),
            (64, 16, 16, 8, 2),
            (128, 32, 16, 8, 2),
        ),
        "weights": (
            (64, 16, 2048, 8, 2),
            (64, 16, 2048, 8, 3),
            (64, 16, 2048, 4, 3),
            (64, 16, 1024, 8, 3),
        ),
        "product": (
            (64, 64, 32, 4, 3),
            (64, 64, 32, 8, 4),
            (128, 64, 32, 8, 3),
            (128, 128, 32, 8, 2),
        ),
        "scores": (
            (64, 64, 4, 2),
            (64, 64, 4, 3),
            (64, 64, 8, 2),
            (64, 64, 8, 3),
            (128, 64, 8, 2),
        ),
        "pddm": (
            (8, 8, 32, 128, 32, 64, 8, 2),
            (8, 8, 32, 64, 32, 64, 4, 1),
            (8, 8, 32, 64, 32, 64, 8, 2),
            (8, 16, 32, 64, 32, 64, 8, 1),
            (8, 8, 16, 64, 16, 64, 8, 2),
        ),
        "small": (
            (32, 16, 32, 8, 1),
            (32, 32, 32, 8, 1),
            (16, 16, 32, 8, 1),
            (32, 16, 16, 16, 1),
        ),
    },
}


def path_for(gpu: str) -> Path:
    """The file of a GPU by its name."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dmlfast"
    versions = f"{gpu} triton {triton.__version__} dmlfast {dmlfast.__version__}"
    return folder / f"tiles-{re.sub(r'[^a-z0-9.]+', '-', versions.lower())}.json"


def read(gpu: str) -> Found:
    """What was found for a GPU; nothing where no one has tuned, or the file cannot be used."""
    try:
        path = path_for(gpu)
        content = path.read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return {}
    try:
        return {
            kind: {kernel: _checked(kind, kernel, tile) for kernel, tile in tiles.items()}
            for kind, tiles in json.loads(content).items()
        }
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(f"{path} is ignored ({reason}); `dmlfast tune` writes it again", stacklevel=2)
        return {}


def _checked(kind: str, kernel: str, tile: list[int]) -> tuple[int, ...]:
    if tuple(tile) not in CANDIDATES[kind][kernel]:
        raise ValueError(f"{tile} was never tried for {kernel}")
    return tuple(tile)


def write(gpu: str, found: Found) -> Path:
    """Keeps what was found; raises `UserError` where that cannot be written."""
    path = path_for(gpu)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write_path(path) as temporary:
        temporary.write_text(json.dumps(found, indent=1))
    return path
