"""Tables to bytes on the CPU, in the caches and without temporary arrays; the bits are those of the reference."""

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float32
from numba import njit
from torch import Tensor

from bitwright.kernels.numba.nibbles import in_parts
from bitwright.kernels.scan_reference import LANES, TINY
from bitwright.kernels.scanning import Rounded

F: Any = np.float32  # a number that is not said to be one is taken for twice as many bits


def rounded(tables: Float32[Tensor, "q t 16"]) -> Rounded | None:
    if tables.device.type != "cpu":
        return None
    q, t, _ = tables.shape
    values, scale, bias = torch.zeros(q, t + t % 2, 16, dtype=torch.uint8), torch.empty(q), torch.empty(q)
    in_parts(part, q, *(x.contiguous().numpy() for x in (tables, values, scale, bias)))
    return Rounded(values, scale, bias)


@njit(nogil=True, cache=True)
@no_type_check
def part(first, last, tables, values, scale, bias):
    t, even = tables.shape[1], values.shape[1]
    nearest, by_bits = F(1 / (65534 - even / 2)), F(1 / (65535 - 2 * even))
    offset, bits, lanes = np.empty(t, F), np.empty((t, 4), F), np.empty(LANES, F)
    for q in range(first, last):
        lanes[:] = 0
        pair = widest = largest = apart = spoilt = F(0)
        least = F(np.inf)
        for i in range(t):
            x, low, high = tables[q, i], tables[q, i, 0], tables[q, i, 0]
            for c in range(16):
                spoilt += x[c] * F(0)
                low, high = min(low, x[c]), max(high, x[c])
            offset[i] = low
            lanes[i % LANES] += high - low
            pair = high - low + (pair if i % 2 else F(0))
            widest = max(widest, pair)
            base = x[0] - low
            for b in range(4):
                bits[i, b] = (x[1 << b] - low) - base
                largest = max(largest, abs(bits[i, b]))
            for c in range(16):
                rest = x[c] - low
                apart = max(apart, abs(spread(bits[i], c) - (rest - base)))
                if rest > 0:
                    least = min(least, rest)
        total = halved(lanes)
        step = max(widest * F(1 / 254), total * nearest)
        adds = apart <= step * F(1 / 64)
        if adds:
            step = max(max(widest * F(1 / 251), total * by_bits), largest * F(1 / 127))
        if least == F(np.inf):
            least = F(1)
        if whole_multiples(tables[q], offset, least, widest):
            step = least
        step = max(step, F(TINY))
        scale[q] = step + total * F(0) + spoilt
        lanes[:] = 0
        if np.isfinite(scale[q]):
            for i in range(t):
                lanes[i % LANES] += written(tables[q, i], offset[i], bits[i], step, adds, values[q, i])
        bias[q] = halved(lanes)


@njit(cache=True)
@no_type_check
def whole_multiples(tables, offset, least, widest):
    """Of `least`, and few enough steps."""
    if widest > F(255) * least:
        return False
    steps = F(0)
    for i in range(len(tables)):
        most = F(0)
        for c in range(16):
            rest = tables[i, c] - offset[i]
            whole = np.rint(rest / least)
            most = max(most, whole)
            if whole * least != rest:
                return False
        steps += most
    return steps <= 65535


@njit(cache=True)
@no_type_check
def written(table, offset, bits, step, adds, values):
    """A table's bytes; what they are steps above."""
    if not adds:
        for c in range(16):
            values[c] = np.uint8(np.rint((table[c] - offset) / step))
        return offset
    under, size, weights, mean = F(0), F(0), np.rint(bits / step), table.copy()
    for b in range(4):
        under, size = under + min(weights[b], F(0)), size + abs(weights[b])
    for c in range(16):
        values[c] = np.uint8(spread(weights, c) - under)
    return halved(mean) * F(1 / 16) - step * (size * F(0.5))


@njit(cache=True)
@no_type_check
def spread(bits, code):
    total = F(0)
    for b in range(4):
        if code >> b & 1:
            total += bits[b]
    return total


@njit(cache=True)
@no_type_check
def halved(x):
    """The sum of x, which is spent: its upper half onto its lower half, as often as there are two."""
    half = len(x) // 2
    while half > 0:
        for i in range(half):
            x[i] += x[i + half]
        half //= 2
    return x[0]
