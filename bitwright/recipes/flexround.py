"""flexround: arXiv 2306.00317: a divisor for every weight and the ranges, learned block by block. Card: flexround."""

from bitwright.recipe import Recipe
from bitwright.recipes.trained import Start, begun, trained
from bitwright.rounding.flexround import FlexRound


def flexround(bits: int = 4, group: int | None = 128, steps: int = 400, start: Start = "nearest", rate: float = 3e-3) -> Recipe:
    return trained(FlexRound(rate, start=begun(start)), bits, group, steps, "flexround")
