"""Where kernels for GPUs are tested: on a GPU by `make gpu`, and otherwise on the CPU, Triton's in
its interpreter and CUDA's emulated.

Triton decides which of the two it does when it is imported.
"""

import gc
import os

import pytest
import torch

gc.set_threshold(50_000)  # the interpreter makes many objects, of which none are garbage in circles
os.environ.setdefault("TRITON_INTERPRET", "1")
ON_GPU = torch.cuda.is_available() and os.environ["TRITON_INTERPRET"] == "0"


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "run the tests marked gpu in Triton's interpreter, as far as they can be"
    parser.addoption("--interpreted", action="store_true", help=text)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not ON_GPU and not config.getoption("--interpreted"):
        skip = pytest.mark.skip(reason="needs an NVIDIA GPU, and TRITON_INTERPRET=0: `make gpu`")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


def pytest_collection_finish():
    """What is imported by now stays: collections of garbage need not go through it each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()


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
