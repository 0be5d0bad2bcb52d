"""Which combinations of options the tests of ops run."""

from itertools import combinations, product

from .covering import covering, shortly

AXES = (["a", "b", "c"], [1, 2], [False, True], [1.0, 2.0, 3.0, 4.0], ["only"])


def test_any_two_values_meet_in_few_combinations():
    chosen = covering(*AXES)
    assert set(chosen) <= set(product(*AXES))
    assert len(chosen) < 16  # 12 at least: as many as the longest two axes have pairs
    for (i, first), (j, second) in combinations(enumerate(AXES), 2):
        assert {(c[i], c[j]) for c in chosen} == set(product(first, second))


def test_the_others_are_long():
    parameters = shortly(*AXES)
    assert [tuple(each.values) for each in parameters] == list(product(*AXES))
    assert [each.values for each in parameters if not each.marks] == covering(*AXES)
