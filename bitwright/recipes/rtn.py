"""rtn: round to nearest, the baseline of baselines; needs no data. `mse`: ranges by search, otherwise absmax. Card: baselines."""

from bitwright.grids.fit import AbsMax, Mse
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.nearest import Nearest


def rtn(bits: int = 4, group: int | None = 64, symmetric: bool = False, mse: bool = True) -> Recipe:
    return Recipe(Integer(2**bits, symmetric, Mse() if mse else AbsMax()), Layout(1, group), Nearest(), name="rtn")
