"""Straight-through: the weights themselves move, and are rounded to nearest in every forward pass.

    W^ = nearest point to V on the grid stretched by s,     V = W at first;     dW^/dV = 1 inside the range (straight through)

With the rates of AdaQuant it is AdaQuant's calibration of weights and weight ranges (arXiv 2006.10518; card: adaquant); with larger
ones it is what quantization-aware training does, and what PV-Tuning is compared with. A continuous nudge with nearest rounding, not
a choice among neighbours: at 2 to 3 bits GPTQ on the same ranges is better, says the literature, and so does our log.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from bitwright.rounding.base import JointRounding, Rounding
from bitwright.rounding.nearest import Nearest
from bitwright.terms.base import Terms
from bitwright.training.loop import Training, train
from bitwright.training.problem import Problem, Subject
from bitwright.training.ranges import Ranges
from bitwright.training.scopes import Block, Scope


@dataclass(frozen=True)
class StraightThrough:
    """`rate` of the weights, as a share of their mean size; `range_rate` of the logarithms of the ranges (0: they stay);
    `input_rate` of the ranges of static inputs, as a share of them, where the scope quantizes inputs (0: they stay)."""

    rate: float = 1e-3
    range_rate: float = 1e-3
    start: Rounding | JointRounding = Nearest()
    input_rate: float = 0.0
    scope: Scope = Block()
    training: Training = Training()

    def solve(self, problem: Problem) -> Mapping[str, Terms]:
        for one in problem.inputs.values():
            one.learn(self.input_rate)
        found = train(problem, {n: Nudged(s, self.rate, self.range_rate) for n, s in problem.subjects.items()}, self.training)
        for one in problem.inputs.values():
            one.learn(0.0)
        return found


class Nudged:
    def __init__(self, subject: Subject, rate: float, range_rate: float) -> None:
        self.subject, self.range_rate = subject, range_rate
        self.V = subject.origin.clone().requires_grad_()
        self.rate = rate * float(subject.rest.abs().mean())
        self.ranges = Ranges(subject.coder, subject.rest, range_rate > 0)

    def groups(self) -> list[dict[str, Any]]:
        scales = self.ranges.tensors()
        return [{"params": [self.V], "lr": self.rate}, *([{"params": scales, "lr": self.range_rate}] if scales else [])]

    def weight(self) -> Float[Tensor, "out inp"]:
        return self.subject.whole(self.ranges.snap(self.V))

    def pull(self, done: float) -> Tensor | None:
        return None

    def settle(self, done: float) -> None:
        return None

    def terms(self) -> Terms:
        return self.subject.terms(self.ranges.now(), self.V.detach())
