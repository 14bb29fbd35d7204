"""adaquant: arXiv 2006.10518: weights and their ranges nudged together, straight through the rounding. Card: adaquant."""

from bitwright.recipe import Recipe
from bitwright.recipes.trained import Start, begun, trained
from bitwright.rounding.straight_through import StraightThrough


def adaquant(bits: int = 4, group: int | None = 128, steps: int = 400, start: Start = "nearest", rate: float = 1e-2) -> Recipe:
    return trained(StraightThrough(rate, rate, start=begun(start)), bits, group, steps, "adaquant")
