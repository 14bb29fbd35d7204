"""baq: arXiv 2506.05664: one range per output row, a number of levels per input column, dealt out by the loss that GPTQ measures.
`group` columns share a number of levels; `whole_bits`: powers of two only. `bits` are those of the codes. Card: baq."""

from bitwright.grids.ragged import Ragged
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.baq import Baq


def baq(bits: float | int = 3, group: int | None = None, whole_bits: bool = False) -> Recipe:
    return Recipe(Ragged(float(bits), whole=whole_bits), Layout(1, group or 1), Baq(), name="baq")
