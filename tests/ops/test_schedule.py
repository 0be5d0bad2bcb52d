"""The schedule of the kernels on its own, for sizes that no product could be tested at."""

import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("schedule.cpp")
INCLUDE = Path(__file__).parents[2] / "csrc"


def test_every_pair_of_blocks_comes_once_and_every_block_in_turn(tmp_path):
    program = tmp_path / "schedule"
    command = ["g++", "-std=c++17", "-O1", "-fopenmp", "-I", INCLUDE, SOURCE, "-o", program]
    subprocess.run(command, check=True)
    run = subprocess.run([program], capture_output=True, text=True, timeout=100, check=False)
    assert run.stdout == "right\n"
