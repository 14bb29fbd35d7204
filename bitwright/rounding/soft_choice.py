"""The soft choice: for every code a few candidates, a weight in between, and a commitment that grows until one is left.

    W^ = sum_j r_j P_j,   r = ratios(z) >= 0, sum_j r_j = 1,   P_j: the matrix in which every code is its candidate j

What methods differ in is a relaxation: how z starts, what r is of z, and what drives r to a corner. The candidates are, on scalar
grids, the points below and above a weight, or the `count` nearest points, on grids of vectors too. Cards: gradient-ptq (AdaRound),
discquant, vq4dit.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.rounding.neighbours import candidates
from bitwright.terms.base import Terms
from bitwright.terms.coded import Coded
from bitwright.training.live import Live, sum_of
from bitwright.training.loop import Training, train
from bitwright.training.problem import Problem, Subject


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
        coded = subject.coded
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
        chosen = [
            replace(term, codes=codes.gather(0, self.relaxed.ratios(z).argmax(0, keepdim=True))[0], params=self.live.stored(i))
            for i, (term, codes, z) in enumerate(zip(self.live.coded, self.codes, self.z))
        ]
        return self.subject.with_codes(chosen)


def decided(
    problem: Problem, relaxed: Mapping[str, Relaxation], rate: float, how: Training, book_rate: float = 0.0
) -> Mapping[str, Terms]:
    """Train the choices of all matrices, each by its relaxation; notes in the problem how many were still open."""
    found = {name: SoftChoice(subject, relaxed[name], rate, book_rate) for name, subject in problem.subjects.items()}
    terms = train(problem, found, how)
    problem.note(f"{max(v.undecided() for v in found.values()):.2%} of the choices were undecided at the end")
    return terms


def begun(relaxed: Relaxation, term: Coded, x: Float[Tensor, "out k"], codes: Ints[Tensor, "c out m"]) -> Float[Tensor, "z out m"]:
    spelled = [replace(term, codes=c).decode() for c in codes]
    own = spelled if term.columns is None else [p[:, term.columns.long()] for p in spelled]
    vectors = (len(x), -1, term.grid.width)
    return relaxed.begin(x.view(vectors), torch.stack([p.to(x.dtype).view(vectors) for p in own]))
