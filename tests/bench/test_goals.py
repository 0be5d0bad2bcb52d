from dataclasses import replace
from pathlib import Path

import pytest
from dmlfast.bench import get_benchmark, goals
from dmlfast.bench.goals import GOALS, KINDS, OR, Goal, measured, met, table
from dmlfast.bench.report import Row, read_csv, update_csv

ROOT = Path(__file__).parents[2]
ROW = Row("lifted", "dmlfast-cpu", 512, 128, "float32", 2, "Some CPU, 2 cores", rounds=3)
GPU = replace(ROW, dtype="bfloat16", machine="Some GPU", cuda="13.0")


def test_readme_has_the_tables_of_the_results(capsys):
    goals.main([])
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == 2
    readme = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    for each in tables:
        assert each in readme


def goal(kind, bound=2.0, than="", by="", size="512x128"):
    return Goal("cpu", "lifted", size, "float32", kind, bound, than, by)


def test_speed_is_that_of_the_fastest_backend_against_the_faster_of_others():
    rows = [
        replace(ROW, median_ms=4.0, ratio_to_dmlfast=1.0),
        replace(ROW, provider="dmlfast-reference", median_ms=8.0, ratio_to_dmlfast=2.0),
        replace(ROW, provider="dmlfast-other", median_ms=2.0, ratio_to_dmlfast=0.5),
        replace(ROW, provider="dmlfast-cpu-graph", median_ms=1.0, ratio_to_dmlfast=0.25),
        replace(ROW, provider="naive", median_ms=20.0, ratio_to_dmlfast=5.0),
        replace(ROW, provider="compiled", median_ms=12.0, ratio_to_dmlfast=3.0),
    ]
    assert measured(goal("speed", than="naive"), rows) == 10.0
    assert measured(goal("speed", than="naive or compiled"), rows) == 6.0
    assert measured(goal("speed", than="dmlfast-cpu", by="compiled"), rows) == pytest.approx(1 / 3)
    assert measured(goal("ms"), rows) == 2.0
    assert measured(goal("ms", by="naive or compiled"), rows) == 12.0
    assert measured(goal("graph"), rows) == 1000.0


def test_what_is_bounded():
    rows = [
        replace(ROW, median_ms=4.0, extra_mib=2.0, tflops=7.0, gemm_ratio=3.0),
        replace(ROW, provider="naive", median_ms=9.0, extra_mib=80.0),
        replace(ROW, n=2048, median_ms=80.0),
    ]
    assert measured(goal("memory", than="naive"), rows) == 40.0
    assert measured(goal("MiB"), rows) == 2.0
    assert measured(goal("rate"), rows) == 7.0
    assert measured(goal("gemm"), rows) == 3.0
    assert measured(goal("growth", than="512x128", size="2048x128"), rows) == 80 / 4 / 16


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_measured_is_said(kind):
    than = {"growth": "128x128"}.get(kind, "naive")
    elsewhere = [replace(GPU, median_ms=1.0), replace(ROW, n=128, median_ms=1.0)]
    failed = replace(ROW, provider="naive", reason="out of memory")
    assert measured(goal(kind, than=than), [*elsewhere, failed]) is None


def test_bounds_are_from_the_right_side():
    for kind in KINDS:
        assert met(goal(kind), 2.0)
        assert met(goal(kind), 1.9) == KINDS[kind].most
        assert met(goal(kind), 2.1) != KINDS[kind].most


def test_a_table_says_met_missed_and_not_measured():
    row = replace(ROW, n=8192)
    rows = [
        replace(row, median_ms=2.0, ratio_to_dmlfast=1.0),
        replace(row, provider="chunked", median_ms=10.0, ratio_to_dmlfast=5.0),
        replace(row, provider="naive", median_ms=10.0, ratio_to_dmlfast=99.0),
        replace(row, provider="compiled", median_ms=10.0, ratio_to_dmlfast=13.0),
    ]
    lines = table("cpu", rows).splitlines()
    assert "| `lifted`, 8,192 x 128 | 6 times as fast as `chunked` | 5 | missed |" in lines
    both = "13 times as fast as `naive` and `compiled`"
    assert f"| `lifted`, 8,192 x 128 | {both} | 13 | met |" in lines
    memory = "1/30 of the extra memory of `naive`"
    assert f"| `lifted`, 8,192 x 128 | {memory} | not measured | |" in lines


def test_files_say_whose_goals_are_printed(tmp_path, capsys):
    update_csv(tmp_path / "gpu.csv", [replace(GPU, n=32768, d=512, median_ms=1.0, tflops=412.3)])
    goals.main([str(tmp_path / "gpu.csv")])
    said = capsys.readouterr().out
    assert "| 400 TFLOP/s | 440 TFLOP/s | 412 TFLOP/s | met |" in said
    assert "float32, " not in said.partition("\n")[0]
    assert "65,536 x 128" not in said


def test_goals_are_of_what_there_is():
    for each in GOALS:
        benchmark = get_benchmark(each.op)
        assert benchmark.parse_sizes(each.size)
        known = {competitor.name for competitor in benchmark.baselines} | {"dmlfast-cpu"}
        if each.kind != "growth":
            assert set(each.than.split(OR) if each.than else []) <= known, each
        assert set(each.by.split(OR) if each.by else []) <= known, each
    results = read_csv(ROOT / "bench" / "results" / "amd-epyc-2-cores.csv")
    assert all(measured(each, results) for each in GOALS if each.where == "cpu")
