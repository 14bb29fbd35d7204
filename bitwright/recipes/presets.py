"""Presets: the schemes of the ecosystem by their own names, with any rounding of ours inside.

    W4A16, W8A16, W4A16_ASYM, ...     integers in groups of 128 (compressed-tensors)
    FP8, MXFP4A16, MXFP6A16, MXFP8A16, NVFP4A16, NVINT4A16, MXINT8A16     small floats and integers under one-byte scales

`rounding`: `nearest` gives the codes of the scheme's own library, bit for bit; `best` searches ranges by squared error and rounds
with GPTQ and three sweeps; `gptq` keeps the library's ranges. `scale`: type of float scales; engines want that of the model.
"""

from dataclasses import dataclass, replace
from typing import Any

from bitwright.errors import BadRequest
from bitwright.grids.base import Grid
from bitwright.grids.fit import Mse
from bitwright.grids.integer import Integer
from bitwright.grids.micro import E4M3, E8M0
from bitwright.grids.scales import Float
from bitwright.grids.table import Table
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.base import Rounding
from bitwright.rounding.chain import Chain
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.nearest import Nearest
from bitwright.rounding.quantease import QuantEase


@dataclass(frozen=True)
class Preset:
    """A grid on a layout; `searched` is the grid whose ranges a search may place."""

    grid: Grid
    layout: Layout
    searched: Grid


def integer(bits: int, symmetric: bool, layout: Layout) -> Preset:
    return Preset(Integer(2**bits, symmetric), layout, Integer(2**bits, symmetric, Mse()))


def micro(grid: Any, group: int) -> Preset:
    """Powers of two: the search tries the scale that never clips and its halves."""
    searched = (
        replace(grid, scale=E8M0("up"), by=Mse(2.0, 4, 0.75))
        if isinstance(grid.scale, E8M0)
        else replace(grid, by=Mse(2.0, 20, 0.4))
    )
    return Preset(grid, Layout(1, group), searched)


PRESETS: dict[str, Preset] = {
    **{f"w{bits}a16": integer(bits, True, Layout(1, 128)) for bits in range(2, 9)},
    "w4a16-asym": integer(4, False, Layout(1, 128)),
    "fp8": Preset(Table("e4m3"), Layout(None, None), Table("e4m3", Mse(2.0, 20, 0.4))),
    "fp8-channel": Preset(Table("e4m3"), Layout(1, None), Table("e4m3", Mse(2.0, 20, 0.4))),
    "fp8-block-a16": Preset(Table("e4m3"), Layout(128, 128), Table("e4m3", Mse(2.0, 20, 0.4))),
    "mxfp4a16": micro(Table("e2m1", scale=E8M0("even", 1)), 32),
    "mxfp6a16": micro(Table("e2m3", scale=E8M0("even", 3)), 32),
    "mxfp8a16": micro(Table("e4m3", scale=E8M0("even", 1)), 32),
    "mxint8a16": micro(Integer(255, True, scale=E8M0("up")), 32),
    "nvfp4a16": micro(Table("e2m1", scale=E4M3()), 16),
    "nvint4a16": micro(Integer(15, True, scale=E4M3()), 16),
}


def preset(name: str, rounding: str = "best", group: int | None = None, scale: str = "bfloat16") -> Recipe:
    """The recipe of a preset. Raises BadRequest for a rounding it does not know."""
    found = PRESETS[name]
    roundings: dict[str, tuple[Grid, Rounding]] = {
        "nearest": (found.grid, Nearest()),
        "gptq": (found.grid, GPTQ()),
        "best": (found.searched, Chain((GPTQ(), QuantEase(iters=3)))),
    }
    if rounding not in roundings:
        raise BadRequest(f"The preset {name!r} has no rounding {rounding!r}; choose one of {', '.join(roundings)}.")
    grid, method = roundings[rounding]
    if isinstance(grid.scale, Float):  # type: ignore[attr-defined]
        grid = replace(grid, scale=Float(scale))  # type: ignore[type-var,arg-type,call-arg]
    layout = found.layout if group is None else Layout(1, group)
    return Recipe(grid, layout, method, name=name)
