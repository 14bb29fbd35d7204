"""Few tokens, straight from the codes.

Unpacking binds as much as memory: codes become bytes, four in an instruction, and the tensor cores multiply bytes, the weights
being the wide operand. A token is two bytes: per group, its values are rounded to 16 bits of their largest magnitude (bf16 has 8),
x = d (256 h + l); both halves are columns of one product, whose sums are exact:

    y += s_g d_g (256 sum_j c_j h_j + sum_j c_j l_j) - s_g z_g d_g sum_j (256 h_j + l_j)

Columns are split over programs. The last of a tile's programs adds their sums in a fixed order: results repeat bit for bit. One
matrix multiplies in one stream at a time, for its programs count themselves in one place.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from triton.language import constexpr

from bitwright.kernels.triton.form import FEW, Made, assembles
from bitwright.kernels.triton.words import BLOCK, TILE, joined, load, numbers, unpacked

PROGRAMS, SHARES = {4: 3200, 8: 3200, 16: 1400}, 32  # tokens -> programs in flight at most; shares of a tile (measured: H200)


def few_product(x: Float[Tensor, "n k"], found: list[Made], out: int) -> Float[Tensor, "n out"]:
    x, n, tiles = x.contiguous(), len(x), found[0].tickets.shape[1]
    passes, tokens = -(-n // FEW), 4 if n <= 4 else 8 if n <= 8 else FEW
    early = assembles(x) and torch.cuda.get_device_capability(x.device) >= (9, 0)
    steps = [made.blocks // made.ahead(tokens) for made in found]
    splits = [min(count, SHARES, max(1, PROGRAMS[tokens] // (tiles * passes))) for count in steps]
    parts = torch.empty(passes, sum(splits), tokens, tiles * TILE, device=x.device)
    y, at = x.new_empty(n, out), 0
    for made, split, count in zip(found, splits, steps):
        width, step = made.blocks * BLOCK, made.ahead(tokens)
        unit = min(made.group, step * BLOCK)  # columns whose sums meet their scale together
        units = width // unit
        halves = torch.empty(passes * tokens * 2, width, dtype=torch.int8, device=x.device)
        sizes = torch.empty(2, units, passes * tokens, device=x.device)
        halves_kernel[(units, passes * tokens)](
            x, halves, sizes, n, x.stride(0), x.shape[1], width, UNIT=unit, EARLY=early, num_warps=1
        )
        few_kernel[(tiles, split, passes)](
            halves, sizes, made.w, made.v, made.scale, made.zero, made.same, made.table, parts, y, found[0].tickets,
            n, out, count, at, units * passes * tokens,
            COUNT=sum(splits), TOKENS=tokens, UNIT=unit, STEP=step, EARLY=early,
            num_warps=1, num_stages=1, launch_pdl=early, **made.constants(torch.int8, assembles(x)),
        )  # fmt: skip
        at += split
    return y


@triton.jit
@no_type_check
def halves_kernel(x, halves, sizes, n, stride, k, width, UNIT: constexpr, EARLY: constexpr):
    """A token's columns of one unit as upper and lower bytes; their size d, and d times their sum."""
    if EARLY:  # whoever reads this may start, and waits where it does
        tl.extra.cuda.gdc_launch_dependents()
    tokens = tl.num_programs(1)
    unit, token = tl.program_id(0), tl.program_id(1)
    at = unit * UNIT + tl.arange(0, UNIT)
    values = tl.load(x + tl.minimum(token, n - 1).to(tl.int64) * stride + at, mask=at < k, other=0.0).to(tl.float32)
    size = tl.max(tl.abs(values), 0) / 32639
    spoilt = tl.sum(values * 0.0, 0)  # not a number where a value is not finite, which then holds for the token, as it should
    turned = tl.where(spoilt == 0, values / tl.where(size > 0, size, 1.0), 0.0)
    size += spoilt
    whole = (turned + tl.where(turned < 0, -0.5, 0.5)).to(tl.int32)
    upper = (whole + 128) >> 8
    tl.store(halves + 2 * token * width + at, upper.to(tl.int8))
    tl.store(halves + (2 * token + 1) * width + at, (whole - 256 * upper).to(tl.int8))
    tl.store(sizes + unit * tokens + token, size)
    tl.store(sizes + (tl.num_programs(0) + unit) * tokens + token, size * tl.sum(whole, 0))


