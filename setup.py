"""Builds csrc/ into plain shared libraries that need neither torch nor Python to compile.

DMLFAST_REQUIRE_NATIVE=1 turns an extension that could not be built into an error; without it the
package installs and `dmlfast info` says what is missing.
"""

import os
import platform
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
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


class BuildNative(build_ext):
    """Compiles csrc/cpu for every instruction set and links one library without a Python module."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return ext.export_symbols

    def build_extension(self, ext: Extension) -> None:
        flags = CPU_FLAGS + os.environ.get("DMLFAST_CXXFLAGS", "").split()
        try:
            objects = []
            for isa, isa_flags in ISA_FLAGS.items():
                objects += self.compiler.compile(
                    [source for source in ext.sources if "kernels" in source],
                    output_dir=str(Path(self.build_temp) / isa),
                    macros=[("DML_ISA", isa)],
                    extra_postargs=flags + isa_flags,
                    depends=ext.depends,
                )
            objects += self.compiler.compile(
                [source for source in ext.sources if "kernels" not in source],
                output_dir=self.build_temp,
                macros=[("DML_WITH_" + isa.upper(), None) for isa in ISA_FLAGS],
                extra_postargs=flags,
                depends=ext.depends,
            )
            target = Path(self.get_ext_fullpath(ext.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.compiler.link_shared_object(
                objects, str(target), extra_postargs=[*flags, "-shared"], target_lang="c++"
            )
        except Exception as error:
            if os.environ.get("DMLFAST_REQUIRE_NATIVE") == "1":
                raise
            print(f"dmlfast: the CPU kernels were not built: {error}", file=sys.stderr)


setup(
    package_dir={"dmlfast.cli": "cli", "dmlfast.bench": "bench"},
    packages=[
        *find_packages(include=["dmlfast", "dmlfast.*"]),
        "dmlfast.cli",
        "dmlfast.bench",
    ],
    package_data={"dmlfast": ["py.typed"]},
    ext_modules=[
        Extension(
            "dmlfast.ops.libdmlfast_cpu",
            sources=["csrc/cpu/kernels.cpp", "csrc/cpu/dispatch.cpp"],
            depends=sorted(str(path) for path in Path("csrc").rglob("*.h")),
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
