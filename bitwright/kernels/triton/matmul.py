"""Products with packed codes on a GPU: few tokens straight from the codes, many through pieces of the dense matrix.

*Few tokens* (decode). What binds is unpacking, not memory, so the tensor cores do every multiplication: the codes of 64 outputs
and 16 columns are one operand, the tokens the other. A code becomes a float by writing its bits under a constant exponent
(1024 + c in fp16, 128 + c in bf16); scale, offset and that constant meet the sum of a group:

    y += s_g (sum_j (M + c_j) x_j - M sum_j x_j) - o_g sum_j x_j

*Many tokens* (prefill). A few thousand rows at a time are decoded into a buffer that stays in the L2 cache and multiplied by
the library's own product. Columns are split over programs, partial sums are added in a fixed order: results repeat bit for bit.

Words: [tiles, blocks, 64 outputs, 16 words], field f of word k of block b holds column b F 16 + f 16 + k, F = 32 / bits.
"""

from functools import cache
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from bitwright.kernels.packed import Packed
from bitwright.kernels.planes import DENSE, Plane

TILE, DEEP = 64, 16  # outputs of a tile, words of a block
FEW = 16  # tokens up to which codes are multiplied as they are
PIECE = 2048  # rows decoded at a time
PROGRAMS = 1024  # wanted in flight
WIDTHS = {**DENSE, 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (4, 4)}  # 8 bits do not fit under bf16's exponent


def matmul(x: Float[Tensor, "n inp"], packed: Packed) -> Float[Tensor, "n out"] | None:
    if x.dtype not in (torch.float16, torch.bfloat16) or (x.device.type == "cpu" and not triton.knobs.runtime.interpret):
        return None
    made = packed.form("triton", WIDTHS, worded, declines)
    if made is None:
        return None
    many = decoded_product if len(x) > FEW else code_product
    return packed.product(x, made, lambda part, found: many(part.contiguous(), found, packed.shape[0]))


def declines(plane: Plane) -> str | None:
    block = DEEP * 32 // plane.bits
    if plane.group % DEEP or (plane.scale.shape[1] > 1 and plane.group % block and block % plane.group):
        return f"its groups of {plane.group} columns do not fit blocks of {block}"
    return None


