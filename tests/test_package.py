"""What a wheel holds, without building the kernels."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_PACKAGED = {".md", ".so", ".pyc"}


def test_a_wheel_holds_every_module_and_what_modules_read(tmp_path):
    lists, wheel = tmp_path / "lists", tmp_path / "wheel"
    lists.mkdir()  # of their own: those of an earlier build would be taken for right
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(lists)]
    command += ["build_py", "--build-lib", str(wheel)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    packaged = {str(path.relative_to(wheel)) for path in wheel.rglob("*") if path.is_file()}
    wanted = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "dmlfast").rglob("*")
        if path.is_file() and path.suffix not in NOT_PACKAGED
    }
    for folder in ("cli", "bench"):
        wanted |= {f"dmlfast/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*.py")}
    assert {"dmlfast/py.typed", "dmlfast/ops/fastest.csv"} < wanted
    assert "dmlfast/recipes/lifted-cub.yaml" in wanted
    assert packaged == wanted
