"""The CUDA kernels as a library for the CPU: their own sources, compiled against emulation/.

    python -m tests.ops.emulated [flag of g++ ...]

prints where the library is, which is made where it is older than its sources.
"""

import sys
from pathlib import Path

from . import compiled
from .compiled import ROOT

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
    headers = [*(ROOT / "csrc").rglob("*.h"), *HEADERS.glob("*.h")]
    return compiled.build("emulated", SOURCES, headers, (*FLAGS, *(flags or ("-O2",))))


if __name__ == "__main__":
    print(build(*sys.argv[1:]))
