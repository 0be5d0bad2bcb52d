"""Runs what Triton's compiler makes of a kernel on the CPU, in the place of a launch on a GPU."""

import inspect
import struct
from collections.abc import Iterator

import torch
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from .machine import Machine, Memory
from .parse import parse

UNDEFINED = {2: 0x7FED, 4: 0x7FED_BEEF, 8: 0x7FED_BEEF_7FED_BEEF}  # NaN, and large integers
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def fill_undefined(tensor: torch.Tensor) -> None:
    """Makes a tensor one that no kernel may use before it is written; `core/memory.cpp` knows it by
    what it holds. One of single bytes is left as it is.
    """
    size = tensor.element_size()
    if size in UNDEFINED:
        tensor.view(INTEGERS[size]).fill_(UNDEFINED[size])


def memory_of(tensor: torch.Tensor) -> Memory:
    """The bytes from the first number of a tensor to its last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    extent = 1 + sum((count - 1) * step for count, step in steps) if tensor.numel() else 0
    size = tensor.element_size()
    return Memory(tensor.data_ptr(), extent * size, min(size, 4) if size in UNDEFINED else 0)


def merged(memory: list[Memory]) -> list[Memory]:
    """The same in order, those that overlap as one."""
    found: list[Memory] = []
    for each in sorted(memory, key=lambda each: (each.base, each.size)):
        if found and each.base < found[-1].base + found[-1].size:
            last = found.pop()
            end = max(last.base + last.size, each.base + each.size)
            found.append(Memory(last.base, end - last.base, last.number))
        elif each.size:
            found.append(each)
    return found


def flattened(types: object, values: object) -> Iterator[object]:
    """The values of nested tuples that a kernel takes at run time."""
    for kind, value in zip(types, values, strict=True):
        if isinstance(kind, tuple | list):
            yield from flattened(kind, value)
        elif kind != "constexpr":
            yield value


def bits_of(kind: str, value: object) -> int:
    """The bits of an argument for a parameter of a type of PTX."""
    if isinstance(value, torch.Tensor):
        return value.data_ptr()
    if kind == "f32":
        return struct.unpack("I", struct.pack("f", value))[0]
    if kind == "f64":
        return struct.unpack("Q", struct.pack("d", value))[0]
    return int(value) % 2**64


def leave_out_assembly(backend=None, stages=None, *_: object) -> tuple[str, str]:
    """For ``triton.knobs.runtime.add_stages_inspection_hook``: compilation ends at PTX.

    Returns the name of this and its hash, by which Triton's cache knows such kernels.
    """
    if stages:
        stages["cubin"] = lambda ptx, metadata: b""
    return "ptx alone", "ptx alone"


class Launcher:
    """Launches kernels of Triton on tensors in main memory.

    ``launches``: how many there were.
    """

    def __init__(self, reversed_order: bool = False):
        self.reversed_order = reversed_order
        self.compile = JITFunction.run
        self.machines: dict[str, Machine] = {}
        self.launches = 0

    def __call__(self, kernel: JITFunction, *args: object, grid: object, **options: object) -> None:
        """In the place of ``kernel.run``."""
        compiled = self.compile(kernel, *args, grid=grid, **{**options, "warmup": True})
        named = {name: value for name, value in options.items() if name in kernel.arg_names}
        bound = inspect.signature(kernel.fn).bind(*args, **named)
        bound.apply_defaults()
        given = list(flattened(compiled.src.signature.values(), bound.arguments.values()))
        size = grid(bound.arguments) if callable(grid) else grid
        self.launches += 1
        self.run(compiled, given, (*size, 1, 1)[:3])

    def run(self, compiled: CompiledKernel, given: list, grid: tuple[int, int, int]) -> None:
        """Runs a kernel on what it takes at run time."""
        if compiled.hash not in self.machines:
            self.machines[compiled.hash] = Machine(parse(compiled.asm["ptx"]))
        self.run_machine(self.machines[compiled.hash], compiled.metadata, given, grid)

    def run_machine(self, machine: Machine, metadata: object, given: list, grid: tuple) -> None:
        kinds = [kind for kind, _ in machine.kernel.parameters]
        unused = [0] * (len(kinds) - len(given))  # memory that a compiler may ask for
        arguments = [bits_of(*pair) for pair in zip(kinds, given + unused, strict=True)]
        memory = merged([memory_of(each) for each in given if isinstance(each, torch.Tensor)])
        sizes = metadata.num_warps, metadata.shared
        machine.run(arguments, memory, grid, *sizes, self.reversed_order)
