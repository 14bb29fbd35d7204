"""DiscQuant: all codes of the model at once, each between its two neighbours, pulled to a corner while the outputs stay (arXiv
2501.06417; card: discquant).

    min over x in [0, 1]^n   <c, x> + rho E KL(float || W(x)) / delta^2,    W(x) = (1 - x) below + x above,   c = 1 - 2 y

y is where the float weight lies between the two. On corners <c, x> is the distance of nearest rounding, but it is linear, so its
minimum over the few constraints that data make is a corner. delta^2 = 12 times the mean squared error of nearest rounding makes rho
mean the same at all widths. `clip` bounds what data may say against c: it is how far from the nearest point data may push.
Steps: Adam from random x, the gradient of the KL clipped, x projected back into [0, 1]. Differs from the paper: no weight decay
(theirs pulls to the lower neighbour), the best judged iterate is kept; `linear=False` leaves c out (their missing ablation).
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
from bitwright.terms.base import Terms, decode
from bitwright.training.loop import Training
from bitwright.training.problem import Problem
from bitwright.training.scopes import Model, Scope


@dataclass(frozen=True)
class DiscQuant:
    rate: float = 0.1
    rho: float = 200.0
    clip: float = 0.5
    linear: bool = True
    start: Rounding | JointRounding = Nearest()
    scope: Scope = Model()
    training: Training = Training(steps=512, warm=0.125)

    def solve(self, problem: Problem) -> Mapping[str, Terms]:
        nearest = {name: s.coder.terms(s.rest) for name, s in problem.subjects.items()}
        misses = [float((s.rest - decode(nearest[name])).square().mean()) for name, s in problem.subjects.items()]
        delta2 = 12 * sum(misses) / len(misses) or 1.0
        gain = self.rho / delta2
        boxes = {name: Box(gain, self.clip, self.linear, self.training.seed + i) for i, name in enumerate(problem.subjects)}
        return decided(problem, boxes, self.rate, self.training)


@dataclass(frozen=True)
class Box:
    """Two candidates. z holds x, the share of the upper, and y, which does not move."""

    gain: float
    clip: float
    linear: bool
    seed: int
    count = 2

    def begin(self, x: Float[Tensor, "out m v"], points: Float[Tensor, "2 out m v"]) -> Float[Tensor, "2 out m"]:
        y = position(x, points)
        return torch.stack([torch.rand(y.shape, generator=torch.Generator().manual_seed(self.seed)).to(y), y])

    def ratios(self, z: Float[Tensor, "2 out m"]) -> Float[Tensor, "2 out m"]:
        x = z[0].clone()
        if x.requires_grad:  # what data say is scaled and clipped, what `pull` says is not
            x.register_hook(lambda g: (self.gain * g).clamp(-self.clip, self.clip))
        return torch.stack([1 - x, x])

    def pull(self, z: Float[Tensor, "2 out m"], done: float) -> Tensor | None:
        return ((1 - 2 * z[1].detach()) * z[0]).sum() if self.linear else None

    def settle(self, z: Float[Tensor, "2 out m"]) -> None:
        z[0].clamp_(0, 1)
