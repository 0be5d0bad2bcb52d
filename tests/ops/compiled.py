"""Libraries that tests compile, made where they are older than their sources."""

import fcntl
import hashlib
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build(
    name: str, sources: Sequence[Path], headers: Sequence[Path], flags: Sequence[str], key: str = ""
) -> Path:
    """The library ``name`` below build/ of C++ ``sources``, whatever they are called.

    What it is made of tells one from another: sources, headers, flags of g++ and ``key``.
    """
    state = hashlib.sha256("\0".join([*flags, key]).encode())
    for path in sorted([*sources, *headers]):
        state.update(path.read_bytes())
    folder = ROOT / "build" / name / state.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"{name}.so"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.exists():
            return library

        def compiled(source: Path) -> Path:
            made = folder / f"{source.stem}.o"
            subprocess.run(["g++", *flags, "-x", "c++", "-c", source, "-o", made], check=True)
            return made

        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compiled, sources))
        whole = folder / "whole.so"
        subprocess.run(["g++", *flags, "-shared", *objects, "-o", whole], check=True)
        whole.rename(library)
    return library
