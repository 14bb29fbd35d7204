"""best: our default. Ranges by MSE search, GPTQ on static groups in activation order, three coordinate-descent sweeps to
polish, the best kept. Cards: baselines, quantease."""

from bitwright.grids.fit import Mse
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.chain import Chain
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.quantease import QuantEase


def best(bits: int = 4, group: int | None = 64, symmetric: bool = False) -> Recipe:
    grid = Integer(2**bits, symmetric, Mse())
    return Recipe(grid, Layout(1, group), Chain((GPTQ(), QuantEase(iters=3))), name="best")
