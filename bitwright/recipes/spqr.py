"""spqr: arXiv 2306.03078: GPTQ on groups of 16, 1 % of the weights kept by what their group saves, scales of 4 bits under one fp16
of the row (the paper: 3 bits under one of 16 groups, zeros likewise). The competitor of card quantease."""

from bitwright.grids.fit import AbsMax
from bitwright.grids.integer import Integer
from bitwright.grids.second_level import SecondLevel
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.spqr import SpQR


def spqr(bits: int = 3, group: int | None = 16, fraction: float = 0.01) -> Recipe:
    grid = Integer(2**bits, by=AbsMax(), scale=SecondLevel(16, "row"))
    return Recipe(grid, Layout(1, group), SpQR(fraction), name="spqr")
