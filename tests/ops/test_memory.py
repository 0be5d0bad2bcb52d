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

torch.set_num_threads(4)
x = torch.randn(8192, 64, requires_grad=True)
labels = {labels}
lifted_structured_loss(x[:300], labels[:300], impl="cpu").backward()
x.grad = torch.zeros_like(x)
before = peak()
lifted_structured_loss(x, labels, impl="cpu").backward()
print(peak() - before)
"""


@pytest.mark.parametrize(
    "labels", ["torch.zeros(8192, dtype=torch.long)", "torch.arange(8192) // 4"]
)
def test_8192_rows_on_four_threads_take_less_than_64_mib(labels):
    """Their distances alone would be 256 MiB."""
    code = MEASURE.format(labels=labels)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 64
