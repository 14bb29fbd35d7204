"""zeroquant-v2: arXiv 2303.08302: fine-grained groups, nearest rounding, and a rank-8 term for the error (LoRC), whitened by
the data. Card: zeroquant-v2."""

from bitwright.corrections.lorc import Lorc
from bitwright.grids.fit import AbsMax
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.nearest import Nearest


def zeroquant_v2(bits: int = 4, group: int | None = 64, symmetric: bool = False, rank: int = 8) -> Recipe:
    grid = Integer(2**bits, symmetric, AbsMax())
    return Recipe(grid, Layout(1, group), Nearest(), corrections=(Lorc(rank),), name="zeroquant-v2")
