"""How long a device works at a part of a step."""

import time

import pytest
import torch

from dmlfast.training.timer import DeviceTimer


def test_a_processor_is_timed_while_it_works():
    with DeviceTimer(torch.device("cpu")) as timer:
        time.sleep(0.05)
    time.sleep(0.05)
    assert 0.05 <= timer.seconds < 0.1


def test_a_gpu_is_timed_by_events_and_not_waited_for(monkeypatch):
    class Event:
        now = 0.0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            assert stream == "stream of cuda:0"
            self.at = Event.now

        def elapsed_time(self, end):
            return end.at - self.at

        def synchronize(self):
            waited_for.append(self.at)

    waited_for = []

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("the GPU is waited for"))
    with DeviceTimer(torch.device("cuda", 0)) as timer:
        Event.now += 250.0  # milliseconds
    Event.now += 1000.0
    assert timer.seconds == 0.25
    assert not waited_for
    timer.wait()
    assert waited_for == [250.0]
