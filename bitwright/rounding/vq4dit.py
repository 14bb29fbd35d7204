"""VQ4DiT: vectors choose among their nearest words of the book by trained ratios, and commit one by one (arXiv 2408.17131; card:
vq4dit).

    W^ = sum_j r_j C[a_j],  r = softmax(z);   loss + strength t^2 mean(n r (1 - r));   a vector with max r > 0.99 has chosen

z starts at log(d_n / d_j) of the distances, so that r falls with the distance; the book moves along, where `book_rate` is not 0
(the released code lets it move only after the choices). Also serves scalar grids, among any number of neighbours. Differs from the
paper: the pull grows with the square of t, the share of the steps done (with a constant one vectors choose before data have spoken:
0.93 of nearest rounding's error on a layer where this gives 0.59), and the loss is that of the scope (theirs: all blocks at once).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.rounding.base import JointRounding, Rounding
from bitwright.rounding.nearest import Nearest
from bitwright.rounding.soft_choice import decided
from bitwright.terms.base import Terms
from bitwright.training.loop import Training
from bitwright.training.problem import Problem
from bitwright.training.scopes import Block, Scope

CHOSEN, SETTLED = 0.99, 1e4


@dataclass(frozen=True)
class Vq4Dit:
    """`count` candidates; `rate` of z, `book_rate` of the grid's parameters."""

    count: int = 2
    rate: float = 0.05
    book_rate: float = 1e-4
    strength: float = 50.0
    start: Rounding | JointRounding = Nearest()
    scope: Scope = Block()
    training: Training = Training(optimizer="rmsprop", schedule="constant")

    def solve(self, problem: Problem) -> Mapping[str, Terms]:
        relaxed = Softmax(self.count, self.strength * problem.first / len(problem.subjects))
        return decided(problem, dict.fromkeys(problem.subjects, relaxed), self.rate, self.training, self.book_rate)


@dataclass(frozen=True)
class Softmax:
    count: int
    strength: float

    def begin(self, x: Float[Tensor, "out m v"], points: Float[Tensor, "c out m v"]) -> Float[Tensor, "c out m"]:
        far = (points - x).square().sum(-1).sqrt()
        return ((far.amax(0) + 1e-5 * far.mean()) / (far + 1e-5 * far.mean()).clamp_min(1e-30)).log()

    def ratios(self, z: Float[Tensor, "c out m"]) -> Float[Tensor, "c out m"]:
        return z.softmax(0)

    def pull(self, z: Float[Tensor, "c out m"], done: float) -> Tensor | None:
        r = self.ratios(z)
        return self.strength * done**2 * (self.count * r * (1 - r)).sum(0).mean()

    def settle(self, z: Float[Tensor, "c out m"]) -> None:
        """A choice is kept by a lead that no step can make up for."""
        r = self.ratios(z)
        one = torch.zeros_like(z).scatter_(0, r.argmax(0, keepdim=True), SETTLED)
        z.copy_(torch.where(r.amax(0) > CHOSEN, one, z))
