"""AdaRound: up or down for every weight, learned through a sigmoid that reaches 0 and 1 (arXiv 2004.10568; the harness of card
gradient-ptq, which studies it).

    W^ = below + h (above - below),   h = clamp(1.2 sigmoid(z) - 0.1, 0, 1),   min loss / unit + strength mean(1 - |2h - 1|^beta)

h starts at the position of the weight between its neighbours; beta falls from 20 to 2 after the first fifth of the steps. `unit`
is the loss of the start, so that one strength serves every layer and width. Differs from the paper: that unit, any scalar grid,
held-out judging. Under scope "one matrix" it is the paper's layer by layer, under Block() it is BRECQ's (arXiv 2102.05426).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.rounding.base import JointRounding, Rounding
from bitwright.rounding.nearest import Nearest
from bitwright.rounding.neighbours import position
from bitwright.rounding.soft_choice import decided
from bitwright.terms.base import Terms
from bitwright.training.loop import Training
from bitwright.training.problem import Problem
from bitwright.training.scopes import Block, Scope

STRETCH, WARM, BETA = 0.1, 0.2, (20.0, 2.0)


@dataclass(frozen=True)
class AdaRound:
    rate: float = 0.03
    strength: float = 50.0
    start: Rounding | JointRounding = Nearest()
    scope: Scope = Block()
    training: Training = Training(schedule="constant")

    def solve(self, problem: Problem) -> Mapping[str, Terms]:
        relaxed = Sigmoid(self.strength * problem.first / len(problem.subjects))
        return decided(problem, dict.fromkeys(problem.subjects, relaxed), self.rate, self.training)


@dataclass(frozen=True)
class Sigmoid:
    """Two candidates; z is the inverse of h."""

    strength: float
    count = 2

    def begin(self, x: Float[Tensor, "out m v"], points: Float[Tensor, "2 out m v"]) -> Float[Tensor, "1 out m"]:
        inner = (position(x, points) + STRETCH) / (1 + 2 * STRETCH)
        return inner.logit()[None]

    def ratios(self, z: Float[Tensor, "1 out m"]) -> Float[Tensor, "2 out m"]:
        h = (z[0].sigmoid() * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)
        return torch.stack([1 - h, h])

    def pull(self, z: Float[Tensor, "1 out m"], done: float) -> Tensor | None:
        if done < WARM:
            return None
        beta = BETA[1] + (BETA[0] - BETA[1]) * (1 - (done - WARM) / (1 - WARM))
        return self.strength * (1 - (2 * self.ratios(z)[1] - 1).abs().pow(beta)).mean()

    def settle(self, z: Float[Tensor, "1 out m"]) -> None:
        return None
