"""What is done with the slots of a tile of quadruplets, a row of a matrix in memory each.

Products are as accurate as float32's: gradients are, whatever the rows are.
"""

import triton
import triton.language as tl

from dmlfast.ops.pddm.triton.layers import inverse, relu


@triton.jit
def part(pointer, slot, pitch, k, width):
    """Where the values k of a row that is ``width`` wide are, and which of them there are."""
    return pointer + slot[:, None] * pitch + k[None, :], (k < width)[None, :]


@triton.jit
def product(
    a, slot, a_pitch, weight, pitch, h, inputs, outputs, TURNED: tl.constexpr,
    PRECISION: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The rows ``a`` (P, inputs) times outputs h of a weight: (outputs, inputs) where TURNED, as a
    layer has it, else (inputs, outputs).
    """
    acc = tl.zeros((BP, BK), tl.float32)
    for first in tl.range(0, inputs, BK, disable_licm=True):
        k = first + tl.arange(0, BK)
        at, known = part(a, slot, a_pitch, k, inputs)
        left = tl.load(at, mask=known, other=0.0)
        if TURNED:
            mask = (h < outputs)[:, None] & (k < inputs)[None, :]
            w = tl.trans(tl.load(weight + h[:, None] * pitch + k[None, :], mask=mask, other=0.0))
        else:
            mask = (k < inputs)[:, None] & (h < outputs)[None, :]
            w = tl.load(weight + k[:, None] * pitch + h[None, :], mask=mask, other=0.0)
        acc = tl.dot(left, w.to(tl.float32), acc, input_precision=PRECISION)
    return acc


@triton.jit
def layer(
    a, slot, a_pitch, weight, bias, out, out_pitch, inputs, outputs, PRECISION: tl.constexpr,
    BP: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Writes relu(W a + b), (P, outputs), and gives the squared lengths, (BP,)."""
    squared = tl.zeros((BP,), tl.float32)
    for first in tl.range(0, outputs, BK, disable_licm=True):
        h = first + tl.arange(0, BK)
        acc = product(
            a, slot, a_pitch, weight, inputs, h, inputs, outputs, True, PRECISION, BP, BK
        )  # fmt: skip
        acc += tl.load(bias + h, mask=h < outputs, other=0.0).to(tl.float32)[None, :]
        acc = relu(acc)
        squared += tl.sum(acc * acc, 1)
        at, known = part(out, slot, out_pitch, h, outputs)
        tl.store(at, acc, mask=known)
    return squared


@triton.jit
def through_layer(
    d, slot, d_pitch, weight, pitch, out, out_pitch, inputs, outputs, PRECISION: tl.constexpr,
    BP: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of a layer's inputs, (P, inputs), from that of its outputs."""
    for first in tl.range(0, inputs, BK, disable_licm=True):
        k = first + tl.arange(0, BK)
        acc = product(
            d, slot, d_pitch, weight, pitch, k, outputs, inputs, False, PRECISION, BP, BK
        )  # fmt: skip
        at, known = part(out, slot, out_pitch, k, inputs)
        tl.store(at, acc, mask=known)


@triton.jit
def along(a, a_pitch, b, b_pitch, slot, width, BP: tl.constexpr, BK: tl.constexpr):
    """The inner products of rows, (BP,)."""
    total = tl.zeros((BP,), tl.float32)
    for first in tl.range(0, width, BK, disable_licm=True):
        k = first + tl.arange(0, BK)
        at, known = part(a, slot, a_pitch, k, width)
        other, _ = part(b, slot, b_pitch, k, width)
        total += tl.sum(
            tl.load(at, mask=known, other=0.0) * tl.load(other, mask=known, other=0.0), 1
        )
    return total


@triton.jit
def scaled(a, pitch, by, slot, width, BK: tl.constexpr):
    """Multiplies rows by a number each, where they are."""
    for first in tl.range(0, width, BK, disable_licm=True):
        at, known = part(a, slot, pitch, first + tl.arange(0, BK), width)
        tl.store(at, tl.load(at, mask=known, other=0.0) * by[:, None], mask=known)


@triton.jit
def components(x, row_stride, column_stride, i, j, k, D: tl.constexpr):
    """Components k of both rows of each pair, float32."""
    at, known = k.to(tl.int64)[None, :] * column_stride, (k < D)[None, :]
    own = tl.load(x + i[:, None] * row_stride + at, mask=known, other=0.0)
    other = tl.load(x + j[:, None] * row_stride + at, mask=known, other=0.0)
    return own.to(tl.float32), other.to(tl.float32)


@triton.jit
def inputs_of(
    x, row_stride, column_stride, i, j, slot, u, v, NORMALIZE: tl.constexpr, D: tl.constexpr,
    BP: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Writes |x - y| and (x + y) / 2; gives the squared lengths, the first at any rate as given."""
    apart = tl.zeros((BP,), tl.float32)
    middle = tl.zeros((BP,), tl.float32)
    for first in tl.range(0, D, BK, disable_licm=True):
        k = first + tl.arange(0, BK)
        own, other = components(x, row_stride, column_stride, i, j, k, D)
        difference, mean = tl.abs(own - other), (own + other) * 0.5
        apart += tl.sum(difference * difference, 1)
        middle += tl.sum(mean * mean, 1)
        at, known = part(u, slot, D, k, D)
        tl.store(at, difference, mask=known)
        at, known = part(v, slot, D, k, D)
        tl.store(at, mean, mask=known)
    if NORMALIZE:
        tl.debug_barrier()
        scaled(u, D, inverse(apart), slot, D, BK)
        scaled(v, D, inverse(middle), slot, D, BK)
    return apart, middle
