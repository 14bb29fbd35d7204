"""Types with one level of scales: w = d (value of code), or w = d code + m.

    Q4_0 Q5_0 Q8_0   blocks of 32, code - 8, - 16, - 128       Q4_1 Q5_1   blocks of 32 with a minimum
    TQ2_0            blocks of 256, code - 1                   IQ4_NL      blocks of 32, a table of 16
    MXFP4            blocks of 32, e2m1 with a power of two    NVFP4       groups of 16 in blocks of 64, e2m1 with an e4m3 scale

Tables of e2m1 are stored doubled, to be integers, and their scales halved; the product is the same number. A scale of MXFP4 that
the standard calls NaN (255) is read as the next power of two and NVFP4's 0x7F as 0, as llama.cpp reads them.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from bitwright.export.gguf.blocks.base import Leaves, Plane, affine, flat, in_blocks, merge, read_codes, split, write_codes

E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def halved_e8m0(e: UInt8[Tensor, "rows groups"]) -> Float32[Tensor, "rows groups"]:
    """2^(e - 128), by its bits: the two smallest are subnormal."""
    e = e.to(torch.int32)
    return torch.where(e < 2, 0x00200000 << e, (e - 1) << 23).view(torch.float32)


def halved_e4m3(s: UInt8[Tensor, "rows groups"]) -> Float32[Tensor, "rows groups"]:
    exponent, mantissa = (s >> 3 & 15).float(), (s & 7).float()
    value = torch.where(exponent == 0, mantissa / 512, (1 + mantissa / 8) * torch.exp2(exponent - 7))
    return torch.where(s == 0x7F, torch.zeros_like(value), value / 2)


def half(s: Tensor) -> Float32[Tensor, "rows groups"]:
    return s.float()


SCALES = {"half": (torch.float16, half), "e8m0": (torch.uint8, halved_e8m0), "e4m3": (torch.uint8, halved_e4m3)}


@dataclass(frozen=True)
class Simple:
    """`parts`: names and bytes in the order of the file, of which `scale` and `min` are parameters and the others hold codes."""

    name: str
    id: int
    weights: int
    group: int
    levels: int
    parts: dict[str, int] = field(hash=False)
    planes: tuple[Plane, ...]
    zero: int = 0
    table: tuple[int, ...] = ()
    scales: str = "half"

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())

    def unpack(self, data: UInt8[Tensor, "rows nbytes"]) -> Leaves:
        parts = split(data, self.parts)
        leaves = {"codes": read_codes(parts, self.planes), "scale": flat(parts["scale"], SCALES[self.scales][0])}
        return leaves | ({"min": flat(parts["min"], torch.float16)} if "min" in parts else {})

    def pack(self, leaves: Leaves) -> UInt8[Tensor, "rows nbytes"]:
        parts = write_codes(in_blocks(leaves["codes"], self.weights, self.levels), self.planes)
        for name in {"scale", "min"} & set(self.parts):
            parts[name] = in_blocks(leaves[name], self.weights // self.group)
        return merge(parts, self.parts)

    def decode(self, leaves: Leaves) -> Float32[Tensor, "rows inp"]:
        codes, scale = leaves["codes"], SCALES[self.scales][1](leaves["scale"])
        table = torch.tensor(self.table, dtype=torch.float32, device=codes.device)
        values = table[codes.int()] if self.table else codes.float() - self.zero
        return affine(values, scale, leaves["min"].float() if "min" in self.parts else None)


LOW = Plane("low", 4, 16)
FIFTH = Plane("high", 1, 1, shift=4)

SIMPLE = (
    Simple("Q4_0", 2, 32, 32, 16, {"scale": 2, "low": 16}, (LOW,), zero=8),
    Simple("Q4_1", 3, 32, 32, 16, {"scale": 2, "min": 2, "low": 16}, (LOW,)),
    Simple("Q5_0", 6, 32, 32, 32, {"scale": 2, "high": 4, "low": 16}, (LOW, FIFTH), zero=16),
    Simple("Q5_1", 7, 32, 32, 32, {"scale": 2, "min": 2, "high": 4, "low": 16}, (LOW, FIFTH)),
    Simple("Q8_0", 8, 32, 32, 256, {"scale": 2, "low": 32}, (Plane("low", 8, 32, flip=128),), zero=128),
    Simple("TQ2_0", 35, 256, 256, 4, {"low": 64, "scale": 2}, (Plane("low", 2, 32),), zero=1),
    Simple("IQ4_NL", 20, 32, 32, 16, {"scale": 2, "low": 16}, (LOW,), table=IQ4),
    Simple("MXFP4", 39, 32, 32, 16, {"scale": 1, "low": 16}, (LOW,), table=E2M1, scales="e8m0"),
    Simple("NVFP4", 40, 64, 16, 16, {"scale": 4, "low": 32}, (Plane("low", 4, 8),), table=E2M1, scales="e4m3"),
)
