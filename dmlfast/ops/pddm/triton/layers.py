"""The layers of a unit on a tile of pairs: BP pairs, a row each of an operand of a product.

x, y: (n, DP), (m, DP) packed rows. i, j: (BP,), the rows and columns of the pairs. Exchanging
them changes no bit: |x - y|, x + y and sums of two are the same.
"""

import triton
import triton.language as tl

from dmlfast.ops.triton.tile import rounded_to_tf32

# A midpoint shorter than this share of its rows, squared, is lost to cancellation in the sum of
# their projections: it is projected itself.
OPPOSITE = tl.constexpr(1.0 / 1024)


@triton.jit
def operand(x, WEIGHTS: tl.constexpr, OPERAND: tl.constexpr):
    """float32 as it enters a product."""
    if WEIGHTS == "tf32":
        x = rounded_to_tf32(x)
    elif WEIGHTS == "bfloat16" and tl.bfloat16 != OPERAND:  # interpreted, where .to truncates
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(OPERAND)


@triton.jit
def relu(x):
    """max(0, x); NaN of NaN and of minus infinity, so that neither is lost."""
    return tl.where(x > 0.0, x, x * 0.0)


@triton.jit
def inverse(squared):
    """1 / length, 0 of a length of 0."""
    some = squared > 0.0
    return tl.where(some, tl.div_rn(1.0, tl.sqrt_rn(tl.where(some, squared, 1.0))), 0.0)


@triton.jit
def turned_weights(weight, pitch, h, k, OPERAND: tl.constexpr):
    """Components k of the weights of units h, (BK, BH)."""
    at = h.to(tl.int64)[:, None] * pitch + k[None, :]
    return tl.trans(tl.load(weight + at).to(OPERAND))


@triton.jit
def pair_components(x, y, i, j, k, DP: tl.constexpr):
    """Components k of both rows of each pair, float32."""
    own = tl.load(x + i.to(tl.int64)[:, None] * DP + k[None, :]).to(tl.float32)
    other = tl.load(y + j.to(tl.int64)[:, None] * DP + k[None, :]).to(tl.float32)
    return own, other


@triton.jit
def differences(
    x, y, i, j, weight, h, DP: tl.constexpr, WEIGHTS: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """W |x - y| of units h, (BP, BH), and the squared lengths of x - y and x + y, (BP,)."""
    acc = tl.zeros((BP, BH), tl.float32)
    apart = tl.zeros((BP,), tl.float32)
    along = tl.zeros((BP,), tl.float32)
    for first in tl.range(0, DP, BK, disable_licm=True):
        k = first + tl.arange(0, BK)
        own, other = pair_components(x, y, i, j, k, DP)
        difference, total = own - other, own + other
        apart += tl.sum(difference * difference, 1)
        along += tl.sum(total * total, 1)
        a = operand(tl.abs(difference), WEIGHTS, OPERAND)
        w = turned_weights(weight, DP, h, k, OPERAND)
        acc = tl.dot(a, w, acc, input_precision=PRECISION)
    return acc, apart, along


@triton.jit
def means(
    x, y, i, j, x_mean, y_mean, weight, h, opposite, DP: tl.constexpr, HMP: tl.constexpr,
    WEIGHTS: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, BP: tl.constexpr,
    BK: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """W (x + y) / 2 of units h, (BP, BH): the sum of two halved projections, or the product with
    the midpoint itself, of which there is one only if any pair of the tile is ``opposite``.
    """
    v = tl.load(x_mean + i.to(tl.int64)[:, None] * HMP + h[None, :])
    v += tl.load(y_mean + j.to(tl.int64)[:, None] * HMP + h[None, :])
    v = tl.where(opposite[:, None], 0.0, v)
    for first in tl.range(0, tl.max(opposite.to(tl.int32), 0) * DP, BK, disable_licm=True):
        k = first + tl.arange(0, BK)
        own, other = pair_components(x, y, i, j, k, DP)
        a = tl.where(opposite[:, None], (own + other) * 0.5, 0.0)
        w = turned_weights(weight, DP, h, k, OPERAND)
        v = tl.dot(operand(a, WEIGHTS, OPERAND), w, v, input_precision=PRECISION)
    return v


@triton.jit
def difference_branch(
    x, y, i, j, unit, h, NORMALIZE: tl.constexpr, DP: tl.constexpr, WEIGHTS: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
    BH: tl.constexpr,
):  # fmt: skip
    """u' of units h, (BP, BH), and the squared lengths of x - y and x + y."""
    u, apart, along = differences(
        x, y, i, j, unit.difference, h, DP, WEIGHTS, OPERAND, PRECISION, BP, BK, BH
    )  # fmt: skip
    if NORMALIZE:
        u *= inverse(apart)[:, None]
    return relu(u + tl.load(unit.difference_bias + h).to(tl.float32)[None, :]), apart, along


@triton.jit
def mean_branch(
    x, y, i, j, x_mean, y_mean, unit, h, apart, along, NORMALIZE: tl.constexpr,
    DP: tl.constexpr, HMP: tl.constexpr, WEIGHTS: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """v' of units h, (BP, BH), from the halved projections of both rows."""
    opposite = along < OPPOSITE * 0.5 * (apart + along)  # |x|^2 + |y|^2, the parallelogram's law
    v = means(
        x, y, i, j, x_mean, y_mean, unit.mean, h, opposite, DP, HMP, WEIGHTS, OPERAND, PRECISION,
        BP, BK, BH,
    )  # fmt: skip
    if NORMALIZE:
        v *= (2.0 * inverse(along))[:, None]
    return relu(v + tl.load(unit.mean_bias + h).to(tl.float32)[None, :])
