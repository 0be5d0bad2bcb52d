"""`make gpu` where there is no GPU: what it refuses, runs, leaves out and tells."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from dmlfast.bench import get_benchmark
from dmlfast.bench.goals import GOALS, OR
from dmlfast.bench.report import Row, update_csv

from dmlfast.ops.cuda import library
from tests.ops import emulated, sanitize
from tests.ops.helpers import ON_GPU
from tools import gpu

pytest_plugins = ["pytester"]
NOW = "now"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "FOLDER", tmp_path / "gpu")
    monkeypatch.setattr(gpu, "results", lambda: tmp_path / "gpu.csv")
    gpu.FOLDER.mkdir()
    return gpu.FOLDER


@pytest.fixture
def commands(monkeypatch):
    """The commands that would have been run; each comes to what stands in ``answers``, or to 0."""

    class Commands(list):
        def __init__(self) -> None:
            super().__init__()
            self.answers: list[tuple[int, str]] = []
            self.environments: list[dict[str, str]] = []

        def tee(self, command, part, deadline, **environment):
            self.append(list(map(str, command)))
            self.environments.append(environment)
            return self.answers.pop(0) if self.answers else (0, "")

    commands = Commands()
    monkeypatch.setattr(gpu, "tee", commands.tee)
    return commands


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("hidden", [False, True])
def test_without_a_gpu_it_says_so_in_a_line_and_builds_nothing(hidden, monkeypatch, capsys, folder):
    monkeypatch.setattr(gpu, "build", lambda: pytest.fail("it builds"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    folder.rmdir()
    assert gpu.main([]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "sees no NVIDIA GPU" in said
    assert ("CUDA_VISIBLE_DEVICES is '7'" in said) == hidden
    assert not folder.exists()


def test_make_passes_the_part_on():
    make = ["make", "-n", "gpu", "PART=tune", "PYTHON=some-python"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(make, cwd=gpu.ROOT, capture_output=True, text=True, env=environment)
    assert done.stdout == "some-python tools/gpu.py tune\n"


def test_an_unknown_part_is_refused_in_a_line(capsys):
    assert gpu.main(["tset"]) == 2
    assert capsys.readouterr().err == (
        "make gpu: PART is one of smoke, test, sanitize, bench, train, tune, not 'tset'\n"
    )


def test_what_is_built_is_built_once(commands, tmp_path, monkeypatch):
    for name in ("setup.py", "pyproject.toml", "csrc/a.cpp", "dmlfast/ops/libdmlfast_cpu.so"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    commands.answers = [(1, "no compiler"), (0, "")]
    assert [gpu.build() for _ in range(4)] == [1, 0, 0, 0]
    assert len(commands) == 2
    assert "--no-index" in commands[0]
    environment = {"DMLFAST_REQUIRE_NATIVE": "cpu,cuda", "DMLFAST_CUDA_ARCHITECTURES": "90a"}
    assert commands.environments[0] == environment
    (tmp_path / "csrc/a.cpp").write_text("something else")
    gpu.build()
    assert len(commands) == 3


def test_output_goes_to_the_log_and_a_command_ends_at_its_deadline(capfd, folder):
    script = "import os, time; print(os.environ['TRITON_INTERPRET'], 'é'); time.sleep({})"
    start = time.time()
    slow = [sys.executable, "-c", script.format(60)]
    assert gpu.tee(slow, "test", start + 3) == (-9, "0 é\n")
    assert time.time() - start < 20
    assert gpu.tee([sys.executable, "-c", script.format(0)], "test", time.time() + 60)[0] == 0
    assert (folder / "test.log").read_text() == "0 é\n" * 2 == capfd.readouterr().out


def test_benchmarks_that_do_not_fit_are_left_out_and_smaller_ones_are_not(commands):
    cases = [
        gpu.Case("lifted", "128x128", "bfloat16", 10),
        gpu.Case("lifted", "1048576x128", "bfloat16", 1000),
        gpu.Case("pddm", "128x128,8x8", "float32", 10, "naive", ("--rounds", "3")),
    ]
    commands.answers = [(0, ""), (1, "an error")]
    gpu.bench(NOW, time.time() + 60, cases)
    assert gpu.Table("bench").outcomes(NOW) == {
        "lifted 128x128 bfloat16": "measured",
        "lifted 1048576x128 bfloat16": "left out",
        "pddm 128x128,8x8 float32": "failed",
    }
    assert len(commands) == 2
    text = " ".join(commands[1][len(gpu.DMLFAST) :])
    assert text == (
        "bench pddm --device cuda --csv bench/results --resume --sizes 128x128,8x8 --dtype float32"
        " --baselines naive --rounds 3"
    )


def test_the_command_of_a_benchmark_is_one_that_dmlfast_knows(tmp_path):
    command = gpu.Case("lifted", "8x4", "float32", 1, "none", ("--rounds", "1")).command
    command[command.index("cuda")] = "cpu"
    command[command.index("bench/results")] = str(tmp_path)
    subprocess.run(command, cwd=gpu.ROOT, check=True, capture_output=True)
    assert len(list(tmp_path.glob("*.csv"))) == 1


def test_every_goal_is_measured_with_whom_it_names_and_then_in_float32():
    def measures(case, goal):
        baselines = [each.name for each in get_benchmark(case.loss).baselines]
        given = {"all": baselines, "none": []}.get(case.baselines, case.baselines.split(","))
        assert set(given) <= set(baselines)
        what = case.loss == goal.op and goal.size in case.sizes.split(",")
        wanted = {*goal.than.split(OR), *goal.by.split(OR)} - {""}
        return what and goal.dtype in case.dtypes.split(",") and wanted <= set(given)

    goals = [goal for goal in GOALS if goal.where == "cuda"]
    first = [min(k for k, case in enumerate(gpu.GOALS) if measures(case, goal)) for goal in goals]
    assert max(first) < len(gpu.GOALS) / 2 + 1
    sizes = [(case.loss, size) for case in gpu.GOALS for size in case.sizes.split(",")]
    for each in sizes:
        dtypes = [
            c.dtypes for c in gpu.GOALS if each[0] == c.loss and each[1] in c.sizes.split(",")
        ]
        assert set(",".join(dtypes).split(",")) == {"bfloat16", "float32"}


def test_what_was_reached_is_told(commands, tmp_path):
    gpu.bench(NOW, time.time() + 60, [])
    assert commands == []
    update_csv(tmp_path / "gpu.csv", [Row("lifted", "naive", 8, 8, "bfloat16", 1, "G", cuda="13")])
    gpu.bench(NOW, time.time() + 60, [])
    assert "not measured" in subprocess.run(commands[0], capture_output=True, text=True).stdout


def test_a_process_that_breaks_is_followed_by_another(commands):
    commands.answers = [(gpu.BROKEN, ""), (-11, ""), (1, "")]
    gpu.share_of_tests(NOW, time.time() + 60, threading.Event(), "kernels", 2, 5)
    assert len(commands) == 3
    assert commands[0][-3:] == ["kernels", "2", "5"]
    commands.answers = [(-11, "")] * 100
    gpu.share_of_tests(NOW, time.time() + 60, threading.Event(), "clock", 0, 1)
    assert len(commands) == 3 + gpu.RESTARTS
    commands.clear()
    gpu.share_of_tests(NOW, time.time() - 1, threading.Event(), "clock", 0, 1)
    assert len(commands) == 1


def test_tests_of_kernels_are_shared_out_and_clocks_come_last_alone(commands, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    gpu.test(NOW, time.time() + 600)
    assert sorted(command[-3:] for command in commands[:3]) == [
        ["kernels", str(share), "3"] for share in range(3)
    ]
    assert [command[-3:] for command in commands[3:]] == [["clock", "0", "1"]]
    assert [e.get("OMP_NUM_THREADS") for e in commands.environments] == ["1", "1", "1", None]


def test_a_first_look_is_at_one_case_a_process(monkeypatch):
    codes = dict(zip(gpu.SMOKE, (0, -9, 1, *[0] * 100), strict=False))
    until = []

    def tee(command, part, deadline, **environment):
        until.append(deadline)
        return codes[command[command.index("--cases") + 1]], ""

    monkeypatch.setattr(gpu, "tee", tee)
    start = time.time()
    gpu.smoke(NOW, start + 600)
    assert len(until) == len(gpu.SMOKE)
    assert max(until) <= time.time() + gpu.SMOKE_SECONDS
    outcomes = gpu.Table("smoke").outcomes(NOW)
    first = [outcomes[name] for name in gpu.SMOKE[:4]]
    assert first == ["passed", "unfinished", "failed", "passed"]
    assert not gpu.summary(["smoke"], NOW)[1]
    gpu.smoke("later", start)
    assert max(until[-len(gpu.SMOKE) :]) == start


def test_cases_of_a_first_look_are_those_of_the_script_on_a_gpu():
    listed = [name for impl in ON_GPU for name, _ in sanitize.cases("cuda", 129, 150, impl)]
    assert len(set(listed)) == len(listed)
    assert set(gpu.SMOKE) <= set(listed)


def test_an_interruption_stops_all_processes(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    script = [sys.executable, "-c", "import time; print('on', flush=True); time.sleep(60)"]
    tee, begun = gpu.tee, threading.Barrier(3)

    def share(call, deadline, stop, kind, number, shares):
        begun.wait(20)
        tee(script, "test", time.time() + 60)
        if number:
            return
        assert stop.is_set()

    def result(self, timeout=None):
        begun.wait(20)
        while len(gpu.RUNNING) < 2:
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "share_of_tests", share)
    monkeypatch.setattr("concurrent.futures._base.Future.result", result)
    start = time.time()
    with pytest.raises(KeyboardInterrupt):
        gpu.test(NOW, start + 600)
    assert time.time() - start < 30
    assert not gpu.RUNNING


def test_no_test_at_all_is_a_failure(commands):
    gpu.test(NOW, time.time() + 60)
    assert gpu.summary(["test"], NOW) == ("test  1 failed\n      failed: pytest", False)


class TestTheRecorder:
    FILE = """
        import time
        import pytest

        def test_a(): time.sleep(0.3)
        def test_b(): assert False, "reason of b"
        @pytest.mark.skip
        def test_c(): pass
        def test_d(): pass
    """

    @pytest.fixture
    def run(self, pytester, monkeypatch):
        monkeypatch.setattr(gpu, "gpu_answers", lambda: True)
        path = pytester.makepyfile(self.FILE)

        def run(call: str, seconds: float, share: int = 0, shares: int = 1) -> gpu.Recorder:
            deadline = time.time() + seconds
            recorder = gpu.Recorder(gpu.Table("test"), call, deadline, share, shares)
            pytester.inline_run(path, "-p", "no:cacheprovider", plugins=[recorder])
            return recorder

        return run

    @staticmethod
    def outcomes(call: str) -> list[str]:
        found = gpu.Table("test").outcomes(call)
        return [f"{name[-1]} {outcome}" for name, outcome in found.items()]

    def test_records_every_test_and_begins_with_what_has_not_passed(self, run, capsys):
        run("1", 60)
        assert self.outcomes("1") == ["a passed", "b failed", "c skipped", "d passed"]
        assert "reason of b" in capsys.readouterr().out
        run("2", 60)
        assert self.outcomes("2") == ["b failed", "c skipped", "a passed", "d passed"]

    def test_leaves_out_what_the_time_does_not_allow(self, run):
        run("1", 0.2)
        assert self.outcomes("1") == ["a passed", *[f"{name} left out" for name in "bcd"]]
        run("2", 60)
        assert self.outcomes("2")[-1] == "a passed"

    def test_stops_where_the_gpu_no_longer_answers_and_the_next_takes_the_rest(
        self, run, monkeypatch
    ):
        monkeypatch.setattr(gpu, "gpu_answers", lambda: False)
        assert run("1", 60).broken
        assert self.outcomes("1") == ["a passed", "b failed"]
        assert not run("1", 60).broken
        assert self.outcomes("1") == ["a passed", "b failed", "c skipped", "d passed"]

    def test_shares_come_to_all_tests_each_once(self, run):
        run("1", 60, 0, 3)
        assert self.outcomes("1") == ["a passed", "d passed"]
        run("1", 60, 2, 3)
        run("1", 60, 1, 3)
        assert self.outcomes("1")[2:] == ["c skipped", "b failed"]


def test_a_test_that_does_not_end_ends_its_process_and_the_next_one_goes_on(folder, tmp_path):
    """As one does not in which kernels wait for each other, whatever Python would do."""
    tests = tmp_path / "test_of_a_hang.py"
    tests.write_text(
        "import ctypes\n"
        "def test_a(): ctypes.PyDLL(None).sleep(60)\n"  # with Python's lock
        "def test_b(): pass\n"
    )
    script = (
        "import sys, time, pytest; from pathlib import Path; from tools import gpu\n"
        "gpu.FOLDER, gpu.TEST_SECONDS = Path(sys.argv[1]), 3\n"
        "recorder = gpu.Recorder(gpu.Table('test'), sys.argv[2], time.time() + 100)\n"
        "options = ['-p', 'no:cacheprovider', '--noconftest', sys.argv[3]]\n"
        "sys.exit(pytest.main(options, plugins=[recorder]))"
    )

    def run(call: str) -> tuple[int, list[str]]:
        command = [sys.executable, "-c", script, folder, call, tests]
        code = subprocess.run(command, cwd=gpu.ROOT, capture_output=True).returncode
        found = gpu.Table("test").outcomes(call)
        return code, [f"{name[-1]} {outcome}" for name, outcome in found.items()]

    assert run("1") == (-signal.SIGALRM, ["a unfinished"])
    assert run("1") == (0, ["a unfinished", "b passed"])
    tests.write_text(tests.read_text() + "def test_c(): pass\n")
    assert run("2") == (-signal.SIGALRM, ["c passed", "a unfinished"])


@pytest.mark.parametrize(
    ("code", "seconds", "expected"),
    [
        (-signal.SIGKILL, -1, {"a": "left out", "b": "passed", "a longer one": "unfinished"}),
        (-signal.SIGKILL, 60, {"a": "unfinished", "b": "passed", "a longer one": "unfinished"}),
        (-signal.SIGALRM, -1, {"a": "unfinished", "b": "passed", "a longer one": "unfinished"}),
    ],
)
def test_a_test_that_the_end_of_the_time_stops_is_left_out(
    folder, monkeypatch, code, seconds, expected
):
    table = gpu.Table("test")

    def tee(*_, **__):
        for name, outcome in {
            "a": "unfinished",
            "b": "passed",
            "a longer one": "unfinished",
        }.items():
            table.record("1", name, outcome)  # the last one by another process
        return code, "b PASSED\na "

    monkeypatch.setattr(gpu, "tee", tee)
    monkeypatch.setattr(gpu, "RESTARTS", 1)
    gpu.share_of_tests("1", time.time() + seconds, threading.Event(), "kernels", 0, 1)
    assert table.outcomes("1") == expected


def test_what_the_gpu_runs_does_not_share_a_process_with_patches_of_torch():
    """Fresh memory of a test on a GPU is as torch makes it: a fill is a launch."""
    files = [path for paths in gpu.TEST_FILES.values() for path in paths]
    names = [path.removesuffix(".py").replace("/", ".") for path in files]
    script = (
        "import importlib, sys, torch\n"
        "before = dict(vars(torch.Tensor))\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "changed = [n for n, each in vars(torch.Tensor).items() if before.get(n) is not each]\n"
        "sys.exit(f'changed: {changed}' if changed else 0)"
    )
    command = [sys.executable, "-c", script, *names]
    done = subprocess.run(command, cwd=gpu.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


CLEAN = "========= ERROR SUMMARY: 0 errors\n"
REFUSED = "========= COMPUTE-SANITIZER\n========= Error: Device not supported\n"
RACES = "========= RACECHECK SUMMARY: {} hazards displayed ({} errors, {} warnings)\n"
TWO = "done: a\ndone: b\nsanitized 2 of 2 cases, 1 kernels: k\n"


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([TWO + CLEAN], "passed: 0 errors in 2 of 2 cases"),
        (
            ["done: b\nsanitized 1 of 1 cases\n" + CLEAN, "done: a\nsanitized 1 of 1\n" + CLEAN],
            "passed: 0 errors in 2 of 2 cases",
        ),
        ([f"done: a\nsanitized 1 of 2 cases\n{CLEAN}"], "incomplete: 0 errors in 1 of 2 cases"),
        ([TWO + CLEAN.replace("0", "12")], "failed: 12 errors in 2 of 2 cases"),
        ([TWO + RACES.format(4, 2, 2)], "failed: 2 errors, 2 warnings in 2 of 2 cases"),
        ([TWO + RACES.format(3, 0, 3)], "passed: 0 errors, 3 warnings in 2 of 2 cases"),
        ([TWO + RACES.format(0, 0, 0)], "passed: 0 errors in 2 of 2 cases"),
        ([TWO + "RACECHECK SUMMARY: 1 hazard displayed\n"], "failed: 1 errors in 2 of 2 cases"),
        (
            [f"Traceback\nRuntimeError: CUDA\n{CLEAN}"],
            "failed: 0 errors in 0 of 2 cases; a script that failed",
        ),
        (["done: a\n"], "not run: no summary after 'done: a'"),
        (
            [f"done: a\nsanitized 1 of 1 cases\n{CLEAN}", "done: b\n"],
            "incomplete: 0 errors in 1 of 2 cases; not run: no summary after 'done: b'",
        ),
        ([REFUSED], "not run: Error: Device not supported"),
        ([REFUSED + CLEAN], "not run: Error: Device not supported"),
        ([""], "not run: nothing was said"),
    ],
)
def test_verdict_of_the_sanitizer(outputs, expected):
    found = gpu.verdict([*map(gpu.Findings.of, outputs)], 2)
    assert found == expected
    gpu.Table("sanitize").record(NOW, "memcheck", found)
    text, well = gpu.summary(["sanitize"], NOW)
    assert text == f"memcheck  {expected}"
    assert well == expected.startswith("passed")


def test_kernels_of_findings_are_told():
    output = """
