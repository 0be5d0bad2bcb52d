"""`make gpu`: what only a GPU can tell, in parts that end within minutes and go on next time.

    [DMLFAST_GPU_SECONDS=440] python3 tools/gpu.py [smoke|test|sanitize|bench|train|tune]

Without a part: a first look, the tests and a short benchmark. Every part leaves a log and a table
of outcomes in build/gpu/, each line as soon as it is known; measurements go to bench/results/. What
does not fit in the time is left out, and said; the next call begins with it.
"""

import csv
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "gpu"
SECONDS = 440  # of a call, the build included, unless the variable has a number
SECONDS_VARIABLE = "DMLFAST_GPU_SECONDS"
QUICK_SECONDS = 110  # of them for the benchmark of a call without a part
TEST_SECONDS = 200  # after which the process of a test ends: kernels may never do
SMOKE_SECONDS = 60  # the same of a first look at a case
GRACE = 35  # seconds after which what has not ended by itself is stopped
TEST_FILES = {
    "kernels": (
        "tests/ops/test_gpu.py",
        "tests/ops/test_gpu_losses.py",
        "tests/ops/test_gpu_variants.py",
        "tests/ops/test_gpu_wide.py",
        "tests/ops/test_matmul.py",
        "tests/ops/test_one_pass.py",
        "tests/retrieval/test_gpu.py",
        "tests/training/test_gpu.py",
    ),
    "clock": ("tests/bench/test_gpu.py",),  # needs the GPU for itself
}
CLOCK_SECONDS = 80  # that are left for those
PROCESSES = 12  # that share the tests of kernels: most of their time Triton compiles, on one core
RESTARTS = 8  # of a process that breaks
RUN_TESTS = "run-tests"  # how the command calls itself for a process with the tests
BROKEN = 77  # exit code, none of pytest's own, of that process where the GPU serves it no longer
SMOKE = (  # cases of tests/ops/sanitize.py, one for every way in which threads wait for each other
    "cuda lifted 64x64x24 float32",  # at barriers of a cluster
    "cuda lifted 129x129x24 float32",  # of a grid
    "cuda lifted of many rows 64",  # of groups of warps, and of the copy engine
    "cuda lifted of many rows 200",  # of two blocks that share tiles
    "cuda pair_reduce of many columns 64",
    "cuda pair_reduce of many columns 200",
    "triton lifted 64x64x24 bfloat16",
    "triton lifted 129x129x24 float32",
    "triton lifted of several blocks of weights",
    "triton pddm batch bfloat16",
)
SANITIZERS = ("memcheck", "racecheck")
SANITIZED_SHARES = 8  # of the cases, each in a process
SANITIZER_GRACE = 70  # of a sanitizer's time, for the case in progress: importing torch is slow too
CLEAN = "clean"
DMLFAST = [sys.executable, "-m", "dmlfast"]


class Case(NamedTuple):
    """A call of `dmlfast bench`: the loss, sizes, dtypes, the seconds to allow for, and whom it is
    compared with.
    """

    loss: str
    sizes: str
    dtypes: str
    seconds: int
    baselines: str = "all"
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.loss} {self.sizes} {self.dtypes}"

    @property
    def command(self) -> list[str]:
        where = ["--device", "cuda", "--csv", "bench/results", "--resume"]
        what = ["--sizes", self.sizes, "--dtype", self.dtypes, "--baselines", self.baselines]
        return [*DMLFAST, "bench", self.loss, *where, *what, *self.options]


