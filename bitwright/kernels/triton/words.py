"""Codes as a tensor core wants them: how they lie in 32-bit words, and how a word becomes bytes or floats.

A tile is 64 outputs; a block is 64 of its columns, a part half of one. In one product of a tensor core the lane (g, t) of a warp,
g < 8 and t < 4, holds the outputs 16 m + 8 r + g and, of each part, the columns 8 t .. 8 t + 7. So each lane loads its own codes
and nothing is passed between lanes. A word holds whole quadruples of codes (four columns of an output, one byte apart):
quadruple q of an m-tile and lane is (part, upper four columns, r). Codes of 3, 5 and 6 bits lie in two arrays of words.

    bytes:   (word >> bits q) & 0x03030303         tables of 16: bytes in registers, chosen by byte permutation
    floats:  two codes, 16 bits apart, under a constant exponent: 1024 + c in fp16, 128 + c in bf16
"""

from functools import cache
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, UInt8
from jaxtyping import Integer as Ints
from torch import Tensor
from triton.language import constexpr

TILE, BLOCK = 64, 64
PIECES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}  # bits of a code -> bits in each array of words


def words(codes: UInt8[Tensor, "out k"], bits: int, low: int, table: bool) -> Ints[Tensor, "tiles blocks bits 32 4"]:
    """Bits low .. low + bits of codes padded to whole tiles and blocks; the last axes are fours of words, lanes, words."""
    tiles, blocks = len(codes) // TILE, codes.shape[1] // BLOCK
    field = (codes >> low & 2**bits - 1).view(tiles, 4, 2, 8, blocks, 2, 4, 2, 4)  # m r g, part t half i
    order = field.permute(0, 4, 1, 3, 6, 5, 7, 2, 8).reshape(-1, 8 // bits, 4).long()  # tile block m g t, part half r, i
    q, i = torch.arange(8 // bits, device=codes.device)[:, None], torch.arange(4, device=codes.device)
    whole = (order << (16 * q + 4 * i if table else bits * q + 8 * i)).sum((1, 2))
    signed = torch.where(whole >= 2**31, whole - 2**32, whole).int().view(tiles, blocks, 4, 32, bits)  # m lane j
    return signed.permute(0, 1, 3, 2, 4).reshape(tiles, blocks, 32, bits, 4).transpose(2, 3).contiguous()


def rows(values: Float[Tensor, "out g"], tiles: int, groups: int) -> Float[Tensor, "tiles groups 8 8"]:
    """Numbers of a group in the order in which lanes want them: g, then m and r; in fp16 where that loses nothing."""
    full = values.new_zeros(tiles * TILE, groups)
    full[: len(values), : values.shape[1]] = values
    kept = full.half() if bool((full.half().float() == full).all()) else full.float()
    return kept.view(tiles, 8, 8, -1).permute(0, 3, 2, 1).contiguous()


@cache
def assembly(pieces: tuple[int, ...], kind: torch.dtype, table: tuple[int, ...] | None) -> dict[str, Any]:
    """Instructions for the 32 codes of a lane and m-tile, a register at a time: outputs first, then words.

    int8: 8 quadruples; a float type: 16 pairs, pair 2 q + odd of quadruple q, its columns odd and odd + 2.
    """
    if kind != torch.int8:
        half = kind == torch.float16
        lines = [
            line for p in range(16) for line in unpack(p // 2, p, p % 2 * 8, 0x10001, pieces, 0x64006400 if half else 0x43004300, 2)
        ]
        types, count, pack = [tl.float16 if half else tl.bfloat16] * 16, 16, 2
    else:
        lines = [
            line for q in range(8) for line in (unpack(q, q, 0, 0x1010101, pieces, 0, 4) if table is None else lookup(q, table))
        ]
        types, count, pack = [tl.int8] * 8, 8, 4
    text = "{.reg .b32 t, pick, high, a, b; " + " ".join(lines) + "}"
    return {"ASM": text, "WHERE": "=r," * count + ",".join("r" * pack * sum(pieces)), "KINDS": tuple(types)}


def unpack(q: int, into: int, more: int, ones: int, pieces: tuple[int, ...], under: int, pack: int) -> list[str]:
    """Codes of quadruple q, from bit `more` on: every piece is shifted to its place, `(word & mask) | what is there`."""
    lines, first, low = [], (32 // pack), 0
    if pieces == (8,) and pack == 4:
        return [f"xor.b32 ${into}, ${first + pack * q}, 0x80808080;"]  # bytes have a sign
    for bits in pieces:
        word, shift = f"${first + pack * (q * bits // 8)}", q * bits % 8 + more - low
        if shift:
            lines.append(f"{'shr.u32' if shift > 0 else 'shl.b32'} t, {word}, {abs(shift)};")
        mask, there = ones * (2**bits - 1 << low), f"${into}" if low else hex(under)
        lines.append(f"lop3.b32 ${into}, {'t' if shift else word}, {mask:#x}, {there}, 0xea;")
        first, low = first + pack * bits, low + bits
    return lines


def lookup(q: int, table: tuple[int, ...]) -> list[str]:
    """A quadruple's 4 values of 16: the lower eight, the upper eight, and which of the two."""
    low, mid, up, top = (hex(sum((v & 255) << 8 * i for i, v in enumerate(table[at : at + 4]))) for at in (0, 4, 8, 12))
    return [
        f"shr.u32 t, ${8 + 4 * (q // 2)}, {q % 2 * 16}; and.b32 pick, t, 0x7777; shr.u32 high, t, 1;",
        "lop3.b32 high, high, 0x4444, 0x3210, 0xea;",
        f"prmt.b32 a, {low}, {mid}, pick; prmt.b32 b, {up}, {top}, pick; prmt.b32 ${q}, a, b, high;",
    ]


@triton.jit
@no_type_check
def load(words, BITS: constexpr, COUNT: constexpr):
    """The words of COUNT blocks, a tuple of tensors [32 lanes, BITS, 4]."""
    lane, four, last = tl.arange(0, 32)[:, None, None], tl.arange(0, BITS)[None, :, None], tl.arange(0, 4)[None, None, :]
    end = tl.load(words + (COUNT - 1) * (BITS * 128) + four * 128 + lane * 4 + last)
    return (end,) if COUNT == 1 else load(words, BITS, COUNT - 1) + (end,)


@triton.jit
@no_type_check
def parted(w, BITS: constexpr, PACK: constexpr):
    """[32 lanes, 4 m-tiles and BITS words, PACK] as BITS tensors [32, 4, PACK]."""
    if BITS == 1:
        return (w.reshape(32, 4, PACK),)
    else:
        half: constexpr = BITS // 2
        lower, upper = tl.split(w.reshape(32, 4, 2, half, PACK).permute(0, 1, 3, 4, 2))
        return parted(lower, half, PACK) + parted(upper, half, PACK)


@triton.jit
@no_type_check
def again(w, PACK: constexpr):
    """The codes that share a register come as equal words."""
    twice = tl.join(w, w)
    return twice if PACK == 2 else tl.join(twice, twice)


@triton.jit
@no_type_check
def unpacked(w, v, table, B1: constexpr, B2: constexpr, ASM: constexpr, WHERE: constexpr, KINDS: constexpr, PACK: constexpr):
    """PACK 4: 8 quadruples [32 lanes, 4 m-tiles, 4] of int8. PACK 2: 16 pairs [32, 4, 2] of floats above their base."""
    pieces = parted(again(w, PACK), B1, PACK)
    if B2 > 0:
        pieces = pieces + parted(again(v, PACK), B2, PACK)
    if ASM != "":
        return tl.inline_asm_elementwise(ASM, WHERE, pieces, dtype=KINDS, is_pure=True, pack=PACK)
    else:
        return plain(pieces, table, B1, B2, KINDS, PACK, 32 // PACK)


@triton.jit
@no_type_check
def plain(pieces, table, B1: constexpr, B2: constexpr, kind: constexpr, PACK: constexpr, N: constexpr):
    """The same in plain operations: the last of N registers appended to those before it."""
    q: constexpr = (N - 1) * PACK // 4
    i = tl.arange(0, PACK)[None, None, :] * (4 // PACK) + (N - 1) % (4 // PACK)
    at = (q % (8 // B1)) * 16 + 4 * i if table is not None and B1 == 4 else q * B1 % 8 + 8 * i
    code = (pieces[q * B1 // 8] >> at) & ((1 << B1) - 1)
    if B2 > 0:
        code |= ((pieces[B1 + q * B2 // 8] >> (q * B2 % 8 + 8 * i)) & ((1 << B2) - 1)) << B1
    if table is not None:
        value = tl.load(table + code).to(kind)
    elif kind == tl.int8:
        value = (code - 128 if B1 == 8 else code).to(tl.int8)
    elif B1 == 8:
        value = code.to(tl.float32).to(kind)
    else:
        value = (code | (0x6400 if kind == tl.float16 else 0x4300)).to(tl.int16).to(kind, bitcast=True)
    return (value,) if N == 1 else plain(pieces, table, B1, B2, kind, PACK, N - 1) + (value,)


@triton.jit
@no_type_check
def joined(parts, N: constexpr):
    """2^N tensors as one with N axes more, the lowest bit of their number first."""
    if N == 0:
        return parts[0]
    else:
        half: constexpr = 2 ** (N - 1)
        return tl.join(joined(parts[:half], N - 1), joined(parts[half:], N - 1))


@triton.jit
@no_type_check
def numbers(values, group):
    """Scales or zeros of a group, [4 t, 8 g, 8 outputs of a lane]."""
    place = tl.arange(0, 8)[None, :, None] * 8 + tl.arange(0, 4)[:, None, None] * 0 + tl.arange(0, 8)[None, None, :]
    return tl.load(values + group * 64 + place)
