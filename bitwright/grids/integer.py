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
from bitwright.grids import scales
from bitwright.grids.base import ALONE, Kin, Leaf, Params, better
from bitwright.grids.fit import AbsMax, Fit, suited
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
        suited(self.by, self)

    @property
    def needs(self) -> tuple[str, ...]:
        return self.by.needs

    @property
    def leaves(self) -> dict[str, Leaf]:
        zero = {} if self.symmetric else {"zero": Leaf(torch.uint8, levels=self.levels)}
        return scales.leaves(self.scale) | zero

    def fit(self, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None = None, kin: Kin = ALONE) -> Params:
        return self.by(self, x, weight, scales.above(self.scale, self.range(self.extent(x)), self.levels - 1.0, kin), kin)

    def range(self, extent: Float[Tensor, "g 2"]) -> Float[Tensor, "g 1"]:
        return extent[:, 1:] - extent[:, :1]

    def extent(self, x: Float[Tensor, "g n"]) -> Float[Tensor, "g 2"]:
        low, high = x.amin(1).clamp_max(0), x.amax(1).clamp_min(0)
        if self.symmetric:
            high = torch.maximum(high, -low)
            low = -high
        return torch.stack([low, high], 1)

    def place(self, extent: Float[Tensor, "g 2"], keep: float, top: Params) -> Params:
        kept = extent * keep
        stored = {"scale": self.scale.store(self.range(kept), self.levels - 1.0, top.get("scale_top")), **top}
        if self.symmetric:
            return stored
        zero = torch.round(-kept[:, :1] / scales.read(self.scale, stored).to(kept.dtype))
        return {**stored, "zero": zero.clamp(0, self.levels - 1).to(small(self.levels))}

    def encode(self, x: Float[Tensor, "g n"], p: Params) -> Ints[Tensor, "g n"]:
        scale, zero = self.affine(p)
        middle = self.levels // 2  # ties and sums as engines have them, whose codes and zero points are signed
        units = x / divisor(scale).to(x.dtype) + (zero - middle)
        return (units.round_() + middle).clamp_(0, self.levels - 1).to(small(self.levels))

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
        """Least squares of the scale for given codes and zero, where it helps."""
        step = c.to(x.dtype) - self.affine(p)[1]
        return better(self, x, c, weight, {**p, "scale": scales.fitted(self.scale, x, step, weight, p)}, p)

    def affine(self, p: Params) -> tuple[Float[Tensor, "g 1"], Float[Tensor, "g 1"] | float]:
        """Scale and zero in fp32: what a kernel for equally spaced grids needs."""
        return scales.read(self.scale, p), float(self.levels // 2) if self.symmetric else p["zero"].float()


def divisor(scale: Float[Tensor, "g 1"]) -> Float[Tensor, "g 1"]:
    """No scale of ours is zero, but other tools store zeros where a group is all zeros: any divisor will do."""
    return torch.where(scale == 0, 1.0, scale)


def small(levels: int) -> torch.dtype:
    return torch.uint8 if levels <= 256 else torch.int32
