"""int-vs-fp: arXiv 2510.25602, its eight formats as they are cast there: powers of two that never clip in groups of 32 (MX), float8
under an fp32 in groups of 16 (NV), symmetric integers. `inputs`: the inputs of the matrices too. Card: int-vs-fp."""

from typing import Any

from bitwright.activations.dynamic import Dynamic
from bitwright.errors import BadRequest
from bitwright.grids.integer import Integer
from bitwright.grids.micro import E4M3, E8M0
from bitwright.grids.table import Table
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.nearest import Nearest

UP = E8M0("up")
FORMATS: dict[str, tuple[Any, int]] = {
    "MXINT8": (Integer(255, True, scale=UP), 32),
    "MXFP8": (Table("e4m3", scale=UP), 32),
    "MXINT6": (Integer(63, True, scale=UP), 32),
    "MXFP6": (Table("e2m3", scale=UP), 32),
    "MXINT4": (Integer(15, True, scale=UP), 32),
    "MXFP4": (Table("e2m1", scale=UP), 32),
    "NVINT4": (Integer(15, True, scale=E4M3()), 16),
    "NVFP4": (Table("e2m1", scale=E4M3()), 16),
}


def int_vs_fp(form: str = "MXINT8", inputs: bool = False, group: int | None = None) -> Recipe:
    if form not in FORMATS:
        raise BadRequest(f"int-vs-fp compares {', '.join(FORMATS)}, not {form!r}; choose one of these.")
    grid, own = FORMATS[form]
    size = group or own
    return Recipe(grid, Layout(1, size), Nearest(), activations=Dynamic(grid, size) if inputs else None, name="int-vs-fp")
