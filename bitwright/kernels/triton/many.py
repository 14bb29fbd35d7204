"""Many tokens: some thousand rows at a time are decoded into a buffer, for the library's own product."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from triton.language import constexpr

from bitwright.kernels.triton.form import Made, assembles
from bitwright.kernels.triton.words import TILE, joined, load, numbers, unpacked

PIECE = 4096  # rows: fewer leave a product's last wave empty, more leave the cache


def many_product(x: Float[Tensor, "n k"], found: list[Made], out: int) -> Float[Tensor, "n out"]:
    y, k, tiles = x.new_empty(len(x), out), x.shape[1], found[0].tickets.shape[1]
    room = x.new_empty(min(PIECE, tiles * TILE), k)
    for first in range(0, out, PIECE):
        count = min(PIECE, out - first)
        for i, made in enumerate(found):
            kind = torch.int8 if made.table is not None or made.pieces == (8,) else x.dtype
            dense_kernel[(-(-count // TILE), made.blocks // made.step)](
                made.w, made.v, made.scale, made.zero, made.same, made.table, room, first // TILE, k, made.blocks // made.step,
                STEP=made.step, ADD=i > 0, BASE=0 if kind == torch.int8 else 1024 if kind == torch.float16 else 128,
                num_warps=1, num_stages=1, **made.constants(kind, assembles(x)),
            )  # fmt: skip
        torch.mm(x, room[:count].T, out=y[:, first : first + count])
    return y


@triton.jit
@no_type_check
def dense_kernel(
    w, v, scale, zero, same, table, room, first, k, steps, ADD: constexpr, BASE: constexpr, GROUP: constexpr, STEP: constexpr,
    B1: constexpr, B2: constexpr, ASM: constexpr, WHERE: constexpr, KINDS: constexpr,
):  # fmt: skip
    """One step of a tile, decoded into `room` [rows, k]; ADD: on top of what an earlier plane left there."""
    PACK: constexpr = 4 if BASE == 0 else 2
    HALF: constexpr = 16 // PACK  # registers of a part
    tile, step = first + tl.program_id(0), tl.program_id(1)
    behind = tile.to(tl.int64) * ((steps * (STEP * 64) + GROUP - 1) // GROUP)
    row, column = tl.program_id(0) * 64 + tl.arange(0, 64)[:, None], tl.arange(0, 32)[None, :]
    block = (tile.to(tl.int64) * steps + step) * STEP
    now = load(w + block * (B1 * 128), B1, STEP)
    now2 = load(v + block * (B2 * 128), B2, STEP) if B2 > 0 else now
    for j in tl.static_range(STEP):
        values = unpacked(now[j], now2[j], table, B1, B2, ASM, WHERE, KINDS, PACK)
        for u in tl.static_range(2):
            start = step * (STEP * 64) + j * 64 + u * 32
            if j + u == 0 or (j * 64 + u * 32) % GROUP == 0 or GROUP < 32:
                group = behind + (start + tl.arange(0, 4)[:, None, None] * 8) // GROUP
                s = numbers(scale, group).to(tl.float32)
                under = s * (tl.full((4, 8, 8), BASE, tl.float32) + (numbers(zero, group) if zero is not None else same))
            if PACK == 2:  # g t, m, h, odd r upper -> t g, m r, upper h odd
                a = joined(values[u * HALF : (u + 1) * HALF], 3).reshape(8, 4, 4, 2, 2, 2, 2).permute(1, 0, 2, 5, 6, 3, 4)
            else:
                a = joined(values[u * HALF : (u + 1) * HALF], 2).reshape(8, 4, 4, 4, 2, 2).permute(1, 0, 2, 4, 5, 3)
            a = a.reshape(4, 8, 8, 8).to(tl.float32) * s[:, :, :, None] - under[:, :, :, None]
            a = a.reshape(4, 8, 4, 2, 8).permute(2, 3, 1, 0, 4).reshape(64, 32)
            spot = room + row.to(tl.int64) * k + start + column
            if ADD:
                a += tl.load(spot, mask=start + column < k, other=0.0).to(tl.float32)
            tl.store(spot, a.to(room.dtype.element_ty), mask=start + column < k)
