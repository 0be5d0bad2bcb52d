import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from dmlfast.bench import BENCHMARKS, COVERED, harness, memory
from dmlfast.bench.devices import Cpu
from dmlfast.bench.machine import machine_name, machine_slug
from dmlfast.bench.report import read_csv, update_csv
from dmlfast.cli.main import main

from dmlfast.losses import loss_names

RUN = ["bench", "lifted", "--sizes", "24x4,32x4", "--baselines", "naive", "--rounds", "2"]
RUN += ["--device", "cpu"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    _make_quick(monkeypatch)


def _make_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "BLOCK_SECONDS", 1e-4)
    monkeypatch.setattr(Cpu, "gemm_shapes", ((8, 8, 8),))
    monkeypatch.setattr(harness, "busy_elsewhere", lambda since: 0.01)
    monkeypatch.setattr(memory, "extra_bytes", lambda *args: 2**20)


@pytest.mark.parametrize("arguments", [[], ["--list"], ["lifted", "--list"]])
def test_list(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 0
    listed = capsys.readouterr().out
    for name, title in (("lifted", "Lifted structured"), ("triplet", "Triplet")):
        assert re.search(rf"^  {name} +{title} loss", listed, re.MULTILINE)


def test_table_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(RUN) == 0
    output = capsys.readouterr()
    assert output.out.startswith("Lifted structured loss")
    assert "24 x 4" in output.out
    assert "dmlfast-" in output.out
    assert output.err == ""


def test_busy_machine_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "busy_elsewhere", lambda since: 0.5)
    assert main(RUN) == 0
    assert "other processes used up to 50% of the machine" in capsys.readouterr().err


def test_json_csv_and_plot_tell_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv, plot = tmp_path / "bench.csv", tmp_path / "bench.png"
    assert main([*RUN, "--json", "--csv", str(csv), "--plot", str(plot)]) == 0
    shown = json.loads(capsys.readouterr().out)
    kept = read_csv(csv)
    assert [row["provider"] for row in shown] == [row.provider for row in kept]
    assert [row["n"] for row in shown] == [24, 24, 32, 32]
    assert all(row.median_ms and row.extra_mib == 1 and row.ratio_to_dmlfast for row in kept)
    assert kept[0].command.startswith("dmlfast bench lifted --impl auto --baselines naive --sizes")
    assert str(tmp_path) not in kept[0].command
    assert plot.stat().st_size > 10_000


