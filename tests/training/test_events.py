from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dmlfast.training.events import EventFile


def test_tensorboard_reads_the_values_and_drops_what_a_resumption_does_again(tmp_path):
    folder = tmp_path / "tensorboard"
    first = EventFile(folder, first_step=1)
    for step in (1, 2, 3, 4):
        first.add_scalars({"loss": step / 2, "lr": 0.25}, step)
    second = EventFile(folder, first_step=3)
    for step in (3, 4, 5):
        second.add_scalars({"loss": 10.0 * step}, step)
    events = EventAccumulator(str(folder)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (1, 0.5),
        (2, 1.0),
        (3, 30.0),
        (4, 40.0),
        (5, 50.0),
    ]
    assert [event.step for event in events.Scalars("lr")] == [1, 2]
