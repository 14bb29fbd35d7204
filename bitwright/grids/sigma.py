"""Sigma: the range of a group is its mean and so many standard deviations to both sides (card: cora).

    [low, high] = [max(min x, mu - k sigma), min(max x, mu + k sigma)]

What is cut is left to a correction: big outliers lie in few directions, which a low-rank term picks up.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.grids.base import ALONE, Kin, Params
from bitwright.grids.fit import Placeable


@dataclass(frozen=True)
class Sigma:
    """`reach` standard deviations."""

    reach: float = 3.0
    needs = ()

    def __call__(
        self, grid: Placeable, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None, top: Params, kin: Kin = ALONE
    ) -> Params:
        mean, wide = x.mean(1, keepdim=True), self.reach * x.std(1, keepdim=True, correction=0)
        cut = torch.minimum(torch.maximum(x, mean - wide), mean + wide)
        return grid.place(grid.extent(cut), 1.0, top)
