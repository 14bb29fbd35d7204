"""HQQ: the minimum of a group by half-quadratic splitting, without data (Badri and Shaji 2023, a blog post; card: baselines).

    min over m, e of  sum |e_j|^p + beta/2 (x_j - x^_j - e_j)^2,    e <- shrink(x - x^),    m <- mean(s q - (x - e))

with shrink(u) = sign(u) max(0, |u| - |u|^(p-1) / beta), p < 1: the few large errors go to e and no longer pull the minimum. The
scale stays that of the whole range. Differs from the released code: the best minimum of all rounds by mean |x - x^| is kept per
group (that code ends one round after its best), the integer zero point is among them, and errors are in units of the step. There
they are in units of the weights, where nothing below 0.17 is shrunk: beta and p have no effect on weights of usual size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.grids.base import ALONE, Kin, Params


@dataclass(frozen=True)
class Hqq:
    """Defaults of hqq: `rounds` of norm `power`, `beta` growing by `kappa` a round."""

    power: float = 0.7
    beta: float = 10.0
    kappa: float = 1.01
    rounds: int = 20
    needs = ()

    def refuses(self, grid: Any) -> str | None:
        """Why it cannot place the points of a grid."""
        if hasattr(grid, "minimum") and grid.minimum.shared is None and grid.scale.shared is None:
            return None
        return "HQQ moves a minimum that groups have for themselves: that of the grid `offset` with plain scales"

    def __call__(
        self, grid: Any, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None, top: Params, kin: Kin = ALONE
    ) -> Params:
        p: Params = grid.place(grid.extent(x), 1.0, top)
        scale, low = grid.numbers(p)[0].to(x.dtype), -grid.extent(x)[:, :1]
        whole = {**p, "min": grid.lowest(-scale * (low / scale).round(), top)}
        best = closer(grid, x, whole, p)
        for i in range(self.rounds):
            codes = grid.encode(x, p)
            gap = (x - grid.decode(codes, p).to(x.dtype)) / scale
            size = gap.abs()
            apart = gap.sign() * (size - size.pow(self.power - 1) / (self.beta * self.kappa**i)).clamp_min(0)
            low = (scale * (codes + apart) - x).mean(1, keepdim=True)
            p = {**p, "min": grid.lowest(-low, top)}
            best = closer(grid, x, p, best)
        return best


def closer(grid: Any, x: Float[Tensor, "g n"], new: Params, old: Params) -> Params:
    """Group by group, the parameters of the smaller mean absolute error; the old among equals."""
    errors = [(grid.decode(grid.encode(x, p), p) - x).abs().sum(1, keepdim=True) for p in (new, old)]
    return {name: torch.where(errors[0] < errors[1], new[name], old[name]) for name in old}
