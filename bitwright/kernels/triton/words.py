"""Codes as a tensor core wants them: how they lie in 32-bit words, and how a word becomes floats.

A tile is 64 outputs; a block is 64 of its columns. In one product of a tensor core the lane (g, t) of a warp, g < 8 and t < 4,
holds the outputs 16 m + 8 i + g and four columns of a part of 16 or 32. So each lane loads its own codes and nothing is passed between
lanes: word j of m-tile m and lane 4 g + t holds codes (u, e, i), u a part of the block, e a column of the lane's run of
`part / 4` columns, in the order (u, e's upper bits, i, e's lowest bit). Codes of 3, 5 and 6 bits lie in two arrays of words.

A code becomes a float by writing its bits under a constant exponent (1024 + c in fp16, 128 + c in bf16); 16 bits apart lie
the two codes that one register takes. Tables of 16 are bytes in registers, chosen by byte permutation.
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
PIECES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2)}  # bits of a code -> bits in each array of words


def words(codes: UInt8[Tensor, "out k"], part: int, bits: int, low: int, table: bool) -> Ints[Tensor, "tiles blocks bits 32 4"]:
    """Bits low .. low + bits of codes padded to whole tiles and blocks: [tiles, blocks, bits (fours of words), 32 lanes, 4]."""
    tiles, blocks, run = len(codes) // TILE, codes.shape[1] // BLOCK, part // 4
    field = (codes >> low & 2**bits - 1).view(tiles, 4, 2, 8, blocks, BLOCK // part, 4, run // 2, 2)  # m i g, u t e' h
    order = field.permute(0, 4, 1, 3, 6, 5, 7, 2, 8).reshape(-1, 16 // bits, 2).long()  # tile block m g t, u e' i, h
    first = torch.arange(16 // bits, device=codes.device)[:, None] * (2 * bits if table else bits)
    shift = first + torch.arange(2, device=codes.device) * (bits if table else 16)
    whole = (order << shift).sum((1, 2))
    signed = torch.where(whole >= 2**31, whole - 2**32, whole).int().view(tiles, blocks, 4, 32, bits)  # m lane j
    return signed.permute(0, 1, 3, 2, 4).reshape(tiles, blocks, 32, bits, 4).transpose(2, 3).contiguous()


def rows(values: Float[Tensor, "out g"], tiles: int, groups: int) -> Float[Tensor, "tiles groups 8 8"]:
    """Numbers of a group in the order in which lanes want them: g, then m and i; in fp16 where that loses nothing."""
    full = values.new_zeros(tiles * TILE, groups)
    full[: len(values), : values.shape[1]] = values
    kept = full.half() if bool((full.half().float() == full).all()) else full.float()
    return kept.view(tiles, 8, 8, -1).permute(0, 3, 2, 1).contiguous()


@cache
def assembly(pieces: tuple[int, ...], dtype: torch.dtype, table: tuple[float, ...] | None) -> dict[str, Any]:
    """Instructions that make the 32 floats of a lane and m-tile from its words, two at a time: outputs first, then words."""
    kind = tl.float16 if dtype == torch.float16 else tl.bfloat16
    if table is None:
        lines = [".reg .b32 t, v;"] + [line for p in range(16) for line in unpack(p, pieces, 0x64006400 if dtype == torch.float16 else 0x43004300)]
    else:
        lines = [".reg .b32 half, pick, high, a, b, c, d;"] + [line for word in range(4) for line in lookup(word, table, dtype)]
    return {"ASM": "{" + " ".join(lines) + "}", "WHERE": "=h," * 32 + ",".join("r" * sum(pieces)), "KINDS": (kind,) * 32}


def unpack(p: int, pieces: tuple[int, ...], under: int) -> list[str]:
    """Pair p: every piece is shifted to its place, `(word & mask) | what is there`."""
    lines, first, low = [], 32, 0
    for bits in pieces:
        word, shift = f"${first + p * bits // 16}", p * bits % 16 - low
        if shift:
            lines.append(f"{'shr.u32' if shift > 0 else 'shl.b32'} t, {word}, {abs(shift)};")
        mask = 0x10001 * (2**bits - 1 << low)
        lines.append(f"lop3.b32 v, {'t' if shift else word}, {mask:#x}, {'v' if low else hex(under)}, 0xea;")
        first, low = first + bits, low + bits
    return [*lines, f"mov.b32 {{${2 * p}, ${2 * p + 1}}}, v;"]


def lookup(word: int, table: tuple[float, ...], dtype: torch.dtype) -> list[str]:
    """All of a word's 8 codes, four at a time: the upper and the lower bytes of 16 values, each in two permutations and a third."""
    data = torch.tensor(table).to(dtype).view(torch.uint8).view(16, 2)
    low, high = ([int.from_bytes(bytes(data[i : i + 4, byte].tolist()), "little") for i in (0, 4, 8, 12)] for byte in (0, 1))
    lines = []
    for side in range(2):
        lines.append(f"shr.u32 half, ${32 + word}, {16 * side};")
        lines.append("shr.u32 high, half, 1; lop3.b32 high, high, 0x4444, 0x3210, 0xea; and.b32 pick, half, 0x7777;")
        for into, (first, second, third, fourth) in (("c", low), ("d", high)):
            lines.append(f"prmt.b32 a, {first:#x}, {second:#x}, pick; prmt.b32 b, {third:#x}, {fourth:#x}, pick;")
            lines.append(f"prmt.b32 {into}, a, b, high;")
        for pair, chosen in enumerate(("0x5140", "0x7362")):
            at = 8 * word + 4 * side + 2 * pair
            lines.append(f"prmt.b32 a, c, d, {chosen}; mov.b32 {{${at}, ${at + 1}}}, a;")
    return lines


