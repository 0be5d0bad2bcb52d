"""What the training tests share: a run that takes about a second, here or in another process."""

import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from dmlfast.errors import UserError
from dmlfast.training import RunFolder, TrainConfig, train


def tiny_config(**changes: Any) -> TrainConfig:
    """Settings of a run of 8 steps with two evaluations and four checkpoints."""
    settings = {
        "dataset": "digits",
        "batch_size": 12,
        "images_per_class": 4,
        "embedding_dim": 8,
        "max_steps": 8,
        "warmup_steps": 2,
        "eval_interval": 4,
        "checkpoint_interval": 2,
        "log_interval": 1,
        "device": "cpu",
    }
    return TrainConfig(**(settings | changes))


def weights(run: RunFolder | Path, name: str = "last") -> bytes:
    """The network's file in a checkpoint."""
    path = run.path if isinstance(run, RunFolder) else run
    return (path / "checkpoints" / name / "model.safetensors").read_bytes()


def state(run: RunFolder | Path, name: str = "last") -> dict[str, Any]:
    """What a checkpoint's `state.json` says."""
    path = run.path if isinstance(run, RunFolder) else run
    return json.loads((path / "checkpoints" / name / "state.json").read_text())


def start(target: Callable[..., None], *args: Any) -> BaseProcess:
    """Starts a function of a module in a process that has all imported but nothing run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "sklearn.datasets", "matplotlib.figure"])
    process = context.Process(target=target, args=args)
    process.start()
    return process


def train_or_resume(config: TrainConfig, out: Path) -> None:
    """Trains into `out`, from where an earlier process left it."""
    train(config, out, resume=(out / "args.yaml").exists())


def train_until_call(config: TrainConfig, out: Path, number: int) -> None:
    """Trains into `out` and dies before the given call of a function that changes the disk."""
    calls = 0

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "rename", "replace", "symlink", "unlink", "mkdir"):
        setattr(os, name, deadly(getattr(os, name)))
    train_or_resume(config, out)


def train_with_room(config: TrainConfig, out: Path, room: int, error_path: Path) -> None:
    """Resumes in `out` where no file may grow beyond so many bytes; the error goes to a file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        train(config, out, resume=True)
    except UserError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        error_path.write_text(str(error))
