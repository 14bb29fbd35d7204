"""The three stages of `LeastSquares` (least_squares.py) on some groups: free, under, shared.

Sums of a group are [g, 1]: with prices a, numbers x and codes q (counted from the grid's zero), A = sum a, Ax = sum a x, and so
on. The error of given codes needs no second look at the numbers:

    sum a (s q - m - x)^2  =  Axx - 2 s Axq + s^2 Aqq + 2 m Ax - 2 s m Aq + m^2 A
"""

from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.grids import scales
from bitwright.grids.base import Params

Sums = tuple[Tensor, Tensor, Tensor]
STARTS = (1.0, 0.9, 1.1)  # of what the largest free scale asks of the number that groups share
FLAT = 1e-6  # a determinant this small against its terms is rounding


class Task:
    """Groups `x` with prices `a` under second levels `top`. `low` .. `high`: codes counted from the grid's zero."""

    def __init__(self, grid: Any, x: Float[Tensor, "g n"], a: Float[Tensor, "g n"], top: Params, trials: int) -> None:
        self.grid, self.x, self.a, self.top, self.trials = grid, x, a, top, trials
        self.offset = hasattr(grid, "minimum")
        zero = 0 if self.offset else grid.levels // 2
        self.low, self.high = -float(zero), float(grid.levels - 1 - zero)
        self.ax, self.out, self.work = a * x, torch.empty_like(x), torch.empty_like(x)
        self.A, self.Ax = a.sum(1, keepdim=True), self.ax.sum(1, keepdim=True)
        self.turned = getattr(grid.scale, "signed", False)
        self.lifted = self.offset and getattr(grid.minimum, "signed", False)

    # --- free: every group by itself -----------------------------------------------------------------------------------------

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
        best = (s, m if isinstance(m, Tensor) else torch.zeros_like(s), torch.zeros_like(s), torch.full_like(s, torch.inf))
        for start in [*self.starts(), None, None]:
            sums = self.sums(self.codes(*start) if start else self.codes(best[0], best[1] if self.offset else 0.0))
            s, m, error = self.solved(sums)
            better = error < best[3]
            best = tuple(torch.where(better, new, old) for new, old in zip((s, m, sums[0] / self.A, error), best))
        return best[:3]

    # --- under: the integers, given what is shared ---------------------------------------------------------------------------

    def around(self, codec: Any, amount: Float[Tensor, "g 1"], top: Tensor | None, reach: int) -> list[Tensor]:
        """Stored neighbours of a number."""
        if codec.shared is None and codec.own.dtype.is_floating_point:
            near = [amount]
        elif top is not None and codec.own.levels:
            near = [amount + j * top.to(amount.dtype) for j in range(-reach, reach + 1)]
        else:
            near = [amount * f for f in (1.0, 0.7, 0.93, 1.07, 1.42)]
        return [codec.store(n, 1.0, top) for n in near]

    def under(self, top: Params, wide: bool = False) -> tuple[Params, Float[Tensor, "g 1"]]:
        """The best stored numbers of every group and their errors."""
        s, m, mean = self.free
        best = self.grid.place(self.grid.extent(self.x), 1.0, top)
        least = self.error(best)
        for scale in self.around(self.grid.scale, s, top.get("scale_top"), 2 if wide else 1):
            p = {**best, "scale": scale}
            if not self.offset:
                best, least = self.kept(p, best, least)
                continue
            moved = m + (scales.read(self.grid.scale, p).to(s.dtype) - s) * mean  # the middle of the points stays where it is
            for low in self.around(self.grid.minimum, moved, top.get("min_top"), 1):
                best, least = self.kept({**p, "min": low}, best, least)
        return best, least

    def kept(self, new: Params, old: Params, least: Float[Tensor, "g 1"]) -> tuple[Params, Float[Tensor, "g 1"]]:
        error = self.error(new)
        better = error < least
        return {name: torch.where(better, new[name], old[name]) for name in old}, torch.where(better, error, least)

    def error(self, p: Params) -> Float[Tensor, "g 1"]:
        return self.grid.miss(self.x, p, self.out).square_().mul_(self.a).sum(1, keepdim=True)

    # --- shared: what groups share -------------------------------------------------------------------------------------------

    def shared(self, span: int, rounds: int) -> Params:
        """Second levels by least squares under their own integers, from several starts."""
        best, least = self.top, self.x.new_full((len(self.x) // span, 1), torch.inf)
        for top in [self.top, *(self.first(span, f) for f in STARTS)]:
            for _ in range(rounds):
                p, errors = self.under(top)
                error = errors.view(-1, span).sum(1, keepdim=True)
                better = (error < least).repeat_interleave(span, 0)
                best = {name: torch.where(better, top[name], best[name]) for name in best}
                least = torch.minimum(least, error)
                top = self.refitted(p, span)
        return best

    def first(self, span: int, share: float) -> Params:
        """Second levels under which the largest free scale has the largest code, times `share`."""
        found = {}
        for name, codec, amount in (("scale", self.grid.scale, self.free[0]), ("min", None, self.free[1])):
            codec = codec or getattr(self.grid, "minimum", None)
            if codec is None:
                continue
            parts = amount.view(-1, span)
            peak = parts.gather(1, parts.abs().argmax(1, keepdim=True))
            most = -codec.zero if codec.signed else codec.levels - 1  # signed codes reach further down
            found[f"{name}_top"] = half(peak / most * share, self.top[f"{name}_top"], span)
        return found

    def refitted(self, p: Params, span: int) -> Params:
        """x = d u - e k with u = c q: two unknowns for each group of groups."""
        grid, q = self.grid, self.quantized(p)
        Aq, Aqq, Axq = self.sums(q)
        c = p["scale"].to(q.dtype) - grid.scale.zero
        total = lambda t: t.view(-1, span).sum(1, keepdim=True)  # noqa: E731
        uu, ux = total(c * c * Aqq), total(c * Axq)
        if not self.offset:
            return {"scale_top": half(ux / uu, p["scale_top"], span)}
        k = p["min"].to(q.dtype) - grid.minimum.zero
        uk, kk, kx = total(c * k * Aq), total(k * k * self.A), total(k * self.Ax)
        det = uu * kk - uk * uk
        solid = det > FLAT * uu * kk
        d = torch.where(solid, (ux * kk - uk * kx) / det, ux / uu)
        e = torch.where(solid, (uk * ux - uu * kx) / det, 0.0)
        return {"scale_top": half(d, p["scale_top"], span), "min_top": half(e, p["min_top"], span)}

    def quantized(self, p: Params) -> Float[Tensor, "g n"]:
        """Codes counted from the grid's zero, as numbers."""
        s = scales.read(self.grid.scale, p).to(self.x.dtype)
        return self.codes(s, scales.read(self.grid.minimum, p, "min").to(self.x.dtype) if self.offset else 0.0)


def half(new: Float[Tensor, "s 1"], old: Float[Tensor, "g 1"], span: int) -> Float[Tensor, "g 1"]:
    """Rounded to fp16 for every group; what was there where the new number is none or has another sign."""
    wide = new.half().repeat_interleave(span, 0)
    return torch.where(wide.isfinite() & (wide != 0), wide, old)
