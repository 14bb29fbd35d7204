"""Ragged: equally spaced points; a range per row of groups, a number of levels per column of groups (arXiv 2506.05664; card: baq).

    s_ij = (high_i - low_i) / (L_j - 1),   z_ij = round(-low_i / s_ij),   q = clamp(round(x / s) + z, 0, L_j - 1),   x^ = s (q - z)

On Layout(1, 1) every weight is a group of its own: the range belongs to the output row, L_j to the input column, and what is stored
is separable, 32 bits per row and one number per column. L_j = 1 prunes the column to zero. All codes together get `bits` per code;
`fit` gives every column the most levels that so many bits hold, a rounding may redistribute them (allocation/water.py).
Differs from the paper: L_j is one of the numbers that pack densely (`whole`: powers of two), at most `most`; ranges are fp16.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.allocation.water import dense_counts
from bitwright.errors import BadRequest
from bitwright.grids.base import ALONE, Kin, Leaf, Params
from bitwright.grids.uneven import affordable, level_counts

FP16 = torch.finfo(torch.float16)


@dataclass(frozen=True)
class Ragged:
    """`bits` per code on the average, at most `most` levels in a column; `whole`: powers of two only. `search`: ranges are
    shrunk for the least error of the row, every error at the price that the levels of its column imply."""

    bits: float = 3.0
    most: int = 256
    whole: bool = False
    search: bool = False
    width = 1
    needs = ()

    def __post_init__(self) -> None:
        if not (2 <= self.most <= 256 and 0.25 <= self.bits <= 8):
            raise BadRequest(
                f"A ragged grid has 1/4 to 8 bits and 2 to 256 levels, not {self.bits} and {self.most}; choose others."
            )

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(2**b for b in range(self.most.bit_length())) if self.whole else dense_counts(self.most)

    @property
    def levels(self) -> int:
        return self.counts[-1]

    @property
    def leaves(self) -> dict[str, Leaf]:
        ends = {name: Leaf(torch.float16, shared="row") for name in ("low", "high")}
        return {**ends, "count": Leaf(torch.uint8, levels=len(self.counts), shared="column")}

    def fit(self, x: Float[Tensor, "g n"], weight: Float[Tensor, "g n"] | None = None, kin: Kin = ALONE) -> Params:
        p = self.widest(x, kin)
        count = torch.full_like(p["low"], affordable(self.counts, self.bits), dtype=torch.uint8)
        return {**self.recount(x, p, count, kin), **{name: leaf for name, leaf in kin.shared.items() if name in self.leaves}}

    def widest(self, x: Float[Tensor, "g n"], kin: Kin) -> Params:
        rows = x.reshape(-1, kin.across * x.shape[1])
        ends = {"low": rows.amin(1).clamp(-FP16.max, 0), "high": rows.amax(1).clamp(0, FP16.max)}
        return {name: end.half().repeat_interleave(kin.across)[:, None] for name, end in ends.items()}

    def recount(self, x: Float[Tensor, "g n"], p: Params, count: Ints[Tensor, "g 1"], kin: Kin = ALONE) -> Params:
        if not self.search:
            return {**p, "count": count.to(torch.uint8)}
        best = widest = {**self.widest(x, kin), "count": count.to(torch.uint8)}
        price = level_counts(self, best)[:, None].to(x.dtype).square()
        least = x.new_full((len(x) // kin.across,), torch.inf)
        for i in range(40):
            p = {**widest, **{name: (widest[name].float() * (1 - i / 50)).half() for name in ("low", "high")}}
            gap = (self.decode(self.encode(x, p), p) - x).abs_().pow_(2.4) * price
            error = gap.reshape(len(least), -1).sum(1)
            better = (error < least).repeat_interleave(kin.across)[:, None]
            best = {name: torch.where(better, p[name], leaf) for name, leaf in best.items()}
            least = torch.minimum(error, least)
        return best

    def encode(self, x: Float[Tensor, "g n"], p: Params) -> Ints[Tensor, "g n"]:
        scale, zero = self.affine(p)
        units = (x / scale.to(x.dtype)).round_() + zero
        return torch.minimum(units.clamp_min_(0), level_counts(self, p)[:, None] - 1).to(torch.uint8)

    def decode(self, c: Ints[Tensor, "g n"], p: Params) -> Float[Tensor, "g n"]:
        scale, zero = self.affine(p)
        return scale * (torch.minimum(c.float(), level_counts(self, p)[:, None] - 1.0) - zero)

    def refit(
        self, x: Float[Tensor, "g n"], c: Ints[Tensor, "g n"], p: Params, weight: Float[Tensor, "g n"] | None = None
    ) -> Params:
        return p

    def affine(self, p: Params) -> tuple[Float[Tensor, "g 1"], Float[Tensor, "g 1"]]:
        low, top = p["low"].float(), level_counts(self, p)[:, None] - 1.0
        spread = p["high"].float() - low
        scale = torch.where(spread > 0, spread, FP16.eps) / top.clamp_min(1)
        return scale, torch.minimum((-low / scale).round_(), top)
