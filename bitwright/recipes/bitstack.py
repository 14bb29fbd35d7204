"""bitstack: one artefact that is loaded at any size, signs times thin magnitudes in the order of what they gain (arXiv 2410.23918).
The grid is only what nearest rounding is compared on, unless `bits` puts GPTQ codes in groups below the signs. Card: bitstack."""

from bitwright.allocation.stack import Stack
from bitwright.grids.fit import Mse
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.bitstack import BitStack
from bitwright.rounding.gptq import GPTQ


def bitstack(steps: int = 16, rank: int | None = None, bits: int | None = None, group: int | None = 64) -> Recipe:
    grid, first = Integer(2 ** (2 if bits is None else bits), by=Mse()), None if bits is None else GPTQ()
    return Recipe(grid, Layout(1, group), BitStack(steps, rank, first=first), allocation=Stack(), name="bitstack")
