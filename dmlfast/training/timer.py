"""How long a device works at a part of a step."""

import time
from types import TracebackType
from typing import Any

import torch


class DeviceTimer:
    """Times what a device does for a `with` block. A GPU is waited for by `wait` alone.

    Args:
        device: that of the block's tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> "DeviceTimer":
        self.started = self._mark()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.ended = self._mark()

    def _mark(self) -> Any:
        """The time in seconds, or an event in the stream of a GPU."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self) -> None:
        """Returns when the device has done the block's work, whatever else it has to do."""
        if self.device.type == "cuda":
            self.ended.synchronize()

    @property
    def seconds(self) -> float:
        """From the first to the last of the block's work, which the device must have done."""
        if self.device.type != "cuda":
            return float(self.ended - self.started)
        return float(self.started.elapsed_time(self.ended)) / 1000