def test_table_in_a_folder_is_named_after_the_machine(tmp_path: Path) -> None:
    assert main([*RUN, "--csv", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [f"{machine_slug(machine_name())}.csv"]


def test_replot_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    csv, plot = tmp_path / "bench.csv", tmp_path / "bench.png"
    assert main([*RUN, "--csv", str(csv)]) == 0
    monkeypatch.setattr(harness, "run", None)
    assert main(["bench", "lifted", "--replot", "--csv", str(csv), "--plot", str(plot)]) == 0
    assert plot.exists()
    assert main(["bench", "lifted", "--replot", "--csv", str(csv)]) == 2


def test_all_backends_but_interpreted_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--impl", "all", "--baselines", "none", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    providers = {row["provider"] for row in rows}
    assert "dmlfast-reference" in providers
    assert "dmlfast-triton" not in providers
    assert all(row["median_ms"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["lifetd"], 1, "unknown benchmark 'lifetd': did you mean 'lifted'?"),
        (["bier"], 1, "no benchmark 'bier': the one for that loss is boosted\n"),
        (["a-bier"], 1, "no benchmark 'a-bier': the one for that loss is boosted, without"),
        (["generalized-lifted"], 1, "the one for that loss is lifted, the nearest to it"),
        (["lifted", "--baselines", "naiv"], 1, "unknown baseline 'naiv': did you mean 'naive'?"),
        (["lifted", "--impl", "cqu"], 1, "unknown impl 'cqu'"),
        (
            ["lifted", "--impl", "triton", "--device", "cpu"],
            1,
            "impl 'triton' cannot be measured: ",
        ),
        (["lifted", "--impl", "cuda"], 1, "impl 'cuda' cannot be measured: "),
        (["lifted", "--device", "gpu"], 2, "'gpu' is not auto, cpu, cuda or cuda:K"),
        (["lifted", "--device", "cuda:99"], 1, "device 'cuda:99' cannot be measured: torch sees"),
        (["lifted", "--dtype", "bf16"], 2, "'bf16' is not one of float32, bfloat16, float16"),
        (["lifted", "--dtype", "float32,"], 2, "'' is not one of float32, bfloat16, float16"),
        (["lifted", "--resume"], 2, "--resume needs --csv"),
        (["lifted", "--sizes", "128"], 2, "'128' is not rows x width, such as 512x128"),
        (["lifted", "--sizes", "128x0"], 2, "'128x0' is not rows x width"),
        (["lifted", "--sizes", "8x4x3"], 2, "sizes of lifted must be rows x width, not 8x4x3"),
        (["norm-softmax", "--sizes", "8x4"], 2, "must be rows x width x classes, not 8x4"),
        (["lifted", "--sizes", "7x4"], 2, "7x4: lifted needs at least 8 rows"),
        (["lifted", "--memory-limit", "0"], 2, "0.0 is not in the range x>0"),
        (["lifted", "--threads", "1025"], 2, "1025 is not in the range 1<=x<=1024"),
        (["lifted", "--rounds", "0"], 2, "--rounds"),
        (["lifted", "--csv", "none/bench.csv"], 2, "the folder of 'none/bench.csv' does not exist"),
        (["lifted", "--plot", "bench.txt"], 2, "'bench.txt' must end in"),
        (
            ["lifted", "--csv", "a.png", "--plot", "./a.png"],
            2,
            "overwrite the file of --csv, 'a.png'",
        ),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == code
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.splitlines()[-1].startswith("Error: ")
    assert output.out == ""


def test_foreign_table_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = tmp_path / "other.csv"
    csv.write_text("a,b\n")
    monkeypatch.setattr(harness, "run", None)
    assert main([*RUN, "--csv", str(csv)]) == 1
    assert f"{csv} is not a table of dmlfast bench" in capsys.readouterr().err


def test_interrupted_run_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = tmp_path / "bench.csv"
    monkeypatch.setattr(harness, "time_rounds", _interrupted_after(1, harness.time_rounds))
    assert main([*RUN, "--csv", str(csv)]) == 130
    assert {row.n for row in read_csv(csv)} == {24}
    assert "24 x 4" in capsys.readouterr().out


def test_run_interrupted_at_once_shows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "time_rounds", _interrupted_after(0, harness.time_rounds))
    assert main([*RUN, "--csv", str(tmp_path / "a.csv"), "--plot", str(tmp_path / "a.png")]) == 130
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_every_dtype_has_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--dtype", "bfloat16,float32,bfloat16"]) == 0
    headings = re.findall("forward[+]backward, ([a-z0-9]+),", capsys.readouterr().out)
    assert headings == ["bfloat16", "float32"]


def test_resumed_run_leaves_out_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = tmp_path / "bench.csv"
    monkeypatch.setattr(harness, "time_rounds", _interrupted_after(1, harness.time_rounds))
    assert main([*RUN, "--csv", str(csv)]) == 130
    monkeypatch.undo()
    _make_quick(monkeypatch)
    capsys.readouterr()
    before = read_csv(csv)
    assert main([*RUN, "--csv", str(csv), "--resume", "--json"]) == 0
    kept = read_csv(csv)
    assert kept[:2] == before
    assert [(row.n, row.provider) for row in kept[2:]] == [(32, row.provider) for row in before]
    assert [row["n"] for row in json.loads(capsys.readouterr().out)] == [24, 24, 32, 32]
    monkeypatch.setattr(harness, "time_rounds", None)  # nothing is left to measure
    monkeypatch.setattr(harness, "busy_elsewhere", lambda since: 0.5)
    rows = [dataclasses.replace(row, busy_elsewhere=0.5) for row in kept]
    update_csv(csv, rows)
    assert main([*RUN, "--csv", str(csv), "--resume"]) == 0
    shown = capsys.readouterr()
    assert "32 x 4" in shown.out
    assert "Warning" not in shown.err  # of what was measured before
    update_csv(csv, kept)
    assert read_csv(csv) == kept


def _interrupted_after(calls: int, function: Callable[..., object]) -> Callable[..., object]:
    left = iter(range(calls))

    def wrapper(*args: object) -> object:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return function(*args)

    return wrapper


def test_every_loss_has_a_benchmark_or_one_that_stands_for_it() -> None:
    known = set(loss_names()) - {"pml-lifted"}  # which a claim adds, where it was looked at before
    assert known == (BENCHMARKS.keys() & known) | COVERED.keys()
    assert {text.split(",")[0] for text in COVERED.values()} <= BENCHMARKS.keys()
