"""`dmlfast demo`: the main job end to end, by the commands a user would type."""

import contextlib
import io
import json
import shlex
import time
from pathlib import Path
from typing import Any

import click
from dmlfast.cli.main import INTERRUPTED, cli

from dmlfast.errors import UserError
from dmlfast.files import TEMPORARY_PREFIX

FEATURES = {"raw pixels": "--raw-pixels", "untrained network": "--untrained", "trained network": ""}
MADE = {
    *("run", "raw.h5", "untrained.h5", "trained.h5"),
    *("montage.png", "map.png", "bench.csv", "bench.png"),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for everything that the demo makes; an earlier demo there is replaced.",
)
@click.option(
    "--max-steps", type=click.IntRange(min=1), help="Stop training after this many steps."
)
def command(out: Path, max_steps: int | None) -> None:
    """Train on the glyphs, embed, evaluate and benchmark, in a few minutes on a laptop."""
    started = time.monotonic()
    check_out(out)
    out.mkdir(parents=True, exist_ok=True)
    steps = [] if max_steps is None else ["--max-steps", max_steps]
    run = out / "run"
    dmlfast("train", "--out", run, "--overwrite", *steps)
    reports = {}
    for name, option in FEATURES.items():
        file = out / f"{name.split()[0]}.h5"
        dmlfast("embed", run, "--out", file, "--overwrite", *([option] if option else []))
        pictures = (
            ["--montage", out / "montage.png", "--map", out / "map.png"] if not option else []
        )
        reports[name] = dmlfast("eval", file, "--json", "--no-clustering", *pictures)
    csv, plot = out / "bench.csv", out / "bench.png"
    csv.unlink(missing_ok=True)
    bench = dmlfast("bench", "lifted", "--quick", "--csv", csv, "--plot", plot, "--json")
    minutes = (time.monotonic() - started) / 60
    click.echo("\n".join(["", *summary(out, reports, bench, minutes)]))


def check_out(out: Path) -> None:
    """Raises a `UserError` for a folder that holds anything but an earlier demo."""
    from dmlfast.training import RunFolder

    held = {path.name for path in out.iterdir()} if out.exists() else set()
    held = {name for name in held if not name.startswith(TEMPORARY_PREFIX)}
    if held and not (held <= MADE and RunFolder(out / "run").args_path.is_file()):
        raise UserError(f"{out} is neither empty nor an earlier demo: choose another --out")


def dmlfast(*words: Any) -> Any:
    """Shows and runs a command; with --json among its words, returns what it printed.

    An interruption of the command is one of the demo, also where it keeps what it has by then.
    """
    arguments = [str(word) for word in words]
    click.secho(f"\n$ dmlfast {shlex.join(arguments)}", bold=True, err=True)
    as_json, printed = "--json" in arguments, io.StringIO()
    with contextlib.redirect_stdout(printed) if as_json else contextlib.nullcontext():
        code = cli.main(arguments, prog_name="dmlfast", standalone_mode=False)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return json.loads(printed.getvalue()) if as_json else None


def summary(
    out: Path, reports: dict[str, dict[str, Any]], bench: list[dict[str, Any]], minutes: float
) -> list[str]:
    """What came out, in about a dozen lines."""
    lines = [f"{'test classes, never seen in training':40}recall at 1   MAP at R"]
    for name, report in reports.items():
        lines.append(f"  {name:38}{report['recall_at_1']:11.3f}{report['map_at_r']:11.3f}")
    largest = max(row["n"] for row in bench)
    lines.append(f"lifted loss and gradient, batch {largest}")
    for row in bench:
        if row["n"] == largest and row.get("median_ms"):
            memory = "" if row.get("extra_mib") is None else f"{row['extra_mib']:9.1f} MiB"
            lines.append(f"  {row['provider']:38}{row['median_ms']:8.1f} ms{memory}")
    lines.append(f"in {minutes:.1f} minutes; everything is in {out}/")
    for file, text in {
        "run/": "checkpoints, summary.csv, curves.png, TensorBoard events",
        "trained.h5": "the embeddings of the test images",
        "montage.png": "queries with their nearest neighbours",
        "map.png": "the embeddings in two dimensions",
        "bench.png": "time and memory of the loss against PyTorch",
    }.items():
        lines.append(f"  {file:14}{text}")
    return lines
