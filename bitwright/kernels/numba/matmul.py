"""Products of few tokens with packed codes on the CPU: one pass over the codes, which is all that memory has to give.

A tile is 64 outputs; a byte holds the codes of one output for 8 / bits consecutive columns, and the bytes of a tile's outputs
lie side by side, so one vector register works on many outputs and nothing is summed across lanes. The fields of a byte are
not shifted out: with m_i the byte below field i + 1 (b & 3, b & 15, b & 63, b),

    sum_i x_i c_i = sum_i m_i (x_i / B^i - x_{i+1} / B^{i+1}),     B = 2^bits

Scales and offsets meet the sum of a group, not its weights. Tables are looked up weight by weight.
"""

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numba import njit, prange
from torch import Tensor

from bitwright.kernels.numba.sweep import compiled
from bitwright.kernels.packed import Packed
from bitwright.kernels.planes import Plane

TILE = 64  # outputs
MOST = 16  # tokens: beyond, decoding once and a library's product is faster


def matmul(x: Float[Tensor, "n inp"], packed: Packed) -> Float[Tensor, "n out"] | None:
    if len(x) > MOST or x.device.type != "cpu" or not x.is_floating_point():
        return None
    made = packed.form("numba", tiled, declines)
    if made is None:
        return None

    def codes(part: Float[Tensor, "n _"], found: list[Any]) -> Float[Tensor, "n out"]:
        y = np.zeros((len(part), len(found[0][1]) * TILE), np.float32)
        values = part.contiguous().numpy()
        for group, *arrays in found:
            compiled(gemv, values, values.reshape(len(part), -1, group).sum(2), y, group, *arrays)
        return torch.from_numpy(y[:, : packed.out])

    return packed.product(x.float(), made, codes).to(x.dtype)


def declines(plane: Plane) -> str | None:
    return f"its groups of {plane.group} columns end inside a byte" if plane.group % (8 // plane.bits) else None


def tiled(plane: Plane) -> tuple[Any, ...]:
    """Group size, bytes [tiles, k bits / 8, 64], scales and offsets [tiles, groups, 64], bits, table."""
    fields = 8 // plane.bits
    shifts = torch.arange(0, 8, plane.bits, dtype=torch.uint8)
    data = (plane.codes.view(len(plane.codes), -1, fields) << shifts).sum(2, dtype=torch.uint8)
    table = np.empty(0, np.float32) if plane.table is None else plane.table.numpy()
    return plane.group, *(lanes(part).numpy() for part in (data, plane.scale, plane.offset)), plane.bits, table


def lanes(rows: Tensor) -> Tensor:
    """[out, m] as [tiles, m, 64], outputs that fill the last tile up being zero."""
    tiles = -(-len(rows) // TILE)
    full = rows.new_zeros(tiles * TILE, rows.shape[1])
    full[: len(rows)] = rows
    return full.view(tiles, TILE, -1).transpose(1, 2).contiguous()


@njit(parallel=True, fastmath=True, error_model="numpy", cache=True)
@no_type_check
def gemv(x, sums, y, group, codes, scale, offset, bits, table):
    """y [n, out] += x W^t for one plane; sums [n, groups] are those of x."""
    fields = 8 // bits
    base, mask = np.float32(1 / 2**bits), np.uint8(2**bits - 1)
    bytes_of_group = group // fields
    for t in prange(codes.shape[0]):
        acc, f = np.empty(TILE, np.float32), np.zeros(9, np.float32)
        for n in range(x.shape[0]):
            for g in range(scale.shape[1]):
                acc[:] = np.float32(0)
                for c in range(g * bytes_of_group, (g + 1) * bytes_of_group):
                    row = codes[t, c]
                    if len(table):
                        for i in range(fields):
                            xi, shift = x[n, c * fields + i], np.uint8(i * bits)
                            for l in range(TILE):
                                acc[l] += xi * table[(row[l] >> shift) & mask]
                        continue
                    power = np.float32(1)
                    for i in range(fields):
                        f[i] = x[n, c * fields + i] * power
                        power *= base
                    f[fields] = np.float32(0)
                    if bits == 8:
                        for l in range(TILE):
                            acc[l] += f[0] * np.float32(row[l])
                    elif bits == 4:
                        for l in range(TILE):
                            acc[l] += (f[0] - f[1]) * np.float32(row[l] & 15) + f[1] * np.float32(row[l])
                    elif bits == 2:
                        for l in range(TILE):
                            acc[l] += (f[0] - f[1]) * np.float32(row[l] & 3) + (f[1] - f[2]) * np.float32(row[l] & 15)
                        for l in range(TILE):
                            acc[l] += (f[2] - f[3]) * np.float32(row[l] & 63) + f[3] * np.float32(row[l])
                    else:
                        for i in range(0, 8, 2):
                            a, b = f[i] - f[i + 1], f[i + 1] - f[i + 2]
                            low, high = np.uint8((2 << i) - 1), np.uint8((4 << i) - 1)
                            for l in range(TILE):
                                acc[l] += a * np.float32(row[l] & low) + b * np.float32(row[l] & high)
                for l in range(TILE):
                    y[n, t * TILE + l] += scale[t, g, l] * acc[l] - offset[t, g, l] * sums[n, g]
