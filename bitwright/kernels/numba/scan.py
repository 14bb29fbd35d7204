"""Scans of nibble codes on the CPU: one pass over memory serves all queries.

Documents go by in chunks that stay in the cache, the queries inside; a tile of blocks takes one load of every table. A single
query's chunk is one tile, for memory must not wait long while sums are looked at; nor does a loop make slices of arrays, for
counting who holds them stops memory too. The number of threads changes no result. Where no byte shuffle is known, a plain loop
does the same.
"""

from functools import cache
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numba import njit
from torch import Tensor

from bitwright.kernels.numba.top import best, keep, none
from bitwright.kernels.numba.vectors import FORMS, forms, single, sums
from bitwright.kernels.scanning import BLOCK, Blocked, Found, Rounded

TILE, CHUNK = 4, 16  # blocks
NEAR = 2048  # bytes of a block; the first query reads memory: four small blocks side by side, large ones straight on


def scan(
    codes: Blocked,
    tables: Rounded,
    k: int,
    factor: Float[Tensor, "n"] | None,
    allowed: UInt8[Tensor, "_"] | None,
    form: str | None = None,
) -> Found | None:
    """`form` is one of `vectors.forms()`, the first where none is named."""
    if codes.device.type != "cpu":
        return None
    q, pairs = len(tables.values), codes.data.shape[1]
    name = form or forms()[0]
    name = "avx2" if name == "avx512" and pairs % 2 else name
    data, values = codes.data.contiguous().numpy(), tables.values.view(q, pairs, 2, 16).transpose(1, 2)
    most = int(values.int().amax(3).sum(1).max()) if values.numel() else 0
    group = 255 // max(1, most)  # pairs that fit a byte together
    arguments = (
        codes.count,
        data,
        values.contiguous().numpy(),
        group,
        tables.bias.numpy(),
        tables.scale.numpy(),
        weights(factor),
        np.empty(0, np.uint8) if allowed is None else allowed.contiguous().numpy(),
    )
    keys, rows = best(loop(name, group > 1 and name in FORMS), TILE * BLOCK, data.nbytes, q, k, *arguments)
    return Found(keys if factor is not None else tables.bias[:, None] + tables.scale[:, None] * keys, rows)


def weights(factor: Float[Tensor, "n"] | None) -> np.ndarray:
    """As the loops want them: fp32, or fp16 as the bits that they are."""
    if factor is None:
        return np.empty(0, np.float32)
    factor = factor.contiguous()
    return factor.view(torch.int16).numpy().view(np.uint16) if factor.dtype == torch.float16 else factor.float().numpy()


@cache
def loop(form: str, deep: bool) -> Any:
    """Documents first..last - 1, all queries. Numba keeps it on disk, for all that it closes over are these two values."""
    vector = form in FORMS

    @njit(nogil=True, cache=True)
    @no_type_check
    def part(first, last, keys, rows, count, data, tables, group, bias, scale, factor, allowed):
        pairs, chunk = data.shape[1], BLOCK * (TILE if len(tables) == 1 else CHUNK)
        size, table = pairs * BLOCK, tables.shape[1] * tables.shape[2] * tables.shape[3]
        total, values = np.empty(chunk, np.uint16), np.empty(chunk, np.float32)
        for start in range(first, last, chunk):
            here = min(chunk, last - start)
            if none(allowed, start, here):
                continue
            at, blocks = start // BLOCK, (here + BLOCK - 1) // BLOCK
            for q in range(len(tables)):
                if vector:
                    base, query, out = data.ctypes.data + at * size, tables.ctypes.data + q * table, total.ctypes.data
                    side = blocks - blocks % TILE if q > 0 or size <= NEAR else 0
                    for b in range(0, side, TILE):
                        if q > 0:
                            sums(form, deep, TILE, False, base + b * size, pairs, query, group, out + 2 * BLOCK * b)
                        else:
                            sums(form, deep, TILE, True, base + b * size, pairs, query, group, out + 2 * BLOCK * b)
                    for b in range(side, blocks):
                        sums(form, deep, 1, False, base + b * size, pairs, query, group, out + 2 * BLOCK * b)
                else:
                    plain(data, at, blocks, tables, q, total)
                if len(factor) == 0:
                    keep(total, here, start, keys, rows, q, allowed)
                elif weighted(total, factor, start, here, bias[q], scale[q], values, keys[q, 0]):
                    keep(values, here, start, keys, rows, q, allowed)

    return part


@njit(cache=True)
@no_type_check
def weighted(total, factor, start, count, bias, scale, out, floor):
    """Whether one of them is above the floor."""
    found, place = False, np.uint64(start)  # a signed place may be negative, which keeps the loop from becoming vectors
    for i in range(count):
        value = single(factor[place + np.uint64(i)]) * (bias + scale * np.float32(total[i]))
        out[i] = value
        found |= value > floor
    return found


@njit(cache=True)
@no_type_check
def plain(data, at, blocks, tables, q, out):
    """The same sums without a byte shuffle."""
    out[:] = 0
    for b in range(blocks):
        for p in range(data.shape[1]):
            for i in range(BLOCK):
                byte = data[at + b, p, i]
                out[b * BLOCK + i] += np.uint16(tables[q, 0, p, byte & 15]) + np.uint16(tables[q, 1, p, byte >> 4])
