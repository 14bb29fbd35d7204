"""Scores of given documents from float tables, on the CPU: sums of several documents grow at once, each in the order of the tables.

Threads are Python's, each with documents of its own, as in a scan.
"""

from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from numba import njit
from torch import Tensor

from bitwright.kernels.numba.nibbles import in_parts
from bitwright.kernels.numba.scan import weights
from bitwright.kernels.numba.vectors import single
from bitwright.kernels.scanning import BLOCK, Blocked

TOGETHER = 8  # documents: a sum of its own is as slow as a chain of additions


def score(
    codes: Blocked, tables: Float32[Tensor, "q t 16"], rows: Int64[Tensor, "q c"], factor: Float[Tensor, "n"] | None
) -> Float32[Tensor, "q c"] | None:
    if codes.device.type != "cpu" or not codes.count:
        return None
    found = torch.empty(rows.shape)
    arrays = (x.contiguous().numpy() for x in (codes.data, tables, rows.flatten()))
    in_parts(part, rows.numel(), *arrays, weights(factor), found.view(-1).numpy())
    return found


@njit(nogil=True, cache=True)
@no_type_check
def part(first, last, data, tables, rows, factor, found):
    """Numbers first to last of the flat list of rows; a document that is not there is read as the first."""
    each, t = len(rows) // max(1, len(tables)), tables.shape[1]
    block, place = np.empty(TOGETHER, np.int64), np.empty(TOGETHER, np.int64)
    query, sums = np.empty(TOGETHER, np.int64), np.empty(TOGETHER, np.float32)
    for start in range(first, last, TOGETHER):
        for i in range(TOGETHER):
            at = min(start + i, last - 1)
            row = max(rows[at], 0)
            block[i], place[i], query[i], sums[i] = row // BLOCK, row % BLOCK, at // each, 0
        for p in range(t // 2):
            for i in range(TOGETHER):
                byte = data[block[i], p, place[i]]
                sums[i] = (sums[i] + tables[query[i], 2 * p, byte & 15]) + tables[query[i], 2 * p + 1, byte >> 4]
        for i in range(min(TOGETHER, last - start)):
            row, total = rows[start + i], sums[i]
            if t % 2:
                total += tables[query[i], t - 1, data[block[i], t // 2, place[i]] & 15]
            if row < 0:
                found[start + i] = -np.inf
            else:
                found[start + i] = total if len(factor) == 0 else single(factor[row]) * total
