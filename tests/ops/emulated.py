"""The CUDA kernels as a library for the CPU: their own sources, compiled against emulation/.

    python -m tests.ops.emulated [flag of g++ ...]

prints where the library is, which is made where it is older than its sources.
"""

import fcntl
import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
FLAGS = (
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-DDML_EMULATED",
    "-Wall",
    "-Wno-unknown-pragmas",
)
HEADERS = Path(__file__).with_name("emulation")
FLAGS += ("-ftls-model=initial-exec", "-I", str(HEADERS))


def build(*flags: str) -> Path:
    """The library, compiled with further flags."""
    flags = (*FLAGS, *(flags or ("-O2",)))
    read = [*SOURCES, *(ROOT / "csrc").rglob("*.h"), *HEADERS.glob("*.h")]
    state = hashlib.sha256("\0".join(flags).encode())
    for path in sorted(read):
        state.update(path.read_bytes())
    folder = ROOT / "build" / "emulated" / state.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libdmlfast_cuda.so"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.exists():
            return library

        def compiled(source: Path) -> Path:
            made = folder / f"{source.stem}.o"
            subprocess.run(["g++", *flags, "-x", "c++", "-c", source, "-o", made], check=True)
            return made

        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compiled, SOURCES))
        whole = folder / "whole.so"
        subprocess.run(["g++", *flags, "-shared", *objects, "-o", whole], check=True)
        whole.rename(library)
    return library


if __name__ == "__main__":
    print(build(*sys.argv[1:]))
