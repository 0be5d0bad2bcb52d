"""The same bits from the same input, on however many threads, whatever memory held before."""

import pytest
import torch

from dmlfast.ops import native

from .helpers import ON_GPU, Problem, instruction_sets, lifted, pair_reduce, problem, results

# distances that are kept and that are not, in blocks of 64, 128 and 256 rows
SIZES = [(50, None), (700, None), (300, 1000), (2600, None), (4500, 300)]


def every_result(p: Problem) -> list[torch.Tensor]:
    found = results(lifted, p, impl="cpu")
    for select, scale in (("negative", -1.0), ("other", 20.0)):
        for score in ("dot", "distance"):
            options = {"select": select, "score": score, "scale": scale}
            found += results(pair_reduce, p, impl="cpu", **options)
    return found


def assert_same_bits(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_threads_do_not_change_a_bit(threads, n, m):
    p = problem(n, m, 6, selves=True, per_class=5)
    for _ in instruction_sets():
        threads(1)
        expected = every_result(p)
        for count in (2, 3, 5):
            threads(count)
            assert_same_bits(every_result(p), expected)


@pytest.mark.parametrize("select", ["all", "other"])
def test_threads_do_not_change_a_bit_of_a_biased_reduction(threads, select):
    p = problem(700, None, 6, bias=True)
    threads(1)
    expected = results(pair_reduce, p, select=select, scale=-1.0, impl="cpu")
    threads(3)
    assert_same_bits(results(pair_reduce, p, select=select, scale=-1.0, impl="cpu"), expected)


def test_calls_repeat_to_the_bit(threads):
    p = problem(700, d=20, per_class=4)
    threads(2)
    expected = every_result(p)
    for _ in range(10):
        assert_same_bits(every_result(p), expected)


@pytest.mark.parametrize("impl", ON_GPU)
@pytest.mark.parametrize("m", [None, 90])
def test_kernels_for_gpus_repeat_to_the_bit(m, impl):
    p = problem(150, m, 20, per_class=4, bias=True)
    expected = results(pair_reduce, p, scale=-1.0, impl=impl)
    assert_same_bits(results(pair_reduce, p, scale=-1.0, impl=impl), expected)
    expected = results(lifted, p, impl=impl)
    assert_same_bits(results(lifted, p, impl=impl), expected)


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 3, 4])
def test_two_hundred_calls_repeat_to_the_bit(threads, count):
    batch, others = problem(650, d=5, per_class=30), problem(200, 900, 5, selves=True, bias=True)
    threads(1)
    expected = [every_result(batch), results(pair_reduce, others, impl="cpu")]
    threads(count)
    for _ in range(200):
        assert_same_bits(every_result(batch), expected[0])
        assert_same_bits(results(pair_reduce, others, impl="cpu"), expected[1])


@pytest.mark.parametrize(("n", "m"), [(0, None), (1, None), (2, 3), *SIZES])
def test_what_memory_held_before_does_not_matter(n, m):
    p = problem(n, m, 6, selves=True, per_class=5)
    for _ in instruction_sets():
        native.cpu_library().dml_cpu_poison(1)
        expected = every_result(p)
        native.cpu_library().dml_cpu_poison(0)
        assert_same_bits(every_result(p), expected)
