"""Runs what a claim asks for, a process a run, and keeps every run in a CSV file."""

import csv
import dataclasses
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from dmlfast.bench.claims.claim import Arm, Claim
from dmlfast.bench.machine import machine_name

from dmlfast import __version__
from dmlfast.errors import UserError
from dmlfast.files import atomic_write_path
from dmlfast.training import RunFolder, TrainConfig, train

TUNING, REPORTED = "tuning", "reported"
DIGITS = 6  # of values, in the file and before it, so that a study goes on as it began
Measure = Callable[[RunFolder], dict[str, float]]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """What a run came to.

    settings: those that tuning chooses, as text.
    val_map_at_r: of the best checkpoint, which is the one that is measured; None where training
        diverged.
    values: what the claim measures on the test classes; empty for tuning, which never sees them.
    """

    stage: str
    arm: str
    seed: int
    settings: str
    val_map_at_r: float | None = None
    best_step: int | None = None
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    machine: str = ""
    dmlfast: str = ""
    torch: str = ""
    date: str = ""

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What makes it another run."""
        return (self.stage, self.arm, self.seed, self.settings)


@dataclass(frozen=True)
class _Task:
    run: Run
    config: TrainConfig
    measure: Measure | None


def study(claim: Claim, path: Path, jobs: int, tell: Tell) -> list[Run]:
    """All runs of a claim: those in the file as they are, the others run now and added to it.

    `jobs` is how many run at a time, each on one core; `tell` is called with each that is done.
    """
    known = {run.key: run for run in read_runs(path)}
    tasks = [
        _task(claim, arm, chosen, claim.tuning_seed, TUNING)
        for arm in claim.arms
        for chosen in claim.trials_of(arm)
    ]
    tuned = _run_all(claim, tasks, known, path, jobs, tell)
    tasks = [
        _task(claim, arm, choose(claim, arm, tuned), seed, REPORTED)
        for arm in claim.arms
        for seed in claim.seeds
    ]
    return tuned + _run_all(claim, tasks, known, path, jobs, tell)


def choose(claim: Claim, arm: Arm, tuned: Sequence[Run]) -> dict[str, Any]:
    """What an arm's best tuning trial tried, of equal ones the first; nothing without trials."""
    scores = {run.settings: run.val_map_at_r or 0.0 for run in tuned if run.arm == arm.name}
    return max(claim.trials_of(arm), key=lambda chosen: scores[_text(chosen)], default={})


def _task(claim: Claim, arm: Arm, chosen: Mapping[str, Any], seed: int, stage: str) -> _Task:
    run = Run(stage, arm.name, seed, _text(chosen))
    measure = claim.measure if stage == REPORTED else None
    return _Task(run, claim.config(arm, chosen, seed), measure)


def _text(chosen: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in chosen.items())


def _run_all(
    claim: Claim,
    tasks: Sequence[_Task],
    known: dict[tuple[str, str, int, str], Run],
    path: Path,
    jobs: int,
    tell: Tell,
) -> list[Run]:
    todo = [task for task in tasks if task.run.key not in known]
    done = len(tasks) - len(todo)
    for run in _in_processes(todo, jobs):
        known[run.key] = run
        write_runs(path, claim, list(known.values()))
        done += 1
        score = "diverged" if run.val_map_at_r is None else f"MAP at R {run.val_map_at_r:.4f}"
        values = "".join(
            f", {name} {run.values[name]:.4f}" for name in claim.measures if name in run.values
        )
        tell(
            f"{done}/{len(tasks)} {run.stage} {run.arm}, seed {run.seed}, {run.settings}: "
            f"{score} on val{values}"
        )
    return [known[task.run.key] for task in tasks]


def _in_processes(tasks: Sequence[_Task], jobs: int) -> Iterator[Run]:
    if not tasks:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs, context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        futures = [pool.submit(_perform, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _perform(task: _Task) -> Run:
    with tempfile.TemporaryDirectory(prefix="dmlfast-claim-") as folder:
        try:
            run = train(task.config, Path(folder, "run"))
        except UserError as error:
            if "try a lower lr" not in str(error):
                raise
            return _finished(task.run)
        best = run.checkpoint("best").state["best"]
        values = task.measure(run) if task.measure else {}
        return _finished(
            task.run,
            val_map_at_r=round(best["map_at_r"], DIGITS),
            best_step=best["step"],
            values={name: round(value, DIGITS) for name, value in values.items()},
        )


def _finished(run: Run, **results: Any) -> Run:
    return dataclasses.replace(
        run,
        **results,
        machine=machine_name(),
        dmlfast=__version__,
        torch=torch.__version__,
        date=str(date.today()),
    )


FIELDS = [field.name for field in dataclasses.fields(Run) if field.name != "values"]


def write_runs(path: Path, claim: Claim, runs: Sequence[Run]) -> None:
    """Writes the whole file or none of it; what a claim measures are columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_write_path(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        names = dict.fromkeys(name for run in runs for name in run.values)
        writer = csv.DictWriter(
            file, [*FIELDS, *(dict(claim.measures) | names)], lineterminator="\n"
        )
        writer.writeheader()
        for run in runs:
            writer.writerow({name: getattr(run, name) for name in FIELDS} | dict(run.values))


def read_runs(path: Path) -> list[Run]:
    """The runs in a file; none where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [_parse(row) for row in csv.DictReader(file)]


def _parse(row: dict[str, str]) -> Run:
    values = {name: float(text) for name, text in row.items() if name not in FIELDS and text}
    return Run(
        stage=row["stage"],
        arm=row["arm"],
        seed=int(row["seed"]),
        settings=row["settings"],
        val_map_at_r=float(row["val_map_at_r"]) if row["val_map_at_r"] else None,
        best_step=int(row["best_step"]) if row["best_step"] else None,
        values=values,
        **{name: row[name] for name in ("machine", "dmlfast", "torch", "date")},
    )
