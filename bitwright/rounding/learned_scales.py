"""Learned scales: every float parameter of the grids follows its own gradient, and the codes follow the parameters.

    W^ = decode(c, p),   c = nearest codes to V under p, found anew after every step,   V = W at first
    dW^/dp = the derivative of decode at these codes;     dW^/dV = 1 (straight through)

This is how DB-LLM learns its two scales per group (arXiv 2402.11960; card: db-llm), on any grid: where straight_through.py
stretches all points of a group by one factor, here they move by themselves. `rate` 0 leaves V where it is: then nothing but scales
is learned, and a code changes only when its point does. With codes that do not follow it is `share` 0 of pv_tuning.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from bitwright.rounding.base import JointRounding, Rounding
from bitwright.rounding.nearest import Nearest
from bitwright.terms.base import Terms
from bitwright.training.live import Live
from bitwright.training.loop import Training, train
from bitwright.training.problem import Problem, Subject
from bitwright.training.scopes import Block, Scope


@dataclass(frozen=True)
class LearnedScales:
    """`rate` of the weights, `range_rate` of the parameters: both as shares of the mean size of what they move."""

    rate: float = 1e-2
    range_rate: float = 1e-3
    start: Rounding | JointRounding = Nearest()
    scope: Scope = Block()
    training: Training = Training()

    def solve(self, problem: Problem) -> Mapping[str, Terms]:
        return train(problem, {n: Followed(s, self.rate, self.range_rate) for n, s in problem.subjects.items()}, self.training)


class Followed:
    """One matrix: live parameters, and the codes nearest to V under them."""

    def __init__(self, subject: Subject, rate: float, range_rate: float) -> None:
        self.subject, self.rate, self.range_rate = subject, rate, range_rate
        self.coder, self.live = subject.coder, Live(subject.coded)
        self.V = subject.origin.clone().requires_grad_()

    def groups(self) -> list[dict[str, Any]]:
        moved = [(t, self.range_rate) for t in self.live.tensors() if self.range_rate]
        if self.rate or not moved:
            moved.append((self.V, self.rate))
        return [{"params": [t], "lr": rate * float(t.detach().abs().mean())} for t, rate in moved]

    def weight(self) -> Float[Tensor, "out inp"]:
        return self.subject.whole(self.live.decode() + (self.V - self.V.detach()))

    def pull(self, done: float) -> Tensor | None:
        return None

    def settle(self, done: float) -> None:
        now = replace(self.coder, params=tuple(self.live.stored(i) for i in range(len(self.live.coded))))
        self.live.coded = now.terms(self.V.detach())

    def terms(self) -> Terms:
        return self.subject.with_codes(self.live.terms())
