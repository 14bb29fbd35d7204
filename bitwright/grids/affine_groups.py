"""Groups of equally spaced points by themselves: scale and minimum by least squares, nothing shared and nothing rounded.

Sums of a group are [g, 1]: with prices a, numbers x and codes q (counted from the grid's zero), A = sum a, Ax = sum a x, and so
on. The error of given codes needs no second look at the numbers:

    sum a (s q - m - x)^2  =  Axx - 2 s Axq + s^2 Aqq + 2 m Ax - 2 s m Aq + m^2 A
"""

from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Sums = tuple[Tensor, Tensor, Tensor]
FLAT = 1e-6  # a determinant this small against its terms is rounding


class Groups:
    """Groups `x` with prices `a`. `low` .. `high`: codes counted from the grid's zero; `turned`, `lifted`: scales and minima may be
    negative; `out` and `work`: room for what is as large as the groups."""

    def __init__(self, grid: Any, x: Float[Tensor, "g n"], a: Float[Tensor, "g n"], trials: int) -> None:
        self.grid, self.x, self.a, self.trials = grid, x, a, trials
        self.offset = hasattr(grid, "minimum")
        zero = 0 if self.offset else grid.levels // 2
        self.low, self.high = -float(zero), float(grid.levels - 1 - zero)
        self.ax, self.out, self.work = a * x, torch.empty_like(x), torch.empty_like(x)
        self.A, self.Ax = a.sum(1, keepdim=True), self.ax.sum(1, keepdim=True)
        self.turned = getattr(grid.scale, "signed", False)
        self.lifted = self.offset and getattr(grid.minimum, "signed", False)

    def codes(self, s: Float[Tensor, "g 1"], m: Float[Tensor, "g 1"] | float) -> Float[Tensor, "g n"]:
        units = torch.div(self.x, s, out=self.out) if isinstance(m, float) else torch.add(self.x, m, out=self.out).div_(s)
        return units.round_().clamp_(self.low, self.high)

    def sums(self, q: Float[Tensor, "g n"]) -> Sums:
        """Aq, Aqq, Axq."""
        aq = torch.mul(q, self.a, out=self.work)
        Aq, Aqq = aq.sum(1, keepdim=True), aq.mul_(q).sum(1, keepdim=True)
        return Aq, Aqq, torch.mul(q, self.ax, out=aq).sum(1, keepdim=True)

    def solved(self, sums: Sums) -> tuple[Tensor, Tensor, Tensor]:
        """Scale, minimum and error (less Axx) by least squares; an infinite error where there is no legal solution."""
        Aq, Aqq, Axq = sums
        plain = Axq / Aqq
        s, m = plain, torch.zeros_like(plain)
        if self.offset:
            det = self.A * Aqq - Aq * Aq
            both = (self.A * Axq - self.Ax * Aq) / det
            lift = (both * Aq - self.Ax) / self.A
            legal = (det > FLAT * self.A * Aqq) & (both > 0) & (True if self.lifted else lift >= 0)
            s, m = torch.where(legal, both, plain), torch.where(legal, lift, m)
        error = s * (s * Aqq - 2 * Axq - 2 * m * Aq) + m * (2 * self.Ax + m * self.A)
        return s, m, torch.where(s.isfinite() & (s.abs() if self.turned else s).gt(0), error, torch.inf)

    def starts(self) -> list[tuple[Tensor, Tensor | float]]:
        """Trial steps: the range over a number of steps about that of the grid."""
        low, high = self.x.amin(1, keepdim=True), self.x.amax(1, keepdim=True)
        if not self.lifted:
            low, high = low.clamp_max(0), high.clamp_min(0)
        wide = (high - low) if self.offset else torch.maximum(high, -low)
        wide = torch.where(wide > 0, wide, 1.0)
        reach = self.high if self.offset else -self.low
        slack = max(0.9 if self.offset else 1.2, 0.06 * reach)
        found: list[tuple[Tensor, Tensor | float]] = []
        for i in range(self.trials):
            s = wide / max(reach + slack * (2 * (i + 0.5) / self.trials - 1), reach / 2)
            if self.offset:  # from the lower end up, and from the middle out
                found += [(s, -low), (s, reach / 2 * s - (low + high) / 2)]
            else:
                found += [(s, 0.0)] + ([(-s, 0.0)] if self.turned else [])
        return found

    @cached_property
    def free(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scale, minimum and mean code of every group with nothing shared or rounded."""
        s, m = self.starts()[0]
        best = [s, m if isinstance(m, Tensor) else torch.zeros_like(s), torch.zeros_like(s), torch.full_like(s, torch.inf)]
        for start in [*self.starts(), None, None]:
            sums = self.sums(self.codes(*start) if start else self.codes(best[0], best[1] if self.offset else 0.0))
            s, m, error = self.solved(sums)
            better = error < best[3]
            best = [torch.where(better, new, old) for new, old in zip((s, m, sums[0] / self.A, error), best)]
        return best[0], best[1], best[2]