=========  Invalid __global__ read of size 16 bytes
=========     at weights_kernel+0xec0 in blocks.py:43
=========     by thread (18,0,0) in block (0,0,0)
=========     Access to 0x74505bcccca0 is out of bounds
=========     and is 161 bytes after the nearest allocation at 0x74505bccc800 of size 1,024 bytes
=========         Host Frame: main at another_kernel()+0x10 in main.cu:3
=========     at 0xda0 in /a path/side.py:175:_prepare
=========     at 0x3b0 in void dml::band<unsigned long>(unsigned long*, dml::other<int>)
========= Error: Race reported between Write access at void dml::<unnamed>::sums<3>(int *)+0x1 in a
=========     and Read access at one_launch_kernel+0x210 in one_launch.py:7
done: looking at nothing+0x1
"""
    names = ["_prepare", "band", "one_launch_kernel", "sums", "weights_kernel"]
    assert gpu.kernels_named(output) == set(names)
    found = gpu.verdict([gpu.Findings.of(output + TWO + CLEAN.replace("0", "5"))], 3)
    assert found == f"failed: 5 errors in 3 of 3 cases, of {' '.join(names)}"


@pytest.fixture
def sanitizer(commands, monkeypatch):
    """A compute-sanitizer whose script runs cases up to a number of them."""
    names = [f"{kind} {at}" for at in range(20) for kind in ("triton", "cuda")]
    tools = {"most": 100, "summary": CLEAN}
    tee = gpu.tee

    def answer(command, part, deadline, **environment):
        tee(command, part, deadline, **environment)
        if "--list" in command:
            return 0, "\n".join(names)
        cases = command[command.index("--cases") + 1 :]
        done = [f"done: {name}" for name in cases[: tools["most"]]]
        said = "\n".join([*done, f"sanitized {len(done)} of {len(cases)} cases"])
        return 0, f"{said}\n{tools['summary']}"

    monkeypatch.setattr(gpu, "tee", answer)
    monkeypatch.setattr(gpu.shutil, "which", lambda name, path: f"/bin/{name}")
    return tools


def test_cases_are_shared_out_to_processes_under_every_sanitizer(sanitizer, commands):
    start = time.time()
    gpu.sanitize(NOW, start + 400)
    commands = commands[1:]
    shares = gpu.SANITIZED_SHARES
    tools = [command[command.index("--tool") + 1] for command in commands]
    assert tools == ["memcheck"] * shares + ["racecheck"] * shares
    assert all(command[0] == "/bin/compute-sanitizer" for command in commands)
    cases = [command[command.index("--cases") + 1 :] for command in commands[:shares]]
    assert len({name for own in cases for name in own}) == sum(map(len, cases)) == 40
    for own in cases:
        kinds = [name.split()[0] for name in own]
        assert kinds == ["triton", "cuda"] * (len(own) // 2)
    until = [float(command[command.index("--until") + 1]) - start for command in commands]
    assert until[0] == pytest.approx(200 - gpu.SANITIZER_GRACE, abs=5)
    assert until[-1] == pytest.approx(400 - gpu.SANITIZER_GRACE, abs=5)
    assert gpu.summary(["sanitize"], NOW) == (
        "memcheck   passed: 0 errors in 40 of 40 cases\n"
        "racecheck  passed: 0 errors in 40 of 40 cases",
        True,
    )
    assert gpu.Table("sanitize").outcomes(NOW)["racecheck cuda 19"] == "clean"


def test_the_next_call_begins_with_the_cases_that_were_left_out(sanitizer, commands):
    sanitizer["most"] = 1
    gpu.sanitize("1", time.time() + 400)
    assert gpu.summary(["sanitize"], "1") == (
        "memcheck   incomplete: 0 errors in 8 of 40 cases\n"
        "racecheck  incomplete: 0 errors in 8 of 40 cases",
        False,
    )
    outcomes = gpu.Table("sanitize").outcomes("1")
    assert outcomes["memcheck triton 0"] == "clean"
    assert outcomes["memcheck cuda 0"] == "left out"
    commands.clear()
    gpu.sanitize("2", time.time() + 400)
    first = [command[command.index("--cases") + 1] for command in commands[1:]]
    assert all(outcomes[f"memcheck {name}"] == "left out" for name in first)
    last = [command[-2:] for command in commands[1:5]]
    assert all(outcomes[f"memcheck {name}"] == "clean" for pair in last for name in pair)


def test_cases_of_a_process_with_errors_or_without_a_summary_come_again(sanitizer, commands):
    for summary, outcome in (
        (CLEAN.replace("0", "3"), "failed: 3 errors in its process"),
        ("", "not run: no summary after 'sanitized 4 of 4 cases'"),
    ):
        sanitizer["summary"] = summary
        gpu.sanitize(NOW, time.time() + 400)
        assert gpu.Table("sanitize").outcomes(NOW)["memcheck cuda 0"].startswith(outcome[:20])
        assert not gpu.summary(["sanitize"], NOW)[1]


def test_a_sanitizer_that_is_not_installed_is_said(commands, monkeypatch):
    monkeypatch.setattr(gpu.shutil, "which", lambda name, path: None)
    gpu.sanitize(NOW, time.time() + 400)
    text, well = gpu.summary(["sanitize"], NOW)
    assert not well
    assert "racecheck  not run: compute-sanitizer is not installed" in text
    assert commands == []


def test_the_script_for_the_sanitizer_launches_every_kernel():
    script = [sys.executable, "-m", "tests.ops.sanitize", "--device", "cpu"]
    sizes = ["--rows", "18", "--columns", "20"]
    environment = {"TRITON_INTERPRET": "1", "DMLFAST_CUDA_EMULATED": str(emulated.build())}
    done = subprocess.run(
        [*script, *sizes],
        cwd=gpu.ROOT,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=True,
    )
    last = done.stdout.splitlines()[-1]
    ops = gpu.ROOT / "dmlfast" / "ops"
    sources = (path for name in ("triton/*.py", "triton.py") for path in ops.rglob(name))
    text = "\n".join(path.read_text() for path in sources)
    kernels = set(re.findall(r"\b(\w+_kernel|_prepare)\[(?:\(|grid\]|shape\])", text))
    assert len(kernels) > 5
    header = (gpu.ROOT / "csrc" / "dmlfast_cuda.h").read_text()
    kernels |= set(re.findall(r"int (dml_cuda_\w+)\([^;]*\bvoid\* stream\);", header))
    assert kernels >= set(library.KERNELS)
    assert set(last.partition(": ")[2].split()) == kernels


@pytest.mark.parametrize("code", [0, 1])
def test_tuning(code, commands, monkeypatch):
    tee = gpu.tee
    monkeypatch.setattr(gpu, "tee", lambda *a, **o: (code, tee(*a, **o)[1]))
    gpu.tune(NOW, time.time() + 300)
    assert gpu.summary(["tune"], NOW)[1] == (code == 0)
    assert commands[0][3:5] == ["tune", "--seconds"]
    assert 290 <= int(commands[0][5]) <= 300
    assert commands[0][-1] == "--resume"


def test_the_summary_counts_this_call_and_names_what_is_bad():
    for call, name, outcome in [
        ("before", "x", "failed"),
        *[(NOW, "a", "unfinished"), (NOW, "a", "passed"), (NOW, "b", "passed")],
        *[(NOW, "c", "failed"), (NOW, "d", "unfinished"), (NOW, "e", "left out")],
    ]:
        gpu.Table("test").record(call, name, outcome)
    gpu.Table("bench").record(NOW, "128x128 bfloat16", "measured")
    text, well = gpu.summary(["test", "bench"], NOW)
    assert not well
    assert text.splitlines() == [
        "test   2 passed, 1 failed, 1 unfinished, 1 left out",
        "       failed: c",
        "       unfinished: d",
        "bench  1 measured",
    ]
    assert gpu.summary(["bench"], NOW)[1]


def test_the_bare_command_tests_and_measures_a_little(commands, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "why_not", lambda: None)
    monkeypatch.setattr(gpu, "build", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "No Such GPU")
    assert gpu.main([]) == 1  # no test was run
    looks, after = commands[: len(gpu.SMOKE)], commands[len(gpu.SMOKE) :]
    assert {command[-1] for command in looks} == set(gpu.SMOKE)
    assert after[0][1:3] == [gpu.__file__, gpu.RUN_TESTS]
    benches = [command for command in commands if "bench" in command]
    assert [command[-1] for command in benches] == ["naive"] * len(gpu.QUICK)
    told = capsys.readouterr().out.splitlines()
    assert told[1].startswith("No Such GPU, ")
    assert told[-2:] == ["bench  1 measured", "bench rows: none"]


def test_a_part_ends_within_eight_minutes():
    assert gpu.SECONDS + gpu.GRACE <= 480
    assert gpu.CLOCK_SECONDS + gpu.QUICK_SECONDS < gpu.SECONDS
    assert gpu.QUICK[0].seconds < gpu.QUICK_SECONDS
    assert 2 * gpu.SANITIZER_GRACE * len(gpu.SANITIZERS) < gpu.SECONDS


@pytest.mark.parametrize(("given", "seconds"), [(None, gpu.SECONDS), ("1000", 1000)])
def test_the_seconds_of_a_call_can_be_set(given, seconds, monkeypatch):
    monkeypatch.setattr(gpu, "why_not", lambda: None)
    monkeypatch.setattr(gpu, "build", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "No Such GPU")
    monkeypatch.delenv("DMLFAST_GPU_SECONDS", raising=False)
    if given:
        monkeypatch.setenv("DMLFAST_GPU_SECONDS", given)
    left = []
    monkeypatch.setitem(gpu.PARTS, "tune", lambda call, end: left.append(end - time.time()))
    monkeypatch.setattr(gpu, "smoke", lambda call, end: left.append(end - time.time()))
    monkeypatch.setattr(gpu, "test", lambda call, end: left.append(end - time.time()))
    monkeypatch.setattr(gpu, "bench", lambda call, end, cases: left.append(end - time.time()))
    gpu.main(["tune"])
    gpu.main([])
    assert left == pytest.approx([seconds, seconds, seconds - gpu.QUICK_SECONDS, seconds], abs=5)


def test_seconds_that_are_none_are_refused_in_a_line(monkeypatch, capsys):
    monkeypatch.setenv("DMLFAST_GPU_SECONDS", "7m")
    assert gpu.main(["tune"]) == 2
    assert capsys.readouterr().err == (
        "make gpu: DMLFAST_GPU_SECONDS must be a whole number, not '7m'\n"
    )


@pytest.mark.parametrize("code", [0, 1])
def test_training_is_told_in_a_line(code, commands):
    line = "machine No Such GPU  recall_at_1 0.8100  images_per_second 9000"
    commands.answers = [(code, f"step 1\n{line}\n"), (0, f"{line}\n")]
    gpu.train(NOW, time.time() + 300)
    text, well = gpu.summary(["train"], NOW)
    assert well == (code == 0)
    assert text.splitlines()[1] == f"bf16  {line}"
    assert [command[-1] for command in commands] == ["fp32", "bf16"]
    assert commands[0][1:3] == ["-m", "dmlfast.bench.training"]
