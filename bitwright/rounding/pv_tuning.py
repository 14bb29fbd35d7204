"""PV-Tuning: parameters and codes by turns, but only the few codes that want to move most (arXiv 2405.14852; card: pv-tuning).

    P step:  optimizer on the grid's parameters, codes fixed
    V step:  R <- R - rate |R| u, u from the gradient at W^;  the `share` of vectors with the largest |R - W^| are coded afresh as
             the point nearest to R;   R <- (1 - decay) R + decay W^

A step over all codes either moves none or moves all (share 1, decay 0: straight-through); a small subspace allows a step that is
long enough to cross a boundary while the linear model still holds. decay 0 is the published recipe, decay 1 the pure linearised
step, share 0 tunes the parameters alone (AQLM's block fit). Works on every grid; a code is a vector of the grid's width. Differs
from the paper: the nearest point comes from the grid's own encoder (for sums of books that is its search); norms and embeddings
are left as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.rounding.base import JointRounding, Rounding
from bitwright.rounding.gptq import GPTQ
from bitwright.terms.base import Terms, decode
from bitwright.terms.coded import Coded, narrowed
from bitwright.training.live import Live
from bitwright.training.loop import Training, train
from bitwright.training.problem import Problem, Subject
from bitwright.training.scopes import Model, Scope


@dataclass(frozen=True)
class PvTuning:
    """`share` of the codes of a matrix that may change in one step; `rate` of R, `book_rate` of the parameters, both relative to
    the size of what they move."""

    share: float = 0.01
    decay: float = 0.0
    rate: float = 1e-2
    book_rate: float = 3e-4
    start: Rounding | JointRounding = GPTQ()
    scope: Scope = Model()
    training: Training = Training(optimizer="lamb", schedule="constant")

    def solve(self, problem: Problem) -> Mapping[str, Terms]:
        found = {name: Pending(s, self) for name, s in problem.subjects.items()}
        terms = train(problem, found, self.training)
        changed = sum(v.changed for v in found.values()) / sum(v.codes for v in found.values())
        problem.note(f"{changed:.1%} of the codes, counted with every return, were changed")
        return terms


class Pending:
    """One matrix: its codes, live parameters, and where each vector would be by its gradients (R)."""

    def __init__(self, subject: Subject, how: PvTuning) -> None:
        self.subject, self.how, self.changed = subject, how, 0
        self.live = Live(subject.coded)
        self.codes = sum(t.codes.numel() for t in self.live.coded)
        self.R = decode(self.live.coded).clone().requires_grad_()

    def groups(self) -> list[dict[str, Any]]:
        lamb = self.how.training.optimizer == "lamb"
        pending = {"params": [self.R], "lr": self.how.rate if self.how.share else 0.0} | ({"betas": (0.0, 0.95)} if lamb else {})
        books = self.live.tensors()
        return [pending, *([{"params": books, "lr": self.how.book_rate}] if books and self.how.book_rate else [])]

    def weight(self) -> Float[Tensor, "out inp"]:
        """Decoded codes; the gradient there goes to the parameters and to R alike."""
        return self.subject.whole(self.live.decode() + (self.R - self.R.detach()))

    def pull(self, done: float) -> Tensor | None:
        return None

    def settle(self, done: float) -> None:
        if self.how.share:
            self.live.coded = tuple(self.recoded(i) for i in range(len(self.live.coded)))
            self.R.copy_(torch.lerp(self.R, self.live.decode(), self.how.decay))

    def recoded(self, i: int) -> Coded:
        """Term i with the codes that moved."""
        term, params = self.live.coded[i], self.live.stored(i)
        wish, now = (own(term, W) for W in (self.R.detach(), replace(term, params=params).decode()))
        want = (wish - now).view(len(now), -1, term.grid.width).norm(dim=2)
        most = want.flatten().topk(ceil(self.how.share * want.numel())).indices
        fresh = narrowed(term.layout, term.grid.width).join(
            term.grid.encode(term.layout.split(wish), params), (term.codes.shape[0], term.codes.shape[1])
        )
        codes = term.codes.flatten().clone()
        codes[most] = fresh.flatten()[most].to(codes.dtype)
        self.changed += int((codes != term.codes.flatten()).sum())
        return replace(term, codes=codes.view(term.codes.shape))

    def terms(self) -> Terms:
        return self.subject.with_codes(self.live.terms())


def own(term: Coded, W: Float[Tensor, "out inp"]) -> Float[Tensor, "out k"]:
    """The columns that a term codes, in its order."""
    return W if term.columns is None else W[:, term.columns.long()]
