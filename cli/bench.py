"""`dmlfast bench`: time and memory of a loss against PyTorch."""

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from dmlfast.bench import BENCHMARKS, DTYPES, check_name, get_benchmark
from dmlfast.bench.machine import machine_slug
from dmlfast.bench.sizes import CLASS_SIZES, PAIR_SIZES
from dmlfast.cli.pictures import picture_path, refuse_overwriting

from dmlfast.errors import UserError, unknown_name
from dmlfast.text import counted

if TYPE_CHECKING:
    import torch
    from dmlfast.bench.benchmark import Benchmark, Case, Competitor
    from dmlfast.bench.devices import Device
    from dmlfast.bench.harness import Settings
    from dmlfast.bench.report import Row


INTERRUPTED = 130
BUSY = 0.1  # of all cores, by other processes: figures are unsteady from there


def sizes_option(ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
    """Checks "512x128,8192x512" and "1024x512x100000"."""
    for word in (text or "1x1").split(","):
        if not re.fullmatch("0*[1-9][0-9]*(x0*[1-9][0-9]*){1,2}", word.lower()):
            what = "is not rows x width, such as 512x128 (or rows x width x classes)"
            raise click.BadParameter(f"'{word}' {what}", ctx, param)
    return text


def device_option(ctx: click.Context, param: click.Parameter, text: str) -> str:
    """Checks "auto", "cpu", "cuda" or "cuda:1"."""
    if not re.fullmatch("auto|cpu|cuda(:[0-9]+)?", text):
        raise click.BadParameter(f"'{text}' is not auto, cpu, cuda or cuda:K", ctx, param)
    return text


def dtypes_option(ctx: click.Context, param: click.Parameter, text: str) -> list[str]:
    """The dtypes of "float32,bfloat16", each once."""
    for word in text.split(","):
        if word not in DTYPES:
            raise click.BadParameter(f"'{word}' is not one of {', '.join(DTYPES)}", ctx, param)
    return list(dict.fromkeys(text.split(",")))


def table_path(ctx: click.Context, param: click.Parameter, path: str | None) -> Path | None:
    """A folder, or a file that a table can be written to; anything else is found before the work
    begins.
    """
    if path is None or Path(path).is_dir():
        return Path(path) if path else None
    if not Path(path).absolute().parent.is_dir():
        raise click.BadParameter(f"the folder of '{path}' does not exist", ctx, param)
    return Path(path)


@click.command("bench")
@click.argument("name", metavar="[LOSS]", required=False)
@click.option("--list", "list_only", is_flag=True, help="List what can be measured.")
@click.option(
    "--impl",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="Backend of dmlfast: auto, all (every usable one) or a name.",
)
@click.option(
    "--baselines",
    default="all",
    show_default=True,
    metavar="NAME,...",
    help="What to compare with: all, none or names.",
)
@click.option(
    "--sizes",
    callback=sizes_option,
    metavar="NxD,...",
    help="Rows x width of the embeddings, and x classes for a loss over classes.  [default: "
    f"{PAIR_SIZES['cpu'].usual}, or {CLASS_SIZES['cpu'].usual}; others on a GPU; pddm and boosted "
    "have their own]",
)
@click.option(
    "--large",
    is_flag=True,
    help=f"Also measure {PAIR_SIZES['cpu'].large} (on a GPU {PAIR_SIZES['cuda'].large}), or "
    f"{CLASS_SIZES['cpu'].large}; pddm and boosted have their own. Takes many minutes.",
)
@click.option(
    "--quick",
    is_flag=True,
    help=f"Few rounds, no compiling and, by default, {PAIR_SIZES['cpu'].quick} (on a GPU "
    f"{PAIR_SIZES['cuda'].quick}), or {CLASS_SIZES['cpu'].quick}; pddm and boosted have their own.",
)
@click.option(
    "--device",
    "device_name",
    callback=device_option,
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Device: cpu, cuda or cuda:K; auto is the GPU if torch sees one.",
)
@click.option(
    "--dtype",
    "dtypes",
    callback=dtypes_option,
    default="float32",
    show_default=True,
    metavar="NAME,...",
    help=f"Types of the embeddings: {', '.join(DTYPES)}; each one given is measured.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    help="Measurements of each implementation, one per round.  [default: 15]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    help="Time per implementation and size after which no round is begun.  [default: 30]",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="CPU threads for everything measured.  [default: as set in torch; 1 with a GPU]",
)
@click.option(
    "--memory-limit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GIB",
    help="Leave out whatever needs more memory.  [default: a quarter of the memory; on a GPU, nine"
    " tenths of what is free]",
)
@click.option(
    "--csv",
    "csv_path",
    callback=table_path,
    metavar="OUT.csv",
    help="File to keep the results in, each new row replacing the old one of the same case; for a"
    " folder, a file in it named after the machine.",
)
@click.option(
    "--resume", is_flag=True, help="Skip what --csv already holds for this version and machine."
)
@click.option("--plot", metavar="OUT.png", callback=picture_path, help="Draw time and memory.")
@click.option("--replot", is_flag=True, help="Draw what is in --csv, without measuring anything.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def command(
    name: str | None,
    list_only: bool,
    impl: str,
    baselines: str,
    sizes: str | None,
    large: bool,
    quick: bool,
    device_name: str,
    dtypes: list[str],
    rounds: int | None,
    seconds: float | None,
    threads: int | None,
    memory_limit: float | None,
    csv_path: Path | None,
    resume: bool,
    plot: Path | None,
    replot: bool,
    as_json: bool,
) -> int:
    """Measure time and memory of a loss and its gradient, against PyTorch.

    All implementations compute the same loss of the same batch. They are checked against float64
    first, then measured in turns. A ratio is a time divided by dmlfast's in the same round, the
    median over all rounds; extra memory is the peak beyond inputs, loss and gradients. Ctrl-C keeps
    what has been measured so far.
    """
    if list_only or name is None:
        click.echo(_listing())
        return 0
    check_name(name)
    refuse_overwriting({"--plot": plot}, {"--csv": csv_path})

    from dmlfast.bench import harness
    from dmlfast.bench.devices import get_device
    from dmlfast.bench.report import latest, read_csv

    device = get_device(device_name)
    if csv_path and csv_path.is_dir():
        csv_path /= f"{machine_slug(device.machine)}.csv"
    before = read_csv(csv_path) if csv_path else []
    if replot:
        if not before or plot is None:
            raise click.UsageError("--replot needs --plot, and rows in --csv")
        _draw(latest(before, name), name, plot)
        return 0
    if resume and csv_path is None:
        raise click.UsageError("--resume needs --csv")
    benchmark = get_benchmark(name)
    own = benchmark.sizes[device.torch_device.type]
    sizes = (sizes or (own.quick if quick else own.usual)) + f",{own.large}" * large
    cases = _cases(benchmark, impl, baselines, sizes, dtypes, device)
    rounds = rounds or (5 if quick else 15)
    seconds = (1.0 if quick else 30.0) if seconds is None else seconds
    threads = threads or device.threads
    gib = device.memory_limit / 2**30 if memory_limit is None else memory_limit
    settings = harness.Settings(
        rounds=rounds,
        seconds=seconds,
        threads=threads,
        memory_limit=gib * 2**30,
        compile=not quick,
        command=f"dmlfast bench {name} --impl {impl} --baselines {baselines} --sizes {sizes}"
        f" --device {device.torch_device} --dtype {','.join(dtypes)} --rounds {rounds}"
        f" --seconds {seconds:g} --threads {threads} --memory-limit {gib:.1f}" + " --quick" * quick,
    )
    order = [(case.size, case.dtype_name) for case in cases]
    rows: list[Row] = []
    if resume:
        cases, rows = harness.resume(benchmark, cases, device, settings, before)
    rows, busy, interrupted = _measure(benchmark, cases, device, settings, rows, csv_path)
    rows.sort(key=lambda row: order.index((row.size, row.dtype)))
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
    elif rows:
        click.echo(_tables(rows))
    if busy > BUSY:
        click.echo(
            f"Warning: other processes used up to {busy:.0%} of the machine: measure again when it"
            " is quiet",
            err=True,
        )
    if plot and rows:
        _draw(latest(rows, name), name, plot)
    return INTERRUPTED if interrupted else 0


def _cases(
    benchmark: "Benchmark",
    impl: str,
    baselines: str,
    sizes: str,
    dtypes: list[str],
    device: "Device",
) -> "list[Case]":
    """Who is measured at which size, in which dtype."""
    import torch
    from dmlfast.bench import harness

    kind, chosen = device.torch_device.type, [getattr(torch, word) for word in dtypes]
    competitors = _baselines(benchmark, baselines) + _dmlfast(benchmark, impl, kind, chosen)
    try:
        all_sizes = benchmark.parse_sizes(sizes)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return harness.plan(competitors, all_sizes, chosen, device)


def _measure(
    benchmark: "Benchmark",
    cases: "list[Case]",
    device: "Device",
    settings: "Settings",
    rows: "list[Row]",
    csv_path: Path | None,
) -> "tuple[list[Row], float, bool]":
    """The rows with those of the cases, which are kept in the file too.

    And what share of all cores others used at most, and whether Ctrl-C came.
    """
    from dmlfast.bench import harness
    from dmlfast.bench.report import merge, update_csv

    interrupted, busy = False, 0.0
    with _progress(harness.count_steps(cases, settings.rounds)) as tell:
        try:
            for new in harness.run(benchmark, cases, device, settings, tell):
                rows = merge(rows, new)
                busy = max([busy, *(row.busy_elsewhere or 0 for row in new)])
                if csv_path:
                    update_csv(csv_path, new)
        except KeyboardInterrupt:
            interrupted = True
    return rows, busy, interrupted


def _listing() -> str:
    wide = max(map(len, BENCHMARKS))
    return "\n".join(
        ["Losses to measure with `dmlfast bench LOSS` (--quick takes about 20 seconds):", ""]
        + [f"  {name:{wide}}  {title}" for name, (_, title) in BENCHMARKS.items()]
    )


def _baselines(benchmark: "Benchmark", names: str) -> "list[Competitor]":
    """The competitors that `--baselines` asks for."""
    known = {competitor.name: competitor for competitor in benchmark.baselines}
    if names in ("all", "none"):
        return list(known.values()) if names == "all" else []
    for word in names.split(","):
        if word not in known:
            raise unknown_name("baseline", word, ["all", "none", *known])
    return [known[word] for word in names.split(",")]


def _dmlfast(
    benchmark: "Benchmark", impl: str, device: str, dtypes: "list[torch.dtype]"
) -> "list[Competitor]":
    """The competitors that `--impl` asks for, the one that "auto" prefers first."""
    from dmlfast.ops import dispatch, why_not

    def refusal(name: str) -> str | None:
        """Why a backend cannot be measured in any of the dtypes, or None."""
        if reason := why_not(name):
            return reason
        if dispatch.BACKENDS[name].by_name_only():
            return "its kernels are interpreted here, which is only for tests"
        reasons = [dispatch.BACKENDS[name].declines(device, dtype) for dtype in dtypes]
        return reasons[0] if all(reasons) else None

    known = list(dispatch.BACKENDS)
    if impl in ("all", "auto"):
        usable = [name for name in dispatch.BACKENDS if refusal(name) is None]
        return [benchmark.dmlfast(name) for name in (usable if impl == "all" else usable[:1])]
    if impl not in known:
        raise unknown_name("impl", impl, ["all", "auto", *known])
    if reason := refusal(impl):
        raise UserError(f"impl '{impl}' cannot be measured: {reason}")
    return [benchmark.dmlfast(impl)]


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr where that is a terminal; it is told of each step before it is taken."""
    from tqdm import tqdm

    format = "{percentage:3.0f}% {bar:20} {elapsed}  {desc}"
    with tqdm(total=steps, disable=not sys.stderr.isatty(), leave=False, bar_format=format) as bar:

        def tell(text: str) -> None:
            bar.set_description_str(text, refresh=False)
            bar.update()
            bar.refresh()

        yield tell


def _tables(rows: "list[Row]") -> str:
    """A table for each dtype, below what was measured where."""
    from dmlfast.bench.report import table

    parts = []
    for _, group in itertools.groupby(rows, key=lambda row: row.conditions):
        same = list(group)
        parts.append(f"{_heading(same[0])}\n{table(same)}")
    return "\n\n".join(parts)


def _heading(row: "Row") -> str:
    threads = counted(row.threads, "thread")
    title = BENCHMARKS[row.op][1]
    return f"{title}: {row.mode}, {row.dtype}, {threads}, {row.machine}\n"


def _draw(rows: "list[Row]", name: str, path: Path) -> None:
    from dmlfast.bench.plot import save_plot

    save_plot(rows, BENCHMARKS[name][1], path)
    click.echo(f"wrote {path}", err=True)
