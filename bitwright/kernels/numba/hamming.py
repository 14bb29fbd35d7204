"""Hamming distances of binary codes on the CPU, a row per document: xor, and the processor's count of bits.

Chunks of documents stay in the cache, the queries inside. Keys are the numbers of bits that agree.
"""

from functools import cache
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import UInt8
from numba import njit
from torch import Tensor

from bitwright.kernels.numba.shuffle import popcount
from bitwright.kernels.numba.top import best, keep, none
from bitwright.kernels.scanning import FAR, Found

TILE, CHUNK = 128, 1024  # documents


def hamming(codes: UInt8[Tensor, "n b"], queries: UInt8[Tensor, "q b"], k: int, allowed: UInt8[Tensor, "_"] | None) -> Found | None:
    if codes.device.type != "cpu":
        return None
    bits = 8 * codes.shape[1]
    rows, asked = (part.contiguous().numpy() for part in (codes, queries))
    kind = next(kind for kind in (np.uint64, np.uint32, np.uint16, np.uint8) if rows.shape[1] % np.dtype(kind).itemsize == 0)
    rows, asked = rows.view(kind), asked.view(kind)
    bitmap = np.empty(0, np.uint8) if allowed is None else allowed.contiguous().numpy()
    words = rows.shape[1]
    keys, found = best(loop(words if words <= 16 else 0), TILE, rows.nbytes, len(asked), k, len(rows), rows, asked, bitmap)
    return Found((bits - keys).masked_fill(found < 0, 0).int().masked_fill(found < 0, FAR), found)


@cache
def loop(fixed: int) -> Any:
    """For so many words a document, or any number."""

    @njit(nogil=True, cache=True)
    @no_type_check
    def part(first, last, keys, rows, count, codes, queries, allowed):
        words = fixed if fixed else codes.shape[1]
        bits = 8 * codes.itemsize * words
        agree = np.empty(TILE, np.int32)
        for chunk in range(first, last, CHUNK):
            end = min(chunk + CHUNK, last)
            for q in range(len(queries)):
                query = queries[q]
                for start in range(chunk, end, TILE):
                    here = min(TILE, end - start)
                    if none(allowed, start, here):
                        continue
                    for i in range(here):
                        differ = np.uint64(0)
                        for w in range(words):
                            differ += popcount(codes[start + i, w] ^ query[w])
                        agree[i] = bits - np.int32(differ)
                    keep(agree, here, start, keys[q], rows[q], allowed)

    return part
