"""Products with packed codes on a GPU: few tokens straight from the codes, many through pieces of the dense matrix.

*Few tokens* (decode). Unpacking binds as much as memory: codes become bytes, four in an instruction, and the tensor cores multiply
bytes, the weights being the wide operand. A token is two bytes: per group, its values are rounded to 16 bits of their largest
magnitude (eight times finer than bf16), x = d (256 h + l); both halves are columns of one product, and its sums are exact:

    y += s_g d_g (256 sum_j c_j h_j + sum_j c_j l_j) - s_g z_g (d_g sum_j (256 h_j + l_j))

Columns are split over programs. The last of a tile's programs adds their sums in a fixed order: results repeat bit for bit.
*Many tokens* (prefill). A few thousand rows at a time are decoded into a buffer, for the library's own product.
"""

from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor
from triton.language import constexpr

from bitwright.kernels.packed import Packed
from bitwright.kernels.planes import Plane
from bitwright.kernels.triton import words as lay
from bitwright.kernels.triton.words import BLOCK, TILE, joined, load, numbers, unpacked

FEW, MOST = 16, 64  # tokens that codes are multiplied by in one pass; up to which further passes are cheaper than decoding
PIECE = 4096  # rows decoded at a time
PROGRAMS, SHARES = {4: 3600, 8: 3200, 16: 1400}, 32  # tokens -> programs in flight at most; shares of a tile (measured: H200)
WIDTHS = {1: (1,), 2: (2,), 3: (3,), 4: (4,), 5: (5,), 6: (6,), 7: (8,), 8: (8,)}
LARGEST = 32639  # 127 * 256 + 127


class Made(NamedTuple):
    """A plane as the kernels take it. `step`: blocks that are loaded ahead at most; `zero`: None where all are the `same`."""

    pieces: tuple[int, ...]
    w: Ints[Tensor, "tiles blocks _ 32 4"]
    v: Ints[Tensor, "tiles blocks _ 32 4"] | None
    scale: Float[Tensor, "tiles groups 8 8"]
    zero: Float[Tensor, "tiles groups 8 8"] | None
    same: float
    table: Ints[Tensor, "values"] | None
    values: tuple[int, ...] | None
    group: int
    step: int
    tickets: Ints[Tensor, "passes tiles"]

    @property
    def blocks(self) -> int:
        return self.w.shape[1]

    def ahead(self, tokens: int) -> int:
        """Blocks that a step loads and multiplies: with few tokens many programs, which need few registers, hide more."""
        return 1 if tokens == 4 and self.pieces[0] >= 4 else self.step

    def constants(self, kind: torch.dtype, compiled: bool) -> dict[str, Any]:
        types = {torch.int8: tl.int8, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
        found: dict[str, Any] = {"ASM": "", "WHERE": "", "KINDS": types[kind]}
        if compiled and (self.table is None or len(self.table) == 16):
            found = lay.assembly(self.pieces, kind, self.values)
        first, second = (*self.pieces, 0)[:2]
        return {**found, "B1": first, "B2": second, "GROUP": self.group}


def matmul(x: Float[Tensor, "n inp"], packed: Packed) -> Float[Tensor, "n out"] | None:
    if x.dtype not in (torch.float16, torch.bfloat16) or (x.device.type == "cpu" and not triton.knobs.runtime.interpret):
        return None
    made = packed.form("triton", WIDTHS, worded, declines)
    if made is None:
        return None

    def product(part: Float[Tensor, "n _"], found: list[Made]) -> Float[Tensor, "n _"]:
        few = len(part) <= MOST and all(made.group % 32 == 0 for made in found)
        return (few_product if few else many_product)(part, found, packed.shape[0])

    return packed.product(x, made, product)


def declines(plane: Plane) -> str | None:
    fits = plane.group % BLOCK == 0 or plane.group in (16, 32) or plane.scale.shape[1] == 1
    return None if fits else f"its groups of {plane.group} columns do not fit blocks of {BLOCK}"


def worded(plane: Plane) -> list[Made]:
    (out, k), single = plane.codes.shape, plane.scale.shape[1] == 1
    tiles, blocks = -(-out // TILE), -(-k // BLOCK)
    bits = plane.bits if plane.table is None else max(4, plane.bits)
    step = 2 if single or max(plane.group, 2 * BLOCK) % min(plane.group, 2 * BLOCK) == 0 else 1
    width = -(-blocks // step) * step * BLOCK
    group = width if single else plane.group
    codes = plane.codes.new_zeros(tiles * TILE, width)
    codes[:out, :k] = plane.codes
    pieces = lay.PIECES[bits]
    w, v = (*(lay.words(codes, b, sum(pieces[:i]), plane.table is not None and b == 4) for i, b in enumerate(pieces)), None)[:2]
    zeros = plane.zero - 128 if plane.table is None and bits == 8 else plane.zero  # bytes have a sign
    same = float(zeros[0, 0])
    groups = -(-width // group)
    zero = None if bool((zeros == same).all()) else lay.rows(zeros, tiles, groups)
    tickets = torch.zeros(MOST // FEW, tiles, dtype=torch.int32, device=codes.device)
    rest = (group, step, tickets)
    if plane.table is None:
        return [Made(pieces, w, v, lay.rows(plane.scale, tiles, groups), zero, same, None, None, *rest)]
    return [
        Made(pieces, w, v, lay.rows(plane.scale * size, tiles, groups), zero, same, table, tuple(table.tolist()), *rest)
        for size, table in whole(plane.table, 2**bits)
    ]


def whole(table: Float[Tensor, "values"], count: int) -> list[tuple[float, Ints[Tensor, "count"]]]:
    """A table as bytes times a size: one where all values are multiples of the smallest, or the upper and lower byte of 16 bits."""
    full = table.new_zeros(count).double()
    full[: len(table)] = table.double()
    least = float(full[full != 0].abs().min())
    if float((full / least - (full / least).round()).abs().max()) < 1e-6 and float(full.abs().max()) <= 127 * least:
        return [(least, (full / least).round().to(torch.int8))]
    size = float(full.abs().max()) / LARGEST
    values = (full / size).round().long()
    upper = (values + 128) >> 8
    return [(256 * size, upper.to(torch.int8)), (size, (values - 256 * upper).to(torch.int8))]


def few_product(x: Float[Tensor, "n k"], found: list[Made], out: int) -> Float[Tensor, "n out"]:
    n, tiles = len(x), found[0].tickets.shape[1]
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


def assembles(x: Tensor) -> bool:
    """Whether NVIDIA's instructions can be written into a kernel."""
    return x.is_cuda and torch.version.cuda is not None


@triton.jit
@no_type_check
def halves_kernel(x, halves, sizes, n, stride, k, width, UNIT: constexpr, EARLY: constexpr):
    """A token's columns of one unit as upper and lower bytes; their size d, and d times their sum. Beyond the last token it is repeated."""
    if EARLY:  # whoever reads this may start, and waits where it does
        tl.extra.cuda.gdc_launch_dependents()
    tokens = tl.num_programs(1)
    unit, token = tl.program_id(0), tl.program_id(1)
    at = unit * UNIT + tl.arange(0, UNIT)
    values = tl.load(x + tl.minimum(token, n - 1).to(tl.int64) * stride + at, mask=at < k, other=0.0).to(tl.float32)
    size = tl.max(tl.abs(values), 0) / 32639
    size = tl.where(size > 0, size, 1.0)
    turned = values / size
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
    """One tile, its share of the columns, TOKENS tokens. Axes are named in words.py; columns of the product: 8 a + g, or 8 a + 2 t + half."""
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
