"""Integer second levels: a group's scale is a small code times a number that its neighbours share.

    s = c d,    d = (largest scale among the neighbours) / (largest code),    c = clamp(round(s / d))

A scale then costs 4 to 8 bits instead of 16. Cards: formats (section 3), bitmod.
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
class SecondLevel:
    """`levels` codes from `least` on, times an fp16 that `span` groups in a row of the matrix share.

    `signed`: the codes count from -levels / 2, and scales may be negative: points that reach further down than up, as -4 .. 3
    do, can be turned round. `least`: of the code's magnitude. llama.cpp's K-quants (16 to 256 codes over 8 or 16 groups) and
    BitMoD's scales (128 over the row) are of this kind.
    """

    levels: int = 64
    span: int | Literal["row", "tensor"] = 8
    signed: bool = False
    least: int = 1

    @property
    def own(self) -> Leaf:
        return Leaf(torch.uint8, levels=self.levels)

    @property
    def shared(self) -> Leaf:
        return Leaf(torch.float16, shared=self.span)

    @property
    def zero(self) -> int:
        return self.levels // 2 if self.signed else 0

    def top(self, amount: Floats[Tensor, "g k"], unit: float, across: int) -> Top:
        span = self.shared.span((len(amount) // across, across))
        most = amount.view(-1, span).amax(1, keepdim=True) / (unit * (self.levels - 1 - self.zero))
        return most.repeat_interleave(span, 0).clamp(2.0**-24, 65504.0).half()

    def store(self, amount: Floats[Tensor, "g k"], unit: float, top: Top) -> Shaped[Tensor, "g k"]:
        assert top is not None
        codes = torch.round(amount / unit / top.to(amount.dtype))
        above = codes.clamp(self.least, self.levels - 1 - self.zero)
        if self.signed:
            above = torch.where(codes < 0, codes.clamp(-self.zero, -self.least), above)
        return (above + self.zero).to(torch.uint8)

    def read(self, stored: Shaped[Tensor, "g k"], top: Top) -> Floats[Tensor, "g k"]:
        assert top is not None
        return (stored.float() - self.zero) * top.float()
