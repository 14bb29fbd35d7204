"""Products with packed codes on a GPU: few tokens straight from the codes, many through pieces of the dense matrix.

*Few tokens* (decode). Unpacking binds as much as memory, so the tensor cores do every multiplication, the weights being the wide
operand, 64 outputs and 64 columns at a time (`words.py`). Scale, zero and the base M of the floats meet the sum of a group, and
the sum of its tokens is one more product, with ones:

    y += s_g (sum_j (M + c_j) x_j - (M + z_g) sum_j x_j)

Columns are split over programs. The last of a tile's programs adds their sums in a fixed order: results repeat bit for bit.
*Many tokens* (prefill). A few thousand rows at a time are decoded into a buffer, for the library's own product.
"""

from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor, nn
from triton.language import constexpr

from bitwright.kernels.packed import Packed
from bitwright.kernels.planes import DENSE, Plane
from bitwright.kernels.triton import words as lay
from bitwright.kernels.triton.words import BLOCK, TILE, floats, joined, load

FEW, MOST = 16, 64  # tokens that codes are multiplied by in one pass; up to which further passes are cheaper than decoding
PIECE = 4096  # rows decoded at a time
PROGRAMS = 2048  # wanted in flight
WIDTHS = {**DENSE, 3: (3,), 5: (5,), 6: (6,), 7: (4, 3), 8: (4, 4)}  # 8 bits do not fit under bf16's exponent


class Made(NamedTuple):
    """A plane as the kernels take it. `step`: blocks that share a scale; `part`: columns of a product; `zero`: None where all are the `same`."""

    pieces: tuple[int, ...]
    arrays: tuple[Ints[Tensor, "tiles blocks _ 32 4"], ...]
    scale: Float[Tensor, "tiles groups 8 8"]
    zero: Float[Tensor, "tiles groups 8 8"] | None
    same: float
    table: Float[Tensor, "values"] | None
    group: int
    part: int
    step: int
    steps: int
    tickets: Ints[Tensor, "passes tiles"]

    def constants(self, dtype: torch.dtype, compiled: bool) -> dict[str, Any]:
        kind = tl.float16 if dtype == torch.float16 else tl.bfloat16
        found: dict[str, Any] = {"ASM": "", "WHERE": "", "KINDS": kind}
        if compiled and (self.table is None or len(self.table) == 16):
            table = None if self.table is None else tuple(self.table.tolist())
            found = lay.assembly(self.pieces, dtype, table)
        first, second = (*self.pieces, 0)[:2]
        base = 0 if self.table is not None else 1024 if dtype == torch.float16 else 128
        return {**found, "B1": first, "B2": second, "GROUP": self.group, "PART": self.part, "STEP": self.step, "BASE": base}


def matmul(x: Float[Tensor, "n inp"], packed: Packed) -> Float[Tensor, "n out"] | None:
    if x.dtype not in (torch.float16, torch.bfloat16) or (x.device.type == "cpu" and not triton.knobs.runtime.interpret):
        return None
    made = packed.form("triton", WIDTHS, worded, declines)
    if made is None:
        return None
    product = many_product if len(x) > MOST else few_product
    return packed.product(x, made, lambda part, found: product(part, found, packed.shape[0]))


def declines(plane: Plane) -> str | None:
    if plane.table is not None and plane.bits not in (4, 8):
        return f"its table has codes of {plane.bits} bits"
    fits = plane.group % BLOCK == 0 or plane.group in (16, 32) or plane.scale.shape[1] == 1
    return None if fits else f"its groups of {plane.group} columns do not fit blocks of {BLOCK}"


