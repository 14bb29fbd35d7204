"""lrq: arXiv 2407.11534: FlexRound with a divisor of low rank; `share` learned numbers per weight. Card: lrq."""

from bitwright.recipe import Recipe
from bitwright.recipes.trained import Start, begun, trained
from bitwright.rounding.lrq import Lrq


def lrq(
    bits: int = 4, group: int | None = 128, steps: int = 400, start: Start = "nearest", share: float = 0.35, rate: float = 1e-3
) -> Recipe:
    return trained(Lrq(share, rate, start=begun(start)), bits, group, steps, "lrq")
