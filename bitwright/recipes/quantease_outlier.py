"""quantease-outlier: arXiv 2309.01885, Algorithm 3: 1 % of the weights (or, `structured`, of the input columns) in a term of
their own, codes and places found together, started from GPTQ. Card: quantease."""

from bitwright.grids.fit import AbsMax
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.quantease_outlier import QuantEaseOutlier


def quantease_outlier(
    bits: int = 3, group: int | None = 64, symmetric: bool = False, fraction: float = 0.01, structured: bool = False
) -> Recipe:
    rounding = QuantEaseOutlier(fraction, term="columns" if structured else "sparse")
    return Recipe(Integer(2**bits, symmetric, AbsMax()), Layout(1, group), rounding, name="quantease-outlier")
