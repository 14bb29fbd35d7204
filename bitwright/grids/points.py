"""Points: every group has a table of its own, K free numbers (SqueezeLLM's codebook per row; card: squeezellm).

    x^ = t_c,    t_1 .. t_K stored with the group

Where they lie is the fit's business: `kmeans-dp` finds the best K under the price of each error, the fits by range space them
evenly between the two ends of the group. Costs 16 K bits per group, so groups are rows: 3 bits on rows of 4096 are 3.03.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.grids.base import ALONE, Kin, Leaf, Params, better, nearest_point, weighted
from bitwright.grids.fit import Fit
from bitwright.grids.kmeans import KMeans


@dataclass(frozen=True)
class Points:
    """`levels` points per group, stored as `dtype`, placed `by` a fit."""

    levels: int = 8
    by: Fit = KMeans()
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    width = 1

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 256:
            raise BadRequest(f"A table has 2 to 256 points (1 to 8 bits), not {self.levels}; choose a number in between.")

    @property
    def needs(self) -> tuple[str, ...]:
        return self.by.needs

    @property
    def leaves(self) -> dict[str, Leaf]:
        return {"points": Leaf(getattr(torch, self.dtype), count=self.levels)}

    def fit(self, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None = None, kin: Kin = ALONE) -> Params:
        return self.by(self, x, weight if self.needs else None, {}, kin)

    def extent(self, x: Float[Tensor, "g n"]) -> Float[Tensor, "g 2"]:
        return torch.stack(torch.aminmax(x, dim=1), 1)

    def place(self, extent: Float[Tensor, "g 2"], keep: float, top: Params) -> Params:
        """Evenly spaced between the two ends."""
        share = torch.linspace(0, 1, self.levels, dtype=extent.dtype, device=extent.device)
        return self.store(keep * (extent[:, :1] * (1 - share) + extent[:, 1:] * share))

    def store(self, points: Float[Tensor, "g k"]) -> Params:
        dtype: torch.dtype = getattr(torch, self.dtype)
        most = torch.finfo(dtype).max
        return {"points": points.clamp(-most, most).to(dtype)}

    def miss(self, x: Float[Tensor, "g n"], p: Params, out: Float[Tensor, "g n"]) -> Float[Tensor, "g n"]:
        return torch.sub(self.decode(self.encode(x, p), p), x, out=out)

    def encode(self, x: Float[Tensor, "g n"], p: Params) -> Ints[Tensor, "g n"]:
        return nearest_point(x, p["points"].float()[..., None])

    def decode(self, c: Ints[Tensor, "g n"], p: Params) -> Float[Tensor, "g n"]:
        return p["points"].float().gather(1, c.long())

    def refit(
        self, x: Float[Tensor, "g n"], c: Ints[Tensor, "g n"], p: Params, weight: Float[Tensor, "g n"] | None = None
    ) -> Params:
        """Every point to the weighted mean of what is coded by it, where that helps the group."""
        d, code = weighted(x, weight), c.long()
        mass, pull = (torch.zeros_like(p["points"], dtype=x.dtype).scatter_add_(1, code, part) for part in (d, d * x))
        moved = torch.where(mass > 0, pull / torch.where(mass > 0, mass, 1.0), p["points"].to(x.dtype))
        return better(self, x, c, weight, self.store(moved), p)
