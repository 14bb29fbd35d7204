"""Dual binarization (DB-LLM): two binary planes with a scale each, that is four points per group shaped by two numbers.

    x^ = a_1 b_1 + a_2 b_2,   b in {0, 1}:   the points a_2 < 0 < a_1 + a_2 < a_1, no longer equally spaced

The fit starts from the symmetric two-bit grid {-s, 0, s, 2s} (a_1 = 2s, a_2 = -s; `by` places its range); `polish` rounds of
nearest codes and a 2 x 2 regression of the scales follow, the best kept. Source: arXiv 2402.11960, card db-llm. The paper compares
with the midpoints, which is the nearest point while that order holds; here the nearest point is taken as it is, so scales that
training has moved out of order still code right. In squared error of weights it is nothing special (0.13 of a Gaussian's variance,
two planes of -1 and 1 have 0.11): it is made for scales that are learned. Costs two fp16 numbers per group.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.grids.base import ALONE, Kin, Leaf, Params, better, nearest_point, weighted
from bitwright.grids.fit import AbsMax, Fit, suited
from bitwright.grids.scales import Float as FloatScale
from bitwright.grids.trit_planes import START, regress

PLANES = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))  # (b_1, b_2) of every code
INIT = (2.0, -1.0)  # a_1 and a_2 in steps of the symmetric grid, whose largest point is two of them


@dataclass(frozen=True)
class DualBinary:
    """`polish`: rounds of regression after the range is placed; 0 keeps the symmetric grid."""

    by: Fit = AbsMax()
    polish: int = 0
    scale: FloatScale = FloatScale(signed=True)
    levels = 4
    width = 1

    def __post_init__(self) -> None:
        suited(self.by, self)

    @property
    def needs(self) -> tuple[str, ...]:
        return self.by.needs

    @property
    def leaves(self) -> dict[str, Leaf]:
        return {"scale": Leaf(self.scale.dtype, count=2)}

    def fit(self, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None = None, kin: Kin = ALONE) -> Params:
        weight = weight if self.needs else None
        p = self.by(self, x, weight, {}, kin)
        for _ in range(self.polish):
            p = self.refit(x, self.encode(x, p), p, weight)
        return p

    def extent(self, x: Float[Tensor, "g n"]) -> Float[Tensor, "g 1"]:
        return x.abs().amax(1, keepdim=True)

    def place(self, extent: Float[Tensor, "g 1"], keep: float, top: Params) -> Params:
        return {"scale": self.scale.store(extent * keep * extent.new_tensor(INIT), INIT[0])}

    def miss(self, x: Float[Tensor, "g n"], p: Params, out: Float[Tensor, "g n"]) -> Float[Tensor, "g n"]:
        return torch.sub(self.decode(self.encode(x, p), p), x, out=out)

    def encode(self, x: Float[Tensor, "g n"], p: Params) -> Ints[Tensor, "g n"]:
        return nearest_point(x, self.points(p)[..., None])

    def decode(self, c: Ints[Tensor, "g n"], p: Params) -> Float[Tensor, "g n"]:
        return self.points(p).gather(1, c.long())

    def refit(
        self, x: Float[Tensor, "g n"], c: Ints[Tensor, "g n"], p: Params, weight: Float[Tensor, "g n"] | None = None
    ) -> Params:
        """Ridge regression of both scales for given planes, where it helps."""
        planes = x.new_tensor(PLANES)[c.long()]
        fitted, _ = regress(x, weighted(x, weight), planes, x.new_full((len(x), 1, 1), START))
        return better(self, x, c, weight, {"scale": self.scale.store(fitted)}, p)

    def points(self, p: Params) -> Float[Tensor, "g 4"]:
        scales = self.scale.read(p["scale"])
        return scales @ scales.new_tensor(PLANES).T
