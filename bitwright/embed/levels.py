"""The same few levels for every coordinate: scalar grids, which need no training once vectors are rotated.

    min over p   E (z - p[c(z)])^2,   z a standard normal number, c(z) the level nearest to it

as a random rotation makes coordinates nearly normal (RaBitQ; EDEN, Vargaftik et al., 2022). Levels lie anywhere (Lloyd, 1957;
Max, 1960) or equally spaced at the step that loses least. A nibble has sixteen points, so 3 levels cost as much as 4.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float32
from scipy.optimize import minimize_scalar
from scipy.special import ndtr
from torch import Tensor

from bitwright.embed.book import POINTS, Book
from bitwright.errors import BadRequest
from bitwright.progress import Progress, silent

Spacing = Literal["lloyd-max", "uniform"]


@dataclass(frozen=True)
class Scalar:
    """2 to 256 `levels` for every coordinate, stretched by the spread of them all: those that quantize a normal number with least
    squared error, anywhere (`lloyd-max`, up to 16) or equally spaced (`uniform`). A nibble holds as many coordinates as it can;
    more than 16 levels are sums of a coarse and a fine nibble, and become the next product of two numbers."""

    levels: int = 2
    spacing: Spacing = "lloyd-max"

    def __call__(self, y: Float32[Tensor, "n dims"], nibbles: int, progress: Progress = silent) -> Book:
        spread, dims = y.square().mean().sqrt(), y.shape[1]
        if not 2 <= self.levels <= POINTS**2 or self.spacing not in get_args(Spacing):
            raise BadRequest(f"There is no grid of {self.levels} {self.spacing} levels; choose 2 to 256, lloyd-max or uniform.")
        if self.levels > POINTS:
            return self.two(spread, dims)
        width = each(self.levels)
        if dims % width:
            raise BadRequest(
                f"{dims} coordinates of {self.levels} levels do not fill nibbles of {width}; choose a multiple of {width}."
            )
        points = (lloyd_max if self.spacing == "lloyd-max" else uniform)(self.levels) * spread
        corners = torch.cartesian_prod(*[points] * width).view(-1, width)
        full = torch.cat([corners, corners[:1].expand(POINTS - len(corners), width)])  # what is too much is the first again
        return Book.listed([(start, full) for start in range(0, dims, width)], dims)

    def two(self, spread: Tensor, dims: int) -> Book:
        if self.spacing == "lloyd-max":
            raise BadRequest(f"Only equally spaced levels are sums of two nibbles, and {self.levels} take two; choose uniform.")
        inner = -(-self.levels // POINTS)
        outer = -(-self.levels // inner)
        step = spread * (uniform(outer * inner)[1] - uniform(outer * inner)[0])
        coarse, fine = ((torch.arange(POINTS).clamp_max(n - 1) - (n - 1) / 2)[:, None] * size
                        for n, size in ((outer, inner * step), (inner, step)))  # fmt: skip
        return Book.listed([(j, points) for j in range(dims) for points in (coarse, fine)], dims)


@dataclass(frozen=True)
class Filled:
    """`bits` 1, 2 or 4 for every coordinate, and twice as many for the first of them, until the nibbles are used up: after a
    rotation all are alike, so any number of bits between two grids is a share of coordinates on the finer one."""

    bits: int = 1
    spacing: Spacing = "lloyd-max"

    def __call__(self, y: Float32[Tensor, "n dims"], nibbles: int, progress: Progress = silent) -> Book:
        coarse, width, dims = Scalar(2**self.bits, self.spacing), 4 // self.bits, y.shape[1]
        finer = width * max(0, min(nibbles - dims // width, dims // width))
        fine = Scalar(4**self.bits, self.spacing if self.bits < 4 else "uniform")
        parts = [(0, fine, y[:, :finer])] * (finer > 0) + [(finer, coarse, y[:, finer:])] * (finer < dims)
        books = [(at, grid(part, nibbles)) for at, grid, part in parts]
        runs = [(at + start, points[:, :wide]) for at, book in books
                for start, wide, points in zip(book.starts.tolist(), book.widths.tolist(), book.points)]  # fmt: skip
        return Book.listed(runs, dims)


def each(levels: int) -> int:
    """Coordinates that a nibble holds."""
    return max(width for width in (1, 2, 4) if levels**width <= POINTS)


def lloyd_max(levels: int) -> Float32[Tensor, "levels"]:
    """The points that quantize a standard normal number with least squared error (Lloyd, 1957; Max, 1960): each is the mean of
    the numbers that are nearest to it."""
    normal = torch.distributions.Normal(0.0, 1.0)
    points = normal.icdf((torch.arange(levels, dtype=torch.float64) + 0.5) / levels)
    for _ in range(2000):
        edges = torch.cat([torch.tensor([-torch.inf]).double(), (points[1:] + points[:-1]) / 2, torch.tensor([torch.inf]).double()])
        density, below = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi), normal.cdf(edges)
        points = (density[:-1] - density[1:]) / (below[1:] - below[:-1])
    return points.float()


def uniform(levels: int) -> Float32[Tensor, "levels"]:
    """Equally spaced, symmetric, at the step of least squared error for a standard normal number."""
    ranks = np.arange(levels) - (levels - 1) / 2

    def lost(step: float) -> float:
        points, edges = ranks * step, np.concatenate([[-40.0], ranks[1:] * step - step / 2, [40.0]])
        density, below = np.exp(-(edges**2) / 2) / math.sqrt(2 * math.pi), ndtr(edges)
        own = np.diff(below)
        return float((own - np.diff(edges * density) + 2 * points * np.diff(density) + points**2 * own).sum())

    step = minimize_scalar(lost, bounds=(1 / levels, 16 / levels), method="bounded", options={"xatol": 1e-9}).x
    return torch.from_numpy(ranks * step).float()
