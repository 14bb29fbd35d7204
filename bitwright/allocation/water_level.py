"""Water level: one price of a bit for the whole model; every unit takes the choice that is best at that price.

    c_u(t) = argmin_c  loss[u, c] + t price[u, c],      t by bisection, the largest spending that the budget allows

Where losses fall like 2^(-2 bits) this is reverse water-filling: every unit that gets bits at all ends with the same loss per
weight, whatever it began with. BAQ's closed form and CVXQ's dual ascent are this law with a continuous menu (water.py); here
the menu is a table. Optimal among all allocations that spend as much; what a table's steps leave over goes to single changes.
O(u c) per step of the bisection. Source: Shoham and Gersho, 1988; cards baq and cvxq.
"""

from dataclasses import dataclass

from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.allocation.base import cheapest, legal, topped_up, total
from bitwright.allocation.probes import Fisher, Probe

HALVINGS = 200  # of an interval that holds every slope there is


@dataclass(frozen=True)
class WaterLevel:
    probe: Probe = Fisher()

    def __call__(self, loss: Float[Tensor, "u c"], price: Ints[Tensor, "u c"], budget: int) -> Ints[Tensor, "u"]:
        loss = loss.double()

        def at(t: float) -> Ints[Tensor, "u"]:
            return (loss + t * price).argmin(1)

        best, high = cheapest(loss, price), float(loss[legal(loss)].max() - loss[legal(loss)].min())  # per bit: nothing is worth it
        low = 0.0
        if total(price, at(low)) <= budget:
            best = at(low)
        for _ in range(HALVINGS):
            t = (low + high) / 2
            if total(price, at(t)) <= budget:
                best, high = at(t), t
            else:
                low = t
        return topped_up(loss, price, budget, best)
