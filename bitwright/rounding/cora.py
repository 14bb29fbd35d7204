"""CoRa: what rounding loses is added back as thin products, whose ranks are found by gradient through a soft rank (arXiv
2408.00923; card: cora).

    W^ = W_q + sum_i T_i(rho) s_i u_i v_i^T,   W - W_q = U S V^T,   T_i(rho) = 1 / sqrt(1 + (i / (R rho))^(2 p))
    min over rho in [1/R, 1]^m   loss + exp(relu(sum_l w_l rho_l - budget)),    w_l = R_l (out + inp) / weights of all

No weight is trained: one number per matrix is, its soft rank R rho, the half-power point of a low-pass over singular values.
Then ranks ceil(R rho), lowered where the last direction is worth least per byte until the budget is met; factors in int8.
Differs from the paper: the loss is KL to the float model, on unlabelled data; every matrix may have an adapter, linears and
grouped convolutions too; a rank may fall to 0. Terms grow by what was found, so a dry run foretells the start alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.rounding.base import JointRounding, Rounding
from bitwright.rounding.nearest import Nearest
from bitwright.terms.base import Terms, decode
from bitwright.terms.low_rank import LowRank
from bitwright.training.loop import Training, train
from bitwright.training.problem import Problem, Subject, Weights
from bitwright.training.scopes import Model, Scope

ORDER, CLIP = 4, 0.2


@dataclass(frozen=True)
class Cora:
    """`budget`: numbers in all factors per weight; `first`: the soft rank at first, as a share of the full one; `uniform`: the same
    share everywhere, without any search (what the search is compared with)."""

    budget: float = 0.05
    rate: float = 0.01
    first: float = 0.9
    uniform: bool = False
    start: Rounding | JointRounding = Nearest()
    scope: Scope = Model()
    training: Training = Training(steps=250, schedule="constant", keep="last")

    def solve(self, problem: Problem) -> Mapping[str, Terms]:
        found = {name: SoftRank(s, self.rate, self.first) for name, s in problem.subjects.items()}
        weights = sum(s.W.numel() for s in problem.subjects.values())
        if not self.uniform:

            def loss(matrices: Weights, k: int) -> Tensor:
                spent = torch.stack([v.rho * v.full * v.price / weights for v in found.values()]).sum()
                return problem.loss(matrices, k) + torch.relu(spent - self.budget).exp()

            train(replace(problem, loss=loss), found, self.training)
        ranks = cut(list(found.values()), self.budget * weights, self.uniform)
        numbers = sum(r * v.price for r, v in zip(ranks, found.values()))
        problem.note(f"ranks {min(ranks)} to {max(ranks)}: {8 * numbers / weights:.3f} bits per weight in factors")
        return {name: v.with_rank(r) for (name, v), r in zip(found.items(), ranks)}


class SoftRank:
    """One matrix and the adapter of its residual."""

    def __init__(self, subject: Subject, rate: float, first: float) -> None:
        self.subject, self.rate = subject, rate
        self.stored = decode(subject.start)
        U, S, Vt = torch.linalg.svd((subject.W - self.stored).double(), full_matrices=False)
        self.P, self.Q = ((U * S.sqrt()).to(subject.W), (S.sqrt()[:, None] * Vt).to(subject.W))
        self.S, self.full, self.price = S, len(S), sum(subject.W.shape)
        self.rho = torch.tensor(first, device=subject.W.device, requires_grad=True)
        self.rho.register_hook(lambda g: g.clamp(-CLIP, CLIP))

    def filter(self) -> Float[Tensor, "r"]:
        index = torch.arange(self.full, device=self.rho.device)
        return (1 + (index / (self.full * self.rho)).pow(2 * ORDER)).rsqrt()

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.rho], "lr": self.rate}]

    def weight(self) -> Float[Tensor, "out inp"]:
        return self.stored + (self.P * self.filter()) @ self.Q

    def pull(self, done: float) -> Tensor | None:
        return None

    def settle(self, done: float) -> None:
        self.rho.clamp_(1 / self.full, 1.0)

    @property
    def rank(self) -> int:
        return min(self.full, max(1, ceil(self.full * float(self.rho.detach()) - 1e-6)))

    def with_rank(self, rank: int) -> Terms:
        own = (LowRank.of(self.P[:, :rank], self.Q[:rank], torch.int8),) if rank else ()
        return (*self.subject.start, *own)

    def terms(self) -> Terms:
        return self.with_rank(self.rank)


def cut(found: list[SoftRank], most: float, uniform: bool) -> list[int]:
    """Whole ranks whose factors hold at most so many numbers: those that were found, less the directions worth least per number."""
    if uniform:
        share = most / sum(v.full * v.price for v in found)
        return [int(v.full * min(1.0, share)) for v in found]
    ranks = [v.rank for v in found]
    while sum(r * v.price for r, v in zip(ranks, found)) > most and any(ranks):
        worth = [float(v.S[r - 1] ** 2) / v.price if r else torch.inf for r, v in zip(ranks, found)]
        ranks[worth.index(min(worth))] -= 1
    return ranks
