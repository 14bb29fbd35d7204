"""ptqtp: arXiv 2509.16989: two scaled ternary planes per group of 128, fitted without data; 3.45 stored bits. Card: ptqtp.
`planes=3` is near lossless; `rounding` may be any other, for instance GPTQ."""

from bitwright.grids.trit_planes import TritPlanes
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.base import Rounding
from bitwright.rounding.nearest import Nearest


def ptqtp(planes: int = 2, group: int | None = 128, rounding: Rounding = Nearest()) -> Recipe:
    return Recipe(TritPlanes(planes), Layout(1, group), rounding, name="ptqtp")
