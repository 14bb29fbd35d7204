"""K-quants: 256 weights in groups of 16 or 32 whose scales are small integers, under one half float for all of them.

    w = d sc (code - zero)      Q3_K, Q6_K, IQ4_XS            w = d sc code - dmin m      Q2_K, Q4_K, Q5_K

The integers of a block are packed in four ways, one small class each: from their bytes to the leaves "scale" and "min", and back.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float32, Shaped, UInt8
from torch import Tensor

from bitwright.export.gguf.blocks.base import (
    Leaves,
    Plane,
    affine,
    as_bytes,
    fields,
    flat,
    in_blocks,
    merge,
    read_codes,
    split,
    unfields,
    write_codes,
)
from bitwright.export.gguf.blocks.simple import IQ4


@runtime_checkable
class Subscales(Protocol):
    """Integers of one block, [rows, blocks, groups] in the leaves given and returned. `levels` and `low`: their range."""

    @property
    def levels(self) -> int: ...
    @property
    def low(self) -> int: ...
    def read(self, data: UInt8[Tensor, "rows blocks bytes"]) -> Leaves: ...
    def write(self, leaves: Leaves) -> UInt8[Tensor, "rows blocks bytes"]: ...


@dataclass(frozen=True)
class Nibbles:
    """A scale in the low and a minimum in the high half of each byte."""

    levels: int = 16
    low: int = 0

    def read(self, data: UInt8[Tensor, "rows blocks bytes"]) -> Leaves:
        return {"scale": data & 15, "min": data >> 4}

    def write(self, leaves: Leaves) -> UInt8[Tensor, "rows blocks bytes"]:
        return leaves["scale"] | leaves["min"] << 4


@dataclass(frozen=True)
class Pairs:
    """Eight scales and eight minima of six bits in three times four bytes: the first four of each are whole in the low bits of
    the first and second four bytes; the last four lie in the nibbles of the third, their top bits above the first four."""

    levels: int = 64
    low: int = 0

    def read(self, data: UInt8[Tensor, "rows blocks 12"]) -> Leaves:
        a, b, c = data.split(4, dim=-1)
        scale = torch.cat([a & 63, c & 15 | a >> 6 << 4], -1)
        return {"scale": scale, "min": torch.cat([b & 63, c >> 4 | b >> 6 << 4], -1)}

    def write(self, leaves: Leaves) -> UInt8[Tensor, "rows blocks 12"]:
        (s, t), (m, n) = leaves["scale"].split(4, dim=-1), leaves["min"].split(4, dim=-1)
        return torch.cat([s | t >> 4 << 6, m | n >> 4 << 6, t & 15 | n << 4], -1)


@dataclass(frozen=True)
class Sixes:
    """Scales of six bits, stored plus 32: low nibbles in one part of the bytes, top bits in the other, which of them first and
    in what runs depends on the type."""

    sizes: tuple[int, int]
    runs: tuple[int, int]
    top_first: bool
    levels: int = 64
    low: int = -32

    def read(self, data: UInt8[Tensor, "rows blocks bytes"]) -> Leaves:
        cut = self.sizes[self.top_first]
        first, second = data[..., :cut], data[..., cut:]
        low, top = (second, first) if self.top_first else (first, second)
        stored = fields(low, 4, self.runs[0]) | fields(top, 2, self.runs[1]) << 4
        return {"scale": stored.to(torch.int8) - 32}

    def write(self, leaves: Leaves) -> UInt8[Tensor, "rows blocks bytes"]:
        stored = (leaves["scale"] + 32).to(torch.uint8)
        low, top = unfields(stored & 15, 4, self.runs[0]), unfields(stored >> 4, 2, self.runs[1])
        return torch.cat([top, low] if self.top_first else [low, top], -1)


@dataclass(frozen=True)
class Signed:
    """One int8 for each scale."""

    levels: int = 256
    low: int = -128

    def read(self, data: UInt8[Tensor, "rows blocks bytes"]) -> Leaves:
        return {"scale": data.contiguous().view(torch.int8)}

    def write(self, leaves: Leaves) -> UInt8[Tensor, "rows blocks bytes"]:
        return as_bytes(leaves["scale"].to(torch.int8))


@dataclass(frozen=True)
class KQuant:
    """`parts` as in the file: `scale_top` and `min_top` are half floats, `subscales` the integers, the others hold codes."""

    name: str
    id: int
    group: int
    levels: int
    parts: dict[str, int] = field(hash=False)
    planes: tuple[Plane, ...]
    subscales: Subscales
    zero: int = 0
    table: tuple[int, ...] = ()
    weights: int = 256

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def tops(self) -> tuple[str, ...]:
        return tuple(name for name in self.parts if name.endswith("_top"))

    def unpack(self, data: UInt8[Tensor, "rows nbytes"]) -> Leaves:
        parts = split(data, self.parts)
        subs = {name: x.flatten(1) for name, x in self.subscales.read(parts["subscales"]).items()}
        return {"codes": read_codes(parts, self.planes), **subs, **{name: flat(parts[name], torch.float16) for name in self.tops}}

    def pack(self, leaves: Leaves) -> UInt8[Tensor, "rows nbytes"]:
        parts = write_codes(in_blocks(leaves["codes"], self.weights, self.levels), self.planes)
        s, groups = self.subscales, self.weights // self.group
        parts["subscales"] = s.write({n: in_blocks(leaves[n], groups, s.levels, s.low) for n in ("scale", "min") if n in leaves})
        parts |= {name: in_blocks(leaves[name], 1) for name in self.tops}
        return merge(parts, self.parts)

    def decode(self, leaves: Leaves) -> Float32[Tensor, "rows inp"]:
        codes = leaves["codes"]
        table = torch.tensor(self.table, dtype=torch.float32, device=codes.device)
        values = table[codes.int()] if self.table else codes.float() - self.zero
        scale = product(leaves["scale_top"], leaves["scale"])
        return affine(values, scale, -product(leaves["min_top"], leaves["min"]) if "min" in leaves else None)


def product(top: Shaped[Tensor, "rows blocks"], sub: Shaped[Tensor, "rows groups"]) -> Float32[Tensor, "rows groups"]:
    blocks = top.shape[1]
    return (top.float()[..., None] * sub.float().unflatten(1, (blocks, sub.shape[1] // blocks))).flatten(1)


CRUMBS, NIBBLES, FIFTH = Plane("low", 2, 32), Plane("low", 4, 32), Plane("high", 1, 32, shift=4)

KQUANTS = (
    KQuant("Q2_K", 10, 16, 4, {"subscales": 16, "low": 64, "scale_top": 2, "min_top": 2}, (CRUMBS,), Nibbles()),
    KQuant(
        "Q3_K", 11, 16, 8, {"high": 32, "low": 64, "subscales": 12, "scale_top": 2},
        (CRUMBS, Plane("high", 1, 32, shift=2)), Sixes((8, 4), (8, 4), top_first=False), zero=4,
    ),
    KQuant("Q4_K", 12, 32, 16, {"scale_top": 2, "min_top": 2, "subscales": 12, "low": 128}, (NIBBLES,), Pairs()),
    KQuant("Q5_K", 13, 32, 32, {"scale_top": 2, "min_top": 2, "subscales": 12, "high": 32, "low": 128}, (NIBBLES, FIFTH), Pairs()),
    KQuant(
        "Q6_K", 14, 16, 64, {"low": 128, "high": 64, "subscales": 16, "scale_top": 2},
        (Plane("low", 4, 64), Plane("high", 2, 32, shift=4)), Signed(), zero=32,
    ),
    KQuant(
        "IQ4_XS", 23, 32, 16, {"scale_top": 2, "subscales": 6, "low": 128},
        (Plane("low", 4, 16),), Sixes((4, 2), (1, 1), top_first=True), table=IQ4,
    ),
)  # fmt: skip