@triton.jit
@no_type_check
def few_kernel(
    halves, sizes, w, v, scale, zero, same, table, parts, y, tickets, n, out, steps, at, sums,
    COUNT: constexpr, TOKENS: constexpr, UNIT: constexpr, GROUP: constexpr, STEP: constexpr, EARLY: constexpr,
    B1: constexpr, B2: constexpr, ASM: constexpr, WHERE: constexpr, KINDS: constexpr,
):  # fmt: skip
    """One tile, its share of the columns, TOKENS tokens. Axes as in words.py; a product's columns: 8 a + g, 8 a + 2 t + half."""
    TURNS: constexpr = TOKENS // 4
    WIDTH: constexpr = STEP * 64
    tile, split, turn = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows, tokens = tl.num_programs(0) * 64, tl.num_programs(2) * TOKENS
    first, last = steps * split // tl.num_programs(1), steps * (split + 1) // tl.num_programs(1)
    column = tl.arange(0, TURNS)[None, None, :, None] * 8 + tl.arange(0, 8)[None, :, None, None]
    run = tl.arange(0, 4)[:, None, None, None] * 8 + tl.arange(0, 8)[None, None, None, :]
    spread = (turn * TOKENS * 2 + column) * (steps * WIDTH) + run
    token = tl.arange(0, TURNS)[None, None, None, :] * 4 + tl.arange(0, 4)[:, None, None, None]
    start = (tile.to(tl.int64) * steps + first) * STEP  # in blocks
    w += start * (B1 * 128)
    now = load(w, B1, STEP)
    now2 = load(v + start * (B2 * 128), B2, STEP) if B2 > 0 else now
    behind = tile.to(tl.int64) * ((steps * WIDTH + GROUP - 1) // GROUP)  # groups of other tiles
    total = tl.zeros((4, 8, 8, TURNS), tl.float32)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    i = first
    while i < last:
        following = tl.minimum(i + 1, last - 1)  # is on its way while this step is multiplied
        w += (following - i) * (STEP * B1 * 128)
        ahead = load(w, B1, STEP)
        ahead2 = load(v + (tile.to(tl.int64) * steps + following) * (STEP * B2 * 128), B2, STEP) if B2 > 0 else ahead
        inner = tl.zeros((64, TOKENS * 2), tl.int32)
        for j in tl.static_range(STEP):
            values = unpacked(now[j], now2[j], table, B1, B2, ASM, WHERE, KINDS, 4)
            for u in tl.static_range(2):
                a = joined(values[4 * u : 4 * u + 4], 2).reshape(8, 4, 4, 4, 2, 2).permute(2, 4, 0, 1, 5, 3).reshape(64, 32)
                xs = tl.load(halves + (i * WIDTH + j * 64 + u * 32) + spread).permute(0, 3, 2, 1).reshape(32, TOKENS * 2)
                inner = tl.dot(a, xs, inner, out_dtype=tl.int32)
                if (j * 64 + u * 32 + 32) % UNIT == 0:
                    unit = (i * WIDTH + j * 64 + u * 32) // UNIT
                    group = behind + (i * WIDTH + j * 64 + u * 32) // GROUP
                    s = numbers(scale, group).to(tl.float32)
                    sz = s * (numbers(zero, group) if zero is not None else same)
                    pairs = inner.reshape(4, 2, 8, TURNS, 4, 2).permute(4, 2, 0, 1, 3, 5).reshape(4, 8, 8, TURNS, 2)
                    upper, lower = tl.split(pairs)
                    total += (s[:, :, :, None] * tl.load(sizes + (unit * tokens + turn * TOKENS) + token)) * (
                        upper * 256 + lower
                    ).to(tl.float32)
                    total -= sz[:, :, :, None] * tl.load(sizes + (sums + unit * tokens + turn * TOKENS) + token)
                    inner = tl.zeros((64, TOKENS * 2), tl.int32)
        now, now2 = ahead, ahead2
        i += 1
    place = tl.arange(0, 8)[None, None, :, None]
    row = tile * 64 + place // 2 * 16 + place % 2 * 8 + tl.arange(0, 8)[None, :, None, None]
    into = parts + (turn * COUNT + at + split) * TOKENS * rows
    tl.store(into + token * rows + row, total, mask=turn * TOKENS + token < n)
    tl.debug_barrier()
    ticket = tl.atomic_add(tickets + turn * tl.num_programs(0) + tile, 1, sem="acq_rel")
    if ticket == COUNT - 1:
        tl.debug_barrier()
        tl.store(tickets + turn * tl.num_programs(0) + tile, 0)
        r, some = tile * 64 + tl.arange(0, 64)[None, :], tl.arange(0, TOKENS)[:, None]
        inside = (turn * TOKENS + some < n) & (r < out)
        found = tl.zeros((TOKENS, 64), tl.float32)
        for other in tl.range(COUNT, loop_unroll_factor=8):
            theirs = parts + (turn * COUNT + other) * TOKENS * rows
            found += tl.load(theirs + some * rows + r, mask=inside, other=0.0, cache_modifier=".cg")
        tl.store(y + (turn * TOKENS + some).to(tl.int64) * out + r, found.to(y.dtype.element_ty), mask=inside)