@triton.jit
@no_type_check
def load(words, BITS: constexpr):
    """The words of a block: a tuple of BITS tensors [32 lanes, 4 m-tiles]."""
    lane, four, last = tl.arange(0, 32)[:, None, None], tl.arange(0, BITS)[None, :, None], tl.arange(0, 4)[None, None, :]
    return tl.load(words + four * 128 + lane * 4 + last)


@triton.jit
@no_type_check
def parted(w, BITS: constexpr):
    if BITS == 1:
        return (w.reshape(32, 4),)
    else:
        half: constexpr = BITS // 2
        lower, upper = tl.split(w.reshape(32, 4, 2, half).permute(0, 1, 3, 2))
        return parted(lower, half) + parted(upper, half)


@triton.jit
@no_type_check
def floats(w, v, table, B1: constexpr, B2: constexpr, ASM: constexpr, WHERE: constexpr, KINDS: constexpr):
    """32 tensors [32 lanes, 4 m-tiles]: the values of codes, above a base of 1024 or 128 where there is no table."""
    pieces = parted(w, B1) if B2 == 0 else parted(w, B1) + parted(v, B2)
    if ASM != "":
        return tl.inline_asm_elementwise(ASM, WHERE, pieces, dtype=KINDS, is_pure=True, pack=1)
    else:
        return plain(pieces, table, B1, B2, KINDS, 32)


@triton.jit
@no_type_check
def plain(pieces, table, B1: constexpr, B2: constexpr, kind: constexpr, N: constexpr):
    """The same in plain operations: the last of N floats appended to those before it."""
    last: constexpr = N - 1
    pair: constexpr = last // 2
    if table is not None:
        code = (pieces[pair * B1 // 16] >> (pair % (16 // B1) * 2 * B1 + last % 2 * B1)) & ((1 << B1) - 1)
        value = tl.load(table + code).to(kind)
    else:
        code = (pieces[pair * B1 // 16] >> (pair * B1 % 16 + last % 2 * 16)) & ((1 << B1) - 1)
        if B2 > 0:
            code |= ((pieces[B1 + pair * B2 // 16] >> (pair * B2 % 16 + last % 2 * 16)) & ((1 << B2) - 1)) << B1
        value = (code | (0x6400 if kind == tl.float16 else 0x4300)).to(tl.int16).to(kind, bitcast=True)
    return (value,) if N == 1 else plain(pieces, table, B1, B2, kind, N - 1) + (value,)


@triton.jit
@no_type_check
def joined(parts, N: constexpr):
    """2^N tensors as one with N axes more, the lowest bit of their number first."""
    if N == 0:
        return parts[0]
    else:
        half: constexpr = 2 ** (N - 1)
        return tl.join(joined(parts[:half], N - 1), joined(parts[half:], N - 1))
