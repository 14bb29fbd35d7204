"""AWQ's clip: the largest weights of a group are cut where that hurts the output least (arXiv 2306.00978; card: baselines).

    keep* = argmin over keep in {1, .95, ..., .55} of  sum_j d_j (x^_j - x_j)^2,     the range cut to +- keep * (largest magnitude)

Only an end that reaches beyond the cut moves, where `mse` and `imatrix` shrink both. d_j is the second moment of input j: the
paper's error of the group's output on sampled tokens, without the cross terms between inputs, which a fit does not see. The
paper leaves q and k unclipped, which a rule of the recipe can say. AWQ's other half, scales folded into the inputs, is a transform.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.grids.base import ALONE, Kin, Params, weighted
from bitwright.grids.fit import Placeable, chunks


@dataclass(frozen=True)
class AwqClip:
    """Cuts by 1/`steps` at a time, down to 1 - `shrink`."""

    steps: int = 20
    shrink: float = 0.5
    needs = ("gram",)

    def __call__(
        self, grid: Placeable, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None, top: Params, kin: Kin = ALONE
    ) -> Params:
        price, parts = weighted(x, weight), []
        for rows in chunks(x):
            part, out, above = x[rows], torch.empty_like(x[rows]), {name: leaf[rows] for name, leaf in top.items()}
            extent, least = grid.extent(part), x.new_full((len(part), 1), torch.inf)
            reach, best = extent.abs().amax(1, keepdim=True), grid.place(extent, 1.0, above)
            for i in range(int(self.shrink * self.steps)):
                cut = reach * (1 - i / self.steps)
                p = grid.place(torch.minimum(torch.maximum(extent, -cut), cut), 1.0, above)
                error = grid.miss(part, p, out).square_().mul_(price[rows]).sum(1, keepdim=True)
                best = {name: torch.where(error < least, p[name], leaf) for name, leaf in best.items()}
                least = torch.minimum(error, least)
            parts.append(best)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
