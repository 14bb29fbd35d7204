"""Menu: every group picks one of a few tables, the one that leaves the least error. BitMoD's data types, and mixed small floats.

    t* = argmin over tables t of  sum_j d_j (x_j - s_t t(c_j))^2,    s_t = (largest magnitude) / (largest value of t)

BitMoD (arXiv 2411.11745) spends the code that a small float wastes on minus zero on one more value per group: it refines the range
(+-3 of FP3, +-5 of FP4) or extends it on one side (+-6, +-8), which gives groups the skew they really have. The scale is placed
anew for every table. Card: bitmod. Differs from the paper: errors may be weighed by the data (`by=Imatrix()`), and any fit may
place the ranges. The authors state that a patent is pending. No engine reads these; ours decodes them.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.grids.base import ALONE, Kin, Leaf, Params, better
from bitwright.grids.fit import AbsMax, Fit
from bitwright.grids.scales import Float as FloatScale
from bitwright.grids.scales import Scale, leaves
from bitwright.grids.table import TABLES, Table

FP3 = ("fp3+3", "fp3-3", "fp3+6", "fp3-6")
FP4 = ("fp4+5", "fp4-5", "fp4+8", "fp4-8")


@dataclass(frozen=True)
class Menu:
    """Scalar tables by name (`Table`), one scale per group stored as `scale`, and log2 of their number in bits to say which."""

    tables: tuple[str, ...] = FP4
    by: Fit = AbsMax()
    scale: Scale = FloatScale()
    width = 1

    def __post_init__(self) -> None:
        if len(self.tables) < 2 or any(len(TABLES.get(name, [()])[0]) != 1 for name in self.tables):
            raise BadRequest(f"A menu has two or more scalar tables, not {', '.join(self.tables) or 'none'}; see grids/table.py.")

    @property
    def levels(self) -> int:
        return max(len(TABLES[name]) for name in self.tables)

    @property
    def needs(self) -> tuple[str, ...]:
        return self.by.needs

    @property
    def leaves(self) -> dict[str, Leaf]:
        return leaves(self.scale) | {"choice": Leaf(torch.uint8, levels=len(self.tables))}

    @property
    def grids(self) -> tuple[Table, ...]:
        return tuple(Table(name, self.by, scale=self.scale) for name in self.tables)

    def fit(self, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None = None, kin: Kin = ALONE) -> Params:
        price = weight if self.needs else None
        best: Params = {}
        least = x.new_full((len(x),), torch.inf)
        for i, grid in enumerate(self.grids):
            p = grid.fit(x, price, kin)
            loss = grid.loss(x, p, price)
            p["choice"] = torch.full((len(x), 1), i, dtype=torch.uint8, device=x.device)
            if best and "scale_top" in p and not kin.shared:  # one second level for all: that of the first table
                kin = replace(kin, shared={"scale_top": best["scale_top"]})
                p = {**grid.fit(x, price, kin), "choice": p["choice"]}
                loss = grid.loss(x, p, price)
            improved = (loss < least)[:, None]
            best = {name: torch.where(improved, leaf, best.get(name, leaf)) for name, leaf in p.items()}
            least = torch.minimum(loss, least)
        return best

    def encode(self, x: Float[Tensor, "g n"], p: Params) -> Ints[Tensor, "g n"]:
        codes = torch.stack([grid.encode(x, p) for grid in self.grids])
        return codes.gather(0, p["choice"].long().expand(codes.shape[1:])[None])[0]

    def decode(self, c: Ints[Tensor, "g n"], p: Params) -> Float[Tensor, "g n"]:
        points = torch.stack([padded(grid.unit(c.device)[:, 0], self.levels) for grid in self.grids])
        scale = self.scale.read(p["scale"], p.get("scale_top"))
        return scale * points[p["choice"][:, 0].long()].gather(1, c.long())

    def refit(
        self, x: Float[Tensor, "g n"], c: Ints[Tensor, "g n"], p: Params, weight: Float[Tensor, "g n"] | None = None
    ) -> Params:
        """Least squares of the scale for given codes and choice, where it helps."""
        every = torch.stack([grid.refit(x, c.clamp_max(grid.levels - 1), p, weight)["scale"] for grid in self.grids])
        own = every.gather(0, p["choice"].long()[None])[0]
        return better(self, x, c, weight, {**p, "scale": own}, p)


def padded(points: Float[Tensor, "k"], levels: int) -> Float[Tensor, "levels"]:
    """A shorter table's last point again and again: its codes beyond are never chosen."""
    return torch.cat([points, points[-1:].expand(levels - len(points))])
