"""One query at a time, at the speed at which memory gives the codes.

A byte permutation looks up four nibbles in eight bytes; two and a third that chooses between them, in a table of 16. So a word
must hold nibbles of one table: rows of two blocks are read at once, and a word of each (four documents' bytes) is parted into one
of lower and one of upper nibbles. Looked-up bytes are added to 32-bit sums by products of four bytes, which no other work uses.
"""

from collections.abc import Iterator
from typing import no_type_check

import triton
import triton.language as tl
from triton.language import constexpr

ABSENT = constexpr(-(2**31))  # the key of a document that is refused or not there


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


LOOKUP, POPULATION = added(), "popc.b32 $0, $1;"
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
