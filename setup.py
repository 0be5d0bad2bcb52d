"""Builds csrc/ into plain shared libraries that need neither torch nor Python to compile.

The CUDA kernels are built where nvcc is found (on the PATH, or in CUDA_HOME), whether or not there
is a GPU; DMLFAST_CUDA=0 leaves them out, and DMLFAST_CUDA_ARCHITECTURES, where it is set, says for
which GPUs: a list such as "80,90a". DMLFAST_REQUIRE_NATIVE, a list such as "cpu,cuda", turns a
library that could not be built into an error; without it the package installs and `dmlfast info`
says what is missing.
"""

import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

CPU_FLAGS = ["-std=c++17", "-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wall"]
CPU_FLAGS += ["-fvisibility=hidden", "-g0", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]

# One translation unit, compiled once per instruction set; the library picks at run time. The
# plainest comes first: of the templates of the standard library that all of them instantiate, the
# linker keeps the first.
ISA_FLAGS = {"generic": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma"]
    ISA_FLAGS["avx512"] = ["-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw"]
    ISA_FLAGS["avx512"] += ["-mprefer-vector-width=512"]


CUDA_ARCHITECTURES = "80,90a,100"
CUDA_FLAGS = ["-std=c++17", "-O3", "-cudart=static", "-Xcompiler=-fPIC,-fvisibility=hidden"]
CUDA_FLAGS += ["--threads=2"]  # of a file for several GPUs
JOB_BYTES = 2 << 30  # that one run of a compiler may take
LIBRARIES = ("cpu", "cuda")


def required() -> list[str]:
    """The libraries that have to be built."""
    names = list(filter(None, os.environ.get("DMLFAST_REQUIRE_NATIVE", "").split(",")))
    if unknown := sorted(set(names) - set(LIBRARIES)):
        sys.exit(
            f"DMLFAST_REQUIRE_NATIVE has '{unknown[0]}'; it is a list of {', '.join(LIBRARIES)}"
        )
    return names


def nvcc() -> str:
    """Where the compiler of CUDA is."""
    if os.environ.get("DMLFAST_CUDA") == "0":
        raise RuntimeError("DMLFAST_CUDA is 0")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    found = shutil.which("nvcc") or shutil.which("nvcc", path=os.path.join(home, "bin"))
    if found is None:
        raise RuntimeError(f"nvcc is neither on the PATH nor in {home}/bin")
    return found


def architectures(compiler: str) -> list[str]:
    """Those asked for, or of the usual ones those that this nvcc knows."""
    asked = os.environ.get("DMLFAST_CUDA_ARCHITECTURES")
    if asked:
        return asked.split(",")
    known = printed(compiler, "--list-gpu-code").replace("sm_", "").split()
    return [number for number in CUDA_ARCHITECTURES.split(",") if number.rstrip("a") in known]


def code_flags(numbers: list[str]) -> list[str]:
    """Machine code for these GPUs, and PTX for those that come after the last one whose PTX serves
    any later one."""
    flags = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
    for number in [number for number in numbers if number.isdigit()][-1:]:
        flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def interface(*headers: str) -> str:
    """A number by which the library and the Python that calls it know that they fit each other."""
    return f"{zlib.crc32(b''.join(Path('csrc', header).read_bytes() for header in headers))}u"


def printed(*command: str) -> str:
    return subprocess.run(command, check=True, text=True, capture_output=True).stdout


def jobs() -> int:
    """How many files to compile at a time, as memory allows."""
    known = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").exists() else ""
    available = re.search(r"MemAvailable: +(\d+) kB", known)  # with what caches would give up
    processors = os.cpu_count() or 1
    if not available:
        return processors
    return max(1, min(processors, int(available[1]) * 1024 // JOB_BYTES))


class BuildNative(build_ext):
    """Makes shared libraries, without a Python module in them."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return ext.export_symbols

    def build_extension(self, ext: Extension) -> None:
        name = ext.name.rsplit("_", 1)[1]
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if name == "cuda":
                self.build_cuda(ext, target)
            else:
                self.build_cpu(ext, target)
        except Exception as error:
            target.unlink(missing_ok=True)  # what is there from before may not fit the rest
            if name in required():
                raise
            ext.optional = True  # an editable install looks for the library otherwise
            print(f"dmlfast: the {name} kernels were not built: {error}", file=sys.stderr)

    def build_cpu(self, ext: Extension, target: Path) -> None:
        """Compiles for every instruction set, and links one library."""
        flags = CPU_FLAGS + os.environ.get("DMLFAST_CXXFLAGS", "").split()

        def compiled(isa: str) -> list[str]:
            return self.compiler.compile(
                [source for source in ext.sources if "kernels" in source],
                output_dir=str(Path(self.build_temp) / isa),
                macros=[("DML_ISA", isa)],
                extra_postargs=flags + ISA_FLAGS[isa],
                depends=ext.depends,
            )

        with ThreadPoolExecutor(jobs()) as pool:
            objects = [*itertools.chain.from_iterable(pool.map(compiled, ISA_FLAGS))]
        objects += self.compiler.compile(
            [source for source in ext.sources if "kernels" not in source],
            output_dir=self.build_temp,
            macros=[
                *(("DML_WITH_" + isa.upper(), None) for isa in ISA_FLAGS),
                ("DML_INTERFACE", interface("dmlfast.h")),
            ],
            extra_postargs=flags,
            depends=ext.depends,
        )
        self.compiler.link_shared_object(
            objects, str(target), extra_postargs=[*flags, "-shared"], target_lang="c++"
        )

    def build_cuda(self, ext: Extension, target: Path) -> None:
        """Compiles for every GPU what is older than its sources, and links one library.

        A file named after sm_90 has code for that GPU alone. Objects are kept from one
        installation to the next, which has a `build_temp` of its own.
        """
        compiler = nvcc()
        numbers = architectures(compiler)
        flags = [*CUDA_FLAGS, f"-DDML_INTERFACE={interface('dmlfast.h', 'dmlfast_cuda.h')}"]
        if "90a" in numbers:
            flags.append("-DDML_SM90A")
        release = re.search(r"release ([\d.]+)", printed(compiler, "--version"))
        folder = Path("build", "cuda", f"{release[1] if release else ''}-{'-'.join(numbers)}")
        folder.mkdir(parents=True, exist_ok=True)
        newest = max(Path(path).stat().st_mtime for path in [*ext.depends, "setup.py"])

        def make(whole: Path, *options: str | Path) -> None:
            part = whole.with_name(f"{whole.name}.{os.getpid()}")  # another may be at work
            subprocess.run([compiler, *flags, *options, "-o", part], check=True)
            part.replace(whole)

        def compiled(source: str) -> Path:
            code = folder / f"{Path(source).stem}.o"
            changed = max(newest, Path(source).stat().st_mtime)
            if self.force or not code.exists() or code.stat().st_mtime < changed:
                of_sm90 = "90a" in numbers and code.stem.endswith("_sm90")
                make(code, *code_flags(["90a"] if of_sm90 else numbers), "-c", source)
            return code

        with ThreadPoolExecutor(jobs()) as pool:
            objects = list(pool.map(compiled, ext.sources))
        make(target, *code_flags(numbers), "-shared", *objects)


class Wheel(bdist_wheel):
    """Of a platform, and of any Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


required()
setup(
    package_dir={"dmlfast.cli": "cli", "dmlfast.bench": "bench"},
    packages=[
        *find_packages(include=["dmlfast", "dmlfast.*"]),
        "dmlfast.cli",
        "dmlfast.bench",
        "dmlfast.bench.claims",
    ],
    package_data={"dmlfast": ["py.typed", "ops/fastest.csv", "recipes/*.yaml"]},
    ext_modules=[
        Extension(
            "dmlfast.ops.libdmlfast_cpu",
            sources=["csrc/cpu/kernels.cpp", "csrc/cpu/dispatch.cpp"],
            depends=sorted(str(path) for path in Path("csrc").rglob("*.h")),
        ),
        Extension(
            "dmlfast.ops.libdmlfast_cuda",
            sources=sorted(str(path) for path in Path("csrc/cuda").glob("*.cu")),
            depends=sorted(str(path) for path in Path("csrc").rglob("*.h")),
        ),
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
