"""quantease: arXiv 2309.01885 as published: absmax ranges, 30 sweeps of coordinate descent from the weights themselves.
Card: quantease."""

from bitwright.grids.fit import AbsMax
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.quantease import QuantEase


def quantease(bits: int = 4, group: int | None = 64, symmetric: bool = False) -> Recipe:
    return Recipe(Integer(2**bits, symmetric, AbsMax()), Layout(1, group), QuantEase(), name="quantease")
