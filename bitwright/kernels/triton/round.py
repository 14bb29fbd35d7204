"""Tables to bytes on a GPU in one launch, where plain operations take sixty: one program per query.

It goes over the query's tables three times, which stay in the cache: for what the step depends on, for whether all are whole
multiples of one, and to write. Bits are those of the reference: sums are taken in its order, quotients are the nearest numbers,
and no product is joined with a sum.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float32
from torch import Tensor
from triton.language import constexpr

from bitwright.kernels import scan_reference
from bitwright.kernels.scanning import Rounded
from bitwright.kernels.triton.scan import suits

LANES = constexpr(scan_reference.LANES)  # tables at a time
TINY, NONE = constexpr(scan_reference.TINY), constexpr(float("inf"))
WHOLE = constexpr(1.5 * 2**23)  # added to a small number and taken away again, it leaves the nearest whole one, even among two


def rounded(tables: Float32[Tensor, "q t 16"]) -> Rounded | None:
    if not suits(tables.device):
        return None
    q, t, _ = tables.shape
    values = torch.empty(q, t + t % 2, 16, dtype=torch.uint8, device=tables.device)
    scale, bias = (torch.empty(q, device=tables.device) for _ in range(2))
    if q:
        with torch.cuda.device_of(tables):
            round_kernel[(q,)](tables.contiguous(), values, scale, bias, TABLES=t, num_warps=4, enable_fp_fusion=False)
    return Rounded(values, scale, bias)


@triton.jit
@no_type_check
def round_kernel(tables, values, scale, bias, TABLES: constexpr):
    EVEN: constexpr = TABLES + TABLES % 2
    query, code = tl.program_id(0), tl.arange(0, 16)[None, :]
    tables += query.to(tl.int64) * (TABLES * 16)
    values += query.to(tl.int64) * (EVEN * 16)
    total, pair = tl.zeros((LANES,), tl.float32), tl.zeros((LANES // 2,), tl.float32)
    apart, largest = tl.zeros((LANES,), tl.float32), tl.zeros((LANES,), tl.float32)
    least = tl.full((LANES,), NONE, tl.float32)
    for start in range(0, TABLES, LANES):
        x, offset = loaded(tables, start, TABLES)
        rest = x - offset[:, None]
        span = tl.max(rest, 1) + tl.sum(x * 0.0, 1)  # not a number where one is not finite
        total += span
        pair = tl.maximum(pair, tl.sum(span.reshape(LANES // 2, 2), 1))
        first, bits = bits_of(tables, start, TABLES, offset)
        apart = tl.maximum(apart, tl.max(tl.abs(spread(bits, code) - (rest - first[:, None])), 1))
        for b in tl.static_range(4):
            largest = tl.maximum(largest, tl.abs(bits[b]))
        least = tl.minimum(least, tl.min(tl.where(rest > 0, rest, NONE), 1))
    every, widest, smallest = summed(total), tl.max(pair, 0), tl.min(least, 0)
    step = tl.maximum(widest * (1 / 254), every * (1 / (65534 - EVEN / 2)))
    adds = tl.max(apart, 0) <= step * (1 / 64)
    wider = tl.maximum(tl.maximum(widest * (1 / 251), every * (1 / (65535 - 2 * EVEN))), tl.max(largest, 0) * (1 / 127))
    step = tl.where(adds, wider, step)
    smallest = tl.where(smallest < NONE, smallest, 1.0)

    steps, differ = tl.zeros((LANES,), tl.float32), tl.zeros((LANES,), tl.int32)
    for start in range(0, TABLES, LANES):
        x, offset = loaded(tables, start, TABLES)
        rest = x - offset[:, None]
        multiple = whole(tl.div_rn(rest, smallest))
        steps += tl.max(multiple, 1)
        differ += tl.sum((multiple * smallest != rest).to(tl.int32), 1)
    kept = (tl.sum(differ, 0) == 0) & (widest <= 255 * smallest) & (tl.sum(steps, 0) <= 65535)
    step = tl.maximum(tl.where(kept, smallest, step), TINY)

    shifts = tl.zeros((LANES,), tl.float32)
    for start in range(0, TABLES, LANES):
        x, offset = loaded(tables, start, TABLES)
        first, bits = bits_of(tables, start, TABLES, offset)
        sums, sizes = tl.zeros((LANES, 16), tl.float32), tl.zeros((LANES,), tl.float32)
        for b in tl.static_range(4):
            weight = whole(tl.div_rn(bits[b], step))
            sums += tl.where(((code >> b) & 1) != 0, weight[:, None], 0.0) - tl.minimum(weight, 0.0)[:, None]
            sizes += tl.abs(weight)
        found = tl.where(adds, sums, whole(tl.div_rn(x - offset[:, None], step)))
        row = start + tl.arange(0, LANES)[:, None]
        tl.store(values + row * 16 + code, found.to(tl.int32).to(tl.uint8), mask=row < EVEN)
        shifts += tl.where(adds, halved(x, LANES, 16) * (1 / 16) - step * (sizes * 0.5), offset)
    tl.store(scale + query, step + every * 0.0)
    tl.store(bias + query, summed(shifts))


@triton.jit
@no_type_check
def loaded(tables, start, TABLES: constexpr):
    """LANES tables, zeros beyond the last, and the least entry of each."""
    row = start + tl.arange(0, LANES)[:, None]
    x = tl.load(tables + row * 16 + tl.arange(0, 16)[None, :], mask=row < TABLES, other=0.0)
    return x, tl.min(x, 1)


@triton.jit
@no_type_check
def bits_of(tables, start, TABLES: constexpr, offset):
    """The first entry of each table above the least, and what each of four bits adds to it."""
    row = start + tl.arange(0, LANES)
    first = tl.load(tables + row * 16, mask=row < TABLES, other=0.0) - offset
    one = tl.load(tables + row * 16 + 1, mask=row < TABLES, other=0.0) - offset
    two = tl.load(tables + row * 16 + 2, mask=row < TABLES, other=0.0) - offset
    four = tl.load(tables + row * 16 + 4, mask=row < TABLES, other=0.0) - offset
    eight = tl.load(tables + row * 16 + 8, mask=row < TABLES, other=0.0) - offset
    return first, (one - first, two - first, four - first, eight - first)


@triton.jit
@no_type_check
def spread(bits, code):
    """For every nibble the sum of its bits, the lowest bit first."""
    sums = tl.where((code & 1) != 0, bits[0][:, None], 0.0)
    for b in tl.static_range(1, 4):
        sums += tl.where(((code >> b) & 1) != 0, bits[b][:, None], 0.0)
    return sums


@triton.jit
@no_type_check
def whole(x):
    return (x + WHOLE) - WHOLE


@triton.jit
@no_type_check
def summed(lanes):
    return tl.sum(halved(lanes.reshape(1, LANES), 1, LANES), 0)


@triton.jit
@no_type_check
def halved(x, ROWS: constexpr, WIDTH: constexpr):
    """The sums of rows, the upper half onto the lower half as often as there are two."""
    if WIDTH == 1:
        return x.reshape(ROWS)
    else:
        return halved(tl.sum(x.reshape(ROWS, 2, WIDTH // 2), 1), ROWS, WIDTH // 2)
