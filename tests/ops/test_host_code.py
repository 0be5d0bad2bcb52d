"""The host code of losses on a GPU: it never waits for the GPU, and allocates what is promised."""

import functools
import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")
from .weightless import MEMORY, WAITS

MOST = {
    "lifted": 2048,
    "lifted on cuda": 2048,
    "lifted on cuda, wide": 160,
    "boosted": 64,
    # exponentials that are kept, and what gradients in float32 take beyond rounded ones
    "softmax bfloat16 fast": 3072,
    "softmax float16 fast": 3072,
    "softmax float32 fast": 2048,
    "softmax on cuda fast": 3072,
}


@functools.cache
def found(what):
    """What `tests.ops.weightless` reports, by case: in a process of its own, which it patches."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.weightless", what],
        capture_output=True,
        text=True,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    return {case.pop("case"): case for case in cases}


@pytest.mark.parametrize("case", WAITS)
def test_nothing_waits_for_the_gpu(case):
    assert found("waits")[case]["reason"] is None
    assert found("waits")[case]["launches"] > 0


@pytest.mark.parametrize("per", ["batch", "class", "anchor"])
@pytest.mark.parametrize(("mining", "launches", "most"), [("score", 8, 10), ("distance", 6, 10)])
def test_a_step_of_the_pddm_loss_takes_few_launches(mining, launches, most, per):
    """Two are the norms of embeddings and the way back through them."""
    case = found("waits")[f"PDDMLoss {per} {mining}"]
    assert case["launches"] == launches
    assert len(case["others"]) <= most, case["others"]


def test_a_step_of_the_softmax_takes_few_launches():
    """Two for rows and their own classes, eight for all others, and for as many numbers as there
    are rows torch's.
    """
    case = found("waits")["norm_softmax_loss triton mean {}"]
    assert case["launches"] == 11
    assert len(case["others"]) <= 41, case["others"]


@pytest.mark.parametrize("case", MEMORY)
def test_memory_beyond_inputs_and_gradients(case):
    assert 0 < found("memory")[case]["MiB"] <= MOST.get(case, 64)
