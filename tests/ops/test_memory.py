"""Memory beyond inputs, loss and gradients, measured in a process of its own."""

import subprocess
import sys

import pytest

MEASURE = """
import resource
import torch
from dmlfast.ops import lifted_structured_loss

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

torch.set_num_threads({threads})
x = torch.randn({n}, {d}, requires_grad=True)
labels = {labels}
lifted_structured_loss(x[:300], labels[:300], impl="cpu").backward()
x.grad = torch.zeros_like(x)
before = peak()
lifted_structured_loss(x, labels, impl="cpu").backward()
print(peak() - before)
"""


def extra_mib(n: int, d: int, threads: int, labels: str) -> float:
    code = MEASURE.format(n=n, d=d, threads=threads, labels=labels)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(run.stdout)


@pytest.mark.parametrize("labels", ["torch.zeros(8192).long()", "torch.arange(8192) // 4"])
def test_8192_rows_on_four_threads_take_less_than_64_mib(labels):
    """Their distances alone would be 256 MiB."""
    assert extra_mib(8192, 64, 4, labels) < 64


@pytest.mark.long
@pytest.mark.parametrize("threads", [1, 16])
def test_65536_rows_take_less_than_400_mib(threads):
    """Their distances alone would be 16 GiB."""
    assert extra_mib(65536, 128, threads, "torch.arange(65536) // 4") < 400
