"""Uniform: the same choice everywhere, the dearest that fits the budget. The baseline of every allocation.

Levels need not be a power of two: 3.3 stored bits may buy nine levels where three bits would leave the rest unspent.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.allocation.base import legal
from bitwright.errors import BadRequest


@dataclass(frozen=True)
class Uniform:
    """Looks at prices only."""

    probe = None

    def __call__(self, loss: Float[Tensor, "u c"], price: Ints[Tensor, "u c"], budget: int) -> Ints[Tensor, "u"]:
        common, cost = legal(loss).all(0), price.sum(0)
        if not common.any():
            raise BadRequest("The units have no choice in common, none can be used everywhere; use another allocation.")
        affordable = common & (cost <= budget)
        if not affordable.any():
            least = int(cost[common].min())
            raise BadRequest(
                f"The budget of {budget / 8:,.0f} bytes is below the {least / 8:,.0f} bytes of the cheapest choice for all; "
                "raise it, use larger groups, or another allocation."
            )
        return torch.full((len(price),), int(torch.where(affordable, cost, -1).argmax()))
