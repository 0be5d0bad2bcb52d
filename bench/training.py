"""What `dmlfast train` comes to on a machine: recall, images a second, and the loss's share.

    python -m dmlfast.bench.training --device cuda

trains the glyphs as bare `dmlfast train` does, evaluates the test classes and adds a row to
bench/results/training.csv, in the place of one of the same machine and settings.
"""

import csv
import statistics
import sys
import tempfile
from datetime import date
from pathlib import Path

import click
import torch
from dmlfast.bench.claims.retrieval import recall
from dmlfast.bench.machine import machine_name

from dmlfast import __version__
from dmlfast.errors import UserError
from dmlfast.files import atomic_write_path
from dmlfast.training import RunFolder, TrainConfig, resolve_device, train

CSV = Path(__file__).parent / "results" / "training.csv"
KEY = ("machine", "loss", "dataset", "precision", "batch_size", "steps")


def row_of(run: RunFolder, machine: str) -> dict[str, str]:
    """What a finished run came to.

    Rates are medians over the rows of its summary, without the first, in which kernels are
    compiled; recall is that of the best checkpoint among the test classes.
    """
    config, found = run.config, recall(run)
    rows = run.summary()[1:] or run.summary()
    rate, share = (
        statistics.median(float(row[name]) for row in rows)
        for name in ("images_per_second", "loss_share")
    )
    return {
        "machine": machine,
        "loss": config.loss,
        "dataset": config.dataset,
        "precision": config.precision,
        "batch_size": str(config.batch_size),
        "steps": str(run.checkpoint("last").step),
        "recall_at_1": f"{found['recall_at_1']:.4f}",
        "map_at_r": f"{found['map_at_r']:.4f}",
        "images_per_second": f"{rate:.0f}",
        "loss_share": f"{share:.3f}",
        "dmlfast": __version__,
        "torch": torch.__version__,
        "date": str(date.today()),
    }


def update(path: Path, row: dict[str, str]) -> None:
    """Writes the whole file, with the row in the place of one with its key, or none of it."""
    rows = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if any(list(each) != list(row) for each in rows):
            raise UserError(f"{path} is not a table of dmlfast.bench.training")
    kept = {tuple(each[name] for name in KEY): each for each in [*rows, row]}
    with (
        atomic_write_path(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept.values())


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--max-steps", type=click.IntRange(min=1), help="Shorten the training.")
@click.option(
    "--csv",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=CSV,
    show_default="bench/results/training.csv",
    help="Table to add the row to.",
)
def command(device: str, precision: str, max_steps: int | None, path: Path) -> None:
    """Train on the glyphs, and record recall, images a second and the loss's share of a step."""
    place = resolve_device(device)
    on_gpu = place.type == "cuda"
    machine = torch.cuda.get_device_name(place) if on_gpu else machine_name()
    config = TrainConfig(device=str(place), precision=precision, max_steps=max_steps)
    with tempfile.TemporaryDirectory(prefix="dmlfast-training-") as folder:
        run = train(config, Path(folder, "run"), report=lambda line: click.echo(line, err=True))
        row = row_of(run, machine)
    update(path, row)
    click.echo("  ".join(f"{name} {value}" for name, value in row.items()))


def main() -> None:
    """Runs the command; an error is one line."""
    try:
        command()
    except UserError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
