"""Memory beyond inputs, loss and gradients, measured in a process of its own."""

import subprocess
import sys

import pytest

MEASURE = """
import resource
import torch
from dmlfast.ops import {op}

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

torch.set_num_threads({threads})
x = torch.randn({n}, {d}, requires_grad=True)
labels = {labels}
{op}(x[:300], labels[:300], impl="cpu").backward()
x.grad = torch.zeros_like(x)
before = peak()
{op}(x, labels, impl="cpu").backward()
print(peak() - before)
"""


def extra_mib(
    n: int, d: int, threads: int, labels: str, op: str = "lifted_structured_loss"
) -> float:
    code = MEASURE.format(n=n, d=d, threads=threads, labels=labels, op=op)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(run.stdout)


@pytest.mark.parametrize("labels", ["torch.zeros(8192).long()", "torch.arange(8192) // 4"])
def test_8192_rows_on_four_threads_take_less_than_64_mib(labels):
    """Their distances alone would be 256 MiB."""
    assert extra_mib(8192, 64, 4, labels) < 64


@pytest.mark.parametrize("op", ["contrastive_loss", "triplet_loss"])
@pytest.mark.parametrize("labels", ["torch.arange(8192) // 4096", "torch.arange(8192) // 4"])
def test_so_do_other_losses(op, labels):
    assert extra_mib(8192, 64, 4, labels, op) < 64


@pytest.mark.long
@pytest.mark.parametrize("threads", [1, 16])
def test_65536_rows_take_less_than_400_mib(threads):
    """Their distances alone would be 16 GiB."""
    assert extra_mib(65536, 128, threads, "torch.arange(65536) // 4") < 400
