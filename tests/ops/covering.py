"""Combinations of options: those in which any two of them meet, and all."""

from collections.abc import Iterable
from itertools import combinations, product
from typing import Any

import pytest


def covering(*axes: Iterable[Any]) -> list[tuple]:
    """Few combinations of one value of each axis, in which any two values of two axes meet.

    One after another that has the most pairs of values that have not met.
    """
    values = [tuple(axis) for axis in axes]
    pairs_of = {
        places: set(combinations(enumerate(places), 2))
        for places in product(*(range(len(axis)) for axis in values))
    }
    unmet = set().union(*pairs_of.values())
    chosen = []
    while unmet:
        best = max(pairs_of, key=lambda places: len(pairs_of[places] & unmet))
        unmet -= pairs_of[best]
        chosen.append(best)
    return [
        tuple(axis[place] for axis, place in zip(values, places, strict=True))
        for places in sorted(chosen)
    ]


def shortly(*axes: Iterable[Any]) -> list[Any]:
    """All combinations as parameters of a test; those that are not in `covering` are long."""
    values = [tuple(axis) for axis in axes]
    chosen = covering(*map(range, map(len, values)))
    return [
        pytest.param(
            *(axis[place] for axis, place in zip(values, places, strict=True)),
            marks=() if places in chosen else pytest.mark.long,
        )
        for places in product(*(range(len(axis)) for axis in values))
    ]
