"""Nibbles of vectors on the CPU: the points of a run lie beside each other, so that sixteen distances grow at once.

Threads are Python's, each with rows of its own, as in a scan: a process that has coded or searched may still be forked.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float32, Int32, UInt8
from numba import njit
from torch import Tensor

ALONE = 256  # rows that one thread does before another is awake


def coded(
    y: Float32[Tensor, "n dims"], starts: Int32[Tensor, "t"], widths: Int32[Tensor, "t"], points: Float32[Tensor, "t 16 w"]
) -> UInt8[Tensor, "n t"] | None:
    if y.device.type != "cpu":
        return None
    codes = torch.empty(len(y), len(starts), dtype=torch.uint8)
    beside, size = points.transpose(1, 2).contiguous(), points.square().sum(2)
    in_parts(search, len(y), *(t.numpy() for t in (y.contiguous(), starts, widths, beside, size, codes)))
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
def search(first, last, y, starts, widths, points, size, codes):
    for r in range(first, last):
        rest, gap = y[r].copy(), np.empty(16, np.float32)
        for t in range(len(starts)):
            start = starts[t]
            for c in range(16):
                gap[c] = size[t, c]
            for j in range(widths[t]):
                twice = np.float32(2) * rest[start + j]
                for c in range(16):
                    gap[c] -= twice * points[t, j, c]
            best = 0
            for c in range(1, 16):
                if gap[c] < gap[best]:
                    best = c
            codes[r, t] = best
            for j in range(widths[t]):
                rest[start + j] -= points[t, j, best]


@njit(nogil=True, cache=True)
@no_type_check
def look_up(first, last, codes, starts, widths, points, y):
    for r in range(first, last):
        for t in range(len(starts)):
            for j in range(widths[t]):
                y[r, starts[t] + j] += points[t, codes[r, t] & 15, j]
