"""The soft choice: for every code a few candidates, a weight in between, and a commitment that grows until one is left.

    W^ = sum_j r_j P_j,   r = ratios(z) >= 0, sum_j r_j = 1,   P_j: the matrix in which every code is its candidate j

What methods differ in is a relaxation: how z starts, what r is of z, and what drives r to a corner. The candidates are, on scalar
grids, the points below and above a weight, or the `count` nearest points, on grids of vectors too. Cards: gradient-ptq (AdaRound),
discquant, vq4dit.
"""

from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.errors import BadRequest
from bitwright.grids.base import points
from bitwright.grids.uneven import Uneven, level_counts
from bitwright.terms.base import Terms
from bitwright.terms.coded import Coded, narrowed
from bitwright.training.live import Live, sum_of
from bitwright.training.problem import Subject


@runtime_checkable
class Relaxation(Protocol):
    """z is what the optimizer moves; its rows are the relaxation's own business."""

    @property
    def count(self) -> int:
        """Candidates of a code."""

    def begin(self, x: Float[Tensor, "out m v"], points: Float[Tensor, "c out m v"]) -> Float[Tensor, "z out m"]:
        """z, from the weights and their candidates."""

    def ratios(self, z: Float[Tensor, "z out m"]) -> Float[Tensor, "c out m"]: ...

    def pull(self, z: Float[Tensor, "z out m"], done: float) -> Tensor | None:
        """What drives the ratios to a corner when this share of the steps is done: added to the loss."""

    def settle(self, z: Float[Tensor, "z out m"]) -> None:
        """Bring z back to where it may be, and keep what is decided, in place."""


class SoftChoice:
    """One matrix as a choice among candidates. `book_rate`: of the grid's own parameters, 0 where they stay."""

    def __init__(self, subject: Subject, relaxed: Relaxation, rate: float, book_rate: float = 0.0) -> None:
        self.subject, self.relaxed, self.rate, self.book_rate = subject, relaxed, rate, book_rate
        coded = [t for t in subject.start if isinstance(t, Coded)]
        self.live = Live(coded)
        targets = [subject.origin if t.columns is None else subject.origin[:, t.columns.long()] for t in coded]
        self.codes = [candidates(t, x, relaxed.count) for t, x in zip(coded, targets)]
        self.z = [begun(relaxed, t, x, c).requires_grad_() for t, x, c in zip(coded, targets, self.codes)]
        self.points = None if book_rate else [self.spelled(i) for i in range(len(coded))]

    def spelled(self, i: int) -> Float[Tensor, "c out inp"]:
        """The matrix of every candidate of term i."""
        term, params = self.live.coded[i], self.live.params(i) if self.book_rate else self.live.coded[i].params
        return torch.stack([replace(term, codes=c, params=params).decode() for c in self.codes[i]])

    def groups(self) -> list[dict[str, Any]]:
        books = [{"params": self.live.tensors(), "lr": self.book_rate}] if self.book_rate and self.live.tensors() else []
        return [{"params": self.z, "lr": self.rate}, *books]

    def weight(self) -> Float[Tensor, "out inp"]:
        return self.subject.whole(sum_of([self.mixed(i) for i in range(len(self.z))]))

    def mixed(self, i: int) -> Float[Tensor, "out inp"]:
        term, r = self.live.coded[i], self.relaxed.ratios(self.z[i]).repeat_interleave(self.live.coded[i].grid.width, -1)
        if term.columns is not None:
            r = r.new_zeros(len(r), *term.shape).index_copy(2, term.columns.long(), r)
        return ((self.spelled(i) if self.points is None else self.points[i]) * r).sum(0)

    def pull(self, done: float) -> Tensor | None:
        parts = [pull for z in self.z if (pull := self.relaxed.pull(z, done)) is not None]
        return sum(parts[1:], start=parts[0]) if parts else None

    def settle(self, done: float) -> None:
        for z in self.z:
            self.relaxed.settle(z)

    def undecided(self) -> float:
        """The share of codes whose greatest ratio is below 0.99."""
        with torch.no_grad():
            most = torch.cat([self.relaxed.ratios(z).amax(0).flatten() for z in self.z])
        return float((most < 0.99).float().mean())

    def terms(self) -> Terms:
        chosen = iter(
            replace(term, codes=codes.gather(0, self.relaxed.ratios(z).argmax(0, keepdim=True))[0], params=self.live.stored(i))
            for i, (term, codes, z) in enumerate(zip(self.live.coded, self.codes, self.z))
        )
        return tuple(next(chosen) if isinstance(t, Coded) else t for t in self.subject.start)


