import platform
import re

import pytest
from dmlfast.bench import machine
from dmlfast.bench.machine import busy_elsewhere, machine_name, machine_slug, memory_bytes


def test_machine_is_a_model_and_a_number_of_cores() -> None:
    assert re.fullmatch(r"\S.*\S, [1-9][0-9]* cores?", machine_name())
    assert platform.node() not in machine_name()


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
