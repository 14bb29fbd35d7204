"""Products of few tokens with packed codes on the CPU: one pass over the codes, which is all that memory has to give.

A tile is 64 outputs; a byte holds the codes of one output for 8 / bits consecutive columns, and the bytes of a tile's outputs
lie side by side, so one vector register works on many outputs and nothing is summed across lanes. The fields of a byte are
not shifted out: with m_i the byte below field i + 1 (b & 3, b & 15, b & 63, b),

    sum_i x_i c_i = sum_i m_i (x_i / B^i - x_{i+1} / B^{i+1}),     B = 2^bits

Scales and offsets meet the sum of a group, not its weights. Codes of 3 bits take 4 here, those of 5 to 7 take 8: the
arithmetic of a second pass costs more than the bytes. Tables are looked up weight by weight, no faster than fp32. Learned vectors
are in words.py.
"""

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numba import njit, prange
from torch import Tensor

from bitwright.kernels.numba import words
from bitwright.kernels.numba.sweep import STARTED_WITH, compiled
from bitwright.kernels.packed import Packed
from bitwright.kernels.planes import Plane, Words

TILE = 64  # outputs
WIDTHS = {1: (2,), 2: (2,), 3: (4,), 4: (4,), 5: (8,), 6: (8,), 7: (8,), 8: (8,)}  # one pass with idle bits beats two without
ALONE = 2**18  # bytes of codes that one thread has done before others are awake
MOST = 16  # tokens: beyond, decoding once and a library's product is faster


def matmul(x: Float[Tensor, "n inp"], packed: Packed) -> Float[Tensor, "n out"] | None:
    if len(x) > MOST or x.device.type != "cpu" or not x.is_floating_point():
        return None
    made = packed.form("numba", WIDTHS, tiled, declines)
    if made is None:
        return None

    return packed.product(x.float(), made, lambda part, found: codes_product(part, found, packed.shape[0])).to(x.dtype)


def codes_product(x: Float[Tensor, "n k"], found: list[Any], out: int) -> Float[Tensor, "n out"]:
    y, values = np.zeros((len(x), len(found[0][2]) * TILE), np.float32), x.contiguous().numpy()
    for loop, group, *arrays in found:
        threads = 1 if arrays[0].nbytes * len(x) < ALONE else STARTED_WITH
        compiled(loop, values, values.reshape(len(x), -1, group).sum(2), y, group, *arrays, most=threads)
    return torch.from_numpy(y[:, :out])


def declines(plane: Plane | Words) -> str | None:
    if isinstance(plane, Words):
        return None
    return f"its groups have {plane.group} columns, not a multiple of 4" if plane.group % 4 else None


def tiled(plane: Plane | Words) -> list[tuple[Any, ...]]:
    """Group size, bytes [tiles, k bits / 8, 64], scales and offsets [tiles, groups, 64], bits, table."""
    if isinstance(plane, Words):
        digits, rows = lanes(plane.digits.permute(1, 2, 0).flatten(1)).numpy(), lanes(plane.scale).numpy()
        return [(words.gemv, plane.group, digits, rows, rows, plane.books.transpose(1, 2).contiguous().numpy())]
    fields = 8 // plane.bits
    shifts = torch.arange(0, 8, plane.bits, dtype=torch.uint8)
    data = (plane.codes.view(len(plane.codes), -1, fields) << shifts).sum(2, dtype=torch.uint8)
    table = np.empty(0, np.float32) if plane.table is None else plane.table.numpy()
    loop = (CODES if plane.table is None else TABLES)[plane.bits]
    return [(loop, plane.group, *(lanes(part).numpy() for part in (data, plane.scale, plane.scale * plane.zero)), table)]


