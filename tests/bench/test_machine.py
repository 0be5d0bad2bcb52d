import platform
import re

import pytest
from dmlfast.bench import machine
from dmlfast.bench.machine import busy_elsewhere, machine_name, machine_slug, memory_bytes


def test_machine_is_a_model_and_a_number_of_cores() -> None:
    assert re.fullmatch(r"\S.*\S, [1-9][0-9]* cores?", machine_name())
    assert platform.node() not in machine_name()


@pytest.mark.parametrize(
    ("known", "name"),
    [
        (
            "cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n",
            "AMD EPYC (family 25, model 17)",
        ),
        ("cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9654 96-Core Processor\n", None),
        ("cpu family\t: 6\nmodel name\t: Intel(R) Xeon(R) CPU @ 2.20GHz\n", "Intel Xeon"),
        ("vendor_id\t: a\nmodel name\t: of one core\n\nmodel name\t: of another\n", "of one core"),
        ("Features\t: fp asimd\n", platform.processor() or platform.machine()),
    ],
)
def test_a_name_of_a_whole_make_has_the_numbers_of_the_model(tmp_path, monkeypatch, known, name):
    (tmp_path / "cpuinfo").write_text(known)
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "cpuinfo")
    assert machine.cpu_name() == (name or "AMD EPYC 9654 96-Core")


def test_slug_is_a_file_name() -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*-cores?", machine_slug(machine_name()))
    assert machine_slug("NVIDIA H200") == "nvidia-h200"


def test_memory_is_plausible() -> None:
    assert 2**28 < memory_bytes() < 2**46


def test_share_of_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_clock", lambda: (30.0, 7.0))
    assert busy_elsewhere((10.0, 2.0)) == 0.25
    assert busy_elsewhere((30.0, 7.0)) is None


def test_own_work_is_not_that_of_others() -> None:
    total, others = machine.cpu_clock()
    assert 0 < others <= total
