"""The goals of the benchmarks, set before the kernels were written, and what was measured.

    python -m dmlfast.bench.goals [bench/results/GPU.csv ...]

prints them as the tables of bench/README.md. Without files, the committed results count, of each
kind of device those with most of its goals.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmlfast.bench.report import Row, read_csv
from dmlfast.bench.sizes import Size

RESULTS = Path(__file__).parent / "results"
OURS, GRAPH = "dmlfast-", "-graph"
OR = " or "


@dataclass(frozen=True)
class Goal:
    """A bound on what a benchmark comes to.

    where: "cpu" or "cuda".
    kind: of `KINDS`, what is bounded.
    bound: at most or, of what is to be large, at least that.
    than: whom it is compared with; of several the one who does best.
    by: who is measured, if not the fastest backend.
    predicted: what was expected before it was measured, where something was.
    """

    where: str
    op: str
    size: str
    dtype: str
    kind: str
    bound: float
    than: str = ""
    by: str = ""
    predicted: float | None = None


Find = Callable[["Goal", "Measured"], float | None]


@dataclass(frozen=True)
class Kind:
    """What is bounded: in words, from above or below, and how it is found."""

    words: str
    unit: str
    most: bool
    find: Find


@dataclass(frozen=True)
class Measured:
    """What was measured of one op, in one dtype, on one kind of device."""

    rows: Sequence[Row]

    def of(self, size: Size, provider: str) -> Row | None:
        """The row of a provider at a size, of several the fastest; of "" the fastest backend's, of
        "-graph" in a graph.
        """
        rows = [row for row in self.rows if row.size == size and row.median_ms is not None]
        if provider in ("", GRAPH):
            graphs = [row.provider.endswith(GRAPH) for row in rows]
            wanted = [
                row
                for row, graph in zip(rows, graphs, strict=True)
                if row.provider.startswith(OURS) and graph == bool(provider)
            ]
        else:
            wanted = [row for row in rows if row.provider in provider.split(OR)]
        return min(wanted, key=lambda row: row.median_ms or 0.0, default=None)


def _field(name: str, provider: str = "", factor: float = 1.0) -> Find:
    def find(goal: Goal, measured: Measured) -> float | None:
        row = measured.of(Size.parse(goal.size), goal.by or provider)
        value = None if row is None else getattr(row, name)
        return None if value is None else factor * value

    return find


def _against(name: str) -> Find:
    """The least of what others take over what is measured, both in one unit."""

    def find(goal: Goal, measured: Measured) -> float | None:
        size = Size.parse(goal.size)
        ours = measured.of(size, goal.by)
        others = [measured.of(size, each) for each in goal.than.split(OR)]
        taken = [getattr(row, name) for row in others if row]
        if ours is None or not taken or None in taken:
            return None
        return float(min(taken) / getattr(ours, name)) if getattr(ours, name) else None

    return find


def _growth(goal: Goal, measured: Measured) -> float | None:
    """The time over that of fewer rows, over the square of their ratio."""
    size, fewer = Size.parse(goal.size), Size.parse(goal.than)
    ours, theirs = measured.of(size, ""), measured.of(fewer, "")
    if not (ours and theirs and ours.median_ms and theirs.median_ms):
        return None
    return ours.median_ms / theirs.median_ms / (size.n / fewer.n) ** 2


KINDS = {
    "speed": Kind("{} times as fast as {than}", "", False, _against("ratio_to_dmlfast")),
    "memory": Kind("1/{} of the extra memory of {than}", "1/", False, _against("extra_mib")),
    "ms": Kind("at most {} ms", " ms", True, _field("median_ms")),
    "graph": Kind("at most {} µs in a graph", " µs", True, _field("median_ms", GRAPH, 1e3)),
    "MiB": Kind("at most {} MiB beyond inputs and gradients", " MiB", True, _field("extra_mib")),
    "rate": Kind("{} TFLOP/s", " TFLOP/s", False, _field("tflops")),
    "gemm": Kind("at most {} x GEMM", " x", True, _field("gemm_ratio")),
    "growth": Kind("at most {} times N² growth from {than}", " times", True, _growth),
}


def _cpu(op: str, size: str, kind: str, bound: float, than: str = "", by: str = "") -> Goal:
    return Goal("cpu", op, size, "float32", kind, bound, than, by)


def _gpu(
    op: str,
    size: str,
    kind: str,
    bound: float,
    than: str = "",
    by: str = "",
    dtype: str = "bfloat16",
    predicted: float | None = None,
) -> Goal:
    return Goal("cuda", op, size, dtype, kind, bound, than, by, predicted)


MILLION = "4096x512x1000000"
LOW_MEMORY = OR.join(["low-memory", "low-memory-cuda"])
GOALS = (
    _cpu("lifted", "128x128", "speed", 6, "naive"),
    _cpu("lifted", "128x128", "speed", 6, "compiled"),
    _cpu("lifted", "512x128", "speed", 9, "naive"),
    _cpu("lifted", "512x128", "speed", 9, "compiled"),
    _cpu("lifted", "8192x128", "speed", 13, "naive or compiled"),
    _cpu("lifted", "8192x128", "speed", 6, "chunked"),
    _cpu("lifted", "8192x128", "memory", 30, "naive"),
    _cpu("lifted", "8192x512", "speed", 4, "naive or compiled"),
    _cpu("lifted", "8192x512", "speed", 3.2, "chunked"),
    _cpu("lifted", "8192x512", "gemm", 2.2),
    _cpu("lifted", "8192x512", "memory", 30, "naive"),
    _cpu("lifted", "65536x128", "growth", 1.1, "8192x128"),
    _cpu("lifted", "65536x128", "MiB", 400),
    _cpu("norm-softmax", "1024x512x100000", "speed", 1.5, "naive or linear-ce"),
    _cpu("norm-softmax", "1024x512x100000", "memory", 10, "naive"),
    _cpu("norm-softmax", "1024x512x100000", "speed", 6, "dmlfast-cpu", by="sampled"),
    _cpu("pddm", "512x128", "speed", 8, "naive"),
    _cpu("pddm", "512x128", "memory", 50, "naive"),
    _cpu("pddm-anchors", "512x128", "speed", 8, "naive"),
    _cpu("pddm-anchors", "512x128", "memory", 50, "naive"),
    _cpu("boosted", "4096x512", "speed", 9, "naive"),
    _cpu("boosted", "4096x512", "memory", 30, "naive"),
    _gpu("lifted", "128x128", "graph", 12, dtype="float32", predicted=11),
    _gpu("lifted", "1024x128", "graph", 60, dtype="float32", predicted=41),
    _gpu("lifted", "32768x128", "rate", 250, predicted=355),
    _gpu("lifted", "32768x128", "speed", 15, "naive"),
    _gpu("lifted", "32768x128", "speed", 4, "compiled"),
    _gpu("lifted", "32768x512", "rate", 400, predicted=440),
    _gpu("lifted", "32768x512", "speed", 6, "naive"),
    _gpu("lifted", "32768x512", "speed", 1.8, "compiled"),
    _gpu("lifted", "1048576x128", "ms", 3000, predicted=1500),
    _gpu("lifted", "1048576x128", "MiB", 2048, predicted=1088),
    _gpu("norm-softmax", MILLION, "ms", 28, predicted=27),
    _gpu("norm-softmax", MILLION, "MiB", 3072, predicted=2988),
    _gpu("norm-softmax", MILLION, "ms", 38, by=LOW_MEMORY, predicted=41),
    _gpu("norm-softmax", MILLION, "MiB", 64, by=LOW_MEMORY, predicted=61),
    _gpu("pddm", "512x128", "speed", 10, "naive", predicted=4),
    _gpu("pddm", "4096x128", "speed", 10, "naive", predicted=20),
    _gpu("pddm-anchors", "512x128", "speed", 10, "naive", predicted=4),
    _gpu("pddm-anchors", "4096x128", "speed", 10, "naive", predicted=16),
    _gpu("boosted", "4096x512", "speed", 10, "naive", predicted=7),
)


def measured(goal: Goal, rows: Iterable[Row]) -> float | None:
    """What a goal's benchmark came to; None where it was not measured."""
    like = [
        row
        for row in rows
        if (row.op, row.dtype) == (goal.op, goal.dtype) and bool(row.cuda) == (goal.where == "cuda")
    ]
    return KINDS[goal.kind].find(goal, Measured(like))


