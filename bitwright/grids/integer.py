"""Integer: equally spaced points, any number of them; the affine grid of RTN, GPTQ and every engine.

    M = levels - 1,  s = (max - min) / M,  q = clamp(round(x / s) + z, 0, M),  x^ = s (q - z)

The range is widened to contain 0 and shrunk by the fit. Symmetric: max = -min = largest magnitude and z = levels // 2, nothing
but s is stored. Not symmetric: z = round(-min / s), stored as a code of `levels` levels. Card: baselines, section 0.
Differs from GPTQ's released code in one corner: a group without negative weights is symmetric here too, where that code keeps
min = 0 but z = levels / 2 and so clips half the range.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.grids.base import Leaf, Params, weighted
from bitwright.grids.fit import AbsMax, Fit
from bitwright.grids.scales import Float as FloatScale
from bitwright.grids.scales import Scale


@dataclass(frozen=True)
class Integer:
    """`levels` equally spaced points (16: 4 bits; 9: 3.17 bits), ranges placed `by` a fit, scale stored as `scale`."""

    levels: int = 16
    symmetric: bool = False
    by: Fit = AbsMax()
    scale: Scale = FloatScale()
    width = 1

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 2**16:
            raise BadRequest(f"A grid has 2 to 65536 levels (1 to 16 bits), not {self.levels}; choose a number in between.")

    @property
    def needs(self) -> tuple[str, ...]:
        return self.by.needs

    @property
    def leaves(self) -> dict[str, Leaf]:
        scale = {"scale": Leaf(self.scale.dtype)}
        return scale if self.symmetric else {**scale, "zero": Leaf(torch.uint8, levels=self.levels)}

    def fit(self, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None = None) -> Params:
        return self.by(self, x, weight)

    def extent(self, x: Float[Tensor, "g n"]) -> Float[Tensor, "g 2"]:
        low, high = x.amin(1).clamp_max(0), x.amax(1).clamp_min(0)
        if self.symmetric:
            high = torch.maximum(high, -low)
            low = -high
        return torch.stack([low, high], 1)

    def place(self, extent: Float[Tensor, "g 2"], keep: float) -> Params:
        low, high = (extent * keep).split(1, 1)
        empty = (low == 0) & (high == 0)
        scale = self.scale.store(torch.where(empty, 2.0, high - low) / (self.levels - 1))
        if self.symmetric:
            return {"scale": scale}
        zero = torch.round(torch.where(empty, 1.0, -low) / self.scale.read(scale).to(low.dtype))
        return {"scale": scale, "zero": zero.clamp(0, self.levels - 1).to(small(self.levels))}

    def encode(self, x: Float[Tensor, "g n"], p: Params) -> Ints[Tensor, "g n"]:
        scale, zero = self.affine(p)
        return (torch.round(x / scale.to(x.dtype)) + zero).clamp_(0, self.levels - 1).to(small(self.levels))

    def decode(self, c: Ints[Tensor, "g n"], p: Params) -> Float[Tensor, "g n"]:
        scale, zero = self.affine(p)
        return scale * (c.float() - zero)

    def miss(self, x: Float[Tensor, "g n"], p: Params, out: Float[Tensor, "g n"]) -> Float[Tensor, "g n"]:
        scale, zero = (v.to(x.dtype) if isinstance(v, Tensor) else v for v in self.affine(p))
        torch.div(x, scale, out=out).round_().add_(zero).clamp_(0, self.levels - 1)
        return out.sub_(zero).mul_(scale).sub_(x)

    def refit(
        self, x: Float[Tensor, "g n"], c: Ints[Tensor, "g n"], p: Params, weight: Float[Tensor, "g n"] | None = None
    ) -> Params:
        """Least squares of the scale for given codes and zero."""
        step, d = c.to(x.dtype) - self.affine(p)[1], weighted(x, weight)
        up, down = (d * x * step).sum(1, keepdim=True), (d * step * step).sum(1, keepdim=True)
        usable = (up > 0) & (down > 0)
        fitted = self.scale.store(torch.where(usable, up / torch.where(usable, down, 1.0), 1.0))
        return {**p, "scale": torch.where(usable, fitted, p["scale"])}

    def affine(self, p: Params) -> tuple[Float[Tensor, "g 1"], Float[Tensor, "g 1"] | float]:
        """Scale and zero in fp32: what a kernel for equally spaced grids needs."""
        return self.scale.read(p["scale"]), float(self.levels // 2) if self.symmetric else p["zero"].float()


def small(levels: int) -> torch.dtype:
    return torch.uint8 if levels <= 256 else torch.int32
