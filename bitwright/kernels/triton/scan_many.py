"""Many queries at once: their sums are products of a matrix of queries with one of zeros and ones, on tensor cores.

For every value of a nibble, or every bit of a byte, the codes of some documents become zeros and ones, and the queries' weights for
it a matrix of bytes. Bits are an eighth of the work of nibbles' values for each byte and a quarter in all: distances are sums over
bits, and so are tables that add up over theirs. Bytes have a sign: other tables are stored less 128, which all sums get back.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int8, Int32, UInt8
from torch import Tensor
from triton.language import constexpr

from bitwright.kernels.triton.scan_few import ABSENT, let, ordered
from bitwright.kernels.triton.words import again, joined

RUN = 32  # bytes of a document in a product: the least that a tensor core takes
QUERIES, DOCS = 128, 128  # of a product


class Weights(NamedTuple):
    """For each bit of a byte (8), or each value of its lower and then of its upper nibble (32); `under` is added to every sum."""

    bytes: Int8[Tensor, "kinds queries rows"]
    under: Int32[Tensor, "q"]


def of_tables(values: UInt8[Tensor, "q t 16"]) -> Weights:
    q, t, _ = values.shape
    whole = values.int()
    base = whole[:, :, :1]
    bits = torch.stack([whole[:, :, 1 << b] for b in range(4)], 2) - base
    taken = (torch.arange(16, device=values.device) >> torch.arange(4, device=values.device)[:, None] & 1).int()
    sums = base + sum(bits[:, :, b, None] * taken[b] for b in range(4))
    if bool((sums == whole).all() & (bits.abs() <= 127).all()):
        return Weights(padded(bits.view(q, t // 2, 8)), base.sum((1, 2), dtype=torch.int32))
    return Weights(padded((whole - 128).view(q, t // 2, 32)), torch.full((q,), 128 * t, dtype=torch.int32, device=values.device))


def of_bits(queries: UInt8[Tensor, "q bytes"]) -> Weights:
    """Minus the bits that differ: less the query's bits, each that the document has one back, each other one off."""
    bits = (queries[:, :, None] >> torch.arange(8, device=queries.device) & 1).int()
    return Weights(padded(2 * bits - 1), -bits.sum((1, 2), dtype=torch.int32))


