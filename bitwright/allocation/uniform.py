"""Uniform: the same number of levels everywhere, the most that fit the budget. The baseline of every allocation.

Levels need not be a power of two: 3.3 stored bits may buy nine levels where three bits would leave the rest unspent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Integer as Ints
from torch import Tensor

from bitwright.allocation.base import Menu, Price, Probe
from bitwright.errors import BadRequest


@dataclass(frozen=True)
class Uniform:
    """Looks at prices only; never calls the probe."""

    def __call__(self, menus: Sequence[Menu], probe: Probe, price: Price, budget: int) -> Ints[Tensor, "u"]:
        common = sorted(set(menus[0]).intersection(*menus[1:]))
        if not common:
            raise BadRequest("The units have no number of levels in common, none can be used everywhere; use another allocation.")

        def everywhere(levels: int) -> Ints[Tensor, "u"]:
            return torch.full((len(menus),), levels)

        affordable = [levels for levels in common if price(everywhere(levels)) <= budget]
        if not affordable:
            least = min(price(everywhere(levels)) for levels in common)
            raise BadRequest(
                f"The budget of {budget / 8:,.0f} bytes is below the {least / 8:,.0f} bytes of the fewest levels; "
                "raise it, or use larger groups."
            )
        return everywhere(affordable[-1])