BRAIN, FULL, BOTH = "bfloat16", "float32", "bfloat16,float32"
MILLION = "4096x512x1000000"
QUICK = [Case("lifted", "128x128,32768x128", BOTH, 60, "naive")]
GOALS = [  # all sizes of the goals, in their dtype first
    Case("lifted", "128x128,1024x128", BOTH, 90, "naive,compiled"),
    Case("lifted", "32768x128,32768x512", BRAIN, 90, "naive,compiled,chunked"),
    Case("boosted", "4096x512,32768x512", BRAIN, 60, "naive,chunked"),
    Case("pddm", "512x128,4096x128", BRAIN, 45, "naive,selective"),
    Case("pddm-anchors", "512x128,4096x128", BRAIN, 45, "naive,chunked"),
    Case("norm-softmax", MILLION, BRAIN, 105),
    Case("lifted", "1048576x128", BRAIN, 90, "none", ("--rounds", "3")),
    Case("lifted", "32768x128,32768x512", FULL, 90, "naive,compiled,chunked"),
    Case("boosted", "4096x512,32768x512", FULL, 60, "naive,chunked"),
    Case("pddm", "512x128,4096x128", FULL, 45, "naive,selective"),
    Case("pddm-anchors", "512x128,4096x128", FULL, 45, "naive,chunked"),
    Case("norm-softmax", MILLION, FULL, 120),
    Case("lifted", "1048576x128", FULL, 200, "none", ("--rounds", "3")),
]


class Table:
    """The outcomes of a part: lines in a CSV file, of which the last one of a name counts."""

    FIELDS = ("call", "name", "outcome", "seconds")

    def __init__(self, part: str) -> None:
        self.path = FOLDER / f"{part}.csv"

    def record(self, call: str, name: str, outcome: str, seconds: float = 0.0) -> None:
        """Adds a line, as several processes may at a time."""
        self.begin()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([call, name, outcome, f"{seconds:.1f}"])

    def begin(self) -> None:
        """Writes the heading, if there is none."""
        if not self.path.exists():
            self.path.write_text(f"{','.join(self.FIELDS)}\n", encoding="utf-8")

    def outcomes(self, call: str | None = None) -> dict[str, str]:
        """Outcomes by name, of one call or of all."""
        if not self.path.exists():
            return {}
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if call in (None, row["call"])]
        return {row["name"]: row["outcome"] for row in rows}


class Recorder:
    """A pytest plugin that runs a share of the tests until the time is up, and records each.

    Of all tests it takes those whose number leaves ``share`` when divided by ``shares``. Those that
    passed when they last ran come last, before them those that did not end. One that does not end
    within ``TEST_SECONDS`` ends the process, by a signal that needs no help of it. ``broken``: a
    test left the GPU in a state in which this process can use it no longer.
    """

    def __init__(
        self, table: Table, call: str, deadline: float, share: int = 0, shares: int = 1
    ) -> None:
        self.table, self.call, self.deadline = table, call, deadline
        self.share, self.shares = share, shares
        self.broken = False

    def pytest_sessionstart(self, session: Any) -> None:
        self.session = session

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        begun, before = self.table.outcomes(self.call), self.table.outcomes()
        own = items[self.share :: self.shares]
        items[:] = sorted(
            (item for item in own if item.nodeid not in begun),
            key=lambda item: {"unfinished": 1, "passed": 2}.get(before.get(item.nodeid, ""), 0),
        )

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.outcome, self.start = "passed", time.time()
        self.table.record(self.call, nodeid, "unfinished")
        signal.alarm(TEST_SECONDS)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.outcome = "failed"
            print(f"\n{report.longreprtext}", flush=True)
        elif report.skipped and self.outcome == "passed":
            self.outcome = "skipped"

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        signal.alarm(0)
        self.table.record(self.call, nodeid, self.outcome, time.time() - self.start)
        if self.outcome == "failed" and not gpu_answers():
            self.broken = True
            self.session.shouldstop = "the GPU serves this process no longer"
        elif time.time() > self.deadline:
            self.session.shouldstop = "the time is up"
        else:
            give_memory_back()

    def pytest_sessionfinish(self, session: Any) -> None:
        if time.time() > self.deadline:
            begun = self.table.outcomes(self.call)
            for item in getattr(session, "items", ()):
                if item.nodeid not in begun:
                    self.table.record(self.call, item.nodeid, "left out")


