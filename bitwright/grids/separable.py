"""Separable: one bit around the mean of a row, times a factor per input column (PTQ1.61).

    x^_ij = c_j (m_i + s_i b_ij),   b in {-1, 1};      m_i the mean of row i, s_i the mean of |x_ij - m_i|, c_j = 1 at first

so that scales are a matrix of rank one: 32 bits per row and 16 per column instead of numbers for every group. On Layout(1, 1) every
weight is a group of its own, m and s belong to the output row and c to the input column. The fit knows no columns; c is there to be
learned (arXiv 2502.13179, card ptq1-61, whose row factor r_1 is in m and s, and whose r_2 is c). Where groups are wider, c is one
factor for all columns of a group.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.grids.base import ALONE, Kin, Leaf, Params, nearest_point
from bitwright.grids.scales import Float as FloatScale

STORED = FloatScale(signed=True)


@dataclass(frozen=True)
class Separable:
    levels = 2
    width = 1
    needs = ()

    @property
    def leaves(self) -> dict[str, Leaf]:
        row, column = Leaf(STORED.dtype, shared="row"), Leaf(STORED.dtype, shared="column")
        return {"mean": row, "scale": row, "column": column}

    def fit(self, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None = None, kin: Kin = ALONE) -> Params:
        rows = x.reshape(-1, kin.across * x.shape[1])
        mean = rows.mean(1, keepdim=True)
        found = {"mean": mean, "scale": (rows - mean).abs().mean(1, keepdim=True), "column": torch.ones_like(mean)}
        stored = {name: STORED.store(leaf).repeat_interleave(kin.across, 0) for name, leaf in found.items()}
        return {**stored, **{name: leaf for name, leaf in kin.shared.items() if name in stored}}

    def encode(self, x: Float[Tensor, "g n"], p: Params) -> Ints[Tensor, "g n"]:
        return nearest_point(x, self.points(p)[..., None])

    def decode(self, c: Ints[Tensor, "g n"], p: Params) -> Float[Tensor, "g n"]:
        return self.points(p).gather(1, c.long())

    def refit(
        self, x: Float[Tensor, "g n"], c: Ints[Tensor, "g n"], p: Params, weight: Float[Tensor, "g n"] | None = None
    ) -> Params:
        return p

    def points(self, p: Params) -> Float[Tensor, "g 2"]:
        mean, scale, column = (STORED.read(p[name]) for name in ("mean", "scale", "column"))
        return column * torch.cat([mean - scale, mean + scale], 1)
