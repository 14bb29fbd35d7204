"""What the recipes of trained roundings have in common: MSE ranges, a start, so many steps."""

from dataclasses import replace
from typing import Any, Literal

from bitwright.grids.base import Grid
from bitwright.grids.fit import Mse
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.recipes.best import best
from bitwright.rounding.base import Rounding
from bitwright.rounding.nearest import Nearest

Start = Literal["nearest", "best"]  # as published, or from our default


def trained(joint: Any, bits: int, group: int | None, steps: int, name: str, grid: Grid | None = None) -> Recipe:
    joint = replace(joint, training=replace(joint.training, steps=steps))
    return Recipe(grid or Integer(2**bits, by=Mse()), Layout(1, group), joint, name=name)


def begun(start: Start) -> Rounding:
    return best().alone if start == "best" else Nearest()
