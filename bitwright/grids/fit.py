"""Fits: where a group's points are placed. A grid offers `extent(x)`, the range of a group, and `place(extent, keep, top)`, the
parameters for that range shrunk to a share `keep`, under second levels `top` that groups share.

    absmax    keep = 1: the range reaches the largest weight
    mse       keep* = argmin over keep in {1, .99, .98, ..., .21} of  sum |x^ - x|^exponent       (card: baselines, section 0)
    imatrix   the same with the price of each place from the data,   sum a_j |x^ - x|^2,   a_j = d_j sqrt(mean(x^2) + x_j^2)

d_j is the second moment of input j. The imatrix price is the one of llama.cpp's importance matrix (card: formats, section 3):
the square root lets large weights count more, as they meet larger activations more often than independence would have it.
Exponent 2.4 is GPTQ's; 2 is plain squared error.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.grids.base import ALONE, Kin, Params, weighted

CHUNK = 1 << 18  # numbers worked on at a time: the search stays in the cache


@runtime_checkable
class Placeable(Protocol):
    """What a fit needs of a grid."""

    def extent(self, x: Float[Tensor, "g n"]) -> Float[Tensor, "g e"]: ...
    def place(self, extent: Float[Tensor, "g e"], keep: float, top: Params) -> Params: ...
    def miss(self, x: Float[Tensor, "g n"], p: Params, out: Float[Tensor, "g n"]) -> Float[Tensor, "g n"]:
        """decode(encode(x)) - x, written into `out`: the search makes no other large tensor."""


@runtime_checkable
class Fit(Protocol):
    @property
    def needs(self) -> tuple[str, ...]: ...

    def __call__(
        self, grid: Placeable, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None, top: Params, kin: Kin = ALONE
    ) -> Params:
        """Parameters of every group. `top`: second levels by the largest ranges, or as `kin.shared` fixes them."""


def suited(by: Fit, grid: object) -> None:
    """Raises BadRequest where a fit cannot place the points of a grid and says so (`refuses`)."""
    why = by.refuses(grid) if hasattr(by, "refuses") else None
    if why:
        raise BadRequest(f"{why[0].upper()}{why[1:]}; choose another fit.")


@dataclass(frozen=True)
class AbsMax:
    """The range of the group, unshrunk."""

    needs = ()

    def __call__(
        self, grid: Placeable, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None, top: Params, kin: Kin = ALONE
    ) -> Params:
        return grid.place(grid.extent(x), 1.0, top)


@dataclass(frozen=True)
class Mse:
    """Shrink both ends by 1/steps at a time down to 1 - shrink, keep the least error per group; data-free."""

    exponent: float = 2.4
    steps: int = 100
    shrink: float = 0.8
    needs = ()

    def __call__(
        self, grid: Placeable, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None, top: Params, kin: Kin = ALONE
    ) -> Params:
        return search(grid, x, None, top, self.exponent, self.steps, self.shrink)


@dataclass(frozen=True)
class Imatrix:
    """The search of `Mse` under the data's price of each place."""

    exponent: float = 2.0
    steps: int = 100
    shrink: float = 0.8
    needs = ("gram",)

    def __call__(
        self, grid: Placeable, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None, top: Params, kin: Kin = ALONE
    ) -> Params:
        return search(grid, x, importance(x, weight), top, self.exponent, self.steps, self.shrink)


def importance(x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None) -> Float[Tensor, "g n"]:
    return weighted(x, weight) * (x.square().mean(1, keepdim=True) + x.square()).sqrt()


def search(
    grid: Placeable,
    x: Float[Tensor, "g n"],
    price: Float[Tensor, "g n"] | None,
    top: Params,
    exponent: float,
    steps: int,
    shrink: float,
) -> Params:
    """The best of the shrunk ranges for each group; the widest among equals."""
    parts = []
    for rows in chunks(x):
        part, out, above = x[rows], torch.empty_like(x[rows]), {name: leaf[rows] for name, leaf in top.items()}
        extent, least = grid.extent(part), x.new_full((len(part),), torch.inf)
        best = grid.place(extent, 1.0, above)
        for i in range(int(shrink * steps)):
            p = grid.place(extent, 1 - i / steps, above)
            gap = grid.miss(part, p, out).abs_()
            loss = gap.square_() if exponent == 2 else gap.pow_(exponent)
            error = (loss if price is None else loss.mul_(price[rows])).sum(1)
            better = error < least
            least = torch.where(better, error, least)
            best = {name: torch.where(better[:, None], p[name], leaf) for name, leaf in best.items()}
        parts.append(best)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def chunks(x: Float[Tensor, "g n"]) -> Iterator[slice]:
    step = max(1, CHUNK // x.shape[1])
    yield from (slice(i, i + step) for i in range(0, len(x), step))