def padded(weights: Int32[Tensor, "q r kinds"]) -> Int8[Tensor, "kinds _ _"]:
    q, r, kinds = weights.shape
    full = torch.zeros(kinds, -(-q // QUERIES) * QUERIES, -(-r // RUN) * RUN, dtype=torch.int8, device=weights.device)
    full[:, :q, :r] = weights.permute(2, 0, 1)
    return full


def many(
    codes: UInt8[Tensor, "_"],
    strides: tuple[int, int, int],
    weights: Weights,
    sizes: tuple[Float[Tensor, "q"], Float[Tensor, "q"], Float[Tensor, "n"]] | tuple[None, None, None],
    allowed: UInt8[Tensor, "_"] | None,
    keys: Int32[Tensor, "q tiles"],
    count: int,
    rows: int,
    tile: int,
    assembled: bool,
) -> None:
    """Keys of all tiles. `strides`: from 32 documents to the next 32, from a byte of a document to its next, to the next document.

    `sizes`: scale and bias of each query, factor of each document.
    """
    kinds, padded_queries, padded_rows = weights.bytes.shape
    (q, tiles), groups = keys.shape, padded_queries // QUERIES
    many_kernel[(groups * tiles,)](
        codes, weights.bytes, weights.under, *sizes, allowed, keys, count, q, tiles, groups, *strides,
        ROWS=rows, RUNS=padded_rows // RUN, KINDS=kinds, QUERIES=QUERIES, DOCS=min(DOCS, tile), TILE=tile,
        ASM=tuple(chooses(kind, kinds) if assembled else "" for kind in range(kinds)),
        TURN=TURN if assembled and strides[2] == 1 else "", num_warps=8, enable_fp_fusion=False,
        num_stages=2 if kinds == 8 else 1,  # loaded ahead, the weights of 32 kinds do not fit shared memory twice
    )  # fmt: skip


def chooses(kind: int, kinds: int) -> str:
    """Four bytes to ones and zeros: 16 less a difference of nibbles keeps its fifth bit only where that is none."""
    shifted = f"shr.u32 t, $1, {kind if kinds == 8 else kind // 16 * 4};"
    if kinds == 8:
        return f"{{.reg .b32 t; {shifted} and.b32 $0, t, 0x01010101;}}"
    wanted = f"lop3.b32 t, t, 0x0f0f0f0f, {kind % 16 * 0x01010101:#x}, 0x6a;"
    return f"{{.reg .b32 t; {shifted} {wanted} sub.u32 t, 0x10101010, t; shr.u32 t, t, 4; and.b32 $0, t, 0x01010101;}}"


# four rows of four documents' bytes ($4, $8, $12, $16, each four times) to four documents' bytes of four rows
TURN = (
    "{.reg .b32 a, b, c, d; prmt.b32 a, $4, $8, 0x5140; prmt.b32 b, $12, $16, 0x5140; prmt.b32 c, $4, $8, 0x7362; "
    "prmt.b32 d, $12, $16, 0x7362; prmt.b32 $0, a, b, 0x5410; prmt.b32 $1, a, b, 0x7632; prmt.b32 $2, c, d, 0x5410; "
    "prmt.b32 $3, c, d, 0x7632;}"
)
TURNS = constexpr(",".join(["=r"] * 4 + ["r"] * 16))
BYTES = constexpr((tl.int8,) * 4)


@triton.jit
@no_type_check
def turned(codes, run, part, left, ROWS: constexpr, DOCS: constexpr, TURN: constexpr):
    """Bytes of blocked codes [32 rows, DOCS], a document's next to each other in a thread: so they are stored for a product."""
    words = codes.to(tl.pointer_type(tl.int32))
    four = part // 4 + tl.arange(0, DOCS // 4)[None, :]
    line = run * 32 + tl.arange(0, 8)[:, None] * 4
    at = tl.minimum(four // 8, (left - 1) // 32) * (ROWS * 8) + line * 8 + four % 8
    parts = tl.inline_asm_elementwise(TURN, TURNS, rows(words + at, line, ROWS, 4), dtype=BYTES, is_pure=True, pack=4)
    return joined(parts, 2).permute(0, 2, 1, 4, 3).reshape(32, DOCS)


@triton.jit
@no_type_check
def rows(words, line, ROWS: constexpr, COUNT: constexpr):
    """The words of COUNT rows, each word four times: registers of bytes are written from as many words."""
    end = tl.load(words + (COUNT - 1) * 8, mask=line + (COUNT - 1) < ROWS, other=0)
    end = (again(end, 4).reshape(8, words.shape[1], 4),)
    return end if COUNT == 1 else rows(words, line, ROWS, COUNT - 1) + end


@triton.jit
@no_type_check
def many_kernel(
    codes, weights, under, scale, bias, factor, allowed, keys, count, queries, tiles, groups, block_stride, row_stride, next_stride,
    ROWS: constexpr, RUNS: constexpr, KINDS: constexpr, QUERIES: constexpr, DOCS: constexpr, TILE: constexpr, ASM: constexpr,
    TURN: constexpr,
):  # fmt: skip
    """The best keys of one tile for QUERIES queries, DOCS documents at a time."""
    group, tile = tl.program_id(0) % groups, tl.program_id(0) // groups  # neighbours read the same codes
    query = group * QUERIES + tl.arange(0, QUERIES)
    start = tile.to(tl.int64) * TILE
    left = tl.minimum(count - start, TILE).to(tl.int32)
    codes += start // 32 * block_stride
    least = tl.load(under + query, mask=query < queries, other=0)
    best = tl.full((QUERIES,), ABSENT, tl.int32)
    for part in range(0, TILE, DOCS):
        row = part + tl.arange(0, DOCS)
        there = tl.minimum(row, left - 1)  # documents beyond repeat the last, and count for nothing
        place = there // 32 * block_stride + there % 32 * next_stride
        total = tl.zeros((QUERIES, DOCS), tl.int32)
        for run in range(RUNS):
            line = run * 32 + tl.arange(0, 32)
            if TURN != "":
                byte = turned(codes, run, part, left, ROWS, DOCS, TURN)
            else:
                byte = tl.load(codes + ((line * row_stride)[:, None] + place[None, :]), mask=(line < ROWS)[:, None], other=0)
            for kind in tl.static_range(KINDS):
                w = tl.load(weights + (((kind * groups * QUERIES + query) * (RUNS * 32))[:, None] + line[None, :]))
                total = tl.dot(w, ones(byte, kind, KINDS, ASM), total, out_dtype=tl.int32)
        found = total + least[:, None]
        if factor is not None:
            size = tl.load(factor + start + row, mask=row < left, other=0.0).to(tl.float32)
            a, b = tl.load(scale + query, mask=query < queries, other=0.0), tl.load(bias + query, mask=query < queries, other=0.0)
            found = ordered(size[None, :] * (b[:, None] + a[:, None] * found.to(tl.float32)))
        best = tl.maximum(best, tl.max(tl.where(let(allowed, start, row, left)[None, :], found, ABSENT), 1))
    tl.store(keys + query.to(tl.int64) * tiles + tile, best, mask=query < queries)


@triton.jit
@no_type_check
def ones(byte, kind: constexpr, KINDS: constexpr, ASM: constexpr):
    """One where a byte has this bit, or a nibble this value."""
    if ASM[kind] != "":
        return tl.inline_asm_elementwise(ASM[kind], "=r,r", [byte], dtype=tl.int8, is_pure=True, pack=4)
    elif KINDS == 8:
        return ((byte >> kind) & 1).to(tl.int8)
    else:
        return (((byte >> (kind // 16 * 4)) & 15) == kind % 16).to(tl.int8)
