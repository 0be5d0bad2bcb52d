import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from dmlfast.bench.report import Row, latest, merge, read_csv, table, update_csv

from dmlfast.errors import UserError

ROW = Row("lifted", "naive", 512, 128, "float32", 2, "Some CPU, 2 cores", median_ms=1.25, rounds=3)


def test_csv_keeps_one_row_a_case(tmp_path: Path) -> None:
    path = tmp_path / "bench.csv"
    other_machine = replace(ROW, machine="Another CPU, 8 cores")
    update_csv(path, [ROW, other_machine])
    newer = replace(ROW, median_ms=None, rounds=0, reason="wrong, since today")
    update_csv(path, [newer, replace(ROW, n=128)])
    assert read_csv(path) == [newer, other_machine, replace(ROW, n=128)]


@pytest.mark.parametrize(
    "change",
    [
        {"op": "pddm"},
        {"provider": "chunked"},
        {"mode": "forward"},
        {"n": 1},
        {"d": 1},
        {"dtype": "float16"},
        {"threads": 1},
        {"machine": "Another CPU, 2 cores"},
    ],
)
def test_every_part_of_the_key_counts(change: dict[str, str | int]) -> None:
    other = replace(ROW, **change)  # type: ignore[arg-type]
    assert merge([ROW], [other]) == [ROW, other]


def test_results_do_not_make_a_case() -> None:
    newer = replace(ROW, median_ms=2.0, date="2030-01-01", torch="3.0")
    assert merge([ROW], [newer]) == [newer]


def test_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.csv"
    for text in (b"a,b\n1,2\n", b"", b"\xff\xfe\x00"):
        path.write_bytes(text)
        with pytest.raises(UserError, match=r"foreign\.csv is not a table of dmlfast bench"):
            update_csv(path, [ROW])
        assert path.read_bytes() == text


def test_device_is_not_read_to_its_end() -> None:
    with pytest.raises(UserError, match="/dev/null is not a regular file"):
        read_csv("/dev/null")


def test_file_of_before_there_were_gpus_is_read_and_gets_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "bench.csv"
    update_csv(path, [ROW])
    path.write_text(without_columns(path.read_text(), {"tflops", "triton", "cuda"}))
    assert "tflops" not in path.read_text()
    assert read_csv(path) == [ROW]
    newer = replace(ROW, machine="NVIDIA H200", tflops=412.5, triton="3.6.0", cuda="13.0")
    update_csv(path, [newer])
    assert read_csv(path) == [ROW, newer]


def test_file_without_another_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bench.csv"
    update_csv(path, [ROW])
    path.write_text(without_columns(path.read_text(), {"dtype"}))
    with pytest.raises(UserError, match=r"bench\.csv is not a table"):
        read_csv(path)


def without_columns(text: str, names: set[str]) -> str:
    rows = list(csv.DictReader(io.StringIO(text)))
    file = io.StringIO()
    writer = csv.DictWriter(file, [name for name in rows[0] if name not in names])
    writer.writeheader()
    writer.writerows([{name: row[name] for name in row if name not in names} for row in rows])
    return file.getvalue()


def test_broken_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bench.csv"
    update_csv(path, [ROW])
    path.write_text(path.read_text().replace("1.25", "fast"))
    with pytest.raises(UserError, match=r"bench\.csv is not a table"):
        read_csv(path)


def test_truncated_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bench.csv"
    update_csv(path, [ROW])
    path.write_text(path.read_text()[:-40])
    with pytest.raises(UserError, match=r"bench\.csv is not a table"):
        read_csv(path)


def test_latest_are_the_rows_that_can_stand_side_by_side() -> None:
    two_threads = [ROW, replace(ROW, provider="chunked", n=8192)]
    one_thread = [replace(row, threads=1) for row in two_threads]
    other = replace(ROW, op="pddm")
    assert latest([*one_thread, *two_threads, other], "lifted") == two_threads
    assert latest([other], "lifted") == []


def test_table_has_a_line_a_row() -> None:
    rows = [
        replace(ROW, ratio_to_dmlfast=6.5, tflops=412.34),
        replace(ROW, provider="pml", median_ms=None),
    ]
    rows[1].reason = "would need 8.2 GiB"
    heading, first, second = table(rows).splitlines()
    assert heading.split()[:4] == ["N", "x", "D", "provider"]
    assert first.split() == ["512", "x", "128", "naive", "1.250", "6.50"]
    assert second.split() == ["pml", "would", "need", "8.2", "GiB"]


def test_table_of_a_gpu_tells_its_rate() -> None:
    heading, first = table([replace(ROW, cuda="13.0", tflops=412.34)]).splitlines()
    assert heading.split()[8:10] == ["ratio", "TFLOP/s"]
    assert first.split() == ["512", "x", "128", "naive", "1.250", "412"]
