"""Offset: equally spaced points above a stored minimum; what llama.cpp's Q4_1 and its K-quants with minima hold.

    x^ = s q - m,    s = (max - min) / M,   m = -min,    q = clamp(round((x + m) / s), 0, M),   M = levels - 1

The range is widened to contain 0, so m >= 0. Unlike the zero point of `integer`, m is a number of its own precision: it need not
be a multiple of s, and zero need not be a point. Scale and minimum may each have a second level. Card: formats, section 3.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.grids import scales
from bitwright.grids.base import ALONE, Kin, Leaf, Params, better
from bitwright.grids.fit import AbsMax, Fit, suited
from bitwright.grids.integer import divisor
from bitwright.grids.scales import Float as FloatScale
from bitwright.grids.scales import Scale


@dataclass(frozen=True)
class Offset:
    """`levels` points; `scale` and `minimum` say how the two numbers of a group are stored."""

    levels: int = 16
    by: Fit = AbsMax()
    scale: Scale = FloatScale()
    minimum: Scale = FloatScale()
    width = 1

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 256:
            raise BadRequest(f"An offset grid has 2 to 256 levels (1 to 8 bits), not {self.levels}; choose a number in between.")
        suited(self.by, self)

    @property
    def needs(self) -> tuple[str, ...]:
        return self.by.needs

    @property
    def leaves(self) -> dict[str, Leaf]:
        return scales.leaves(self.scale) | scales.leaves(self.minimum, "min")

    def fit(self, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None = None, kin: Kin = ALONE) -> Params:
        low, high = self.extent(x).split(1, 1)
        top = scales.above(self.scale, high - low, self.levels - 1.0, kin) | scales.above(self.minimum, -low, 1.0, kin, "min")
        return self.by(self, x, weight, top, kin)

    def extent(self, x: Float[Tensor, "g n"]) -> Float[Tensor, "g 2"]:
        return torch.stack([x.amin(1).clamp_max(0), x.amax(1).clamp_min(0)], 1)

    def place(self, extent: Float[Tensor, "g 2"], keep: float, top: Params) -> Params:
        low, high = (extent * keep).split(1, 1)
        scale = self.scale.store(high - low, self.levels - 1.0, top.get("scale_top"))
        return {"scale": scale, "min": self.lowest(low, top), **top}

    def lowest(self, low: Float[Tensor, "g 1"], top: Params) -> Tensor:
        """The minimum as it is stored. Zero is zero, where a codec of scales would take it for an empty group's."""
        stored = self.minimum.store(-low, 1.0, top.get("min_top"))
        return torch.where(low == 0, 0, stored) if stored.is_floating_point() else stored

    def encode(self, x: Float[Tensor, "g n"], p: Params) -> Ints[Tensor, "g n"]:
        scale, low = self.numbers(p)
        return torch.round((x + low.to(x.dtype)) / divisor(scale).to(x.dtype)).clamp_(0, self.levels - 1).to(torch.uint8)

    def decode(self, c: Ints[Tensor, "g n"], p: Params) -> Float[Tensor, "g n"]:
        scale, low = self.numbers(p)
        return scale * c.float() - low

    def miss(self, x: Float[Tensor, "g n"], p: Params, out: Float[Tensor, "g n"]) -> Float[Tensor, "g n"]:
        scale, low = (v.to(x.dtype) for v in self.numbers(p))
        torch.add(x, low, out=out).div_(scale).round_().clamp_(0, self.levels - 1)
        return out.mul_(scale).sub_(low).sub_(x)

    def refit(
        self, x: Float[Tensor, "g n"], c: Ints[Tensor, "g n"], p: Params, weight: Float[Tensor, "g n"] | None = None
    ) -> Params:
        """Least squares of the scale for given codes and minimum, where it helps."""
        above = x + self.numbers(p)[1].to(x.dtype)
        return better(self, x, c, weight, {**p, "scale": scales.fitted(self.scale, above, c.to(x.dtype), weight, p)}, p)

    def numbers(self, p: Params) -> tuple[Float[Tensor, "g 1"], Float[Tensor, "g 1"]]:
        return scales.read(self.scale, p), scales.read(self.minimum, p, "min")

    def affine(self, p: Params) -> tuple[Float[Tensor, "g 1"], Float[Tensor, "g 1"]]:
        """Scale and zero in fp32: what a kernel for equally spaced grids needs."""
        scale, low = self.numbers(p)
        return scale, low / scale
