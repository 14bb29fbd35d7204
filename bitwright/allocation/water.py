"""Water: one level for all. How many levels each of many units gets, when their codes share a number of bytes.

    loss_u(L) = l_u L^-slope,   min sum_u loss_u   s.t. bytes of all codes <= budget      =>      log2 l_u - slope bits_u = level

clamped at no bits and at the most there are (cards: baq, cvxq). A step from one number of levels to the next is worth
l_u (L^-slope - L'^-slope) / (bits' - bits) per bit, and the steps of a unit are worth less and less; so the best choice is to take
steps by their worth until the bytes are full. One sort does what the papers do by bisection on the level, dual ascent on the
price and a repair of the rounding: O(units x counts log), and the budget is met to within one step, in bytes as they are packed.
"""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.grids.uneven import Uneven
from bitwright.layout import Layout
from bitwright.terms import ragged


@cache
def dense_counts(most: int) -> tuple[int, ...]:
    """1, and the numbers of levels that no mix of two others beats at their price (at 4 times less error per bit). Those that
    waste bits when packed (6, 14, ...) are left out."""
    found: list[int] = []
    for levels in range(1, most + 1):
        while found and ragged.price(found[-1]) >= ragged.price(levels):
            found.pop()
        while len(found) > 1 and worth(found[-2], found[-1], 2.0) <= worth(found[-1], levels, 2.0):
            found.pop()
        found.append(levels)
    return tuple(found)


def worth(fewer: int, more: int, slope: float) -> float:
    """Loss saved per bit of a step, by a unit of loss 1 at one level."""
    return float(fewer**-slope - more**-slope) / (ragged.price(more) - ragged.price(fewer))


def water_levels(
    log_losses: Float[Tensor, "u"], sizes: Ints[Tensor, "u"], counts: Sequence[int], slope: float, budget: int
) -> Ints[Tensor, "u"]:
    """The place in `counts` of each unit's number of levels. `log_losses`: log2 of the loss per code that a unit would have at
    one level; `sizes`: its codes; `budget`: bytes."""
    steps = torch.tensor([worth(*step, slope) for step in pairwise(counts)], dtype=torch.float64).log2().cummin(0).values
    order = (log_losses.cpu().double()[:, None] + steps).flatten().argsort(descending=True, stable=True) // len(steps)
    sizes = sizes.cpu()

    def taken(many: int) -> Ints[Tensor, "u"]:
        return order[:many].bincount(minlength=len(log_losses))

    least, most = 0, len(order) + 1  # so many steps fit, and so many do not
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if stored(taken(middle), sizes, counts) <= budget else (least, middle)
    return taken(least).to(log_losses.device)


def stored(choice: Ints[Tensor, "u"], sizes: Ints[Tensor, "u"], counts: Sequence[int]) -> int:
    """Bytes of the codes of a choice."""
    codes = torch.zeros(len(counts), dtype=torch.long).index_add_(0, choice, sizes)
    return sum(ragged.width(int(many), levels) for many, levels in zip(codes, counts))


def allot(grid: Uneven, layout: Layout, loss: Float[Tensor, "out inp"], slope: float) -> Ints[Tensor, "g 1"]:
    """The leaf `count` of every group of a matrix, from the loss that each weight has when all have one number of levels. Groups
    that must have the same (those of a column, where the leaf is shared so) are one unit. Within the grid's own bytes."""
    groups, leaf, tiles = layout.split(loss), grid.leaves["count"], layout.tiles((loss.shape[0], loss.shape[1]))
    units = leaf.rows(tiles)[0] * leaf.rows(tiles)[1]
    unit = leaf.spread(torch.arange(units, device=loss.device).view(leaf.rows(tiles)), tiles)
    total = torch.zeros(units, dtype=torch.float64, device=loss.device)
    total.index_add_(0, unit[:, 0], groups.sum(1, dtype=torch.float64))
    floor = (total.mean() * 1e-12).clamp_min(1e-300)  # a unit without any loss gets no bits before all others have theirs
    sizes = torch.full((units,), loss.numel() // units)
    budget = ragged.payload(grid.bits, loss.numel())
    choice = water_levels(total.clamp_min(floor).log2(), sizes, grid.counts, slope, budget)
    return choice.to(torch.uint8)[unit]
