"""Takes the barriers out of kernels, one at a time, and counts how often that is seen.

    env -u TRITON_INTERPRET python -m tests.ops.ptx.mutations 90

prints a JSON line for each kernel of the lifted loss: how many barriers it comes to, and how many
of these are reported when they are missing. One that stands next to another need not be.
"""

import dataclasses
import json
import sys

import torch
from triton.compiler import CompiledKernel

from dmlfast.ops import lifted_structured_loss

from .launch import Launcher
from .machine import KernelError, Machine
from .parse import Kernel, parse
from .plugin import stand_in


def with_another(kernel: Kernel, index: int, name: str) -> Kernel:
    """The same, where one instruction is another that takes nothing."""
    instructions = list(kernel.instructions)
    instructions[index] = dataclasses.replace(instructions[index], name=name, operands=[])
    return dataclasses.replace(kernel, instructions=instructions)


class Mutations(Launcher):
    """Runs each kernel that it has not seen without each of its barriers, and then as it is."""

    def run(self, compiled: CompiledKernel, given: list, grid: tuple[int, int, int]) -> None:
        if compiled.hash not in self.machines:
            kernel = parse(compiled.asm["ptx"])
            reached = seen = 0
            for index, each in enumerate(kernel.instructions):
                if each.name == "bar.sync":
                    takes = compiled.metadata, given, grid
                    reached += self._fails(with_another(kernel, index, "trap"), *takes)
                    seen += self._fails(with_another(kernel, index, "bar.warp.sync"), *takes)
            found = {"kernel": compiled.metadata.name, "barriers": reached, "seen": seen}
            print(json.dumps(found), flush=True)
        super().run(compiled, given, grid)

    def _fails(self, kernel: Kernel, metadata: object, given: list, grid: tuple) -> bool:
        try:
            self.run_machine(Machine(kernel), metadata, given, grid)
        except KernelError:
            return True
        return False


def main(capability: int) -> None:
    stand_in(capability, Mutations())
    random = torch.Generator().manual_seed(0)
    for count in (50, 130):  # in one launch, and in several
        rows = torch.randn(count, 24, generator=random).bfloat16().requires_grad_()
        lifted_structured_loss(rows, torch.arange(count) // 4, impl="triton").backward()


if __name__ == "__main__":
    main(int(sys.argv[1]))
