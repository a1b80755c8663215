"""The Triton kernels of `fused`: a program for each filter, or for each block of filters.

The table has eight numbers for each filter: its layer, the bytes from the layer's first element to
its own, its channels, the steps from channel to channel and from tap to tap, the first and one past
the last filter of its group, and the group's first block. The layers have four: the addresses of
the filters and of the gradient, 0 for none, and as the bits of a float64 the weight and what the
gradient is multiplied by.
"""

import triton
import triton.language as tl


@triton.jit
def tile(address, c, channels, channel_step, tap_step, n, N: tl.constexpr):
    """Address a tile of C channels by N taps, and tell which lie inside the filter."""
    u = tl.arange(0, N)
    at = address + c[:, None].to(tl.int64) * channel_step + u[None, :] * tap_step
    return at, (c[:, None] < channels) & (u[None, :] < n)


@triton.jit
def autocorrelate(
    table, layers, classes, a, norm, peaks, n, count,
    UNIT: tl.constexpr, N: tl.constexpr, H: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Read a filter and leave its autocorrelation, its norm and its peak."""
    row = tl.program_id(0).to(tl.int64)
    layer, offset = tl.load(table + 8 * row), tl.load(table + 8 * row + 1)
    address = (tl.load(layers + 4 * layer) + offset).to(tl.pointer_type(tl.float32))
    channels = tl.load(table + 8 * row + 2)
    channel_step, tap_step = tl.load(table + 8 * row + 3), tl.load(table + 8 * row + 4)
    one = tl.full((), 1.0, tl.float32)
    peak = one
    if UNIT:  # magnitudes as integers keep their order, with NaN on top
        top = tl.full((), 0, tl.int32)
        for first in range(0, channels, C):
            c = first + tl.arange(0, C)
            at, inside = tile(address, c, channels, channel_step, tap_step, n, N)
            bits = tl.load(at, inside, 0.0).to(tl.int32, bitcast=True) & 0x7FFFFFFF
            top = tl.maximum(top, tl.max(tl.max(bits, 1), 0))
        peak = top.to(tl.float32, bitcast=True)
    zero = peak < 1.1754943508222875e-38
    divisor = tl.where(zero, one, peak)
    gram = tl.zeros((N, N), tl.float32)
    for first in range(0, channels, C):
        c = first + tl.arange(0, C)
        at, inside = tile(address, c, channels, channel_step, tap_step, n, N)
        values = tl.load(at, inside, 0.0) / divisor
        gram += tl.dot(tl.trans(values), values, input_precision="ieee")
    u, v = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    square = one
    if UNIT:
        square = tl.sum(tl.sum(tl.where(u == v, gram, 0.0), 1), 0)
    square = tl.where(zero, one, square)
    tl.store(norm + row, tl.sqrt(square))
    tl.store(peaks + row, tl.where(zero, 0.0, peak))
    pair_class = tl.load(classes + u * N + v)
    for h in range(0, count):
        pooled = tl.sum(tl.sum(tl.where((pair_class == h) & (u <= v), gram, 0.0), 1), 0)
        tl.store(a + row * H + h, tl.where(zero, 0.0, pooled / square))


@triton.jit
def sum_blocks(a, blocks, partial, H: tl.constexpr, B: tl.constexpr):
    """Add up the autocorrelations of a block of filters."""
    block = tl.program_id(0)
    first, last = tl.load(blocks + 2 * block), tl.load(blocks + 2 * block + 1)
    rows, h = first + tl.arange(0, B), tl.arange(0, H)
    values = tl.load(a + rows[:, None] * H + h[None, :], rows[:, None] < last, 0.0)
    tl.store(partial + block * H + h, tl.sum(values.to(tl.float64), 0))


@triton.jit
def add_gradient(
    table, layers, classes, multiplicity, a, partial, norm, peaks, along_out, n, count,
    UNIT: tl.constexpr, ADJACENT: tl.constexpr, N: tl.constexpr, H: tl.constexpr,
    C: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Sum a filter's partners, read it again and add its gradient."""
    row = tl.program_id(0).to(tl.int64)
    layer, offset = tl.load(table + 8 * row), tl.load(table + 8 * row + 1)
    first, last = tl.load(table + 8 * row + 5), tl.load(table + 8 * row + 6)
    first_block = tl.load(table + 8 * row + 7)
    h = tl.arange(0, H)
    if ADJACENT:
        before = tl.load(a + (row - 1) * H + h, (h * 0 + row) > first, 0.0).to(tl.float64)
        after = tl.load(a + (row + 1) * H + h, (h * 0 + row + 1) < last, 0.0).to(tl.float64)
        partners = before + after
    else:
        own = (row - first) // B
        rows = first + own * B + tl.arange(0, B)
        others = (rows < last) & (rows != row)
        near = tl.load(a + rows[:, None] * H + h[None, :], others[:, None], 0.0)
        partners = tl.sum(near.to(tl.float64), 0)
        block_count = (last - first + B - 1) // B
        for start in range(0, block_count, B):
            block = start + tl.arange(0, B)
            others = (block < block_count) & (block != own)
            at = partial + (first_block + block[:, None]) * H + h[None, :]
            partners += tl.sum(tl.load(at, others[:, None], 0.0), 0)
    mine = tl.load(a + row * H + h).to(tl.float64)
    along = tl.sum(tl.load(multiplicity + h) * mine * partners, 0)
    tl.store(along_out + row, along)
    target = tl.load(layers + 4 * layer + 1)
    peak = tl.load(peaks + row)
    if (target != 0) & (peak != 0):
        u, v = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
        pair_class = tl.load(classes + u * N + v)
        t = tl.zeros((N, N), tl.float64)
        for k in range(0, count):
            t += tl.where(pair_class == k, tl.sum(tl.where(h == k, partners, 0.0), 0), 0.0)
        if UNIT:
            t -= tl.where(u == v, along, 0.0)
        length = tl.load(norm + row).to(tl.float64)
        factor = tl.load(layers + 4 * layer + 3).to(tl.float64, bitcast=True)
        t = (t * (factor / (length * length) / peak)).to(tl.float32)
        address = (tl.load(layers + 4 * layer) + offset).to(tl.pointer_type(tl.float32))
        gradient = (target + offset).to(tl.pointer_type(tl.float32))
        channels = tl.load(table + 8 * row + 2)
        channel_step, tap_step = tl.load(table + 8 * row + 3), tl.load(table + 8 * row + 4)
        for start in range(0, channels, C):
            c = start + tl.arange(0, C)
            at, inside = tile(address, c, channels, channel_step, tap_step, n, N)
            values = tl.load(at, inside, 0.0) / peak
            to, _ = tile(gradient, c, channels, channel_step, tap_step, n, N)
            product = tl.dot(values, t, input_precision="ieee")
            tl.store(to, tl.load(to, inside, 0.0) + product, inside)
