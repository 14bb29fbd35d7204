"""flexq: six bits for weights and inputs, both in groups of 128, nearest rounding; inputs of down_proj have eight. Card: flexq.
Integers of 6 bits have no units of their own on GPUs: products are computed from the decoded numbers here, with the same values."""

from bitwright.activations.dynamic import Dynamic
from bitwright.grids.integer import Integer
from bitwright.grids.scales import Float
from bitwright.layout import Layout
from bitwright.recipe import Recipe, Rule
from bitwright.rounding.nearest import Nearest


def flexq(bits: int = 6, group: int = 128, sensitive: str = "re:.*down_proj") -> Recipe:
    six, eight = (Dynamic(Integer(2**b - 1, True, scale=Float("float32")), group) for b in (bits, 8))
    grid = Integer(2**bits - 1, True)  # s = max / 31: the lowest code is never used
    return Recipe(grid, Layout(1, group), Nearest(), activations=six, rules=(Rule(sensitive, activations=eight),), name="flexq")
