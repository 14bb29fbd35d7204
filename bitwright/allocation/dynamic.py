"""Dynamic program: unit by unit, the least loss for every spending so far; exact where the menu and the number of units are small.

    best[u](s) = min_c  best[u - 1](s - price[u, c]) + loss[u, c]

States are kept as a front: spendings in ascending order, each losing less than all cheaper ones. With more than `states` of them
only the least loss of each of so many equal intervals of spending is kept, so the result is then within one interval per unit of
the optimum, and never above the budget. O(u c states log(c states)). Source: Bellman, 1957; MCKP in Kellerer et al., 2004.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.allocation.base import cheapest, legal, topped_up, total
from bitwright.allocation.probes import Fisher, Probe


@dataclass(frozen=True)
class DynamicProgram:
    probe: Probe = Fisher()
    states: int = 20_000

    def __call__(self, loss: Float[Tensor, "u c"], price: Ints[Tensor, "u c"], budget: int) -> Ints[Tensor, "u"]:
        least = torch.where(legal(loss), price, 2**62).amin(1)
        rest = budget - torch.cat([least.flip(0).cumsum(0).flip(0)[1:], least.new_zeros(1)])  # what the units to come leave over
        spent, lost, trail = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.float64), []
        for u in range(len(loss)):
            s, q = (spent[:, None] + price[u]).flatten(), (lost[:, None] + loss[u].double()).flatten()
            kept = front(s, q, int(rest[u]), self.states)
            spent, lost = s[kept], q[kept]
            trail.append((kept // loss.shape[1], kept % loss.shape[1]))  # the state before, the choice
        at, choice = int(lost.argmin()), cheapest(loss, price)
        for u in range(len(loss) - 1, -1, -1):
            before, taken = trail[u]
            choice[u], at = taken[at], int(before[at])
        assert total(price, choice) <= budget
        return topped_up(loss, price, budget, choice)


def front(s: Ints[Tensor, "n"], q: Float[Tensor, "n"], most: int, states: int) -> Ints[Tensor, "k"]:
    """Indices of the states that no cheaper one matches, in ascending order of spending; thinned to about `states`."""
    order = torch.from_numpy(np.lexsort((q.numpy(), s.numpy())))
    order = order[(s[order] <= most) & torch.isfinite(q[order])]
    before = torch.cat([q.new_full((1,), torch.inf), q[order].cummin(0).values[:-1]])
    order = order[q[order] < before]
    if len(order) <= states:
        return order
    cell = (s[order] - s[order[0]]) * states // (int(s[order[-1]] - s[order[0]]) + 1)
    last = torch.cat([cell[1:] != cell[:-1], cell.new_ones(1, dtype=torch.bool)])
    return order[last]  # losses fall along the front: the last of a cell is its least
