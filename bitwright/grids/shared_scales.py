"""What groups store of the free solution: integers under numbers that they share, and those numbers.

under    d and e given: integers c and k around the free optimum, k following c, tried on re-rounded codes
shared   codes and integers given, x = d u - e k with u = c q: d and e by least squares, from several starts
"""

from typing import Any

import torch
from jaxtyping import Float, Float16
from torch import Tensor

from bitwright.grids import scales
from bitwright.grids.affine_groups import FLAT, Groups
from bitwright.grids.base import Params

STARTS = (1.0, 0.9, 1.1)  # of what the largest free scale asks of the number that groups share


def around(codec: Any, amount: Float[Tensor, "g 1"], top: Tensor | None, reach: int) -> list[Tensor]:
    """Stored neighbours of a number."""
    if codec.shared is None and codec.own.dtype.is_floating_point:
        near = [amount]
    elif top is not None and codec.own.levels:
        near = [amount + j * top.to(amount.dtype) for j in range(-reach, reach + 1)]
    else:
        near = [amount * f for f in (1.0, 0.7, 0.93, 1.07, 1.42)]
    return [codec.store(n, 1.0, top) for n in near]


def under(groups: Groups, top: Params, wide: bool = False) -> tuple[Params, Float[Tensor, "g 1"]]:
    """The best stored numbers of every group and their errors."""
    s, m, mean = groups.free
    best = groups.grid.place(groups.grid.extent(groups.x), 1.0, top)
    least = errors(groups, best)
    for scale in around(groups.grid.scale, s, top.get("scale_top"), 2 if wide else 1):
        p = {**best, "scale": scale}
        if not groups.offset:
            best, least = kept(groups, p, best, least)
            continue
        moved = m + (scales.read(groups.grid.scale, p).to(s.dtype) - s) * mean  # the middle of the points stays where it is
        for low in around(groups.grid.minimum, moved, top.get("min_top"), 1):
            best, least = kept(groups, {**p, "min": low}, best, least)
    return best, least


def kept(groups: Groups, new: Params, old: Params, least: Float[Tensor, "g 1"]) -> tuple[Params, Float[Tensor, "g 1"]]:
    error = errors(groups, new)
    better = error < least
    return {name: torch.where(better, new[name], old[name]) for name in old}, torch.where(better, error, least)


def errors(groups: Groups, p: Params) -> Float[Tensor, "g 1"]:
    return groups.grid.miss(groups.x, p, groups.out).square_().mul_(groups.a).sum(1, keepdim=True)


def shared(groups: Groups, given: Params, live: Float[Tensor, "g 1"] | float, span: int, rounds: int) -> Params:
    """Second levels by least squares under their own integers, from several starts. `live`: 0 for groups that have no say."""
    best, least = given, groups.x.new_full((len(groups.x) // span, 1), torch.inf)
    for top in [given, *(first(groups, given, span, f) for f in STARTS)]:
        for _ in range(rounds):
            p, own = under(groups, top)
            error = (own * live).view(-1, span).sum(1, keepdim=True)
            better = (error < least).repeat_interleave(span, 0)
            best = {name: torch.where(better, top[name], best[name]) for name in best}
            least = torch.minimum(least, error)
            top = refitted(groups, p, live, span)
    return best


def first(groups: Groups, given: Params, span: int, share: float) -> Params:
    """Second levels under which the largest free scale has the largest code, times `share`."""
    found = {}
    for name, codec, amount in (("scale", groups.grid.scale, groups.free[0]), ("min", None, groups.free[1])):
        codec = codec or getattr(groups.grid, "minimum", None)
        if codec is None:
            continue
        parts = amount.view(-1, span)
        peak = parts.gather(1, parts.abs().argmax(1, keepdim=True))
        most = -codec.zero if codec.signed else codec.levels - 1  # signed codes reach further down
        found[f"{name}_top"] = half(peak / most * share, given[f"{name}_top"], span, codec.signed)
    return found


def refitted(groups: Groups, p: Params, live: Float[Tensor, "g 1"] | float, span: int) -> Params:
    """x = d u - e k with u = c q: two unknowns for each group of groups."""
    grid, q = groups.grid, quantized(groups, p)
    Aq, Aqq, Axq = groups.sums(q)
    c = p["scale"].to(q.dtype) - grid.scale.zero
    total = lambda t: (t * live).view(-1, span).sum(1, keepdim=True)  # noqa: E731
    uu, ux = total(c * c * Aqq), total(c * Axq)
    if not groups.offset:
        return {"scale_top": half(ux / uu, p["scale_top"], span, grid.scale.signed)}
    k = p["min"].to(q.dtype) - grid.minimum.zero
    uk, kk, kx = total(c * k * Aq), total(k * k * groups.A), total(k * groups.Ax)
    det = uu * kk - uk * uk
    solid = det > FLAT * uu * kk
    d = torch.where(solid, (ux * kk - uk * kx) / det, ux / uu)
    e = torch.where(solid, (uk * ux - uu * kx) / det, 0.0)
    return {
        "scale_top": half(d, p["scale_top"], span, grid.scale.signed),
        "min_top": half(e, p["min_top"], span, grid.minimum.signed),
    }


def quantized(groups: Groups, p: Params) -> Float[Tensor, "g n"]:
    """Codes counted from the grid's zero, as numbers."""
    s = scales.read(groups.grid.scale, p).to(groups.x.dtype)
    return groups.codes(s, scales.read(groups.grid.minimum, p, "min").to(groups.x.dtype) if groups.offset else 0.0)


def half(new: Float[Tensor, "s 1"], old: Float16[Tensor, "g 1"], span: int, signed: bool) -> Float16[Tensor, "g 1"]:
    """Rounded to fp16 for every group; what was there where the new number is none, zero, or of the wrong sign."""
    wide = new.half().repeat_interleave(span, 0)
    return torch.where(wide.isfinite() & (wide != 0 if signed else wide > 0), wide, old)
