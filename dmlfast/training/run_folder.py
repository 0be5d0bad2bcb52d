"""The folder of a training run: what lies where, and how it stays whole."""

import csv
import dataclasses
import io
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from dmlfast.data import parse_options
from dmlfast.errors import UserError
from dmlfast.files import (
    TEMPORARY_PREFIX,
    append_whole,
    atomic_folder,
    atomic_write_path,
    folder_lock,
    remove_folder,
    swap_link,
    write_error,
)
from dmlfast.training.checkpoint import Checkpoint
from dmlfast.training.config import TrainConfig, option_name, read_settings

RUNS = Path("runs")
Report = Callable[[str], None]


def quiet(line: str) -> None:
    """Reports nothing."""


class RunFolder:
    """A training run on the disk.

    It holds `args.yaml`, `summary.csv`, `curves.png`, TensorBoard's files and
    `checkpoints/step-N/` with the links `last` and `best`.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.args_path = self.path / "args.yaml"
        self.summary_path = self.path / "summary.csv"
        self.curves_path = self.path / "curves.png"
        self.checkpoints_path = self.path / "checkpoints"
        self.events_path = self.path / "tensorboard"

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def config(self) -> TrainConfig:
        """The settings of the run."""
        if not self.args_path.is_file():
            raise UserError(f"{self.path} is not a run folder: it has no args.yaml")
        return TrainConfig(**read_settings(self.args_path))

    def write_config(self, config: TrainConfig) -> None:
        """Writes `args.yaml`, which `dmlfast train -c` reads."""
        with atomic_write_path(self.args_path) as path:
            path.write_text(config.to_yaml(), encoding="utf-8")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps every other process from training into the folder or replacing it.

        Raises a `UserError` where another one is at it. The lock ends with the process, however it
        ends; a file system that has none goes without.
        """
        with folder_lock(self.path) as held:
            if not held:
                raise UserError(f"another process is training into {self.path}")
            yield

    def checkpoint(self, name: str = "best") -> Checkpoint:
        """The checkpoint that a link, `best` or `last`, points at."""
        if not self.args_path.is_file():
            raise UserError(f"{self.path} is not a run folder: it has no args.yaml")
        folder = self.checkpoints_path / name
        if not folder.exists():
            raise UserError(f"{self.path} has no checkpoint '{name}' yet")
        return Checkpoint.open(folder.resolve())

    def step_folder(self, step: int) -> Path:
        """Where the checkpoint after so many steps lies."""
        return self.checkpoints_path / f"step-{step}"

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, in order."""
        if not self.checkpoints_path.is_dir():
            return []
        matches = (
            re.fullmatch(r"step-(\d+)", path.name) for path in self.checkpoints_path.iterdir()
        )
        return sorted(int(match[1]) for match in matches if match)

    def is_blank(self) -> bool:
        """Whether nothing came of the run, such as one that failed in its first step."""
        blank = {self.args_path, self.checkpoints_path, self.events_path}
        return set(self.path.iterdir()) <= blank and not any(self.checkpoints_path.glob("*"))

    def newest_checkpoint(self, report: Report = quiet) -> Checkpoint | None:
        """The newest whole checkpoint; damaged ones are reported and passed over."""
        for step in reversed(self.steps()):
            try:
                return Checkpoint.open(self.step_folder(step))
            except UserError as error:
                report(str(error))
        return None

    def go_back(self, step: int, best: int) -> None:
        """Puts everything back to where it was after so many steps, for the run to go on."""
        for folder in (self.path, self.checkpoints_path):
            for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for later in self.steps():
            if later > step:
                remove_folder(self.step_folder(later))
        if step:
            self.link(step, best)
        self._cut_summary(step)

    def link(self, last: int, best: int) -> None:
        """Points `last` and `best` at the checkpoints of these steps."""
        for name, step in (("last", last), ("best", best)):
            link, target = self.checkpoints_path / name, f"step-{step}"
            if link.is_dir() and not link.is_symlink():  # copied as what it pointed at
                remove_folder(link)
            if not link.is_symlink() or os.readlink(link) != target:
                swap_link(link, target)

    def prune(self, keep: int, best: int) -> None:
        """Removes all checkpoints but the newest `keep` and the best."""
        for step in self.steps()[:-keep]:
            if step != best:
                remove_folder(self.step_folder(step))

    def append_summary(self, row: dict[str, str]) -> None:
        """Adds a row to `summary.csv`, whole or not at all."""
        append_whole(self.summary_path, _csv([row], header=not self.summary_path.exists()))

    def summary(self) -> list[dict[str, str]]:
        """The rows of `summary.csv`, as text; a last line that is cut short is left out."""
        if not self.summary_path.exists():
            return []
        lines = self.summary_path.read_text(encoding="utf-8").splitlines(keepends=True)
        return list(csv.DictReader(line for line in lines if line.endswith("\n")))

    def _cut_summary(self, step: int) -> None:
        if not self.summary_path.exists():
            return
        try:
            rows = [row for row in self.summary() if int(row["step"]) <= step]
        except (KeyError, ValueError, TypeError):
            raise UserError(f"{self.summary_path} is not as it was written") from None
        if not rows:
            self.summary_path.unlink()
            return
        text = _csv(rows, header=True)
        if text != self.summary_path.read_bytes():
            with atomic_write_path(self.summary_path) as path:
                path.write_bytes(text)


def _csv(rows: list[dict[str, str]], header: bool) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def create_run(config: TrainConfig, out: str | Path | None, overwrite: bool = False) -> RunFolder:
    """Makes the folder of a new run: `out`, or `runs/<date>-<loss>-<dataset>` under a new name.

    A folder that holds something raises a `UserError`, unless it is a run of which nothing came, or
    one that `overwrite` is set for: it is gone when the new one is ready.
    """
    path = Path(out) if out is not None else _unused_path(config)
    check_out(path, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    with atomic_folder(path) as temporary:
        run = RunFolder(temporary)
        run.checkpoints_path.mkdir()
        run.write_config(config)
        if _is_taken(path):
            with RunFolder(path).alone():
                check_out(path, overwrite)  # another process may have trained into it
                remove_folder(path)
    return RunFolder(path)


def _unused_path(config: TrainConfig) -> Path:
    name = f"{date.today()}-{config.loss}-{config.dataset}"
    names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    return next(RUNS / name for name in names if not (RUNS / name).exists())


def _is_taken(path: Path) -> bool:
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def check_out(path: Path, overwrite: bool) -> None:
    """Raises the `UserError` of `create_run` for a path that it would not take."""
    if not _is_taken(path):
        return
    if path.is_symlink() or not path.is_dir():
        raise UserError(f"{path} is not a folder")
    if not RunFolder(path).args_path.is_file():
        raise UserError(f"{path} is neither empty nor a run: choose another --out")
    if not overwrite and not RunFolder(path).is_blank():
        raise UserError(f"{path} already holds a run: --resume continues, --overwrite replaces it")


def _alike(before: str | None, now: str | None) -> bool:
    """Whether two texts of options of a data set read the same images, as far as they can be."""
    without = [{**parse_options(text), "on_error": None} for text in (before, now)]
    return without[0] == without[1]


def open_run(config: TrainConfig, out: str | Path | None) -> RunFolder:
    """The run in `out`, to be resumed with these settings.

    Raises a `UserError` where `out` is no run, or one with settings that may not change.
    """
    if out is None:
        raise UserError("to resume a run, give its folder with --out")
    run = RunFolder(out)
    saved = run.config
    for field in dataclasses.fields(config):
        before, now = getattr(saved, field.name), getattr(config, field.name)
        same = before == now or (field.name == "dataset_options" and _alike(before, now))
        if not same and not field.metadata["resumable"]:
            raise UserError(
                f"{run} was trained with {option_name(field.name)} {before}, not {now}: "
                "resume it with the same settings, or choose another --out"
            )
    return run


def newest_run(root: str | Path = RUNS) -> RunFolder:
    """The run anywhere below `root` that wrote a checkpoint last.

    Raises UserError where there is none.
    """
    links = list(Path(root).glob("*/**/checkpoints/last"))
    if not links:
        raise UserError(f"there is no trained run in {root}: train one, or give the folder of one")
    newest = max(links, key=lambda link: link.lstat().st_mtime_ns)
    return RunFolder(newest.parent.parent)
