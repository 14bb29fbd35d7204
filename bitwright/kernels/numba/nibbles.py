"""Nibbles of vectors on the CPU: the points of a run lie beside each other, so that sixteen distances grow at once; what a sum of
nibbles leaves is known from products of points, so a beam of sums costs no more than looking them up.

Threads are Python's, each with rows of its own, as in a scan: a process that has coded or searched may still be forked.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float32, Int32, UInt8
from numba import njit
from torch import Tensor

from bitwright.kernels.nibbles_reference import BEAM, TOGETHER, together

LAST = np.int32(2**31 - 1)
ALONE, ROWS = 256, 64  # rows that one thread does before another is awake; rows that lie in the cache


def coded(
    y: Float32[Tensor, "n dims"], starts: Int32[Tensor, "t"], widths: Int32[Tensor, "t"], points: Float32[Tensor, "t 16 w"]
) -> UInt8[Tensor, "n t"] | None:
    if y.device.type != "cpu":
        return None
    codes = torch.empty(len(y), len(starts), dtype=torch.uint8)
    parts = together(starts, widths)
    between = torch.zeros(len(starts), TOGETHER, 16, 16)  # twice the products of a nibble's points with those of nibbles before it
    for first, last in parts:
        for t in range(first + 1, last):
            between[t, : t - first] = 2 * points[first:t] @ points[t].T
    ends = torch.tensor([last for _, last in parts])
    beside, size = points.transpose(1, 2).contiguous(), points.square().sum(2)
    in_parts(search, len(y), *(t.numpy() for t in (y.contiguous(), ends, starts, widths, beside, size, between, codes)))
    return codes


def decoded(
    codes: UInt8[Tensor, "n t"],
    starts: Int32[Tensor, "t"],
    widths: Int32[Tensor, "t"],
    points: Float32[Tensor, "t 16 w"],
    dims: int,
) -> Float32[Tensor, "n dims"] | None:
    if codes.device.type != "cpu":
        return None
    y = torch.zeros(len(codes), dims)
    in_parts(look_up, len(codes), *(t.numpy() for t in (codes.contiguous(), starts, widths, points.contiguous(), y)))
    return y


def in_parts(loop: Any, rows: int, *arrays: np.ndarray) -> None:
    threads = max(1, min(torch.get_num_threads(), rows // ALONE))
    cuts = [rows * i // threads for i in range(threads + 1)]
    if threads == 1:
        loop(0, rows, *arrays)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda i: loop(cuts[i], cuts[i + 1], *arrays), range(threads)))


@njit(nogil=True, cache=True, fastmath={"contract"})
@no_type_check
def search(first, last, y, ends, starts, widths, points, size, between, codes):
    """Some rows at a time, so that the products of a run are read once for all of them."""
    rest, gap = np.empty((ROWS, y.shape[1]), np.float32), np.empty((TOGETHER, 16), np.float32)
    cost, sums = np.empty((2, BEAM), np.float32), np.empty((2, BEAM, TOGETHER), np.uint8)
    each, keys = np.empty(16 * BEAM, np.float32), np.empty(16 * BEAM, np.int32)
    bits, places = each.view(np.int32), np.empty(BEAM, np.int64)
    for some in range(first, last, ROWS):
        here = min(ROWS, last - some)
        for r in range(here):
            for j in range(y.shape[1]):
                rest[r, j] = y[some + r, j]
        begin = 0
        for end in ends:
            start = starts[begin]
            for r in range(here):
                for t in range(begin, end):
                    for c in range(16):
                        gap[t - begin, c] = size[t, c]
                    for j in range(widths[t]):
                        twice = np.float32(2) * rest[r, start + j]
                        for c in range(16):
                            gap[t - begin, c] -= twice * points[t, j, c]
                cost[0, 0] = 0  # what is left: small where it matters, for keys have 16 bits of it
                for j in range(widths[begin]):
                    cost[0, 0] += rest[r, start + j] * rest[r, start + j]
                beam(begin, end, gap, between, cost, sums, each, bits, keys, places)
                for t in range(begin, end):
                    best = sums[(end - begin) % 2, 0, t - begin]
                    codes[some + r, t] = best
                    for j in range(widths[t]):
                        rest[r, start + j] -= points[t, j, best]
            begin = end


@njit(cache=True, fastmath={"contract"})
@no_type_check
def beam(begin, end, gap, between, cost, sums, each, bits, keys, places):
    """The sum of least cost for nibbles begin to end, from what each point alone would change: in the first place of `sums`."""
    many = 1
    for t in range(begin, end):
        old, new = (t - begin) % 2, (t - begin + 1) % 2
        for b in range(many):
            for c in range(16):
                each[16 * b + c] = cost[old, b] + gap[t - begin, c]
            for s in range(t - begin):
                chosen = sums[old, b, s]
                for c in range(16):
                    each[16 * b + c] += between[t, s, chosen, c]
        size, many = 16 * many, 1 if t == end - 1 else BEAM
        if many == 1:
            places[0] = 0
            for i in range(1, size):
                places[0] = i if each[i] < each[places[0]] else places[0]
        else:
            least_of(bits, size, keys, places)
        for b in range(many):
            at = places[b]
            cost[new, b] = each[at]
            for s in range(t - begin):
                sums[new, b, s] = sums[old, at >> 4, s]
            sums[new, b, t - begin] = at & 15


@njit(cache=True)
@no_type_check
def least_of(bits, size, keys, places):
    """Where the BEAM least of some numbers are, without a branch: their bits are whole numbers of the same order, and the lowest
    seven of those are given to the place."""
    for i in range(size):
        keys[i] = (bits[i] ^ bits[i] >> 31 & LAST) & ~127 | i
    for b in range(BEAM):
        least = np.int32(LAST)
        for i in range(16 * BEAM if size > 16 else 16):
            least = min(least, keys[i])
        places[b] = least & 127
        keys[places[b]] = LAST


@njit(nogil=True, cache=True)
@no_type_check
def look_up(first, last, codes, starts, widths, points, y):
    for r in range(first, last):
        for t in range(len(starts)):
            for j in range(widths[t]):
                y[r, starts[t] + j] += points[t, codes[r, t] & 15, j]
