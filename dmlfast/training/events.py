"""TensorBoard's event files, written without a thread so that a full disk is noticed at once."""

import io
import os
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from dmlfast.files import append_whole


class EventFile:
    """A new event file in a folder; TensorBoard drops what older ones say from `first_step` on."""

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(exist_ok=True)
        self.path = folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        self._append(Event(file_version="brain.Event:2"))
        self._append(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add_scalars(self, values: dict[str, float], step: int) -> None:
        """Adds the values of a step; a write that fails raises a `UserError`."""
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._append(Event(step=step, summary=Summary(value=scalars)))

    def _append(self, event: Event) -> None:
        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        append_whole(self.path, record.getvalue())
