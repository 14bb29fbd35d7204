"""adaround: arXiv 2004.10568 in the scope of BRECQ: up or down for every weight, learned block by block. Card: gradient-ptq."""

from bitwright.recipe import Recipe
from bitwright.recipes.trained import Start, begun, trained
from bitwright.rounding.adaround import AdaRound


def adaround(bits: int = 4, group: int | None = 128, steps: int = 400, start: Start = "nearest", rate: float = 3e-2) -> Recipe:
    return trained(AdaRound(rate, start=begun(start)), bits, group, steps, "adaround")
