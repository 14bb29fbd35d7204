"""Search in codes on a GPU, at the speed at which memory gives them: the codes are read as they lie, nothing is prepared.

Two passes instead of a list of all scores. The first keeps the best key of every tile of documents, the second writes all keys of
the k best tiles of a query. The k best documents are among them: say one lies in a tile that is not. Then each of k other tiles
has a better key, or as good a one in lower rows; so k documents come before it.

Keys are whole numbers that order as the scores do: sums of bytes, minus distances, or the bits of fp32 scores.
"""

from collections.abc import Callable, Iterator
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32, Int64, UInt8
from torch import Tensor
from triton.language import constexpr

from bitwright.kernels.scanning import FAR, Blocked, Found, Rounded
from bitwright.kernels.triton.form import assembles

TILE = 4096  # documents
ROOM = 2**26  # keys held at a time
STEPS = 4, 2, 1  # rows of a block that are loaded together
ABSENT = constexpr(-(2**31))  # the key of a document that is refused or not there
Launch = Callable[[int, int, Int32[Tensor, "q c"] | None, Int32[Tensor, "q _"]], None]  # queries from, to; tiles; their keys


def scan(
    codes: Blocked, tables: Rounded, k: int, factor: Float[Tensor, "n"] | None, allowed: UInt8[Tensor, "_"] | None
) -> Found | None:
    if not suits(codes.device) or not codes.tables:
        return None
    q, (blocks, pairs, _) = len(tables.values), codes.data.shape
    words, values = codes.data.flatten().view(torch.int32), tables.values.contiguous()
    step = next(step for step in STEPS if pairs % step == 0)

    def launch(first: int, last: int, chosen: Int32[Tensor, "q c"] | None, keys: Int32[Tensor, "q _"]) -> None:
        turns = keys.shape[1] if chosen is None else chosen.shape[1]
        lookup_kernel[((last - first) * turns,)](
            words, values[first:], values[first:].flatten().view(torch.int64), tables.scale[first:], tables.bias[first:],
            factor, allowed, chosen, keys, codes.count, blocks, last - first, turns,
            PAIRS=pairs, GROUP=TILE // 64, STEP=step, ASM=LOOKUP if ASSEMBLED and assembles(words) else "",
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip

    keys, rows = nearest(q, codes.count, k, codes.device, launch)
    scores = tables.bias[:, None] + tables.scale[:, None] * keys if factor is None else unordered(keys)
    return Found(scores.masked_fill(rows < 0, -torch.inf), rows)


def hamming(
    codes: UInt8[Tensor, "n bytes"], queries: UInt8[Tensor, "q bytes"], k: int, allowed: UInt8[Tensor, "_"] | None
) -> Found | None:
    if not suits(codes.device):
        return None
    codes, queries = codes.contiguous(), queries.contiguous()
    if codes.shape[1] % 4 == 0 and codes.data_ptr() % 16 == queries.data_ptr() % 4 == 0:
        codes, queries = (x.flatten().view(torch.int32).view(len(x), x.shape[1] // 4) for x in (codes, queries))
    (n, width), q = codes.shape, len(queries)
    run = min(32, triton.next_power_of_2(max(width, 1)))

    def launch(first: int, last: int, chosen: Int32[Tensor, "q c"] | None, keys: Int32[Tensor, "q _"]) -> None:
        turns = keys.shape[1] if chosen is None else chosen.shape[1]
        bits_kernel[((last - first) * turns,)](
            codes, queries[first:], allowed, chosen, keys, n, last - first, turns,
            WIDTH=width, RUN=run, DOCS=min(TILE, 8192 // run), TILE=TILE,
            ASM="popc.b32 $0, $1;" if ASSEMBLED and assembles(codes) else "", num_warps=4,
        )  # fmt: skip

    keys, rows = nearest(q, n, k, codes.device, launch)
    return Found((-keys).masked_fill(rows < 0, FAR), rows)


def suits(device: torch.device) -> bool:
    return device.type == "cuda" or (device.type == "cpu" and bool(triton.knobs.runtime.interpret))


def nearest(q: int, n: int, k: int, device: torch.device, launch: Launch) -> tuple[Int32[Tensor, "q k"], Int64[Tensor, "q k"]]:
    """The two passes: best keys first, rows; row -1 where fewer than k documents are allowed."""
    tiles = -(-n // TILE)
    some = min(k, tiles)
    keys = torch.full((q, k), ABSENT.value, dtype=torch.int32, device=device)
    rows = torch.full((q, k), -1, device=device)
    if not q or not n:
        return keys, rows
    step = max(1, ROOM // (tiles + some * TILE))
    with torch.cuda.device_of(keys):
        for first in range(0, q, step):
            last = min(first + step, q)
            best = torch.empty(last - first, tiles, dtype=torch.int32, device=device)
            launch(first, last, None, best)
            chosen = top(best, some)[1].sort(1).values.int()  # ascending, so that positions order as rows do
            every = torch.empty(last - first, some * TILE, dtype=torch.int32, device=device)
            launch(first, last, chosen, every)
            found, at = top(every, k)
            keys[first:last, : found.shape[1]] = found
            rows[first:last, : found.shape[1]] = chosen.long().gather(1, at // TILE) * TILE + at % TILE
    return keys, rows.masked_fill(keys == ABSENT.value, -1)


def top(keys: Int32[Tensor, "q n"], k: int) -> tuple[Int32[Tensor, "q k"], Int64[Tensor, "q k"]]:
    """The k largest and where they are, lower places first among equals (which torch.topk does not promise)."""
    found, at = keys.sort(dim=1, descending=True, stable=True)
    return found[:, :k], at[:, :k]


def unordered(keys: Int32[Tensor, "q k"]) -> Float[Tensor, "q k"]:
    """The fp32 numbers whose bits `ordered` has turned into keys."""
    return (keys ^ (keys >> 31 & 0x7FFFFFFF)).view(torch.float32)


def lookups(word: str, tables: tuple[str, ...], low: str, high: str) -> Iterator[str]:
    """8 nibbles of a word as bytes of a table of 16: each the lower eight's, the upper eight's, and which of the two."""
    yield f"and.b32 m, {word}, 0x77777777; shr.u32 s, {word}, 1; lop3.b32 s, s, 0x44444444, 0x32103210, 0xea;"
    for i, into in enumerate((low, high)):
        yield "shr.u32 m, m, 16; shr.u32 s, s, 16;" * i
        yield f"prmt.b32 a, {tables[0]}, {tables[1]}, m; prmt.b32 b, {tables[2]}, {tables[3]}, m; prmt.b32 {into}, a, b, s;"


def added() -> str:
    """One pair of tables: words $8 and $9 (four documents each), tables $10 .. $17, sums $18 .. $25 into $0 .. $7.

    x takes the lower nibbles of both words, y the upper ones. A pair of tables adds up to a byte at most.
    """
    lines = [
        "shl.b32 x, $9, 4; lop3.b32 x, $8, 0x0f0f0f0f, x, 0xe2; shr.u32 y, $8, 4; lop3.b32 y, y, 0x0f0f0f0f, $9, 0xe2;",
        *lookups("x", ("$10", "$11", "$12", "$13"), "c", "d"),
        *lookups("y", ("$14", "$15", "$16", "$17"), "e", "f"),
        "add.u32 c, c, e; add.u32 d, d, f;",
    ]
    for i, (byte, half) in enumerate(((0, "c"), (2, "c"), (0, "d"), (2, "d"), (1, "c"), (3, "c"), (1, "d"), (3, "d"))):
        lines.append(f"mov.b32 a, {1 << 8 * byte:#x}; dp4a.u32.u32 ${i}, {half}, a, ${18 + i};")
    return "{.reg .b32 x, y, m, s, a, b, c, d, e, f; " + " ".join(lines) + "}"


ASSEMBLED = True  # whether NVIDIA's own instructions are written into the kernels: a bench may say no
LOOKUP = added()
WHERE = constexpr(",".join(["=r"] * 8 + ["r"] * 18))
SUMS = constexpr((tl.int32,) * 8)


@triton.jit
@no_type_check
def lookup_kernel(
    words, values, tables, scale, bias, factor, allowed, chosen, keys, count, blocks, queries, turns,
    PAIRS: constexpr, GROUP: constexpr, STEP: constexpr, ASM: constexpr,
):  # fmt: skip
    """One tile, 2 GROUP blocks, for one query: its best key; all its keys where tiles were `chosen`.

    A word is 4 documents' bytes of a row; each thread holds words of two blocks, GROUP apart, and looks both up at once.
    """
    query, turn = tl.program_id(0) % queries, tl.program_id(0) // queries  # neighbours read the same codes
    tile = turn if chosen is None else tl.load(chosen + query * turns + turn)
    first = tile.to(tl.int64) * (2 * GROUP)
    last = tl.minimum(blocks - 1 - first, 2 * GROUP - 1).to(tl.int32)  # blocks beyond repeat it, and count for nothing
    block, four = tl.arange(0, GROUP)[:, None], tl.arange(0, 8)[None, :]
    words += first * (PAIRS * 8)
    here = words + (tl.minimum(block, last) * (PAIRS * 8) + four)
    there = words + (tl.minimum(block + GROUP, last) * (PAIRS * 8) + four)
    values += query * (PAIRS * 32)
    tables += query * (PAIRS * 4)
    sums = zeros(GROUP, 8)
    one, two = rows(here, STEP), rows(there, STEP)
    for pair in range(0, PAIRS, STEP):
        following = tl.minimum(pair + STEP, PAIRS - STEP) * 8  # is on its way while these are looked up
        one_ahead, two_ahead = rows(here + following, STEP), rows(there + following, STEP)
        for i in tl.static_range(STEP):
            if ASM != "":
                sums = tl.inline_asm_elementwise(
                    ASM, WHERE, (one[i], two[i]) + halves(tables + (pair + i) * 4, 4) + sums, dtype=SUMS, is_pure=True, pack=1
                )
            else:
                sums = plain(one[i], two[i], values + (pair + i) * 32, sums, 8)
        one, two = one_ahead, two_ahead
    start, left = first * 32, tl.minimum(count - first * 32, 64 * GROUP).to(tl.int32)
    best = tl.full((GROUP, 8), ABSENT, tl.int32)
    for i in tl.static_range(8):
        row = (block + i // 4 * GROUP) * 32 + four * 4 + i % 4
        found = sums[i]
        if factor is not None:
            size = tl.load(factor + start + row, mask=row < left, other=0.0).to(tl.float32)
            found = ordered(size * (tl.load(bias + query) + tl.load(scale + query) * found.to(tl.float32)))
        found = tl.where(let(allowed, start, row, left), found, ABSENT)
        if chosen is None:
            best = tl.maximum(best, found)
        else:
            tl.store(keys + (query * turns + turn).to(tl.int64) * (64 * GROUP) + row, found)
    if chosen is None:
        tl.store(keys + query * turns + turn, tl.max(tl.max(best, 1), 0))


@triton.jit
@no_type_check
def bits_kernel(
    codes, wanted, allowed, chosen, keys, count, queries, turns,
    WIDTH: constexpr, RUN: constexpr, DOCS: constexpr, TILE: constexpr, ASM: constexpr,
):  # fmt: skip
    """One tile for one query, DOCS documents at a time: minus the bits that differ. Codes are words or bytes."""
    query, turn = tl.program_id(0) % queries, tl.program_id(0) // queries
    tile = turn if chosen is None else tl.load(chosen + query * turns + turn)
    start = tile.to(tl.int64) * TILE
    left = tl.minimum(count - start, TILE).to(tl.int32)
    codes += start * WIDTH
    wanted += query * WIDTH
    best = tl.full((DOCS,), ABSENT, tl.int32)
    for part in range(0, TILE, DOCS):
        row = part + tl.arange(0, DOCS)
        found = tl.zeros((DOCS,), tl.int32)
        for at in tl.static_range(0, WIDTH, RUN):
            place = at + tl.arange(0, RUN)
            ours = tl.load(
                codes + tl.minimum(row, left - 1)[:, None] * WIDTH + place[None, :], mask=place[None, :] < WIDTH, other=0
            )
            differ = (ours ^ tl.load(wanted + place, mask=place < WIDTH, other=0)[None, :]).to(tl.int32)
            if ASM != "":
                found -= tl.sum(tl.inline_asm_elementwise(ASM, "=r,r", [differ], dtype=tl.int32, is_pure=True, pack=1), 1)
            else:
                found -= tl.sum(ones(differ), 1)
        found = tl.where(let(allowed, start, row, left), found, ABSENT)
        if chosen is None:
            best = tl.maximum(best, found)
        else:
            tl.store(keys + (query * turns + turn).to(tl.int64) * TILE + row, found)
    if chosen is None:
        tl.store(keys + query * turns + turn, tl.max(best, 0))


@triton.jit
@no_type_check
def let(allowed, start, row, left):
    """Whether documents start + row are there and not refused."""
    inside = row < left
    if allowed is not None:
        inside &= (tl.load(allowed + start // 8 + row // 8, mask=inside, other=0) >> (row % 8).to(tl.uint8)) & 1 != 0
    return inside


@triton.jit
@no_type_check
def ordered(scores):
    """Whole numbers that order as fp32 numbers do; both zeros are one."""
    bits = (scores + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
@no_type_check
def ones(x):
    """Bits that are set: pairs, fours, bytes, their sum in the upper byte."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    return (((x + (x >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24


@triton.jit
@no_type_check
def zeros(GROUP: constexpr, COUNT: constexpr):
    none = tl.zeros((GROUP, 8), tl.int32)
    return (none,) if COUNT == 1 else (none,) + zeros(GROUP, COUNT - 1)


@triton.jit
@no_type_check
def rows(words, COUNT: constexpr):
    """The words of COUNT consecutive rows of blocks."""
    end = tl.load(words + (COUNT - 1) * 8)
    return (end,) if COUNT == 1 else rows(words, COUNT - 1) + (end,)


@triton.jit
@no_type_check
def halves(longs, COUNT: constexpr):
    """COUNT numbers of 64 bits as twice as many of 32."""
    end = tl.load(longs + COUNT - 1)
    both = (end.to(tl.int32), (end >> 32).to(tl.int32))
    return both if COUNT == 1 else halves(longs, COUNT - 1) + both


@triton.jit
@no_type_check
def plain(one, two, values, sums, COUNT: constexpr):
    """A pair of tables in plain operations: the last of COUNT sums appended to those before it."""
    byte = (one if COUNT <= 4 else two) >> ((COUNT - 1) % 4 * 8)
    found = tl.load(values + (byte & 15)).to(tl.int32) + tl.load(values + 16 + ((byte >> 4) & 15)).to(tl.int32)
    end = (sums[COUNT - 1] + found,)
    return end if COUNT == 1 else plain(one, two, values, sums, COUNT - 1) + end
