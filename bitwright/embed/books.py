"""Which points? Ways to make a book of a given number of nibbles for coordinates y.

`Scalar`     the same points for every coordinate: those of a grid of 2 to 256 levels times the spread (levels.py)
`Product`    runs of equal width, sixteen points each by k-means: product quantization (Jegou et al., 2011) with codes of four bits
`Residual`   every nibble a point of the whole space, coding what those before it left (residual quantization, Chen et al., 2010)
`Allotted`   runs that lose least together: wide where coordinates are small, of several nibbles where they are large

    min over runs   sum over runs D(run) + sum of coordinates left out |y_j|^2   with at most t nibbles

is a shortest path from coordinate to coordinate at a price per nibble; the price is found by bisection. That is reverse
water-filling for nibbles, with the distortion of k-means, judged on held-out vectors, in place of a Gaussian formula. Ours.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float32
from torch import Tensor

from bitwright.embed.book import POINTS, Book
from bitwright.errors import BadRequest
from bitwright.grids.clusters import closest, kmeans

SAMPLE = 65536  # vectors that points are learned from
GLANCE, TOGETHER = 2048, 128  # vectors that a plan of runs is made from; runs that are looked at together


@runtime_checkable
class Maker(Protocol):
    """Makes a book of at most `nibbles` nibbles for coordinates like `y`."""

    def __call__(self, y: Float32[Tensor, "n dims"], nibbles: int) -> Book: ...


@dataclass(frozen=True)
class Product:
    rounds: int = 25
    seed: int = 0

    def __call__(self, y: Float32[Tensor, "n dims"], nibbles: int) -> Book:
        dims = y.shape[1]
        edges = [dims * i // nibbles for i in range(nibbles + 1)]
        runs = [(a, max(1, b - a)) for a, b in pairwise(edges)]  # more nibbles than coordinates: some have two
        return learned(y, runs, self.rounds, self.seed)


@dataclass(frozen=True)
class Residual:
    rounds: int = 25
    seed: int = 0

    def __call__(self, y: Float32[Tensor, "n dims"], nibbles: int) -> Book:
        return learned(y, [(0, y.shape[1])] * nibbles, self.rounds, self.seed)


@dataclass(frozen=True)
class Allotted:
    """`widths`: how many coordinates a run may have; it has up to `depth` nibbles, and what no run serves is left out. What a run
    loses is judged on vectors that its points were not learned from, else wide and deep ones would seem better than they are."""

    widths: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
    depth: int = 4
    rounds: int = 25
    seed: int = 0

    def __call__(self, y: Float32[Tensor, "n dims"], nibbles: int) -> Book:
        some = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(self.seed))[:GLANCE]]
        dims, seen = y.shape[1], len(some) // 2
        options: list[list[tuple[int, int, float]]] = [[] for _ in range(dims)]  # how far a run reaches, its nibbles, its loss
        for width in (w for w in self.widths if w <= dims):
            every = some.unfold(1, width, 1).transpose(0, 1)
            for first in range(0, len(every), TOGETHER):
                rest = every[first : first + TOGETHER].contiguous()
                for count in range(1, self.depth + 1):
                    rest = left(rest, seen, self.seed + count)
                    for start, loss in enumerate(rest[:, seen:].square().sum((1, 2)).tolist(), first):
                        options[start].append((width, count, loss))
        left_out = [*some[seen:].square().sum(0).flip(0).cumsum(0).flip(0).tolist(), 0.0]
        low, high, best = 1e-12, 1.0 + 2 * left_out[0], cheapest(options, left_out, math.inf)
        for _ in range(50):
            price = math.sqrt(low * high)
            runs = cheapest(options, left_out, price)
            if sum(count for _, _, count in runs) > nibbles:
                low = price
            else:
                high, best = price, runs
        if not best:
            raise BadRequest(f"{nibbles} nibbles hold no code of these vectors; give more bits per dimension.")
        return learned(y, [(start, width) for start, width, count in best for _ in range(count)], self.rounds, self.seed)


def cheapest(options: list[list[tuple[int, int, float]]], left_out: list[float], price: float) -> list[tuple[int, int, int]]:
    """(start, width, nibbles) of the runs from the first coordinate on that lose least when a nibble costs `price`."""
    dims = len(options)
    cost, step = [0.0] * (dims + 1), [(0, 0)] * (dims + 1)
    for at in reversed(range(dims)):
        cost[at] = left_out[at]  # to stop here
        for width, count, loss in options[at]:
            total = loss + count * price + cost[at + width]
            if total < cost[at]:
                cost[at], step[at] = total, (width, count)
    runs, at = [], 0
    while at < dims and step[at][1]:
        runs.append((at, *step[at]))
        at += step[at][0]
    return runs


def learned(y: Float32[Tensor, "n dims"], runs: list[tuple[int, int]], rounds: int, seed: int) -> Book:
    """Sixteen points per run by k-means, on what the runs before it left."""
    rest = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:SAMPLE]].clone()
    found = []
    for start, width in runs:
        part = rest[:, start : start + width]
        points = kmeans(part.contiguous(), torch.ones(len(part)), POINTS, rounds, seed)
        part -= nearest(part, points)
        found.append((start, points))
    return Book.listed(found, y.shape[1])


def left(x: Float32[Tensor, "r n w"], seen: int, seed: int) -> Float32[Tensor, "r n w"]:
    """What sixteen points leave of each run's vectors: k-means of all runs at once, a few rounds, on the first `seen` vectors."""
    gen, own = torch.Generator().manual_seed(seed), x[:, :seen].contiguous()
    low, chosen = torch.full(own.shape[:2], torch.inf), list[Tensor]()
    for u in torch.rand(POINTS, generator=gen).tolist():
        mass = (torch.ones_like(low) if not chosen else low).cumsum(1)
        at = torch.searchsorted(mass, u * mass[:, -1:], right=True).clamp_max(seen - 1)
        chosen.append(own.gather(1, at[:, :, None].expand(-1, -1, x.shape[2])))
        low = torch.minimum(low, (own - chosen[-1]).square().sum(2))
    points = torch.cat(chosen, 1)
    for _ in range(6):
        taken = one_of(own, points)
        mass = taken.sum(1)[:, :, None]
        points = torch.where(mass > 0, taken.transpose(1, 2) @ own / mass.clamp_min(1), points)
    return x - one_of(x, points) @ points


def one_of(x: Float32[Tensor, "r n w"], points: Float32[Tensor, "r 16 w"]) -> Float32[Tensor, "r n 16"]:
    """1 at the nearest point."""
    gap = torch.baddbmm(points.square().sum(2)[:, None], x, points.transpose(1, 2), alpha=-2)
    return torch.zeros_like(gap).scatter_(2, gap.argmin(2, keepdim=True), 1.0)


def nearest(part: Float32[Tensor, "n w"], points: Float32[Tensor, "16 w"]) -> Float32[Tensor, "n w"]:
    return points[closest(part, points)]