def gpu_answers() -> bool:
    """Whether the GPU still serves this process: after an invalid access it does not."""
    import torch

    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def give_memory_back() -> None:
    """Leaves memory of the GPU that this process does not use any more to the others."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def run_tests(call: str, deadline: float, kind: str, share: int, shares: int) -> int:
    """Runs the share of the tests that the call has not begun, in this process."""
    import pytest

    recorder = Recorder(Table("test"), call, deadline, share, shares)
    options = ["-v", "--tb=short", "--no-summary", "-m", "gpu", "-p", "no:cacheprovider"]
    files = [str(ROOT / path) for path in TEST_FILES[kind]]
    code = pytest.main([*options, *files], plugins=[recorder])
    return BROKEN if recorder.broken else int(code)


def why_not() -> str | None:
    """None where torch can use a GPU, else the reason."""
    if importlib.util.find_spec("torch") is None:
        return f"{sys.executable} has no torch"
    import torch

    if torch.cuda.is_available():
        return None
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    why = "" if hidden is None else f": CUDA_VISIBLE_DEVICES is '{hidden}'"
    return f"torch {torch.__version__} sees no NVIDIA GPU{why}"


RUNNING: set[int] = set()  # processes that `tee` waits for


def tee(command: Sequence[str], part: str, deadline: float, **environment: str) -> tuple[int, str]:
    """Runs a command, its output to the terminal and to the log; stops it at the deadline.

    Returns its exit code and its output. Several may run at a time.
    """
    settings = {"PYTHONUNBUFFERED": "1", "TRITON_INTERPRET": "0", "DMLFAST_IMPL": "auto"}
    lines: list[str] = []
    with (FOLDER / f"{part}.log").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | settings | environment,
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        stop = threading.Timer(
            max(0, deadline - time.time()), os.killpg, (process.pid, signal.SIGKILL)
        )
        stop.start()
        RUNNING.add(process.pid)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                print(line, end="", flush=True)
                print(line, end="", flush=True, file=log)
            process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            RUNNING.discard(process.pid)
            stop.cancel()
    return process.returncode, "".join(lines)


def architecture() -> str:
    """That of this machine's GPU, for which alone kernels are compiled here."""
    import torch

    if not torch.cuda.is_available():
        return "90a"
    major, minor = torch.cuda.get_device_capability()
    return "90a" if (major, minor) == (9, 0) else f"{major}{minor}"


