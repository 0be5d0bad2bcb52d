"""`dmlfast tune`: block sizes of the Triton kernels, measured on this machine's GPU."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dmlfast.errors import UserError
from dmlfast.files import check_writable

if TYPE_CHECKING:
    from dmlfast.ops.triton.tune import Trial


@click.command("tune")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="Start no new measurement after this time.",
)
@click.option("--csv", "csv_path", metavar="OUT.csv", help="File to keep every measurement in.")
@click.option("--resume", is_flag=True, help="Keep what OUT.csv has; measure only what it lacks.")
@click.option(
    "--forget", is_flag=True, help="Remove what was found before, without measuring anything."
)
def command(seconds: float, csv_path: str | None, resume: bool, forget: bool) -> int:
    """Measure block sizes of the Triton kernels on this machine's GPU and keep the best.

    Later runs use them on a GPU of this name, with the same versions of Triton and dmlfast. Each
    choice is checked against the sizes that come with dmlfast before it is measured. Ctrl-C keeps
    what has been found so far.
    """
    import torch

    from dmlfast.ops import gpu

    reason = gpu.why_no_triton()
    if reason is None and gpu.interpreted():
        reason = "Triton interprets its kernels (TRITON_INTERPRET=1)"
    if reason:
        raise UserError(f"nothing to {'forget' if forget else 'tune'}: {reason}")
    from dmlfast.ops.triton import tuned
    from dmlfast.ops.triton.tune import tune

    name = torch.cuda.get_device_name()
    path = tuned.path_for(name)
    if forget:
        click.echo(f"removed {path}" if path.exists() else f"there is no {path}")
        path.unlink(missing_ok=True)
        return 0
    if csv_path:
        check_writable(csv_path)
    trials = _read(csv_path, path.stem) if csv_path and resume else []
    try:
        for trial in tune(name, "cuda", seconds, tuple(trials)):
            trials.append(trial)
            click.echo(_line(trial))
            if csv_path:
                _write(csv_path, path.stem, trials)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        return 130
    click.echo(f"kept in {path}")
    return 0


def _line(trial: "Trial") -> str:
    what = f"{trial.kind:8} {trial.kernel:12} {' '.join(map(str, trial.tile)):20}"
    time = trial.reason if trial.milliseconds is None else f"{trial.milliseconds:9.3f} ms"
    return f"{what} {time}"


def _read(path: str, versions: str) -> "list[Trial]":
    """The trials with a time in a table, of this GPU and these versions."""
    from dmlfast.ops.triton.tune import Trial

    if not Path(path).exists():
        return []
    with Path(path).open(newline="") as file:
        return [
            Trial(
                row["kind"],
                row["kernel"],
                tuple(map(int, row["tile"].split())),
                float(row["milliseconds"]),
            )
            for row in csv.DictReader(file)
            if row.get("versions") == versions and row["milliseconds"]
        ]


def _write(path: str, versions: str, trials: "list[Trial]") -> None:
    """The trials as a table, whole or not at all."""
    from dmlfast.files import atomic_write_path

    with atomic_write_path(Path(path)) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("kind", "kernel", "tile", "milliseconds", "reason", "versions"))
        for trial in trials:
            tile = " ".join(map(str, trial.tile))
            time = "" if trial.milliseconds is None else f"{trial.milliseconds:.4f}"
            writer.writerow((trial.kind, trial.kernel, tile, time, trial.reason, versions))
