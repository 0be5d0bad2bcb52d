import os
import sys

import pytest
import torch

from dmlfast.ops import native

from ..conftest import ON_GPU
from . import emulated, interpreter

if not ON_GPU:  # before anything asks which backends there are
    os.environ["DMLFAST_CUDA_EMULATED"] = str(emulated.build())
    interpreter.flush_roots()
    interpreter.hasten()


def _poison_of(dtype):
    if dtype.is_floating_point:
        return torch.nan
    return dtype == torch.bool or torch.iinfo(dtype).max


def _poisoned(make):
    """``make``, whose floats are NaN and integers as large as can be where dmlfast calls it: a read
    before a write is seen.
    """

    def poisoned(*args, **kwargs):
        tensor = make(*args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.startswith("dmlfast."):
            tensor.fill_(_poison_of(tensor.dtype))
        return tensor

    return poisoned


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fresh memory is full of NaN, in the kernels and in the tensors handed to them; and of the
    largest integer.
    """
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))
    library = native.cpu_library()
    library.dml_cpu_poison(1)
    yield
    library.dml_cpu_poison(0)


@pytest.fixture
def threads():
    """Sets the number of threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