def build() -> int:
    """Builds the library and installs the package in place, unless that is done already."""
    files = [ROOT / "setup.py", ROOT / "pyproject.toml", *sorted((ROOT / "csrc").rglob("*.*"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files))
    digest.update(f"{sys.prefix} {architecture()}".encode())
    stamp, library = FOLDER / "built", ROOT / "dmlfast" / "ops" / "libdmlfast_cpu.so"
    installed = library.exists() and importlib.util.find_spec("dmlfast") is not None
    if installed and stamp.exists() and stamp.read_text() == digest.hexdigest():
        return 0
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-build-isolation", "--no-deps", "-e", "."]
    native = os.environ.get("DMLFAST_REQUIRE_NATIVE", "cpu,cuda")
    wanted = {"DMLFAST_REQUIRE_NATIVE": native, "DMLFAST_CUDA_ARCHITECTURES": architecture()}
    code, _ = tee([*pip, *offline], "build", time.time() + 300, **wanted)
    if code == 0:
        stamp.write_text(digest.hexdigest())
    return code


def at_once(calls: Sequence[Callable[[], Any]], stop: threading.Event) -> list[Any]:
    """What calls of `tee` come to that run at a time; an interruption stops their processes."""
    with ThreadPoolExecutor(len(calls)) as pool:
        ends = [pool.submit(call) for call in calls]
        try:
            return [end.result() for end in ends]
        except BaseException:
            stop.set()
            for process in list(RUNNING):
                os.killpg(process, signal.SIGKILL)
            raise


def smoke(call: str, deadline: float) -> None:
    """A first look: whether kernels come to an end, each case in a process of its own."""
    script = [sys.executable, "-m", "tests.ops.sanitize", "--cases"]
    table = Table("smoke")
    table.begin()  # before several write to it

    def run(name: str) -> None:
        start = time.time()
        code, _ = tee([*script, name], "smoke", min(deadline, start + SMOKE_SECONDS))
        outcome = {0: "passed", -signal.SIGKILL: "unfinished"}.get(code, "failed")
        table.record(call, name, outcome, time.time() - start)

    at_once([partial(run, name) for name in SMOKE], threading.Event())


def test(call: str, deadline: float) -> None:
    """The tests marked `gpu`: of kernels in several processes, of clocks in one."""
    table = Table("test")
    table.begin()
    shares = min(PROCESSES, os.cpu_count() or 1)
    stop = threading.Event()
    until = deadline - CLOCK_SECONDS

    def run(share: int) -> None:
        share_of_tests(call, until, stop, "kernels", share, shares)

    at_once([partial(run, share) for share in range(shares)], stop)
    share_of_tests(call, deadline, stop, "clock", 0, 1)
    if not table.outcomes(call):
        table.record(call, "pytest", "failed")


def share_of_tests(
    call: str, deadline: float, stop: threading.Event, kind: str, share: int, shares: int
) -> None:
    """A share of the tests in a process, and in another one where a test broke that."""
    command = [sys.executable, __file__, RUN_TESTS, call, str(deadline), kind, str(share)]
    one_core = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"} if shares > 1 else {}
    for _ in range(RESTARTS):
        code, output = tee([*command, str(shares)], "test", deadline + GRACE, **one_core)
        if code == -signal.SIGKILL and time.time() > deadline:
            leave_out_unfinished(call, output)
        if stop.is_set() or time.time() > deadline or not (code == BROKEN or code < 0):
            break


def leave_out_unfinished(call: str, output: str) -> None:
    """Records what a process was at when its time was up: to be stopped says nothing of a test."""
    table = Table("test")
    for name, outcome in table.outcomes(call).items():
        if outcome == "unfinished" and f"{name} " in output:
            table.record(call, name, "left out")


def sanitize(call: str, deadline: float) -> None:
    """Every kernel on small shapes under compute-sanitizer, in several processes."""
    table = Table("sanitize")
    table.begin()
    program = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    script = [sys.executable, "-m", "tests.ops.sanitize"]
    listed = tee([*script, "--list"], "sanitize", deadline)[1] if program else ""
    names = [line for line in listed.splitlines() if line.startswith(("triton ", "cuda "))]
    for left, tool in zip(range(len(SANITIZERS), 0, -1), SANITIZERS, strict=True):
        if program is None or not names:
            why = "the cases were not listed" if program else "compute-sanitizer is not installed"
            table.record(call, tool, f"not run: {why}")
            continue
        start = time.time()
        end = start + (deadline - start) / left
        before = table.outcomes()
        due = sorted(names, key=lambda name, tool=tool: before.get(f"{tool} {name}") == CLEAN)
        options = ["--tool", tool, "--target-processes", "application-only"]
        options += ["--report-api-errors", "no"]  # those of our calls raise, others only ask
        until = ["--until", str(end - SANITIZER_GRACE), "--cases"]
        command = [program, *options, *script, *until]
        runs = [
            partial(sanitized, call, tool, command, own, end)
            for share in range(SANITIZED_SHARES)
            if (own := share_of(due, share))
        ]
        found = at_once(runs, threading.Event())
        table.record(call, tool, verdict(found, len(names)), time.time() - start)


def share_of(names: Sequence[str], share: int) -> list[str]:
    """Two neighbours at a time, which are one of Triton's and one of CUDA's as far as both last."""
    return [name for at, name in enumerate(names) if at // 2 % SANITIZED_SHARES == share]


def sanitized(
    call: str, tool: str, command: Sequence[str], cases: Sequence[str], end: float
) -> "Findings":
    """Runs cases in a process under compute-sanitizer, and records them."""
    start = time.time()
    settings = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "1"}
    findings = Findings.of(tee([*command, *cases], "sanitize", end, **settings)[1])
    for name in cases:
        outcome = findings.outcome(name)
        Table("sanitize").record(call, f"{tool} {name}", outcome, time.time() - start)
    return findings


class Findings(NamedTuple):
    """What a process under compute-sanitizer came to.

    done: the cases that it has finished. why_not: why it counts as not run. broken: the script did
    not reach its end.
    """

    errors: int = 0
    warnings: int = 0
    done: frozenset[str] = frozenset()
    kernels: frozenset[str] = frozenset()
    why_not: str = ""
    broken: bool = False

    @classmethod
    def of(cls, output: str) -> "Findings":
        """From what compute-sanitizer and the script printed."""
        kernels = frozenset(kernels_named(output))
        done = frozenset(re.findall(r"^done: (.*)$", output, re.M))
        found = re.search(
            r"ERROR SUMMARY: (\d+) error"
            r"|RACECHECK SUMMARY: (\d+) hazards? displayed(?: \((\d+) errors?, (\d+) warn)?",
            output,
        )
        if found is None or ("not supported" in output and not done):
            said = [line for each in output.splitlines() if (line := each.strip("= "))]
            refused = [line for line in said if "not supported" in line]
            last = f"no summary after '{said[-1]}'" if said else "nothing was said"
            return cls(kernels=kernels, why_not=refused[0] if refused else last)
        errors, hazards, serious, warnings = (int(n) if n else None for n in found.groups())
        counted = next(n for n in (errors, serious, hazards) if n is not None)
        broken = not re.search(r"^sanitized ", output, re.M)
        return cls(counted, warnings or 0, done, kernels, broken=broken)

    def outcome(self, name: str) -> str:
        """That of a case: which one of its process an error is of is not known."""
        if self.why_not:
            return f"not run: {self.why_not}"
        if name not in self.done:
            return "left out"
        return f"failed: {self.errors} errors in its process" if self.errors else CLEAN


def kernels_named(output: str) -> set[str]:
    """The kernels that findings are in: "at NAME(...)+0x10 in FILE", or before 2023
    "at 0x10 in FILE:LINE:NAME(...)".
    """
    names = set()
    for line in output.splitlines():
        if "Frame" in line:  # of those that called it
            continue
        line = re.sub(r"<unnamed>::|\(anonymous namespace\)::", "", line)
        if found := re.search(r"^=.*\bat (?:(.+?)\+0x|0x\w+ in (?:.*?:\d+:)?(.+))", line):
            before_brackets = re.split(r"[(<]", found[1] or found[2])[0]
            names.update(re.findall(r"\w+$", before_brackets))
    return names


def verdict(found: Sequence[Findings], cases: int) -> str:
    """What a tool found, in a line; hazards that are warnings are told."""
    reasons = [each.why_not for each in found if each.why_not]
    if len(reasons) == len(found):
        return f"not run: {reasons[0]}"
    errors, done = sum(each.errors for each in found), sum(len(each.done) for each in found)
    broken, warnings = any(each.broken for each in found), sum(each.warnings for each in found)
    state = "failed" if errors or broken else "incomplete" if done < cases else "passed"
    said = f"{state}: {errors} errors"
    if warnings:
        said += f", {warnings} warnings"
    said += f" in {done} of {cases} cases"
    if kernels := frozenset().union(*(each.kernels for each in found)):
        said += f", of {' '.join(sorted(kernels))}"
    if broken:
        said += "; a script that failed"
    return f"{said}; not run: {reasons[0]}" if reasons else said


def bench(call: str, deadline: float, cases: Iterable[Case] = tuple(GOALS)) -> None:
    """The sizes of the goals; ends with what was reached."""
    table = Table("bench")
    for case in cases:
        name, start = str(case), time.time()
        if start + case.seconds > deadline:
            table.record(call, name, "left out")
            continue
        code, _ = tee(case.command, "bench", deadline + GRACE)
        table.record(call, name, "failed" if code else "measured", time.time() - start)
    if (path := results()).exists():
        goals = [sys.executable, "-m", "dmlfast.bench.goals", str(path)]
        tee(goals, "bench", time.time() + GRACE)


def train(call: str, deadline: float) -> None:
    """Training on the glyphs: recall, images a second and the loss's share of a step."""
    for precision in ("fp32", "bf16"):
        start = time.time()
        options = ["--device", "cuda", "--precision", precision]
        command = [sys.executable, "-m", "dmlfast.bench.training", *options]
        code, output = tee(command, "train", deadline)
        outcome = "failed" if code else output.rstrip().rpartition("\n")[2]
        Table("train").record(call, precision, outcome, time.time() - start)


def tune(call: str, deadline: float) -> None:
    """The block sizes."""
    start = time.time()
    options = ["--seconds", str(int(deadline - start)), "--csv", str(FOLDER / "tiles.csv")]
    code, _ = tee([*DMLFAST, "tune", *options, "--resume"], "tune", deadline + GRACE)
    outcome = "failed" if code else "done: build/gpu/tiles.csv"
    Table("tune").record(call, "tune", outcome, time.time() - start)


PARTS: dict[str, Callable[[str, float], None]] = {
    "smoke": smoke,
    "test": test,
    "sanitize": sanitize,
    "bench": bench,
    "train": train,
    "tune": tune,
}


def summary(parts: Iterable[str], call: str) -> tuple[str, bool]:
    """The table of what a call came to, and whether all is well."""
    lines: list[tuple[str, str]] = []
    well = True
    for part in parts:
        outcomes = Table(part).outcomes(call)
        if part == "sanitize":  # whose cases the table has
            outcomes = {name: outcomes[name] for name in SANITIZERS if name in outcomes}
        counts = Counter(outcomes.values())
        bad = {name for name in counts if re.match(r"failed|unfinished|not run|incomplete", name)}
        bad |= {name for name in counts if name.endswith("failed")}
        well = well and bool(outcomes) and not bad
        if part in ("sanitize", "train", "tune"):
            lines += outcomes.items()
        else:
            said = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
            lines.append((part, said or "nothing was run"))
            lines += [
                ("", f"{outcome}: {name}") for name, outcome in outcomes.items() if outcome in bad
            ]
    wide = max((len(name) for name, _ in lines), default=0)
    return "\n".join(f"{name:{wide}}  {text}" for name, text in lines), well


def results() -> Path:
    """The table of this GPU's measurements."""
    import torch

    sys.path.insert(0, str(ROOT))
    from bench.machine import machine_slug

    return ROOT / "bench" / "results" / f"{machine_slug(torch.cuda.get_device_name())}.csv"


def measured_rows(path: Path) -> str:
    """How many rows a table of measurements has, and where it is."""
    if not path.exists():
        return "none"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    timed = sum(bool(row["median_ms"]) for row in rows)
    return f"{timed} with a time, {len(rows) - timed} without, in {path.relative_to(ROOT)}"


def main(arguments: Sequence[str]) -> int:
    start = time.time()
    if arguments[:1] == [RUN_TESTS]:
        call, deadline, kind, share, shares = arguments[1:]
        return run_tests(call, float(deadline), kind, int(share), int(shares))
    part = arguments[0] if arguments else ""
    if part not in ("", *PARTS):
        print(f"make gpu: PART is one of {', '.join(PARTS)}, not '{part}'", file=sys.stderr)
        return 2
    seconds = os.environ.get(SECONDS_VARIABLE, str(SECONDS))
    if not seconds.isdecimal():
        print(
            f"make gpu: {SECONDS_VARIABLE} must be a whole number, not '{seconds}'", file=sys.stderr
        )
        return 2
    if reason := why_not():
        print(f"make gpu: {reason}", file=sys.stderr)
        return 1
    FOLDER.mkdir(parents=True, exist_ok=True)
    if code := build():
        print("make gpu: the package was not built: see build/gpu/build.log", file=sys.stderr)
        return code
    import torch

    call = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start))
    deadline = start + int(seconds)
    if part:
        PARTS[part](call, deadline)
    else:
        smoke(call, deadline)
        test(call, deadline - QUICK_SECONDS)
        bench(call, deadline, QUICK)
    parts = [part] if part else ["smoke", "test", "bench"]
    text, well = summary(parts, call)
    print(f"\n{torch.cuda.get_device_name()}, {time.time() - start:.0f} s\n{text}")
    if "bench" in parts:
        print(f"bench rows: {measured_rows(results())}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
