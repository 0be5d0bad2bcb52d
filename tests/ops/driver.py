"""A stand-in for Triton's driver, which names a GPU that need not be there."""

import torch
from triton.backends.compiler import GPUTarget


class Driver:
    """What launch code asks of Triton's driver."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")
