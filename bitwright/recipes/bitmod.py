"""bitmod: arXiv 2411.11745: FP3 or FP4 with one more value, chosen per group of 128 from four; 8-bit scales under one of the row.
Card: bitmod. `rounding` may be any other, for instance GPTQ. The authors state that a patent is pending."""

from bitwright.errors import BadRequest
from bitwright.grids.menu import FP3, FP4, Menu
from bitwright.grids.second_level import SecondLevel
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.base import Rounding
from bitwright.rounding.nearest import Nearest


def bitmod(bits: int = 4, group: int | None = 128, rounding: Rounding = Nearest()) -> Recipe:
    tables = {3: FP3, 4: FP4}
    if bits not in tables:
        raise BadRequest(f"bitmod has data types of 3 and 4 bits, not {bits}; choose one of these.")
    return Recipe(Menu(tables[bits], scale=SecondLevel(128, "row")), Layout(1, group), rounding, name="bitmod")