def met(goal: Goal, value: float) -> bool:
    """Whether the goal is reached."""
    return value <= goal.bound if KINDS[goal.kind].most else value >= goal.bound


def table(where: str, rows: Sequence[Row]) -> str:
    """The goals of a kind of device as a Markdown table."""
    goals = [goal for goal in GOALS if goal.where == where]
    expecting = any(goal.predicted for goal in goals)
    heading = ["rows x width", "goal", *["predicted"] * expecting, "measured", ""]
    lines = [heading, ["---"] * len(heading)]
    for goal in goals:
        kind, value = KINDS[goal.kind], measured(goal, rows)
        than = goal.than if goal.kind == "growth" else _named(goal.than, " and ")
        size = " x ".join(f"{int(number):,}" for number in goal.size.split("x"))
        what = [f"`{goal.op}`", size, *([goal.dtype] if where == "cuda" else [])]
        by = f"{_named(goal.by, OR)}: " if goal.by else ""
        lines.append(
            [
                ", ".join(what),
                by + kind.words.format(_short(goal.bound), than=than.replace("x", " x ")),
                *[_said(kind, goal.predicted)] * expecting,
                _said(kind, value) or "not measured",
                "" if value is None else "met" if met(goal, value) else "missed",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def _named(providers: str, between: str) -> str:
    return between.join(f"`{name}`" for name in providers.split(OR))


def _said(kind: Kind, value: float | None) -> str:
    if value is None:
        return ""
    text = _short(value)
    return f"{kind.unit}{text}" if kind.unit == "1/" else f"{text}{kind.unit}"


def _short(value: float) -> str:
    """Three digits, and all of a large number's."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(files: Sequence[str]) -> None:
    """Prints the tables that the files have something for; without files both, each of the machine
    whose committed results have most of its goals.
    """
    if files:
        rows = [row for file in files for row in read_csv(Path(file))]
        for where in dict.fromkeys("cuda" if row.cuda else "cpu" for row in rows):
            print(f"{table(where, rows)}\n")
        return
    paths = sorted(path for path in RESULTS.glob("*.csv") if "provider" in path.open().readline())
    if not paths:  # as where dmlfast is installed, which brings none along
        raise SystemExit(f"there are no results in {RESULTS}: name the files")
    machines = [read_csv(path) for path in paths]
    for where in ("cpu", "cuda"):
        goals = [goal for goal in GOALS if goal.where == where]
        counts = [sum(measured(goal, rows) is not None for goal in goals) for rows in machines]
        print(f"{table(where, machines[counts.index(max(counts))])}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
