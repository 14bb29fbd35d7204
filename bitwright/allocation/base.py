"""The protocol of an allocation: which choice for every unit, given what each choice loses and what it costs.

    min sum_u loss[u, c_u]    subject to    sum_u price[u, c_u] <= budget

It never sees a model. A unit is what an engine loads together; its choices are the columns of both tables, the same for all units;
a choice that a unit cannot take has an infinite loss. Prices are stored bits from the exporter's own ledger, so that a plan and a
file agree. Losses come from a probe (probes.py). Every solver of this room works on these arrays and on nothing else.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.allocation.probes import Probe


@runtime_checkable
class Allocation(Protocol):
    @property
    def probe(self) -> Probe | None:
        """How losses are found; None where it looks at prices only."""

    def __call__(self, loss: Float[Tensor, "u c"], price: Ints[Tensor, "u c"], budget: int) -> Ints[Tensor, "u"]:
        """A choice for every unit. The budget is at least what the cheapest choices cost (`reach` says what that is)."""


@runtime_checkable
class Proposing(Protocol):
    """An allocation that reads a table for each of two domains of the text and leaves the last word to measured models."""

    def proposals(
        self, losses: Float[Tensor, "2 u c"], price: Ints[Tensor, "u c"], budget: int, names: Sequence[str]
    ) -> tuple[Ints[Tensor, "u"], ...]: ...


def legal(loss: Float[Tensor, "u c"]) -> Bool[Tensor, "u c"]:
    return torch.isfinite(loss)


def reach(loss: Float[Tensor, "u c"], price: Ints[Tensor, "u c"]) -> tuple[int, int]:
    """What the cheapest and the dearest choices cost together."""
    free = legal(loss)
    ends = torch.where(free, price, 2**62).amin(1), torch.where(free, price, -1).amax(1)
    return int(ends[0].sum()), int(ends[1].sum())


def cheapest(loss: Float[Tensor, "u c"], price: Ints[Tensor, "u c"]) -> Ints[Tensor, "u"]:
    """The cheapest choice of every unit; of equally cheap ones the one that loses least."""
    least = torch.where(legal(loss), price, 2**62).amin(1, keepdim=True)
    return torch.where(price == least, loss, torch.inf).argmin(1)


def total(table: Tensor, choice: Ints[Tensor, "u"]) -> int | float:
    found: int | float = table.gather(1, choice[:, None]).sum().item()
    return found


def step(loss: Float[Tensor, "u c"], price: Ints[Tensor, "u c"]) -> int:
    """The smallest difference in price between two choices of one unit: no budget can be expected to be met closer."""
    gaps = [d for row, free in zip(price, legal(loss)) for d in row[free].unique().diff().tolist()]
    return min(gaps, default=0)


def topped_up(loss: Float[Tensor, "u c"], price: Ints[Tensor, "u c"], budget: int, choice: Ints[Tensor, "u"]) -> Ints[Tensor, "u"]:
    """What is left of the budget spent on the change of one unit that helps most, again and again, while one helps and fits."""
    choice = choice.clone()
    while True:
        room = budget - total(price, choice)
        now_loss, now_price = (table.gather(1, choice[:, None]) for table in (loss, price))
        gain = torch.where(price - now_price <= room, now_loss - loss, -torch.inf)
        best = int(gain.argmax())
        unit, other = divmod(best, loss.shape[1])
        if not gain[unit, other] > 0:
            return choice
        choice[unit] = other
