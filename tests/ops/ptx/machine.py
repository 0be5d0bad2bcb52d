"""The interpreter of PTX in core/, compiled on first use."""

import ctypes
import functools
import weakref
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_bool, c_char, c_char_p, c_int32, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path

from .. import compiled
from .parse import Instruction, Kernel

CORE = Path(__file__).with_name("core")
FLAGS = ("-std=c++20", "-O2", "-march=native", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
FLAGS += ("-fwrapv", "-ffp-contract=off", "-fno-strict-aliasing")


class KernelError(RuntimeError):
    """What a kernel does wrong, and where."""


class _Constant(Structure):
    _fields_ = (("reg", c_int32), ("value", c_uint64))


class _Special(Structure):
    _fields_ = (("reg", c_int32), ("kind", c_int32))


class _Tensor(Structure):
    _fields_ = (("base", c_uint64), ("size", c_uint64), ("number", c_int32))


class _Launch(Structure):
    _fields_ = (
        ("constants", POINTER(_Constant)),
        ("tensors", POINTER(_Tensor)),
        *((name, c_int32) for name in ("constant_count", "tensor_count", "warps", "shared")),
        *((name, c_int32) for name in ("x", "y", "z", "reversed")),
    )


class _Report(Structure):
    _fields_ = (
        ("what", c_char * 256),
        *((name, c_int32) for name in ("instruction", "other", "warp", "x", "y", "z")),
    )


def build() -> Path:
    """The library, made where it is older than its sources or of another processor."""
    cpu = Path("/proc/cpuinfo").read_text().splitlines()
    key = next((line for line in cpu if line.startswith("flags")), "")
    return compiled.build("ptx", sorted(CORE.glob("*.cpp")), sorted(CORE.glob("*.h")), FLAGS, key)


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build()))
    numbers = POINTER(c_int32)
    library.ptx_new.restype = c_void_p
    library.ptx_new.argtypes = (c_char_p, c_int32, POINTER(_Special), c_int32)
    library.ptx_delete.restype, library.ptx_delete.argtypes = None, (c_void_p,)
    library.ptx_add.restype = c_bool
    library.ptx_add.argtypes = (c_void_p, c_char_p, c_int32, c_bool, numbers, c_int32)
    library.ptx_run.restype = c_bool
    library.ptx_run.argtypes = (c_void_p, POINTER(_Launch), POINTER(_Report))
    return library


@dataclass(frozen=True)
class Memory:
    """What a program may touch: bytes from an address on.

    ``number``: the bytes of a number, 2 or 4, where a number may be one that must not be used
    before it is written; else 0.
    """

    base: int
    size: int
    number: int = 0


class Machine:
    """Runs one kernel."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        special = [_Special(*pair) for pair in kernel.special.items()]
        made = (_Special * len(special))(*special)
        self.handle = _library().ptx_new(
            bytes(kernel.widths), len(kernel.widths), made, len(special)
        )
        weakref.finalize(self, _library().ptx_delete, self.handle)
        for each in kernel.instructions:
            self._add(each)

    def _add(self, each: Instruction) -> None:
        numbers = []
        for operand in each.operands:
            numbers += [operand.registers, len(operand.items), *operand.items]
        made = (c_int32 * len(numbers))(*numbers)
        given = each.guard, each.negated, made, len(numbers)
        if not _library().ptx_add(self.handle, each.name.encode(), *given):
            raise KernelError(f"{each.name} is not known here: {each.text}")

    def run(
        self,
        arguments: Sequence[int],
        memory: Sequence[Memory],
        grid: tuple[int, int, int],
        warps: int,
        shared: int,
        reversed_order: bool = False,
    ) -> None:
        """Runs the programs of a grid one after the other.

        Args:
            arguments: the bits of the parameters.
            memory: disjoint, in the order of addresses.
            shared: bytes of shared memory.
            reversed_order: the last program and the last warp go first.

        Raises KernelError where the kernel errs.
        """
        registers = [register for _, register in self.kernel.parameters]
        values = {**self.kernel.constants, **dict(zip(registers, arguments, strict=True))}
        constants = (_Constant * len(values))(*(_Constant(*pair) for pair in values.items()))
        tensors = (_Tensor * len(memory))()
        for made, given in zip(tensors, memory, strict=True):
            made.base, made.size, made.number = given.base, given.size, given.number
        counts = len(values), len(memory), warps, shared
        launch = _Launch(constants, tensors, *counts, *grid, reversed_order)
        report = _Report()
        if not _library().ptx_run(self.handle, ctypes.byref(launch), ctypes.byref(report)):
            raise KernelError(self._text_of(report))

    def _text_of(self, report: _Report) -> str:
        text = f"{report.what.decode()}, in warp {report.warp}"
        text += f" of program ({report.x}, {report.y}, {report.z})"
        text += f"\n  at  {self._line(report.instruction)}"
        return text if report.other < 0 else f"{text}\n  and {self._line(report.other)}"

    def _line(self, index: int) -> str:
        each = self.kernel.instructions[index]
        return f"{each.place} {each.text}"
