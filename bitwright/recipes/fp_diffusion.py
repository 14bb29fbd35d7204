"""fp-diffusion: arXiv 2408.06995, its weight grid: for every output channel the split of exponent and mantissa and the real range
that leave the least squared error. Card: fp-diffusion. Its learned rounding is another part; any goes with this grid."""

from bitwright.errors import BadRequest
from bitwright.grids.fit import Mse
from bitwright.grids.menu import Menu
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.base import Rounding
from bitwright.rounding.nearest import Nearest

SPLITS = {4: ("e1m2", "e2m1", "e3m0"), 8: ("e2m5", "e3m4", "e4m3", "e5m2")}


def fp_diffusion(bits: int = 8, group: int | None = None, rounding: Rounding = Nearest()) -> Recipe:
    if bits not in SPLITS:
        raise BadRequest(f"fp-diffusion has splits of 4 and 8 bits, not {bits}; choose one of these.")
    return Recipe(Menu(SPLITS[bits], Mse(2.0, 100, 0.7)), Layout(1, group), rounding, name="fp-diffusion")