def lanes(rows: Tensor) -> Tensor:
    """[out, m] as [tiles, m, 64], outputs that fill the last tile up being zero."""
    tiles = -(-len(rows) // TILE)
    full = rows.new_zeros(tiles * TILE, rows.shape[1])
    full[: len(rows)] = rows
    return full.view(tiles, TILE, -1).transpose(1, 2).contiguous()


@njit(inline="always")
@no_type_check
def add2(acc, codes, t, c, x, n, table):
    """4 columns in a byte. Two short loops are faster than one that needs more registers."""
    x0, x1 = x[n, 4 * c], x[n, 4 * c + 1] * np.float32(1 / 4)
    x2, x3 = x[n, 4 * c + 2] * np.float32(1 / 16), x[n, 4 * c + 3] * np.float32(1 / 64)
    f0, f1, f2 = x0 - x1, x1 - x2, x2 - x3
    for l in range(TILE):
        b = np.int32(codes[t, c, l])
        acc[l] += f0 * np.float32(b & np.int32(3)) + f1 * np.float32(b & np.int32(15))
    for l in range(TILE):
        b = np.int32(codes[t, c, l])
        acc[l] += f2 * np.float32(b & np.int32(63)) + x3 * np.float32(b)


@njit(inline="always")
@no_type_check
def add4(acc, codes, t, c, x, n, table):
    """4 columns in two bytes."""
    x1, x3 = x[n, 4 * c + 1] * np.float32(1 / 16), x[n, 4 * c + 3] * np.float32(1 / 16)
    x0, x2 = x[n, 4 * c] - x1, x[n, 4 * c + 2] - x3
    for l in range(TILE):
        a, b = np.int32(codes[t, 2 * c, l]), np.int32(codes[t, 2 * c + 1, l])
        low = x0 * np.float32(a & np.int32(15)) + x2 * np.float32(b & np.int32(15))
        acc[l] += low + x1 * np.float32(a) + x3 * np.float32(b)


@njit(inline="always")
@no_type_check
def add8(acc, codes, t, c, x, n, table):
    """4 columns in four bytes."""
    x0, x1, x2, x3 = x[n, 4 * c], x[n, 4 * c + 1], x[n, 4 * c + 2], x[n, 4 * c + 3]
    for l in range(TILE):
        low = x0 * np.float32(codes[t, 4 * c, l]) + x1 * np.float32(codes[t, 4 * c + 1, l])
        acc[l] += low + x2 * np.float32(codes[t, 4 * c + 2, l]) + x3 * np.float32(codes[t, 4 * c + 3, l])


@njit(inline="always")
@no_type_check
def look2(acc, codes, t, c, x, n, table):
    for i in range(4):
        x0, shift = x[n, 4 * c + i], np.uint8(2 * i)
        for l in range(TILE):
            acc[l] += x0 * table[(codes[t, c, l] >> shift) & 3]


@njit(inline="always")
@no_type_check
def look4(acc, codes, t, c, x, n, table):
    for i in range(2):
        x0, x1 = x[n, 4 * c + 2 * i], x[n, 4 * c + 2 * i + 1]
        for l in range(TILE):
            b = codes[t, 2 * c + i, l]
            acc[l] += x0 * table[b & 15] + x1 * table[b >> 4]


@njit(inline="always")
@no_type_check
def look8(acc, codes, t, c, x, n, table):
    for i in range(4):
        for l in range(TILE):
            acc[l] += x[n, 4 * c + i] * table[codes[t, 4 * c + i, l]]


def gemv(add: Any) -> Any:
    """y [n, out] += x W^t for one plane; sums [n, groups] are those of x; `add` does 4 columns of a tile."""

    @njit(parallel=True, fastmath=True, error_model="numpy", cache=True)
    @no_type_check
    def loop(x, sums, y, group, codes, scale, offset, table):
        steps = group // 4
        for t in prange(codes.shape[0]):
            acc, total = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
            for n in range(x.shape[0]):
                total[:] = np.float32(0)
                for g in range(scale.shape[1]):
                    acc[:] = np.float32(0)
                    for c in range(g * steps, (g + 1) * steps):
                        add(acc, codes, t, c, x, n, table)
                    for l in range(TILE):
                        total[l] += scale[t, g, l] * acc[l] - offset[t, g, l] * sums[n, g]
                for l in range(TILE):
                    y[n, t * TILE + l] += total[l]

    return loop


CODES = {2: gemv(add2), 4: gemv(add4), 8: gemv(add8)}
TABLES = {2: gemv(look2), 4: gemv(look4), 8: gemv(look8)}