def worded(plane: Plane) -> tuple[Any, ...]:
    """Bits, group size, words, scales and offsets [tiles, groups, 64], table."""
    fields, (out, k) = 32 // plane.bits, plane.codes.shape
    tiles, blocks = -(-out // TILE), -(-k // (DEEP * fields))
    codes = plane.codes.new_zeros(tiles * TILE, blocks * fields * DEEP)
    codes[:out, :k] = plane.codes
    shifts = torch.arange(0, 32, plane.bits, device=codes.device)[:, None]
    values = (codes.view(-1, blocks, fields, DEEP).long() << shifts).sum(2)
    words = torch.where(values >= 2**31, values - 2**32, values).int()
    words = words.view(tiles, TILE, blocks, DEEP).transpose(1, 2).contiguous()
    return plane.bits, plane.group, words, tiled(plane.scale), tiled(plane.offset), plane.table


def tiled(rows: Float[Tensor, "out g"]) -> Float[Tensor, "tiles g 64"]:
    full = rows.new_zeros(-(-len(rows) // TILE) * TILE, rows.shape[1])
    full[: len(rows)] = rows
    return full.view(-1, TILE, rows.shape[1]).transpose(1, 2).contiguous()


def code_product(x: Float[Tensor, "n k"], found: list[Any], out: int) -> Float[Tensor, "n out"]:
    n, k = x.shape
    tiles = found[0][2].shape[0]
    wide = 8 if n <= 8 else 16
    splits = [min(words.shape[1], -(-PROGRAMS // tiles)) for _, _, words, *_ in found]
    parts = torch.empty(sum(splits), tiles * TILE, wide, device=x.device)
    at = 0
    for (bits, group, words, scale, offset, table), split in zip(found, splits):
        blocks = words.shape[1]
        few_kernel[(tiles, split)](
            x, words, scale, offset, table, parts[at:], n, k, tiles * TILE, blocks, scale.shape[1],
            SHARE=-(-blocks // split), GROUP=group, BITS=bits, WIDE=wide, LOOKUP=table is not None, num_warps=1, num_stages=4,
            **assembly(bits if x.is_cuda and table is None else 0, x.dtype),
        )  # fmt: skip
        at += split
    y = x.new_empty(n, out)
    add_kernel[(-(-out // 128),)](parts, y, n, out, tiles * TILE, COUNT=len(parts), WIDE=wide)
    return y


def decoded_product(x: Float[Tensor, "n k"], found: list[Any], out: int) -> Float[Tensor, "n out"]:
    y, k = x.new_empty(len(x), out), x.shape[1]
    room = x.new_empty(min(PIECE, -(-out // TILE) * TILE), k)
    for first in range(0, out, PIECE):
        rows = min(PIECE, out - first)
        for i, (bits, group, words, scale, offset, table) in enumerate(found):
            dense_kernel[(-(-rows // TILE), words.shape[1])](
                words[first // TILE :], scale[first // TILE :], offset[first // TILE :], table, room, k, words.shape[1],
                scale.shape[1], GROUP=group, BITS=bits, LOOKUP=table is not None, ADD=i > 0,
            )  # fmt: skip
        y[:, first : first + rows] = x @ room[:rows].T
    return y


@cache
def assembly(bits: int, dtype: torch.dtype) -> dict[str, Any]:
    """All fields of two neighbouring words at once, one instruction a number: halves paired, shifted, and `(w & mask) | under`.

    0 bits: none, the kernel does the same in plain operations.
    """
    if not bits:
        return {"ASM": "", "WHERE": "", "KINDS": None}
    fields, half = 32 // bits, 16 // bits
    mask, under = 0x10001 * (2**bits - 1), 0x64006400 if dtype == torch.float16 else 0x43004300
    lines = [".reg .b32 low, high, t;", f"prmt.b32 low, ${fields}, ${fields + 1}, 0x5410;"]
    lines.append(f"prmt.b32 high, ${fields}, ${fields + 1}, 0x7632;")
    for f in range(fields):
        lines.append(f"shr.u32 t, {'low' if f < half else 'high'}, {f % half * bits};")
        lines.append(f"lop3.b32 ${f}, t, {mask:#x}, {under:#x}, 0xea;")
    kind = tl.float16 if dtype == torch.float16 else tl.bfloat16
    return {"ASM": "{" + " ".join(lines) + "}", "WHERE": "=r," * fields + "r,r", "KINDS": (kind,) * fields}


@triton.jit
@no_type_check
def floats(w, f: tl.constexpr, BITS: tl.constexpr, kind: tl.constexpr):
    """Field f of the words as 1024 + c (fp16) or 128 + c (bf16), by bits alone: a conversion runs at an eighth of the rate."""
    under: tl.constexpr = 0x6400 if kind == tl.float16 else 0x4300
    code = (w >> (f * BITS)) & ((1 << BITS) - 1)
    return (code | under).to(tl.int16).to(kind, bitcast=True)


@triton.jit
@no_type_check
def few_kernel(
    x, words, scale, offset, table, parts, n, k, out, blocks, groups,
    SHARE: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, WIDE: tl.constexpr, LOOKUP: tl.constexpr,
    ASM: tl.constexpr, WHERE: tl.constexpr, KINDS: tl.constexpr,
):  # fmt: skip
    """Partial sums [split, out, WIDE] of one tile over its share of the blocks."""
    FIELDS: tl.constexpr = 32 // BITS
    kind: tl.constexpr = x.dtype.element_ty
    base: tl.constexpr = 0.0 if LOOKUP else (1024.0 if kind == tl.float16 else 128.0)
    tile, split = tl.program_id(0), tl.program_id(1)
    r, c, t = tl.arange(0, 64), tl.arange(0, 16), tl.arange(0, WIDE)
    total = tl.zeros((64, WIDE), tl.float32)
    for i in range(SHARE):
        b = split * SHARE + i  # beyond the last block, tokens are masked to zero
        w = tl.load(words + (tile * blocks + tl.minimum(b, blocks - 1)) * 1024 + r[:, None] * 16 + c[None, :])
        inner, sums = tl.zeros((64, WIDE), tl.float32), tl.zeros((WIDE,), tl.float32)
        if ASM != "":
            fields = tl.inline_asm_elementwise(ASM, WHERE, [w], dtype=KINDS, is_pure=True, pack=2)
        for f in tl.static_range(FIELDS):
            column = (b * FIELDS + f) * 16
            xs = tl.load(x + t[None, :] * k + column + c[:, None], mask=(t[None, :] < n) & (column + c[:, None] < k), other=0.0)
            if ASM != "":
                v = fields[f]
            elif LOOKUP:
                v = tl.load(table + ((w >> (f * BITS)) & ((1 << BITS) - 1))).to(kind)
            else:
                v = floats(w, f, BITS, kind)
            inner = tl.dot(v, xs, inner)
            sums += tl.sum(xs.to(tl.float32), 0)
            if (f + 1) * 16 % GROUP == 0 or f + 1 == FIELDS:
                at = (tile * groups + tl.minimum(column // GROUP, groups - 1)) * 64 + r
                s, o = tl.load(scale + at), tl.load(offset + at)
                total += s[:, None] * inner - (s * base + o)[:, None] * sums[None, :]
                inner, sums = tl.zeros((64, WIDE), tl.float32), tl.zeros((WIDE,), tl.float32)
    tl.store(parts + (split * out + tile * 64 + r[:, None]) * WIDE + t[None, :], total)


@triton.jit
@no_type_check
def add_kernel(parts, y, n, out, padded, COUNT: tl.constexpr, WIDE: tl.constexpr):
    """y [n, out] = the sum of all partial sums, in order."""
    r, t = tl.program_id(0) * 128 + tl.arange(0, 128), tl.arange(0, WIDE)
    total = tl.zeros((128, WIDE), tl.float32)
    for i in range(COUNT):
        total += tl.load(parts + (i * padded + r[:, None]) * WIDE + t[None, :], mask=r[:, None] < padded, other=0.0)
    tl.store(y + t[None, :] * out + r[:, None], total.to(y.dtype.element_ty), mask=(t[None, :] < n) & (r[:, None] < out))


@triton.jit
@no_type_check
def dense_kernel(
    words, scale, offset, table, room, k, blocks, groups,
    GROUP: tl.constexpr, BITS: tl.constexpr, LOOKUP: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """One block of a tile, decoded into `room` [rows, k]; ADD: on top of what an earlier plane left there."""
    FIELDS: tl.constexpr = 32 // BITS
    tile, b = tl.program_id(0), tl.program_id(1)
    r, c = tl.arange(0, 64), tl.arange(0, 16)
    w = tl.load(words + (tile * blocks + b) * 1024 + r[:, None] * 16 + c[None, :])
    for f in tl.static_range(FIELDS):
        column = (b * FIELDS + f) * 16
        code = (w >> (f * BITS)) & ((1 << BITS) - 1)
        v = tl.load(table + code) if LOOKUP else code.to(tl.float32)
        at = (tile * groups + tl.minimum(column // GROUP, groups - 1)) * 64 + r
        v = v * tl.load(scale + at)[:, None] - tl.load(offset + at)[:, None]
        place, inside = room + (tile * 64 + r[:, None]) * k + column + c[None, :], column + c[None, :] < k
        if ADD:
            v += tl.load(place, mask=inside, other=0.0).to(tl.float32)
        tl.store(place, v.to(room.dtype.element_ty), mask=inside)
