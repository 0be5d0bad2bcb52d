"""Ctrl-C and SIGTERM as a request that is met between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dmlfast.training.run_folder import RunFolder


class Interrupted(KeyboardInterrupt):
    """A run that a signal stopped, after the checkpoint of its step was written.

    run: the folder. step: how many steps are done.
    """

    def __init__(self, run: RunFolder, step: int):
        super().__init__(f"{run} stopped after step {step}")
        self.run = run
        self.step = step


class StopRequest:
    """Whether a signal has asked for a stop."""

    def __init__(self) -> None:
        self.received = False

    def __bool__(self) -> bool:
        return self.received

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Notes the request; a second Ctrl-C stops at once."""
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True


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


def ignore_signals(worker: int) -> None:
    """Lets a loading process outlive what stops the training process at the end of its step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
