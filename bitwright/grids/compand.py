"""Compand: points where a companding quantizer of Laplace numbers has them, 2^depth per group (arXiv 2409.02026; card: cvxq).

    x^ = loc + scale u_c,   compander: u_c = 3/sqrt 2 F^-1((c + 1/2) / 2^depth), F the Laplace distribution,   depth = 0: x^ = loc

loc is the median, scale the deviation from it, both fp16. The compander is optimal for many points only: with few its outer points
lie too far out, so `search` tries scales 2^m and then shifts of loc, each on a grid of 1/8 in [-2, 2], for the least squared error.
Ours: `points="lloyd-max"`, the optimal points for every depth, 10 to 15 % less error from the same bits.
Differs from the paper: a number goes to its nearest point, which the paper's cells (quantiles of F) miss by a little.
O(weights log levels), 66 times that with the search.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.grids.base import ALONE, Kin, Leaf, Params
from bitwright.grids.fit import chunks
from bitwright.grids.uneven import affordable

EIGHTHS = [i / 8 for i in range(-16, 17)]
MOST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Compand:
    """`bits` per code on the average, up to `most` bits in a group."""

    bits: float = 3.0
    most: int = 8
    points: Literal["compander", "lloyd-max"] = "compander"
    search: bool = True
    width = 1
    needs = ()

    def __post_init__(self) -> None:
        if not (1 <= self.most <= 8 and 0.25 <= self.bits <= self.most):
            raise BadRequest(
                f"A companded grid has 1/4 to 8 bits, and no more than a group may have, not {self.bits} of {self.most}."
            )

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(2**b for b in range(self.most + 1))

    @property
    def levels(self) -> int:
        return self.counts[-1]

    @property
    def leaves(self) -> dict[str, Leaf]:
        return {"loc": Leaf(torch.float16), "scale": Leaf(torch.float16), "count": Leaf(torch.uint8, levels=self.most + 1)}

    def fit(self, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None = None, kin: Kin = ALONE) -> Params:
        count = torch.full_like(x[:, :1], affordable(self.counts, self.bits), dtype=torch.uint8)
        return self.recount(x, {}, count)

    def recount(self, x: Float[Tensor, "g n"], p: Params, count: Ints[Tensor, "g 1"], kin: Kin = ALONE) -> Params:
        parts = [self.placed(x[rows], count[rows].to(torch.uint8)) for rows in chunks(x)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def placed(self, x: Float[Tensor, "g n"], count: Ints[Tensor, "g 1"]) -> Params:
        loc, size = centre(x)
        best = stored(loc, size, count)
        if not self.search:
            return best
        best = self.better(x, best, [stored(loc, size * 2**m, count) for m in EIGHTHS])
        wide = best["scale"].float()
        return self.better(x, best, [stored(loc + bias * wide, wide, count) for bias in EIGHTHS])

    def better(self, x: Float[Tensor, "g n"], best: Params, trials: list[Params]) -> Params:
        """Of every group, the parameters with the least squared error; the first among equals."""
        least = self.miss(x, best)
        for p in trials:
            error = self.miss(x, p)
            best = {name: torch.where(error < least, p[name], leaf) for name, leaf in best.items()}
            least = torch.minimum(error, least)
        return best

    def miss(self, x: Float[Tensor, "g n"], p: Params) -> Float[Tensor, "g 1"]:
        return (self.decode(self.encode(x, p), p) - x).square_().sum(1, keepdim=True)

    def encode(self, x: Float[Tensor, "g n"], p: Params) -> Ints[Tensor, "g n"]:
        scale, depth = p["scale"].to(x.dtype), p["count"][:, 0]
        units = (x - p["loc"].to(x.dtype)) / torch.where(scale > 0, scale, 1.0)
        codes = torch.zeros_like(x, dtype=torch.uint8)
        for d in depth.unique().tolist():
            u = unit(self.points, d).to(x.device)
            middle = ((u[1:] + u[:-1]) / 2).to(x.dtype)
            codes[depth == d] = torch.bucketize(units[depth == d], middle).to(torch.uint8)
        return codes

    def decode(self, c: Ints[Tensor, "g n"], p: Params) -> Float[Tensor, "g n"]:
        every = torch.cat([unit(self.points, d) for d in range(self.most + 1)]).float().to(c.device)
        levels = 1 << p["count"].long()
        place = levels - 1 + torch.minimum(c.long(), levels - 1)  # the points of depth d come after 2^d - 1 others
        return p["loc"].float() + p["scale"].float() * every[place]

    def refit(
        self, x: Float[Tensor, "g n"], c: Ints[Tensor, "g n"], p: Params, weight: Float[Tensor, "g n"] | None = None
    ) -> Params:
        return p


def centre(x: Float[Tensor, "g n"]) -> tuple[Float[Tensor, "g 1"], Float[Tensor, "g 1"]]:
    """The median, as it is stored, and the deviation from it."""
    loc = x.median(1, keepdim=True).values.clamp(-MOST, MOST).half().to(x.dtype)
    return loc, (x - loc).square().mean(1, keepdim=True).sqrt()


def stored(loc: Float[Tensor, "g 1"], scale: Float[Tensor, "g 1"], count: Ints[Tensor, "g 1"]) -> Params:
    """A scale so small beside loc that points would fall together is as good as none."""
    loc, kept = loc.clamp(-MOST, MOST).half(), scale.clamp_max(MOST / 32).half()
    return {"loc": loc, "scale": torch.where(kept.float() < loc.float().abs() * 2.0**-12, 0, kept), "count": count}


@cache
def unit(points: str, depth: int) -> Float[Tensor, "k"]:
    """Points for Laplace numbers of deviation 1, ascending, fp64."""
    if depth == 0:
        return torch.zeros(1, dtype=torch.float64)
    half = 2 ** (depth - 1)
    if points == "compander":
        positive = -1.5 * 2**0.5 * torch.log(1 - (torch.arange(half, dtype=torch.float64) + 0.5) / half)
    else:
        positive = lloyd_max(half) / 2**0.5
    return torch.cat([-positive.flip(0), positive])


def lloyd_max(n: int) -> Float[Tensor, "n"]:
    """The n best points for exponential numbers of mean 1. What lies beyond a border is such a number again, so the points follow
    from the outermost inwards: r, the way from a border to the next point, is 1 there, and of each cell before
    r = 1 - w / (e^w - 1), its own mean, where its width is w = r + the r of the cell after it (borders lie midway)."""
    ways = [1.0]
    for _ in range(n - 1):
        r = torch.tensor(ways[-1], dtype=torch.float64)
        for _ in range(80):
            w = r + ways[-1]
            r = 1 - w / torch.expm1(w)
        ways.append(float(r))
    inwards = torch.tensor(ways, dtype=torch.float64).flip(0)
    return 2 * inwards.cumsum(0) - inwards[0]
