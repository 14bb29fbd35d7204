"""Codecs of scales: how a group's scale is stored. `store` rounds to what will be on disk, `read` gives the number back.

A scale is `amount / unit`: the range of the group over the range of the grid. Codecs see both, since rules for powers of two
look at the largest weight and not at its quotient. Some codecs have a second level: a number that many groups share, placed
first (`top`), under which the scales of the groups are small.

Here is the plain float; powers of two and float8 are in micro.py, integer second levels in second_level.py. Where a group is
all zeros any scale will do; it gets the float type's epsilon, as compressed-tensors has it. Card: formats.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float as Floats
from jaxtyping import Shaped
from torch import Tensor

from bitwright.grids.base import Kin, Leaf, Params, weighted

Top = Shaped[Tensor, "g 1"] | None


@runtime_checkable
class Scale(Protocol):
    @property
    def own(self) -> Leaf:
        """What each group stores."""

    @property
    def shared(self) -> Leaf | None:
        """What many groups share; None where there is no second level."""

    def top(self, amount: Floats[Tensor, "g k"], unit: float, across: int) -> Top:
        """The second level for these groups, `across` of which make a row of the matrix: one row per group."""

    def store(self, amount: Floats[Tensor, "g k"], unit: float, top: Top) -> Shaped[Tensor, "g k"]:
        """amount / unit in stored precision, never zero unless the codec says so."""

    def read(self, stored: Shaped[Tensor, "g k"], top: Top) -> Floats[Tensor, "g k"]:
        """fp32 of what is stored."""


def leaves(codec: Scale, name: str = "scale") -> dict[str, Leaf]:
    """The parameters that a codec stores under a name: `name`, and `name_top` where it has a second level."""
    return {name: codec.own} | ({f"{name}_top": codec.shared} if codec.shared else {})


def read(codec: Scale, p: Params, name: str = "scale") -> Floats[Tensor, "g k"]:
    return codec.read(p[name], p.get(f"{name}_top"))


def above(codec: Scale, amount: Floats[Tensor, "g k"], unit: float, kin: Kin, name: str = "scale") -> Params:
    """The second level of these groups: what is fixed already, or placed by their ranges; {} where the codec has none."""
    if codec.shared is None:
        return {}
    fixed = kin.shared.get(f"{name}_top")
    top = codec.top(amount, unit, kin.across) if fixed is None else fixed
    return {} if top is None else {f"{name}_top": top}


def fitted(
    codec: Scale, x: Floats[Tensor, "g n"], step: Floats[Tensor, "g n"], weight: Floats[Tensor, "g n"] | None, p: Params
) -> Shaped[Tensor, "g 1"]:
    """Stored least-squares scales s of x = s step; what was stored where there is none above zero."""
    d = weighted(x, weight)
    up, down = (d * x * step).sum(1, keepdim=True), (d * step * step).sum(1, keepdim=True)
    usable = (up > 0) & (down > 0)
    best = codec.store(torch.where(usable, up / torch.where(usable, down, 1.0), 1.0), 1.0, p.get("scale_top"))
    return torch.where(usable, best, p["scale"])


@dataclass(frozen=True)
class Float:
    """An IEEE or brain float. fp16 keeps 11 bits of a scale and is what most engines read. `signed`: it may be negative."""

    name: Literal["float16", "bfloat16", "float32"] = "float16"
    signed: bool = False
    shared = None

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.name)
        return found

    @property
    def own(self) -> Leaf:
        return Leaf(self.dtype)

    def top(self, amount: Floats[Tensor, "g k"], unit: float, across: int) -> Top:
        return None

    def store(self, amount: Floats[Tensor, "g k"], unit: float = 1.0, top: Top = None) -> Shaped[Tensor, "g k"]:
        info = torch.finfo(self.dtype)
        tiny = 2.0**-24 if self.name == "float16" else info.tiny  # fp16 may use its subnormals
        size = (amount / unit).abs() if self.signed else amount / unit
        kept = torch.where(amount == 0, info.eps, size.clamp(tiny, info.max))
        return (torch.where(amount < 0, -kept, kept) if self.signed else kept).to(self.dtype)

    def read(self, stored: Shaped[Tensor, "g k"], top: Top = None) -> Floats[Tensor, "g k"]:
        return stored.float()
