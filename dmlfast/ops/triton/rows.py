"""Rows as they were given, of any dtype and strides, and how long they are.

What multiplies a row to length 1 is a power of two, which is exact in any dtype, over what its
length is then: nothing overflows or vanishes, whatever the length.
"""

import triton
import triton.language as tl

from dmlfast.ops import numerics

TINY = tl.constexpr(numerics.TINY)


@triton.jit
def load_given(given, i, k, row_stride, column_stride, d):
    """Components k of rows i, int64, as float32; 0 from component d on."""
    at = i[:, None] * row_stride + k.to(tl.int64)[None, :] * column_stride
    return tl.load(given + at, mask=(k < d)[None, :], other=0.0).to(tl.float32)


@triton.jit
def power_of(x):
    """The power of two in a number from 0."""
    return (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def mantissa_of(inverse):
    """An inverse length over the power of two in it, from 1 to 2; 0 of 0."""
    power = power_of(inverse)
    return tl.where(inverse == 0.0, 0.0, inverse / tl.where(power > 0.0, power, 1.0))


@triton.jit
def power_and_length(given, own, row_stride, column_stride, d, BM: tl.constexpr, BD: tl.constexpr):
    """A power of two for each of BM rows, and the length of the row times that, from 1 on.

    The power is 0 of a row of zeros, or one that is shorter than any normal number; the length is
    NaN of one that is not finite.
    """
    largest = tl.full((BM,), TINY, tl.float32)
    for first in range(0, d, BD):
        x = load_given(given, own, first + tl.arange(0, BD), row_stride, column_stride, d)
        largest = tl.maximum(largest, tl.max(tl.abs(x), 1))
    power = tl.div_rn(1.0, power_of(largest))
    total = tl.zeros((BM,), tl.float32)
    for first in range(0, d, BD):
        x = load_given(given, own, first + tl.arange(0, BD), row_stride, column_stride, d)
        x = x * power[:, None]
        total += tl.sum(x * x, 1)
    length = tl.sqrt_rn(tl.where(total < float("inf"), total, float("nan")))
    return tl.where(total < 1.0, 0.0, power), tl.where(total < 1.0, 1.0, length)


def blocks_of(n: int, d: int, size: int = 2048) -> tuple[tuple[int], dict[str, int]]:
    """How many programs take rows of d components, and how much each: ``size`` at a time."""
    width = min(1024, max(16, triton.next_power_of_2(d)))
    height = size // width
    return (-(-n // height),), {"BM": height, "BD": width}
