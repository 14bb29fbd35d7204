"""Which points? Ways to make a book of a given number of nibbles for coordinates y.

`Scalar`     the same points for every coordinate: those of a grid of 2 to 256 levels times the spread (levels.py)
`Product`    runs of equal width, sixteen points each by k-means: product quantization (Jegou et al., 2011) with codes of four bits
`Residual`   every nibble a point of the whole space, coding what those before it left (residual quantization, Chen et al., 2010)
`Additive`   groups of coordinates, in each a sum of nibbles: additive quantization (Babenko and Lempitsky, 2014), in groups

    min over points   sum of |y - sum over t of P_t[c_t]|^2,   codes c being the best sums that a beam finds (kernels)

takes turns: codes for the points, then, all points of a group at once, the points for the codes, by least squares (LSQ, Martinez
et al., 2016). The start is k-means nibble by nibble. Coordinates of unequal worth are dealt to groups before (`Dealt`): a group of
eight nibbles gives each of its coordinates what it is worth, and no plan is needed. Against LSQ: no annealing, a beam instead of
local search; a ridge of one vector per point holds points that few vectors use.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from bitwright.embed.book import POINTS, Book
from bitwright.embed.projections import edges
from bitwright.grids.clusters import closest, kmeans
from bitwright.kernels.nibbles_reference import TOGETHER, together
from bitwright.progress import Progress, silent

SAMPLE = 65536  # vectors that points are learned from


@runtime_checkable
class Maker(Protocol):
    """Makes a book of at most `nibbles` nibbles for coordinates like `y`."""

    def __call__(self, y: Float32[Tensor, "n dims"], nibbles: int, progress: Progress = silent) -> Book: ...


@dataclass(frozen=True)
class Product:
    rounds: int = 25
    seed: int = 0

    def __call__(self, y: Float32[Tensor, "n dims"], nibbles: int, progress: Progress = silent) -> Book:
        places = edges(y.shape[1], nibbles)
        runs = [(a, max(1, b - a)) for a, b in pairwise(places)]  # more nibbles than coordinates: some have two
        return learned(some(y, self.seed), runs, self.rounds, self.seed, progress)


@dataclass(frozen=True)
class Residual:
    rounds: int = 25
    seed: int = 0

    def __call__(self, y: Float32[Tensor, "n dims"], nibbles: int, progress: Progress = silent) -> Book:
        return learned(some(y, self.seed), [(0, y.shape[1])] * nibbles, self.rounds, self.seed, progress)


@dataclass(frozen=True)
class Additive:
    """`turns`: how often codes and points are chosen for each other."""

    rounds: int = 6
    turns: int = 8
    seed: int = 0

    def __call__(self, y: Float32[Tensor, "n dims"], nibbles: int, progress: Progress = silent) -> Book:
        sample, count = some(y, self.seed), groups(nibbles, y.shape[1])
        runs = [
            (a, b - a)
            for (a, b), (first, last) in zip(pairwise(edges(y.shape[1], count)), pairwise(edges(nibbles, count)))
            for _ in range(first, last)
        ]
        book = learned(sample, runs, self.rounds, self.seed, progress)
        for turn in range(self.turns):
            book = settled(book, sample, book.encode(sample))
            progress("points", turn + 1, self.turns)
        return book


def groups(nibbles: int, dims: int) -> int:
    """As many as nibbles that are chosen together."""
    return min(dims, -(-nibbles // TOGETHER))


def some(y: Float32[Tensor, "n dims"], seed: int) -> Float32[Tensor, "m dims"]:
    return y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:SAMPLE]]


def learned(y: Float32[Tensor, "n dims"], runs: list[tuple[int, int]], rounds: int, seed: int, progress: Progress) -> Book:
    """Sixteen points per run by k-means, on what the runs before it left."""
    rest, found = y.clone(), []
    for start, width in runs:
        part = rest[:, start : start + width]
        points = kmeans(part.contiguous(), torch.ones(len(part)), POINTS, rounds, seed)
        part -= points[closest(part, points)]
        found.append((start, points))
        progress("nibbles", len(found), len(runs))
    return Book.listed(found, y.shape[1])


def settled(book: Book, y: Float32[Tensor, "n dims"], codes: UInt8[Tensor, "n t"]) -> Book:
    """The points that leave least for these codes, those of nibbles that are chosen together at once."""
    rest, points = y - book.decode(codes), book.points.clone()
    for first, last in together(book.starts, book.widths):
        start, width = int(book.starts[first]), int(book.widths[first])
        part, own = rest[:, start : start + width], points[first:last, :, :width]
        taken = torch.nn.functional.one_hot(codes[:, first:last].long(), POINTS).flatten(1).float()
        normal = taken.T @ taken + torch.eye(taken.shape[1])
        step = torch.linalg.solve(normal, taken.T @ part)
        own += step.view_as(own)
        part -= taken @ step
    return replace(book, points=points)
