"""Presets: the schemes of the ecosystem by their own names, with any rounding of ours inside.

    W4A16, W8A16, W4A16_ASYM, ...       integers in groups of 128          W8A8, W4A8, W6A6, ...            with integer inputs
    MXFP4A16, NVFP4A16, NVINT4A16, ...  under scales of one byte           MXFP4, MXFP8, NVFP4, MXINT8, ... with inputs alike
    FP8_A16, FP8_CHANNEL_A16, ...       float8                             FP8 (static), FP8_DYNAMIC, FP8_BLOCK

`rounding`: `nearest` gives the codes of the scheme's own library, bit for bit; `best` searches ranges by squared error and rounds
with GPTQ and three sweeps; `gptq` keeps the library's ranges. `scale`: type of float scales; engines want that of the model.
"""

from dataclasses import dataclass, replace
from typing import Any

from bitwright.activations.base import Activation
from bitwright.activations.dynamic import Dynamic
from bitwright.activations.static import Static
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
    """A grid on a layout; `searched` is the grid whose ranges a search may place; `inputs` while the model runs."""

    grid: Grid
    layout: Layout
    searched: Grid
    inputs: Activation | None = None


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


def small(table: str, layout: Layout) -> Preset:
    return Preset(Table(table), layout, Table(table, Mse(2.0, 20, 0.4)))


def mx(table: str, mantissa: int = 1) -> Table:
    return Table(table, scale=E8M0("even", mantissa))


NVFP4 = Table("e2m1", scale=E4M3())
FP32 = Float("float32")  # scales of inputs live in registers
INT8, FP8 = Integer(256, True, scale=FP32), Table("e4m3", scale=FP32)
ONLY_WEIGHTS: dict[str, Preset] = {
    **{f"w{bits}a16": integer(bits, True, Layout(1, 128)) for bits in range(2, 9)},
    "w4a16-asym": integer(4, False, Layout(1, 128)),
    "fp8-a16": small("e4m3", Layout(None, None)),
    "fp8-channel-a16": small("e4m3", Layout(1, None)),
    "fp8-block-a16": small("e4m3", Layout(128, 128)),
    "mxfp4a16": micro(mx("e2m1"), 32),
    "mxfp6a16": micro(mx("e2m3", 3), 32),
    "mxfp8a16": micro(mx("e4m3"), 32),
    "mxint8a16": micro(Integer(255, True, scale=E8M0("up")), 32),
    "nvfp4a16": micro(NVFP4, 16),
    "nvint4a16": micro(Integer(15, True, scale=E4M3()), 16),
}
WITH_INPUTS: tuple[tuple[str, Preset, Activation], ...] = (
    ("w8a8", integer(8, True, Layout(1, None)), Dynamic(INT8)),
    *((f"w{bits}a8", ONLY_WEIGHTS[f"w{bits}a16"], Dynamic(INT8)) for bits in (2, 3, 4, 5, 6)),
    ("w4afp8", ONLY_WEIGHTS["w4a16"], Dynamic(FP8)),
    ("w6a6", ONLY_WEIGHTS["w6a16"], Dynamic(Integer(64, True, scale=FP32), 128)),
    ("fp8", ONLY_WEIGHTS["fp8-a16"], Static(FP8)),
    ("fp8-dynamic", ONLY_WEIGHTS["fp8-channel-a16"], Dynamic(FP8)),
    ("fp8-block", ONLY_WEIGHTS["fp8-block-a16"], Dynamic(FP8, 128)),
    ("mxfp4", ONLY_WEIGHTS["mxfp4a16"], Dynamic(mx("e2m1"), 32)),
    ("mxfp6a8", ONLY_WEIGHTS["mxfp6a16"], Dynamic(mx("e4m3"), 32)),
    ("mxfp8", ONLY_WEIGHTS["mxfp8a16"], Dynamic(mx("e4m3"), 32)),
    ("mxint8", ONLY_WEIGHTS["mxint8a16"], Dynamic(Integer(255, True, scale=E8M0("up")), 32)),
    ("nvfp4", ONLY_WEIGHTS["nvfp4a16"], Dynamic(NVFP4, 16)),
    ("nvint4", ONLY_WEIGHTS["nvint4a16"], Dynamic(Integer(15, True, scale=E4M3()), 16)),
)
PRESETS = ONLY_WEIGHTS | {name: replace(base, inputs=inputs) for name, base, inputs in WITH_INPUTS}


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
    layout = found.layout if group is None else Layout(1, group)
    if isinstance(grid.scale, Float):  # type: ignore[attr-defined]
        grid = replace(grid, scale=Float(scale))  # type: ignore[type-var,arg-type,call-arg]
    return Recipe(grid, layout, method, activations=found.inputs, name=name)
