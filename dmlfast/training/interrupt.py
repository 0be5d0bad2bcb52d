"""Ctrl-C and SIGTERM as a request that is met between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dmlfast.training.run_folder import RunFolder


class Interrupted(KeyboardInterrupt):
    """A run that was stopped by a signal, after the checkpoint of its step was written."""

    def __init__(self, run: RunFolder, step: int, exit_code: int):
        super().__init__(f"stopped after step {step}")
        self.run = run
        self.step = step
        self.exit_code = exit_code


class StopRequest:
    """The signal that asked for a stop, or None."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that ends by this signal."""
        return 128 + (self.signal or signal.SIGINT)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Notes the signal; a second Ctrl-C stops at once."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns SIGINT and SIGTERM into a request inside the block."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # others may set no handlers
        yield request
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, request.receive) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def ignore_interrupts(worker: int) -> None:
    """Lets a loading process outlive a Ctrl-C, so that the training process can end its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
