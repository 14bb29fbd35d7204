"""Decoupled: one score for every domain of the text, one integer program for every group of units, a search over how they share.

    for each share s:   c_A(s) = argmin sum_{u in A} loss_1[u, c_u]   s.t.  sum_{u in A} price <= s budget
                        c_B(s) = argmin sum_{u in B} loss_2[u, c_u]   s.t.  sum_{u in B} price <= (1 - s) budget
    then the s whose model measures least

MixDQ (arXiv 2405.17873; card: mixdq): layers that change what an image shows are judged by one metric, those that change how clean
it is by another; the two scales cannot be added, so each group has a program of its own, and real outputs decide between the
splits, since scores of single layers do not add up either. Here a domain of the text takes the place of a metric, and a unit
belongs to the group of the domain that it hurts more, by its share of all that is lost there; or attention is one group and the
rest the other, as on the card. Differs from the paper: bits are stored bits, met from below, not a mean width within 0.02; splits
are centred on that of the one program over both scores, not on equal widths; what one group leaves over the other gets. Where
both scores are nats of KL they can be added, so that one program is a fair rival: docs/allocation.md has the numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.allocation.base import legal, reach, total
from bitwright.allocation.integer_program import IntegerProgram
from bitwright.allocation.probes import Anchored, Probe
from bitwright.errors import BadRequest


@dataclass(frozen=True)
class Decoupled:
    """`probe`: asked once for every domain; `by`: what parts the units; `splits` of the budget, from `widest` times fewer to
    `widest` times more bits per weight for the first group, relative to the second, than the one program gives it."""

    probe: Probe = Anchored()
    by: Literal["loss", "name"] = "loss"
    splits: int = 11
    widest: float = 1.5

    def __post_init__(self) -> None:
        if self.splits < 1 or not self.widest >= 1:
            raise BadRequest(
                f"{self.splits} splits up to {self.widest:g} cannot be; give one split or more, and a width of 1 or more."
            )

    def __call__(self, loss: Float[Tensor, "u c"], price: Ints[Tensor, "u c"], budget: int) -> Ints[Tensor, "u"]:
        """With one score there is nothing to decouple: the integer program."""
        return IntegerProgram()(loss, price, budget)

    def proposals(
        self, losses: Float[Tensor, "2 u c"], price: Ints[Tensor, "u c"], budget: int, names: Sequence[str]
    ) -> tuple[Ints[Tensor, "u"], ...]:
        """A choice for every unit by each split that leaves both groups enough; without repetitions. `names[u]`: of a matrix."""
        both, first = losses.mean(0), self.first(losses, names)
        joint = self(both, price, budget)
        if first.all() or not first.any():
            return (joint,)
        groups, found = (first, ~first), {}
        dearest = [reach(both[g], price[g])[1] for g in groups]  # grows with the weights of a group, which are not known here
        least = [reach(both[g], price[g])[0] for g in groups]
        density = [total(price[g], joint[g]) / size for g, size in zip(groups, dearest)]
        for factor in factors(self.splits, self.widest):
            wanted = [factor * density[0] * dearest[0], density[1] * dearest[1]]
            mine = int(budget * wanted[0] / sum(wanted))
            if not least[0] <= mine <= budget - least[1]:
                continue
            choice = torch.zeros_like(joint)
            for g, score in zip(groups, losses):  # what the first leaves over goes to the second
                choice[g] = self(score[g], price[g], mine)
                mine = budget - int(total(price[g], choice[g]))
            found[tuple(choice.tolist())] = choice
        return tuple(found.values()) or (joint,)

    def first(self, losses: Float[Tensor, "2 u c"], names: Sequence[str]) -> Bool[Tensor, "u"]:
        """Which units are scored by the first domain."""
        free = legal(losses[0]) & legal(losses[1])
        share = losses.where(free, 0.0)
        share = (
            (share / share.sum(1, keepdim=True).clamp_min(1e-300)).clamp_min(1e-300).log()
        )  # of what all lose by the same choice
        more = (share[0] - share[1]).where(free, 0.0).sum(1) / free.sum(1).clamp_min(1)
        if self.by == "loss":
            return more > 0
        attention = torch.tensor(["attn" in name or "attention" in name for name in names])
        return attention if more[attention].sum() >= more[~attention].sum() else ~attention


def factors(count: int, widest: float) -> list[float]:
    """From 1 / widest to widest, evenly on the logarithm; 1 alone where there is one."""
    return [widest ** (2 * i / (count - 1) - 1) for i in range(count)] if count > 1 else [1.0]
