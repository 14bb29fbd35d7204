"""Table: a fixed list of K points in R^width, stretched by one scale per group: nf4, small floats, ternary, binary, roots4.

    x^ = s t_c,    s = keep * (largest magnitude in the group) / (largest magnitude in the table)

`roots4` is the table of the fourth roots of unity {1, i, -1, -i} as points of the plane: a code stands for two neighbouring
weights of which one is zero, one bit per weight. After the fit has placed the range, `polish` rounds of "nearest codes, then
least-squares scale" follow and the best is kept; it matters for tables of few points, whose best scale is far from absmax.
Between two points of a small float (eXmY) a number goes to the nearest, halfway to the even code, as hardware does. A real
exponent bias is such a table times its scale. The values are in tables.py.
"""

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.grids import scales
from bitwright.grids.base import ALONE, Kin, Leaf, Params, better, nearest_point, weighted
from bitwright.grids.fit import AbsMax, Fit, suited
from bitwright.grids.scales import Float as FloatScale
from bitwright.grids.scales import Scale
from bitwright.grids.tables import TABLES


@dataclass(frozen=True)
class Table:
    """The points of TABLES[`table`], one scale per group."""

    table: str = "nf4"
    by: Fit = AbsMax()
    polish: int = 0
    scale: Scale = FloatScale()

    def __post_init__(self) -> None:
        if self.table not in TABLES:
            raise BadRequest(f"There is no table {self.table!r}; choose one of {', '.join(TABLES)}.")
        suited(self.by, self)

    @property
    def levels(self) -> int:
        return len(TABLES[self.table])

    @property
    def width(self) -> int:
        return len(TABLES[self.table][0])

    @property
    def needs(self) -> tuple[str, ...]:
        return self.by.needs

    @property
    def leaves(self) -> dict[str, Leaf]:
        return scales.leaves(self.scale)

    @property
    def reach(self) -> float:
        return max(sum(v * v for v in point) ** 0.5 for point in TABLES[self.table])

    def fit(self, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None = None, kin: Kin = ALONE) -> Params:
        weight = weight if self.needs else None
        best = self.by(self, x, weight, scales.above(self.scale, self.extent(x), self.reach, kin), kin)
        least = self.loss(x, best, weight)
        for _ in range(self.polish):
            p = self.refit(x, self.encode(x, best), best, weight)
            loss = self.loss(x, p, weight)
            improved = (loss < least)[:, None]
            least, best = torch.minimum(loss, least), {**best, "scale": torch.where(improved, p["scale"], best["scale"])}
        return best

    def loss(self, x: Float[Tensor, "g n"], p: Params, weight: Float[Tensor, "g n"] | None) -> Float[Tensor, "g"]:
        return ((self.decode(self.encode(x, p), p) - x).square() * weighted(x, weight)).sum(1)

    def extent(self, x: Float[Tensor, "g n"]) -> Float[Tensor, "g 1"]:
        length = x.view(len(x), -1, self.width).norm(dim=2) if self.width > 1 else x.abs()
        return length.amax(1, keepdim=True)

    def place(self, extent: Float[Tensor, "g 1"], keep: float, top: Params) -> Params:
        return {"scale": self.scale.store(extent * keep, self.reach, top.get("scale_top")), **top}

    def miss(self, x: Float[Tensor, "g n"], p: Params, out: Float[Tensor, "g n"]) -> Float[Tensor, "g n"]:
        return torch.sub(self.decode(self.encode(x, p), p), x, out=out)

    def encode(self, x: Float[Tensor, "g n"], p: Params) -> Ints[Tensor, "g m"]:
        scale = scales.read(self.scale, p)
        if self.width > 1:
            return nearest_point(x, scale[..., None] * self.unit(x.device))
        units = (x / scale.to(x.dtype)).contiguous()
        return torch.bucketize(units, boundaries(self.table).to(x.device, x.dtype)).to(torch.uint8)

    def decode(self, c: Ints[Tensor, "g m"], p: Params) -> Float[Tensor, "g n"]:
        return scales.read(self.scale, p) * self.unit(c.device)[c.long()].flatten(1)

    def refit(
        self, x: Float[Tensor, "g n"], c: Ints[Tensor, "g m"], p: Params, weight: Float[Tensor, "g n"] | None = None
    ) -> Params:
        """Least squares of the scale for given codes, where it helps."""
        unit = self.unit(c.device)[c.long()].flatten(1).to(x.dtype)
        return better(self, x, c, weight, {**p, "scale": scales.fitted(self.scale, x, unit, weight, p)}, p)

    def unit(self, device: torch.device) -> Float[Tensor, "k width"]:
        return torch.tensor(TABLES[self.table], device=device)


@cache
def boundaries(table: str) -> Float[Tensor, "b"]:
    """Where one point of an ascending scalar table ends and the next begins, fp32: a number that is equal belongs to the lower
    point. Of small floats every second lies just below the midpoint, so that ties go to even codes."""
    points = torch.tensor(TABLES[table])[:, 0]
    middle = (points[1:] + points[:-1]) / 2
    if table.startswith("e"):
        up = (torch.arange(len(middle)) - len(middle) // 2) % 2 != 0
        middle[up] = torch.nextafter(middle, torch.tensor(-torch.inf))[up]
    return middle
