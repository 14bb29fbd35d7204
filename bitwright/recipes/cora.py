"""cora: arXiv 2408.00923: one range per matrix of 3 standard deviations, and thin products of int8 for what that loses, their ranks
found by gradient; `budget`: numbers in them per weight. Card: cora."""

from bitwright.grids.integer import Integer
from bitwright.grids.sigma import Sigma
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.cora import Cora


def cora(bits: int = 4, group: int | None = None, budget: float = 0.05, per_row: bool = False, uniform: bool = False) -> Recipe:
    rows = Layout(1, group) if per_row or group else Layout(None, None)
    return Recipe(Integer(2**bits, by=Sigma()), rows, Cora(budget, uniform=uniform), name="cora")
