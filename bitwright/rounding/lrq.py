"""LRQ: FlexRound with a divisor of low rank, so that weights share what is learned and a few sequences do not overfit
(arXiv 2407.11534; card: lrq).

    log divisor = L U + r + c,    L [out, k] = 0, U [k, inp] random, r [out, 1] = 0, c [1, inp] = 0 at first

`share`: learned numbers per weight, k = ceil(share out inp / (out + inp)). Differs from the paper: an explicit share for every
shape, where the released code uses full FlexRound on most of them; otherwise as flexround.py says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import torch

from bitwright.rounding.base import JointRounding, Rounding
from bitwright.rounding.flexround import Divided
from bitwright.rounding.nearest import Nearest
from bitwright.terms.base import Terms
from bitwright.training.loop import Training, train
from bitwright.training.problem import Problem, Subject
from bitwright.training.scopes import Block, Scope


@dataclass(frozen=True)
class Lrq:
    share: float = 0.35
    rate: float = 1e-3
    ranges: bool = True
    start: Rounding | JointRounding = Nearest()
    scope: Scope = Block()
    training: Training = Training()

    def solve(self, problem: Problem) -> Mapping[str, Terms]:
        return train(problem, {name: self.shared(s, i) for i, (name, s) in enumerate(problem.subjects.items())}, self.training)

    def shared(self, subject: Subject, number: int) -> Divided:
        out, inp = subject.W.shape
        k = min(out, inp, ceil(self.share * out * inp / (out + inp)))
        dice = torch.Generator().manual_seed(self.training.seed + number)
        U = ((2 * torch.rand(k, inp, generator=dice) - 1) / inp**0.5).to(subject.W).requires_grad_()
        L, r, c = (subject.W.new_zeros(shape).requires_grad_() for shape in ((out, k), (out, 1), (1, inp)))
        return Divided(subject, self.rate, self.ranges, [L, U, r, c], lambda: L @ U + r + c)
