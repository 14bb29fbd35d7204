"""Hamming distances of binary codes on the CPU, a row per document: xor, and the processor's count of bits.

Chunks of documents stay in the cache, the queries inside. Keys are the numbers of bits that agree.
"""

from functools import cache
from typing import Any, no_type_check

import numpy as np
from jaxtyping import UInt8
from numba import njit
from torch import Tensor

from bitwright.kernels.numba.top import best, keep, none
from bitwright.kernels.numba.vectors import agreeing, popcount
from bitwright.kernels.scanning import FAR, Found

TILE, CHUNK = 128, 512  # documents
UNROLLED = 64  # words of 64 bits


def hamming(codes: UInt8[Tensor, "n b"], queries: UInt8[Tensor, "q b"], k: int, allowed: UInt8[Tensor, "_"] | None) -> Found | None:
    if codes.device.type != "cpu":
        return None
    bits = 8 * codes.shape[1]
    rows, asked = (part.contiguous().numpy() for part in (codes, queries))
    kind = next(kind for kind in (np.uint64, np.uint32, np.uint16, np.uint8) if rows.shape[1] % np.dtype(kind).itemsize == 0)
    rows, asked = rows.view(kind), asked.view(kind)
    bitmap = np.empty(0, np.uint8) if allowed is None else allowed.contiguous().numpy()
    words = rows.shape[1] if kind == np.uint64 and rows.shape[1] <= UNROLLED else 0
    keys, found = best(loop(words), TILE, rows.nbytes, len(asked), k, len(rows), rows, asked, bitmap)
    return Found((bits - keys).masked_fill(found < 0, 0).int().masked_fill(found < 0, FAR), found)


@cache
def loop(words: int) -> Any:
    """For documents of so many words of 64 bits; 0: words of any size, any number."""

    @njit(nogil=True, cache=True)
    @no_type_check
    def part(first, last, keys, rows, count, codes, queries, allowed):
        size = codes.shape[1] * codes.itemsize
        agree = np.empty(TILE, np.uint16 if words else np.int32)
        for chunk in range(first, last, CHUNK):
            end = min(chunk + CHUNK, last)
            for q in range(len(queries)):
                for start in range(chunk, end, TILE):
                    here = min(TILE, end - start)
                    if none(allowed, start, here):
                        continue
                    done = 0
                    if words:
                        data, query, out = codes.ctypes.data + start * size, queries.ctypes.data + q * size, agree.ctypes.data
                        done = here // 4 * 4
                        for i in range(0, done, 4):
                            agreeing(words, data + i * size, query, out + 2 * i)
                    for i in range(done, here):
                        same = 8 * size
                        for w in range(codes.shape[1]):
                            same -= np.int64(popcount(codes[start + i, w] ^ queries[q, w]))
                        agree[i] = same
                    keep(agree, here, start, keys, rows, q, allowed)

    return part
