"""Scales of micro-scaled formats: one byte per group of 32 (MX: a power of two) or of 16 (NV: a float8 under one fp32).

    MXFP4 = Table("e2m1", scale=E8M0())    MXINT8 = Integer(255, symmetric, scale=E8M0())    groups of 32
    NVFP4 = Table("e2m1", scale=E4M3())    NVINT4 = Integer(15, symmetric, scale=E4M3())     groups of 16

Odd numbers of levels are the symmetric clipping of int-vs-fp: -2^(b-1) is no code. Cards: formats (section 2), int-vs-fp.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float as Floats
from jaxtyping import Shaped
from torch import Tensor

from bitwright.grids.base import Leaf
from bitwright.grids.scales import Top


@dataclass(frozen=True)
class E8M0:
    """A power of two, one byte. With a = amount and u = unit:

    up     2^ceil(log2(a / u))                        never clips the largest weight (Blackwell, int-vs-fp)
    floor  2^(floor(log2 a) - floor(log2 u))          OCP's; may clip
    even   floor, but up from where the largest weight would round up in `mantissa` bits (compressed-tensors)
    ceil   floor + 1 unless a is a power of two

    The choice by squared error is a fit: `Mse` with steps down to one half over the rule `up`.
    """

    rule: Literal["up", "floor", "even", "ceil"] = "up"
    mantissa: int = 1
    own = Leaf(torch.uint8)
    shared = None

    def top(self, amount: Floats[Tensor, "g k"], unit: float, across: int) -> Top:
        return None

    def store(self, amount: Floats[Tensor, "g k"], unit: float = 1.0, top: Top = None) -> Shaped[Tensor, "g k"]:
        if self.rule == "up":
            part, exponent = torch.frexp(amount / unit)  # part in [1/2, 1)
            found = exponent - 1 + (part > 0.5)
        else:
            part, exponent = torch.frexp(amount)
            above = {"floor": part >= 1, "even": part >= 1 - 2.0 ** -(self.mantissa + 2), "ceil": part > 0.5}[self.rule]
            found = exponent - torch.frexp(torch.tensor(unit))[1] + above
        return torch.where(amount == 0, 127, found.clamp(-127, 127) + 127).to(torch.uint8)

    def read(self, stored: Shaped[Tensor, "g k"], top: Top = None) -> Floats[Tensor, "g k"]:
        return torch.ldexp(torch.ones_like(stored, dtype=torch.float32), stored.int() - 127)


@dataclass(frozen=True)
class E4M3:
    """A float8 per group, the bits of it as bytes, divided by one fp32 per matrix that spends its whole range (NVFP4)."""

    own = Leaf(torch.uint8)
    shared = Leaf(torch.float32, shared="tensor")

    def top(self, amount: Floats[Tensor, "g k"], unit: float, across: int) -> Top:
        most = amount.amax().clamp_min(torch.finfo(torch.float32).tiny).float()
        divisor = 448.0 * unit / most
        return torch.where(divisor.isfinite(), divisor, 1.0).expand(len(amount), 1)

    def store(self, amount: Floats[Tensor, "g k"], unit: float, top: Top) -> Shaped[Tensor, "g k"]:
        assert top is not None
        scale = (top * (amount / unit)).abs().clamp_max(448.0).to(torch.float8_e4m3fn)
        bits = scale.view(torch.uint8)
        return torch.where(bits == 0, torch.full_like(bits, 0x20), bits)  # 0x20 is 1/8

    def read(self, stored: Shaped[Tensor, "g k"], top: Top) -> Floats[Tensor, "g k"]:
        assert top is not None
        return stored.view(torch.float8_e4m3fn).float() / top
