"""double-rounding: arXiv 2502.01199 after training: one file for `bits` bits and all usual widths below, every one rounded by GPTQ.
`paper=True` is the paper's own second rounding: one scale, nearest, nothing stored but the high codes. Card: double-rounding."""

from bitwright.grids.fit import Mse
from bitwright.grids.nested import Nested
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.double_rounding import DoubleRounding
from bitwright.rounding.gptq import GPTQ


def double_rounding(bits: int = 8, group: int | None = 64, symmetric: bool = False, paper: bool = False) -> Recipe:
    serves = tuple(b for b in (8, 6, 4, 3, 2) if b < bits)
    grid = Nested(bits, (bits, *serves), symmetric or paper, paper, Mse())
    return Recipe(grid, Layout(1, group), GPTQ() if paper else DoubleRounding(), name="double-rounding")
