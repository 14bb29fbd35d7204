"""hqq: groups of 64 with a float scale and a float minimum, the minimum by half-quadratic splitting, no data.
Nearest rounding, 32 bits for each group. Card: baselines, section 3. `across`: groups along the outputs (hqq's axis 0)."""

from bitwright.grids.hqq import Hqq
from bitwright.grids.offset import Offset
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.nearest import Nearest


def hqq(bits: int = 4, group: int | None = 64, across: bool = False) -> Recipe:
    return Recipe(Offset(2**bits, Hqq()), Layout(group, 1) if across else Layout(1, group), Nearest(), name="hqq")
