"""Which backend for GPUs is the fastest at a size, by what was measured.

fastest.csv has the fastest at each measured size; `tools/fastest.py` makes it of the benchmark's
results. Where nothing was measured, the first that is usable serves.
"""

import csv
import math
from collections import defaultdict
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

TABLE = Path(__file__).with_name("fastest.csv")
FIELDS = ("gpu", "op", "dtype", "n", "d", "impl")


class Measured(NamedTuple):
    """The fastest backend at n rows of d components on a GPU."""

    gpu: str
    n: int
    d: int
    impl: str

    def distance(self, gpu: str, n: int, d: int) -> tuple[bool, float]:
        """How unlike another size it is: twice as many rows count as twice as many components.

        What was measured on another GPU is less like than all that was on this one.
        """
        return self.gpu != gpu, abs(math.log2(self.n / n)) + abs(math.log2(self.d / d))


@cache
def table() -> dict[tuple[str, str], list[Measured]]:
    """What was measured, by op and dtype."""
    found = defaultdict(list)
    with open(TABLE, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            measured = Measured(row["gpu"], int(row["n"]), int(row["d"]), row["impl"])
            found[row["op"], row["dtype"]].append(measured)
    return dict(found)


def choose(op: str, rows: torch.Tensor, usable: tuple[str, ...]) -> str:
    """The fastest of the usable backends at the measured size that is nearest to that of rows
    (N, D), on the GPU that has them.
    """
    if not rows.numel():
        return usable[0]
    return _nearest(op, rows.device, rows.dtype, *rows.shape, usable)


@lru_cache(maxsize=1024)
def _nearest(
    op: str, device: torch.device, dtype: torch.dtype, n: int, d: int, usable: tuple[str, ...]
) -> str:
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    measured = table().get((op, str(dtype).removeprefix("torch.")), [])
    known = [m for m in measured if m.impl in usable]
    return min(known, key=lambda m: m.distance(gpu, n, d)).impl if known else usable[0]
