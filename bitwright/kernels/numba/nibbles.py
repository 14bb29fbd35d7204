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

ALONE = 256  # rows that one thread does before another is awake


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
    rest, gap = np.empty(y.shape[1], np.float32), np.empty((TOGETHER, 16), np.float32)
    cost, sums = np.empty((2, BEAM), np.float32), np.empty((2, BEAM, TOGETHER), np.uint8)
    own, from_, code = np.empty(16, np.float32), np.empty(BEAM, np.int64), np.empty(BEAM, np.uint8)
    for r in range(first, last):
        rest[:] = y[r]
        begin = 0
        for end in ends:
            start, held, old = starts[begin], 1, 0
            cost[0, 0] = 0
            for t in range(begin, end):
                for c in range(16):
                    gap[t - begin, c] = size[t, c]
                for j in range(widths[t]):
                    twice = np.float32(2) * rest[start + j]
                    for c in range(16):
                        gap[t - begin, c] -= twice * points[t, j, c]
            for t in range(begin, end):
                room, new = (1 if t == end - 1 else BEAM), 1 - old
                kept = 0
                for b in range(held):
                    for c in range(16):
                        own[c] = cost[old, b] + gap[t - begin, c]
                    for s in range(t - begin):
                        row = between[t, s, sums[old, b, s]]
                        for c in range(16):
                            own[c] += row[c]
                    for c in range(16):
                        if kept < room or own[c] < cost[new, kept - 1]:
                            at = kept if kept < room else room - 1
                            while at > 0 and own[c] < cost[new, at - 1]:
                                cost[new, at], from_[at], code[at] = cost[new, at - 1], from_[at - 1], code[at - 1]
                                at -= 1
                            cost[new, at], from_[at], code[at] = own[c], b, c
                            kept = min(kept + 1, room)
                for b in range(kept):
                    for s in range(t - begin):
                        sums[new, b, s] = sums[old, from_[b], s]
                    sums[new, b, t - begin] = code[b]
                held, old = kept, new
            for t in range(begin, end):
                best = sums[old, 0, t - begin]
                codes[r, t] = best
                for j in range(widths[t]):
                    rest[start + j] -= points[t, j, best]
            begin = end


@njit(nogil=True, cache=True)
@no_type_check
def look_up(first, last, codes, starts, widths, points, y):
    for r in range(first, last):
        for t in range(len(starts)):
            for j in range(widths[t]):
                y[r, starts[t] + j] += points[t, codes[r, t] & 15, j]
