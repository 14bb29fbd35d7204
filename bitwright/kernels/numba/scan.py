"""Scans of nibble codes on the CPU: one pass over memory serves all queries.

Documents go by in chunks that stay in the cache, the queries inside; a tile of blocks takes one load of every table. The
number of threads changes no result. Where no byte shuffle is known, a plain loop does the same.
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
        values.repeat(1, 1, 1, 2).contiguous().numpy(),
        group,
        tables.bias.numpy(),
        tables.scale.numpy(),
        weights(factor),
        np.empty(0, np.uint8) if allowed is None else allowed.contiguous().numpy(),
    )
    keys, rows = best(loop(name, group > 1), TILE * BLOCK, data.nbytes, q, k, *arguments)
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
        pairs, tile = data.shape[1], TILE * BLOCK
        size, table = pairs * BLOCK, tables.shape[1] * tables.shape[2] * tables.shape[3]
        sums_, values = np.empty(tile, np.uint16), np.empty(tile, np.float32)
        for chunk in range(first, last, CHUNK * BLOCK):
            end = min(chunk + CHUNK * BLOCK, last)
            for q in range(len(tables)):
                for start in range(chunk, end, tile):
                    here = min(tile, end - start)
                    if none(allowed, start, here):
                        continue
                    at, to = start // BLOCK, (start + here + BLOCK - 1) // BLOCK
                    if vector:
                        base, own, out = data.ctypes.data, tables.ctypes.data + q * table, sums_.ctypes.data
                        if q == 0 and to - at == TILE:  # memory is read: two streams are as many as it likes
                            for b in (0, 2):
                                sums(form, deep, 2, True, base + (at + b) * size, pairs, own, group, out + 2 * BLOCK * b)
                        elif to - at == TILE:
                            sums(form, deep, TILE, False, base + at * size, pairs, own, group, out)
                        else:
                            for b in range(at, to):
                                sums(form, deep, 1, False, base + b * size, pairs, own, group, out + 2 * BLOCK * (b - at))
                    else:
                        plain(data[at:to], tables[q], sums_)
                    if len(factor) == 0:
                        keep(sums_, here, start, keys[q], rows[q], allowed)
                    else:
                        for i in range(here):
                            values[i] = single(factor[start + i]) * (bias[q] + scale[q] * np.float32(sums_[i]))
                        keep(values, here, start, keys[q], rows[q], allowed)

    return part


@njit(cache=True)
@no_type_check
def plain(data, tables, out):
    """The same sums without a byte shuffle."""
    for b in range(len(data)):
        total = out[b * BLOCK : (b + 1) * BLOCK]
        total[:] = 0
        for p in range(data.shape[1]):
            for i in range(BLOCK):
                byte = data[b, p, i]
                total[i] += np.uint16(tables[0, p, byte & 15]) + np.uint16(tables[1, p, byte >> 4])
