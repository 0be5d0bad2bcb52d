"""Triton decides when it is imported whether it compiles its kernels or interprets them."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_terminal_summary(terminalreporter):
    """The kernels that tests/ops/test_ahead.py has compiled, and what each takes."""
    found = [
        kernel
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        for name, kernels in report.user_properties
        if name == "compiled"
        for kernel in kernels
    ]
    if not found:
        return
    terminalreporter.section("Triton kernels compiled ahead of time")
    columns = ("kernel", "capability", "dtype", "width", "registers", "stack", "shared")
    line = "{:18} {:>10} {:9} {:>5} {:>9} {:>5} {:>7}"
    terminalreporter.line(line.format(*columns))
    rows = {tuple(kernel[name] for name in columns) for kernel in found}
    for row in sorted(rows):
        terminalreporter.line(line.format(*row))
