"""ptq1-61: arXiv 2502.13179, its allocation alone: a fifth of the inputs, those of the largest second moment, keep 4 bits, the
others have one bit around the mean of their row. The paper's learned scales, without which it fails, are not here yet.
`rounding="gptq"` carries errors on, which the paper does not. Card: ptq1-61."""

from bitwright.errors import BadRequest
from bitwright.grids.integer import Integer
from bitwright.grids.least_squares import LeastSquares
from bitwright.grids.offset import Offset
from bitwright.grids.scales import Float
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.base import Rounding
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.mixed_columns import MixedColumns
from bitwright.rounding.nearest import Nearest

ROUNDINGS: dict[str, Rounding] = {"nearest": Nearest(), "gptq": GPTQ()}


def ptq1_61(group: int | None = None, share: float = 0.2, rounding: str = "nearest") -> Recipe:
    if rounding not in ROUNDINGS:
        raise BadRequest(f"ptq1-61 has no rounding {rounding!r}; choose one of {', '.join(ROUNDINGS)}.")
    binary = Offset(2, LeastSquares("even"), minimum=Float(signed=True))  # two points per row: its mean, up and down
    mixed = MixedColumns(share, "input", 1, Integer(16), inner=ROUNDINGS[rounding])
    return Recipe(binary, Layout(1, group), mixed, name="ptq1-61")
