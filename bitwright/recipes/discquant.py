"""discquant: arXiv 2501.06417: every code of the model between two neighbours, pulled to one of them while the logits stay. `clip`:
how far from the nearest point data may push. Card: discquant."""

from bitwright.recipe import Recipe
from bitwright.recipes.trained import Start, begun, trained
from bitwright.rounding.discquant import DiscQuant


def discquant(
    bits: int = 4, group: int | None = 128, steps: int = 512, start: Start = "nearest", rate: float = 0.1, clip: float = 0.5
) -> Recipe:
    return trained(DiscQuant(rate, clip=clip, start=begun(start)), bits, group, steps, "discquant")
