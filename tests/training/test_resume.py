"""A run that was stopped, in whatever way, ends with the bits of one that was not."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from dmlfast.errors import UserError
from dmlfast.training import Checkpoint, Interrupted, RunFolder, loop, train
from dmlfast.training.interrupt import stop_on_signals
from dmlfast.training.run_folder import create_run

from .helpers import (
    start,
    state,
    tiny_config,
    train_or_resume,
    train_until_call,
    train_with_room,
    weights,
)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_same_run(run: Path, expected: RunFolder) -> None:
    assert weights(run) == weights(expected)
    assert weights(run, "best") == weights(expected, "best")
    for name in ("step", "best", "sha256"):
        assert state(run)[name] == state(expected)[name]
    columns = ("step", "loss", "lr", "val_recall_at_1")
    assert [[row[name] for name in columns] for row in RunFolder(run).summary()] == [
        [row[name] for name in columns] for row in expected.summary()
    ]
    assert not list(run.rglob(".tmp-*"))


def test_two_undisturbed_runs_are_the_same(finished, tmp_path):
    assert_same_run(train(tiny_config(), tmp_path / "run").path, finished)


def test_resuming_a_finished_run_says_so_and_changes_nothing(finished):
    before, lines = contents(finished.path), []
    run = train(tiny_config(), finished.path, resume=True, report=lines.append)
    assert run.path == finished.path
    assert any("is finished: 8 steps are done, of 8" in line for line in lines)
    train(tiny_config(max_steps=3), finished.path, resume=True, report=lines.append)
    assert lines[-1] == f"{finished} already has 8 steps, more than 3: there is nothing to do"
    assert contents(finished.path) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_at_the_end_of_the_step(finished, tmp_path, monkeypatch, number):
    real = loop.Trainer.train_step

    def signalled(self, *args):
        if self.step == 2:
            os.kill(os.getpid(), number)
        return real(self, *args)

    monkeypatch.setattr(loop.Trainer, "train_step", signalled)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as caught:
        train(tiny_config(), tmp_path / "run")
    assert caught.value.step == 3
    assert RunFolder(tmp_path / "run").checkpoint("last").step == 3
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    assert_same_run(train(tiny_config(), tmp_path / "run", resume=True).path, finished)


def test_a_second_ctrl_c_stops_at_once():
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        os.kill(os.getpid(), signal.SIGTERM)  # as a launcher sends after it
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.long
def test_killed_at_random_moments(tmp_path):
    config, out, dice = (
        tiny_config(max_steps=40, eval_interval=20),
        tmp_path / "run",
        random.Random(0),
    )
    start(int).join()  # the imports, which come with the first process
    started = time.monotonic()
    start(train_or_resume, config, tmp_path / "expected").join()
    seconds = time.monotonic() - started
    exit_codes = []
    while 0 not in exit_codes and len(exit_codes) < 3:
        process = start(train_or_resume, config, out)
        process.join(dice.uniform(0.2, 0.7) * seconds)
        process.kill()
        process.join()
        exit_codes.append(process.exitcode)
    assert -signal.SIGKILL in exit_codes
    train_or_resume(config, out)
    assert_same_run(out, RunFolder(tmp_path / "expected"))


def killed_at(number: int, expected: RunFolder, out: Path) -> bool:
    """Whether a run was killed at that change of the disk; if so, it goes on as if it was not."""
    process = start(train_until_call, expected.config, out, number)
    process.join()
    if process.exitcode == 0:
        return False
    assert process.exitcode == -signal.SIGKILL
    links = out / "checkpoints"
    for name in ("last", "best"):
        if (links / name).is_symlink():
            assert RunFolder(out).checkpoint(name).step in (2, 4, 6, 8)
    train_or_resume(expected.config, out)
    assert_same_run(out, expected)
    return True


@pytest.mark.parametrize("number", [3, 21, 43])
def test_killed_while_writing(finished, tmp_path, number):
    assert killed_at(number, finished, tmp_path / "run")


@pytest.mark.long
def test_killed_at_every_change_of_the_disk(tmp_path):
    config = tiny_config(max_steps=6, eval_interval=6, keep_checkpoints=1)
    expected, number = train(config, tmp_path / "expected"), 1
    while killed_at(number, expected, tmp_path / f"run-{number}"):
        number += 1
    assert number > 60


@pytest.mark.parametrize("damage", ["optimizer.safetensors", "state.json"])
def test_a_damaged_newest_checkpoint_is_passed_over(finished, tmp_path, damage):
    out = tmp_path / "run"
    shutil.copytree(finished.path, out, symlinks=True)
    damaged = out / "checkpoints" / "step-8" / damage
    if damage == "state.json":
        damaged.write_text(damaged.read_text().replace('"step": 8,', "", 1))
    else:
        damaged.write_bytes(damaged.read_bytes()[:100])
    lines: list[str] = []
    train(tiny_config(), out, resume=True, report=lines.append)
    assert any("step-8 is damaged" in line for line in lines)
    assert any("after step 6" in line for line in lines)
    assert_same_run(out, finished)


def test_a_run_without_any_checkpoint_starts_again(finished, tmp_path):
    create_run(tiny_config(), tmp_path / "run")
    lines: list[str] = []
    train(tiny_config(), tmp_path / "run", resume=True, report=lines.append)
    assert any("no complete checkpoint" in line for line in lines)
    assert_same_run(tmp_path / "run", finished)


def test_a_run_that_is_being_trained_is_left_alone(finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished.path, out, symlinks=True)
    before = contents(out)
    with RunFolder(out).alone(), pytest.raises(UserError, match="another process is training"):
        train(tiny_config(max_steps=10), out, resume=True)
    assert contents(out) == before


def test_a_longer_run_goes_on(tmp_path):
    run = train(tiny_config(), tmp_path / "run")
    train(tiny_config(max_steps=10), run.path, resume=True)
    assert run.checkpoint("last").step == 10
    assert run.config.max_steps == 10
    assert [int(row["step"]) for row in run.summary()] == list(range(1, 11))


def test_another_models_checkpoint_is_refused(finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished.path, out, symlinks=True)
    args = out / "args.yaml"
    args.write_text(args.read_text().replace("embedding-dim: 8", "embedding-dim: 16"))
    with pytest.raises(UserError, match="checkpoint of another model"):
        train(tiny_config(embedding_dim=16), out, resume=True)
    assert weights(out) == weights(finished)


@pytest.mark.parametrize("room", [100, 4000])
def test_a_full_disk_keeps_what_is_there(finished, tmp_path, room):
    """A limit on the size of files stands in for a full disk, in a process of its own."""
    out, config = tmp_path / "run", tiny_config(keep_checkpoints=9)
    run = train(config, out)
    best = Checkpoint.open(run.step_folder(6)).state["best"]["step"]
    run.go_back(6, best)
    before = {name: data for name, (_, data) in contents(out / "checkpoints").items()}
    process = start(train_with_room, config, out, room, tmp_path / "error")
    process.join()
    assert process.exitcode == 0
    assert "File too large" in (tmp_path / "error").read_text()
    assert not list(out.rglob(".tmp-*"))
    after = {name: data for name, (_, data) in contents(out / "checkpoints").items()}
    assert after == before
    assert run.checkpoint("last").step == 6
    assert run.checkpoint("best").step == best
    train(config, out, resume=True)
    assert_same_run(out, finished)
