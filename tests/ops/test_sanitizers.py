"""The CPU kernels under the sanitizers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("sanitize.cpp")


def run(command: list[str | Path], **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.mark.parametrize(
    ("sanitizers", "level"),
    [("address,undefined", "-O0"), pytest.param("thread", "-O1", marks=pytest.mark.long)],
)
def test_kernels_run_clean(sanitizers, level, tmp_path):
    """Without optimisation, which takes half the time to compile and leaves all accesses in."""
    flags = [level, "-g1", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    build = [sys.executable, "setup.py", "-q", "build_ext"]
    folders = ["--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "objects"]
    environment = {
        "DMLFAST_CXXFLAGS": " ".join(flags),
        "DMLFAST_REQUIRE_NATIVE": "cpu",
        "DMLFAST_CUDA": "0",
    }
    run([*build, *folders], **environment)
    library = tmp_path / "lib" / "dmlfast" / "ops" / "libdmlfast_cpu.so"
    program = tmp_path / "sanitize"
    link = [library, f"-Wl,-rpath,{library.parent}", "-pthread"]
    run(["g++", "-std=c++17", *flags, "-I", "csrc", DRIVER, *link, "-o", program])
    assert "generic done" in run([program], OMP_WAIT_POLICY="passive")
