import pytest
import torch
from dmlfast.bench.benchmark import Case, LeftOutError, Size
from dmlfast.bench.memory import extra_bytes, peak_growth

MIB = 2**20


def test_peak_sees_what_is_freed_before_the_end() -> None:
    def call() -> torch.Tensor:
        torch.ones(64 * MIB // 4)
        return torch.ones(1)

    assert peak_growth(call) == pytest.approx(64 * MIB, rel=0.1)


def test_each_peak_starts_from_the_present_level() -> None:
    """Both blocks are too large for malloc to make of memory that it has kept."""
    peak_growth(lambda: torch.ones(128 * MIB // 4))
    assert peak_growth(lambda: torch.ones(48 * MIB // 4)) == pytest.approx(48 * MIB, rel=0.1)


def test_memory_in_a_fresh_process() -> None:
    n = 1024
    square = 4 * n**2
    case = Case(Size(n, 8), torch.float32)
    naive = extra_bytes("lifted", "naive", case, threads=1)
    assert 6 * square < naive < 11 * square
    assert extra_bytes("lifted", "chunked", case, threads=1) < 2 * square


def test_memory_that_cannot_be_measured() -> None:
    with pytest.raises(LeftOutError, match="ValueError: unknown impl 'none'"):
        extra_bytes("lifted", "dmlfast-none", Case(Size(8, 8), torch.float32), threads=1)