def candidates(term: Coded, x: Float[Tensor, "out k"], count: int) -> Ints[Tensor, "c out m"]:
    """Codes: of the points below and above on a scalar grid where `count` is 2, else of the nearest; the very nearest again where a
    group has no more points. Raises BadRequest where the grid does not have as many."""
    grid, narrow = term.grid, narrowed(term.layout, term.grid.width)
    if count > grid.levels:
        raise BadRequest(f"A choice among {count} candidates needs a grid of as many points, not {grid.levels}; give it fewer.")
    every = points(grid, term.params)
    most = torch.full((len(every), 1), grid.levels, device=x.device)
    if isinstance(grid, Uneven):
        most = level_counts(grid, term.params)[:, None].to(x.device)
    vectors = term.layout.split(x).reshape(len(every), -1, grid.width)
    straddled = grid.width == 1 and count == 2
    found = around(vectors[..., 0], every[..., 0], most) if straddled else nearest(vectors, every, most, count)
    return torch.stack([narrow.join(c, (x.shape[0], x.shape[1] // grid.width)) for c in found])


def around(x: Float[Tensor, "g n"], points: Float[Tensor, "g k"], most: Ints[Tensor, "g 1"]) -> Ints[Tensor, "2 g n"]:
    """The points below and above, the outermost two beyond the ends; of every group, only the first `most` codes count."""
    there = torch.arange(points.shape[1], device=x.device) < most
    ascending, code = points.to(x.dtype).masked_fill(~there, torch.inf).sort(1)
    above = torch.searchsorted(ascending.contiguous(), x.contiguous())
    above = torch.minimum(above.clamp_min(1), most - 1)
    return torch.stack([code.gather(1, (above - 1).clamp_min(0)), code.gather(1, above)])


def nearest(
    x: Float[Tensor, "g n v"], points: Float[Tensor, "g k v"], most: Ints[Tensor, "g 1"], count: int, chunk: int = 1 << 24
) -> Ints[Tensor, "c g n"]:
    """The `count` nearest, the very nearest first."""
    there, found = torch.arange(points.shape[1], device=x.device) < most, []
    step = max(1, chunk // (x.shape[1] * points.shape[1] * points.shape[2]))
    for part, of, own in zip(x.split(step), points.to(x.dtype).split(step), there.split(step)):
        far = torch.cdist(part, of).masked_fill(~own[:, None], torch.inf)
        least = far.topk(count, dim=2, largest=False, sorted=True)
        found.append(torch.where(least.values.isfinite(), least.indices, least.indices[..., :1]))
    return torch.cat(found).permute(2, 0, 1)


def begun(relaxed: Relaxation, term: Coded, x: Float[Tensor, "out k"], codes: Ints[Tensor, "c out m"]) -> Float[Tensor, "z out m"]:
    spelled = [replace(term, codes=c).decode() for c in codes]
    own = spelled if term.columns is None else [p[:, term.columns.long()] for p in spelled]
    vectors = (len(x), -1, term.grid.width)
    return relaxed.begin(x.view(vectors), torch.stack([p.to(x.dtype).view(vectors) for p in own]))


def position(x: Float[Tensor, "out m v"], points: Float[Tensor, "2 out m v"]) -> Float[Tensor, "out m"]:
    """Where a vector lies on the way between its two candidates, from 0 to 1; halfway where they are one."""
    way = points[1] - points[0]
    length = way.square().sum(-1)
    along = ((x - points[0]) * way).sum(-1) / torch.where(length == 0, 1.0, length)
    return torch.where(length == 0, 0.5, along.clamp(0, 1))
