"""Least squares: scale, minimum and the numbers that many groups share, placed together by the error they cause.

    min over s, m, q   sum_j a_j (s (q_j - z) - m - x_j)^2,      s = d c,  m = e k,  c and k small integers, d and e shared

a_j is d_j, the second moment of input j, or the price of llama.cpp's importance matrix (see fit.py), or 1. Card: formats,
section 3. Three stages:

    free    every group by itself: trial steps give codes, codes give s and m by least squares; the best trial, then Lloyd rounds
    under   d and e given: the integers c and k around the free optimum, m following c, are tried on re-rounded codes
    top     codes and integers given: d and e by least squares, from several starts; the best under its own integers is kept

`under` depends on a group and the shared numbers alone, so groups fitted again later, one by one, get the same integers. The range
of the largest weight (AbsMax) is among the candidates of every stage: no group of groups is worse than under it. Where scales
are signed the points may be turned round, so that the longer side of -4 .. 3 goes where the weights are. Grids without a
second level only have the first stage. Differs from llama.cpp: there the integers are rounded once against the largest free scale.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.grids.affine_groups import Groups
from bitwright.grids.base import ALONE, Kin, Params, weighted
from bitwright.grids.fit import importance
from bitwright.grids.shared_scales import shared, under

CHUNK = 1 << 16  # numbers worked on at a time: all that belongs to them stays in the cache


@dataclass(frozen=True)
class LeastSquares:
    """`price`: `diagonal` (d_j, from data), `imatrix` (llama.cpp's, from data) or `even`; `trials` steps, `rounds` of `top`."""

    price: Literal["diagonal", "imatrix", "even"] = "diagonal"
    trials: int = 20
    rounds: int = 3

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.price == "even" else ("gram",)

    def refuses(self, grid: Any) -> str | None:
        """Why it cannot place the points of a grid."""
        if not hasattr(grid, "affine") or (hasattr(grid, "symmetric") and not grid.symmetric):
            return "least squares places grids of equally spaced points: `offset`, or `integer` with symmetric = true"
        minimum = getattr(grid, "minimum", None)
        if minimum is not None and (minimum.shared and minimum.shared.shared) != (grid.scale.shared and grid.scale.shared.shared):
            return "least squares needs scales and minima that are shared by the same groups"
        return None

    def __call__(
        self, grid: Any, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None, top: Params, kin: Kin = ALONE
    ) -> Params:
        if why := self.refuses(grid):
            raise BadRequest(why)
        weight = weight if self.needs else None
        price = (importance if self.price == "imatrix" else weighted)(x, weight)
        free = movable(grid) and not set(top) <= set(kin.shared)
        span = grid.scale.shared.span((len(x) // kin.across, kin.across)) if free else 1
        step = max(1, CHUNK // (x.shape[1] * span)) * span
        parts = []
        for i in range(0, len(x), step):
            rows = slice(i, i + step)
            groups, above = Groups(grid, x[rows], price[rows], self.trials), {name: leaf[rows] for name, leaf in top.items()}
            if free:
                above = shared(groups, above, voters(weight, rows, span), span, self.rounds)
            parts.append(under(groups, above, wide=True)[0])
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def voters(weight: Float[Tensor, "g n"] | None, rows: slice, span: int) -> Float[Tensor, "k 1"] | float:
    """1 for groups with a say in what they share: those whose inputs fired, or all where none did."""
    if weight is None:
        return 1.0
    alive = (weight[rows] > 0).any(1).view(-1, span)
    return (alive | ~alive.any(1, keepdim=True)).view(-1, 1).to(weight.dtype)


def movable(grid: Any) -> bool:
    """Whether the numbers that groups share may be placed by least squares: integers under a float."""
    return all(codec.shared is not None and codec.own.levels > 0 for codec in codecs(grid))


def codecs(grid: Any) -> tuple[Any, ...]:
    return (grid.scale, grid.minimum) if hasattr(grid, "minimum") else (grid.scale,)
