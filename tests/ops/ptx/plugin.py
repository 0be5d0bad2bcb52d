"""Has pytest run the Triton kernels as their PTX for a GPU that need not be there.

pytest -p tests.ops.ptx.plugin --ptx 90 tests/ops/test_lifted.py
"""

import dataclasses
import os
import sys

import pytest
import torch

os.environ["TRITON_INTERPRET"] = "0"

from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from dmlfast.ops.dispatch import BACKENDS

from ..driver import Driver
from .launch import Launcher, fill_undefined, leave_out_assembly

launcher = pytest.StashKey[Launcher]()
OTHERS = {"reference", "cpu", "cuda"}  # backends that are not run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ptx", type=int, help="run Triton kernels for this compute capability")
    parser.addoption("--ptx-reversed", action="store_true", help="the last warp and program first")


def pytest_configure(config: pytest.Config) -> None:
    stand_in(config.getoption("--ptx"), launched := Launcher(config.getoption("--ptx-reversed")))
    config.stash[launcher] = launched


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what a test does on other backends."""

    def is_other(item: pytest.Item) -> bool:
        given = item.callspec.params.values() if hasattr(item, "callspec") else ()
        return any(isinstance(value, str) and value in OTHERS for value in given)

    config.hook.pytest_deselected(items=[item for item in items if is_other(item)])
    items[:] = [item for item in items if not is_other(item)]


def stand_in(capability: int, launch: Launcher) -> None:
    """Patches this process: kernels are compiled for a GPU, and launched on the CPU."""
    driver.set_active(Driver(capability))
    knobs.runtime.add_stages_inspection_hook = leave_out_assembly
    JITFunction.run = lambda kernel, *args, **options: launch(kernel, *args, **options)
    BACKENDS["triton"] = dataclasses.replace(
        BACKENDS["triton"],
        why_not=lambda: None,
        declines=lambda device, dtype: "float64" if dtype == torch.float64 else None,
        by_name_only=lambda: True,
    )


@pytest.fixture(autouse=True)
def triton_alone(monkeypatch):
    """Tests that go through the backends themselves take no other."""

    def only(p, kernels):
        return [name for name in kernels if name == "triton"]

    monkeypatch.setattr("tests.ops.helpers.backends", only)


@pytest.fixture(autouse=True)
def undefined_memory(poisoned_memory, monkeypatch):
    """Fresh memory of the package must be written before a kernel reads it."""

    def undefined(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            if sys._getframe(1).f_globals.get("__name__", "").startswith("dmlfast."):
                fill_undefined(tensor)
            return tensor

        return made

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, undefined(getattr(owner, name)))


def pytest_terminal_summary(terminalreporter, config):
    terminalreporter.line(f"{config.stash[launcher].launches} launches of PTX")
