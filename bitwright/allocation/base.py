"""The protocol of an allocation. It never sees a model: it is given menus, a probe and the true price.

    choose c[u] from menu[u]:   min sum_u loss_u(c[u])   subject to   price(c) <= budget

Units are what an engine loads together. Prices are stored bits from the exporter's own ledger, so that a plan and a file agree.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

Menu = Sequence[int]  # level counts a unit may have
Probe = Callable[[Ints[Tensor, "u"]], Float[Tensor, "u"]]  # compress by these choices, tell each unit's loss
Price = Callable[[Ints[Tensor, "u"]], int]  # stored bits of these choices


@runtime_checkable
class Allocation(Protocol):
    def __call__(self, menus: Sequence[Menu], probe: Probe, price: Price, budget: int) -> Ints[Tensor, "u"]:
        """A choice for every unit. Raises BadRequest with the reachable minimum where the budget is below it."""