def worded(plane: Plane) -> Made:
    (out, k), single = plane.codes.shape, plane.scale.shape[1] == 1
    tiles, blocks = -(-out // TILE), -(-k // BLOCK)
    step = 1 if plane.group < BLOCK and not single else next(s for s in (4, 2, 1) if single or plane.group // BLOCK % s == 0)
    blocks = -(-blocks // step) * step
    codes = plane.codes.new_zeros(tiles * TILE, blocks * BLOCK)
    codes[:out, :k] = plane.codes
    part, pieces = min(plane.group, 32) if not single else 32, (8,) if plane.table is not None and plane.bits == 8 else lay.PIECES[plane.bits]
    low = [sum(pieces[:i]) for i in range(len(pieces))]
    arrays = [lay.words(codes, part, bits, at, plane.table is not None) for bits, at in zip(pieces, low)]
    same = float(plane.zero[0, 0])
    group = blocks * BLOCK if single else plane.group
    groups = -(-blocks * BLOCK // group)
    zero = None if bool((plane.zero == same).all()) else lay.rows(plane.zero, tiles, groups)
    tickets = torch.zeros(MOST // FEW, tiles, dtype=torch.int32, device=codes.device)
    return Made(pieces, (*arrays, None)[:2], lay.rows(plane.scale, tiles, groups), zero, same, plane.table, group, part, step, blocks // step, tickets)


def few_product(x: Float[Tensor, "n k"], found: list[Made], out: int) -> Float[Tensor, "n out"]:
    n, tiles = len(x), found[0].tickets.shape[1]
    passes, wide = -(-n // FEW), 8 if n <= 8 else 16
    splits = [min(made.steps, -(-PROGRAMS // (tiles * passes))) for made in found]
    parts = torch.empty(passes, sum(splits), wide, tiles * TILE, device=x.device)
    y, at = x.new_empty(n, out), 0
    for made, split in zip(found, splits):
        full = padded(x, made)
        few_kernel[(tiles, split, passes)](
            full, *made.arrays, made.scale, made.zero, made.same, made.table, parts, y, found[0].tickets, n, full.shape[1], out, made.steps, at,
            COUNT=sum(splits), WIDE=wide, num_warps=1, num_stages=1, **made.constants(x.dtype, x.is_cuda),
        )  # fmt: skip
        at += split
    return y


def padded(x: Float[Tensor, "n k"], made: Made) -> Float[Tensor, "n more"]:
    """Columns filled up to whole blocks, as the codes are."""
    missing = made.steps * made.step * BLOCK - x.shape[1]
    return nn.functional.pad(x, (0, missing)) if missing else x.contiguous()


def many_product(x: Float[Tensor, "n k"], found: list[Made], out: int) -> Float[Tensor, "n out"]:
    y, k, tiles = x.new_empty(len(x), out), x.shape[1], found[0].tickets.shape[1]
    room = x.new_empty(min(PIECE, tiles * TILE), k)
    for first in range(0, out, PIECE):
        count = min(PIECE, out - first)
        for i, made in enumerate(found):
            dense_kernel[(-(-count // TILE), made.steps)](
                *made.arrays, made.scale, made.zero, made.same, made.table, room, first // TILE, k, made.steps,
                ADD=i > 0, num_warps=1, num_stages=1, **made.constants(x.dtype, x.is_cuda),
            )  # fmt: skip
        y[:, first : first + count] = x @ room[:count].T
    return y


@triton.jit
@no_type_check
def few_kernel(
    x, w, v, scale, zero, same, table, parts, y, tickets, n, k, out, steps, at,
    COUNT: constexpr, WIDE: constexpr, GROUP: constexpr, PART: constexpr, STEP: constexpr, BASE: constexpr,
    B1: constexpr, B2: constexpr, ASM: constexpr, WHERE: constexpr, KINDS: constexpr,
):  # fmt: skip
    """One tile, its share of the columns, up to WIDE tokens. Axes named in words.py; tokens are 8 a + g on entry, 8 a + 2 t + b after."""
    PASSES: constexpr = WIDE // 8
    RUN: constexpr = PART // 4
    EACH: constexpr = PART // 2  # floats of a lane and part
    DEEP: constexpr = 3 if PART == 16 else 4
    kind: constexpr = x.dtype.element_ty
    tile, split, turn = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, last = steps * split // tl.num_programs(1), steps * (split + 1) // tl.num_programs(1)
    t5, g5 = tl.arange(0, 4)[:, None, None, None], tl.arange(0, 8)[None, :, None, None]
    token = turn * 16 + tl.arange(0, PASSES)[None, None, :, None] * 8 + g5  # those beyond the last repeat it
    px = x + tl.minimum(token, n - 1).to(tl.int64) * k + first * (STEP * 64) + t5 * RUN + tl.arange(0, RUN)[None, None, None, :]
    t, g, mi = tl.arange(0, 4)[:, None, None], tl.arange(0, 8)[None, :, None], tl.arange(0, 8)[None, None, :]
    groups = (steps * (STEP * 64) + GROUP - 1) // GROUP
    numbers = tile.to(tl.int64) * groups * 64 + t * 0 + g * 8 + mi
    start = (tile.to(tl.int64) * steps + first) * STEP
    w += start * (B1 * 128)
    total = tl.zeros((4, 8, 8, PASSES * 2), tl.float32)
    ones = tl.full((16, PART), 1.0, kind)
    now = load(w, B1)
    now2 = load(v + start * (B2 * 128), B2) if B2 > 0 else now
    inner, sums = tl.zeros((64, WIDE), tl.float32), tl.zeros((16, WIDE), tl.float32)
    i = first
    while i < last:
        for j in tl.static_range(STEP):
            more = ((i < last - 1) | (j < STEP - 1)).to(tl.int32)  # the next block is on its way while this one is multiplied
            w += more * (B1 * 128)
            ahead = load(w, B1)
            if B2 > 0:
                ahead2 = load(v + ((tile.to(tl.int64) * steps + i) * STEP + j + more) * (B2 * 128), B2)
            else:
                ahead2 = ahead
            values = floats(now, now2, table, B1, B2, ASM, WHERE, KINDS)
            for u in tl.static_range(64 // PART):
                a = joined(values[u * EACH : (u + 1) * EACH], DEEP)
                xs = tl.load(px + j * 64 + u * PART)
                if PART == 32:  # columns of a product in the order t, e's lowest two bits, within e's highest
                    a = a.reshape(8, 4, 4, 2, 2, 2, 2).permute(2, 4, 0, 6, 1, 5, 3).reshape(64, 32)
                    xs = xs.reshape(4, 8, PASSES, 2, 2, 2)
                    anyhow = xs.permute(3, 4, 0, 5, 2, 1).reshape(32, WIDE)
                    xs = xs.permute(3, 0, 4, 5, 2, 1).reshape(32, WIDE)
                else:
                    a = a.reshape(8, 4, 4, 2, 2, 2).permute(2, 4, 0, 1, 5, 3).reshape(64, 16)
                    xs = xs.reshape(4, 8, PASSES, 2, 2).permute(0, 3, 4, 2, 1).reshape(16, WIDE)
                    anyhow = xs
                inner = tl.dot(a, xs, inner)
                sums = tl.dot(ones, anyhow, sums)  # in whatever order is at hand
                if (j == STEP - 1 and u == 64 // PART - 1) or GROUP == PART:
                    place = numbers + (i * (STEP * 64) + j * 64 + u * PART) // GROUP * 64
                    s = tl.load(scale + place).to(tl.float32)
                    under = tl.full((4, 8, 8), BASE, tl.float32) + (tl.load(zero + place) if zero is not None else same)
                    each = inner.reshape(4, 2, 8, PASSES, 4, 2).permute(4, 2, 0, 1, 3, 5).reshape(4, 8, 8, PASSES * 2)
                    both = sums.reshape(2, 8, PASSES, 4, 2).permute(3, 1, 0, 2, 4).reshape(4, 8, 1, 2, PASSES * 2)
                    lower = under.reshape(4, 8, 4, 2)[:, :, :, :, None] * both
                    total += s[:, :, :, None] * (each - lower.reshape(4, 8, 8, PASSES * 2))
                    inner, sums = tl.zeros((64, WIDE), tl.float32), tl.zeros((16, WIDE), tl.float32)
            now, now2 = ahead, ahead2
        px += STEP * 64
        i += 1
    c = tl.arange(0, PASSES * 2)[None, None, None, :]
    row = tile * 64 + (mi // 2 * 16 + mi % 2 * 8 + g)[:, :, :, None]
    token = c // 2 * 8 + t[:, :, :, None] * 2 + c % 2
    into = parts + (turn * COUNT + at + split).to(tl.int64) * WIDE * (tl.num_programs(0) * 64)
    tl.store(into + token * (tl.num_programs(0) * 64) + row, total, mask=turn * 16 + token < n)
    tl.debug_barrier()
    ticket = tl.atomic_add(tickets + turn * tl.num_programs(0) + tile, 1, sem="acq_rel")
    if ticket == COUNT - 1:
        tl.debug_barrier()
        tl.store(tickets + turn * tl.num_programs(0) + tile, 0)
        r, some = tl.arange(0, 64)[None, :], tl.arange(0, WIDE)[:, None]
        inside = (turn * 16 + some < n) & (tile * 64 + r < out)
        found = tl.zeros((WIDE, 64), tl.float32)
        for i in range(COUNT):
            at_i = parts + (turn * COUNT + i).to(tl.int64) * WIDE * (tl.num_programs(0) * 64)
            found += tl.load(at_i + some * (tl.num_programs(0) * 64) + tile * 64 + r, mask=inside, other=0.0, cache_modifier=".cg")
        tl.store(y + (turn * 16 + some).to(tl.int64) * out + tile * 64 + r, found.to(kind), mask=inside)


@triton.jit
@no_type_check
def dense_kernel(
    w, v, scale, zero, same, table, room, first, k, steps,
    ADD: constexpr, GROUP: constexpr, PART: constexpr, STEP: constexpr, BASE: constexpr,
    B1: constexpr, B2: constexpr, ASM: constexpr, WHERE: constexpr, KINDS: constexpr,
):  # fmt: skip
    """One step of a tile, decoded into `room` [rows, k]; ADD: on top of what an earlier plane left there."""
    RUN: constexpr = PART // 4
    PARTS: constexpr = 64 // PART
    tile, step = first + tl.program_id(0), tl.program_id(1)
    g, t, mi = tl.arange(0, 8)[:, None, None], tl.arange(0, 4)[None, :, None], tl.arange(0, 8)[None, None, :]
    groups = (steps * (STEP * 64) + GROUP - 1) // GROUP
    numbers = tile.to(tl.int64) * groups * 64 + g * 8 + t * 0 + mi
    row, column = tl.program_id(0) * 64 + tl.arange(0, 64)[:, None], tl.arange(0, PART)[None, :]
    for j in tl.static_range(STEP):
        block = (tile.to(tl.int64) * steps + step) * STEP + j
        second = load(v + block * (B2 * 128), B2) if B2 > 0 else 0
        values = floats(load(w + block * (B1 * 128), B1), second, table, B1, B2, ASM, WHERE, KINDS)
        for u in tl.static_range(PARTS):
            place = numbers + (step * (STEP * 64) + j * 64 + u * PART) // GROUP * 64
            s = tl.load(scale + place).to(tl.float32)
            under = tl.full((8, 4, 8), BASE, tl.float32) + (tl.load(zero + place) if zero is not None else same)
            a = joined(values[u * (PART // 2) : (u + 1) * (PART // 2)], 3 if PART == 16 else 4).to(tl.float32)
            if PART == 32:
                a = a.reshape(8, 4, 4, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 5, 3).reshape(8, 4, 8, RUN)  # g t, m i, e
            else:
                a = a.reshape(8, 4, 4, 2, 2, 2).permute(0, 1, 2, 4, 5, 3).reshape(8, 4, 8, RUN)
            a = (a - under[:, :, :, None]) * s[:, :, :, None]
            a = a.reshape(8, 4, 4, 2, RUN).permute(2, 3, 0, 1, 4).reshape(64, PART)
            at = step * (STEP * 64) + j * 64 + u * PART + column
            spot = room + row.to(tl.int64) * k + at
            if ADD:
                a += tl.load(spot, mask=at < k, other=0.0).to(tl.float32)
            tl.store(spot, a.to(room.dtype.element_ty), mask=at < k)
