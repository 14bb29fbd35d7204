"""Greedy: from the cheapest choices on, always the step that loses least per bit of the next, until nothing fits.

Steps are the edges of each unit's lower convex hull of (price, loss), so gains per bit fall along a unit, and the order of all
steps of all units is one sorted list; a step that does not fit is left out together with those after it in its unit. What remains
is spent on single changes. At most one unit is away from the optimum of the relaxed problem: good with many units, poor with few.
O(u c log(u c)). Known as marginal analysis (Fox, 1966); the ordering in which embedded coders cut their layers.
"""

from dataclasses import dataclass

from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.allocation.base import cheapest, legal, topped_up, total
from bitwright.allocation.probes import Fisher, Probe


@dataclass(frozen=True)
class Greedy:
    probe: Probe = Fisher()

    def __call__(self, loss: Float[Tensor, "u c"], price: Ints[Tensor, "u c"], budget: int) -> Ints[Tensor, "u"]:
        choice = cheapest(loss, price)
        left, closed = budget - total(price, choice), set()
        steps = [(slope, unit, n, edge) for unit in range(len(loss)) for n, (slope, edge) in enumerate(hull(loss, price, unit))]
        for _, unit, _, edge in sorted(steps, key=lambda s: (s[0], s[1], s[2])):
            cost = int(price[unit, edge] - price[unit, choice[unit]])
            if unit in closed or cost > left:
                closed.add(unit)
                continue
            choice[unit], left = edge, left - cost
        return topped_up(loss, price, budget, choice)


def hull(loss: Float[Tensor, "u c"], price: Ints[Tensor, "u c"], unit: int) -> list[tuple[float, int]]:
    """(change of loss per bit, choice) along a unit's lower convex hull, from its cheapest choice on; slopes rise."""
    at = int(cheapest(loss, price)[unit])
    free = [c for c in range(loss.shape[1]) if legal(loss)[unit, c]]
    found: list[tuple[float, int]] = []
    while True:
        ahead = [c for c in free if price[unit, c] > price[unit, at] and loss[unit, c] < loss[unit, at]]
        if not ahead:
            return found
        slope, at = min((float((loss[unit, c] - loss[unit, at]) / (price[unit, c] - price[unit, at])), c) for c in ahead)
        found.append((slope, at))
