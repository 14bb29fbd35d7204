"""FlexRound: every weight is divided by a number of its own before it is rounded, and the ranges move along (arXiv 2306.00317;
card: flexround).

    W^ = nearest point to W / (S2 s3) on the grid stretched by s1,   S2 [out, inp], s3 [out, 1], s1 per group, all > 0, 1 at first

learned by their logarithms; the start is nearest rounding, and large weights are moved most: dW^/d log S2 = -W / (S2 s3).
Differs from the paper: any grid, any layout (s1 where groups have scales of their own); the best judged iterate is kept, where the
released code keeps the last; the extra scale per input channel of convolutions is left out. It holds three numbers more per weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
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
class FlexRound:
    """`rate`: of all logarithms; `ranges`: whether s1 is learned."""

    rate: float = 3e-3
    ranges: bool = True
    start: Rounding | JointRounding = Nearest()
    scope: Scope = Block()
    training: Training = Training()

    def solve(self, problem: Problem) -> Mapping[str, Terms]:
        return train(
            problem, {name: Divided.full(s, self.rate, self.ranges) for name, s in problem.subjects.items()}, self.training
        )


class Divided:
    """One matrix divided by exp(`divisor`) before it is rounded. `factors`: what the logarithm of the divisor is made of."""

    def __init__(self, subject: Subject, rate: float, ranges: bool, factors: list[Tensor], divisor: Any) -> None:
        self.subject, self.rate, self.factors, self.divisor = subject, rate, factors, divisor
        self.origin, self.ranges = subject.origin, Ranges(subject.coder, subject.rest, ranges)

    @classmethod
    def full(cls, subject: Subject, rate: float, ranges: bool = True) -> "Divided":
        each = torch.zeros_like(subject.W, requires_grad=True)
        rows = torch.zeros_like(subject.W[:, :1], requires_grad=True)
        return cls(subject, rate, ranges, [each, rows], lambda: each + rows)

    def divided(self) -> Float[Tensor, "out inp"]:
        found: Tensor = self.origin * (-self.divisor()).exp()
        return found

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [*self.factors, *self.ranges.tensors()], "lr": self.rate}]

    def weight(self) -> Float[Tensor, "out inp"]:
        return self.subject.whole(self.ranges.snap(self.divided()))

    def pull(self, done: float) -> Tensor | None:
        return None

    def settle(self, done: float) -> None:
        return None

    def terms(self) -> Terms:
        return self.subject.terms(self.ranges.now(), self.divided())
