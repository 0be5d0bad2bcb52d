"""What the README shows is true: code runs, commands exist, figures are those of result files."""

import csv
import re
import shlex
from pathlib import Path

import click
import pytest
import torch
from dmlfast.bench.report import Row, read_csv
from dmlfast.cli.main import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "bench" / "results"
PROVIDERS = ("dmlfast-cpu", "naive", "compiled", "indexed", "chunked", "pml")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def table_below(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its own heading and rule."""
    table = re.search(r"(?:^\|.*\n)+", README.partition(heading)[2], re.M)
    assert table is not None
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in table[0].splitlines()[2:]]


def test_code_runs():
    torch.manual_seed(0)
    names: dict[str, torch.Tensor] = {}
    (code,) = blocks("python")
    exec(code, names)
    assert names["loss"] > 0
    assert names["embeddings"].grad.abs().sum() > 0
    assert names["stat"].shape == (512,)


@pytest.mark.parametrize("line", re.findall(r"^dmlfast [^#\n]*", README, re.M))
def test_commands_exist(line):
    _, name, *words = shlex.split(line)
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    command.make_parser(click.Context(command)).parse_args(words)  # raises for an unknown option


def short(value: float) -> str:
    value = float(f"{value:.2g}")
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def speed_cell(row: Row) -> str:
    if row.extra_mib is None or row.ratio_to_dmlfast is None:
        needs = re.match(r"would need ([\d,.]+) GiB", row.reason)
        return f"needs {short(float(needs[1].replace(',', '')))} GiB" if needs else "takes too long"
    speed = f"{short(row.ratio_to_dmlfast)} x"
    if row.provider == "dmlfast-cpu":
        speed = f"{short(row.median_ms or 0)} ms"
    return f"{speed}, {short(row.extra_mib)} MiB"


def test_speed_is_that_of_the_result_file():
    rows = read_csv(RESULTS / "amd-epyc-2-cores.csv")
    lifted = [row for row in rows if row.op == "lifted"]
    shown = {(f"{row.n:,} x {row.d}", row.provider): speed_cell(row) for row in lifted}
    assert table_below("### Speed and memory") == [
        [size, *(shown[size, name] for name in PROVIDERS)]
        for size in dict.fromkeys(size for size, _ in shown)
    ]
    linear = {row.n: row.ratio_to_dmlfast for row in rows if row.provider == "linear-ce"}
    assert f"{linear[1024]:.2g} times as fast as torch's fused `linear_cross_entropy`" in README


def test_so_is_that_of_another_machine():
    rows = read_csv(RESULTS / "amd-epyc-family-25-model-17-2-cores.csv")
    lifted = {row.provider: row for row in rows if (row.op, row.n, row.d) == ("lifted", 8192, 128)}
    linear = {row.n: row.ratio_to_dmlfast for row in rows if row.provider == "linear-ce"}
    assert (
        f"8,192 x 128 takes {short(lifted['dmlfast-cpu'].median_ms)} ms, `naive` "
        f"{short(lifted['naive'].ratio_to_dmlfast)} x and `chunked` "
        f"{short(lifted['chunked'].ratio_to_dmlfast)} x as long, and the softmax is "
        f"{linear[1024]:.2g} times as fast"
    ) in " ".join(README.split())


def test_retrieval_is_that_of_the_result_file():
    with open(RESULTS / "glyphs.csv", newline="") as file:
        rows = list(csv.DictReader(file))

    def percent(row: dict[str, str], name: str) -> str:
        return f"{100 * float(row[name]):.1f}"

    assert table_below("### Retrieval") == [
        [
            row["embeddings"] if row["steps"] == "0" else f"`{row['embeddings']}`",
            f"{int(row['steps']):,}",
            f"{percent(row, 'recall_at_1')} ({percent(row, 'recall_at_1_low')} to "
            f"{percent(row, 'recall_at_1_high')})",
            percent(row, "recall_at_8"),
            percent(row, "map_at_r"),
        ]
        for row in rows
    ]
