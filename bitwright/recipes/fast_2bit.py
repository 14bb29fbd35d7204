"""fast-2bit: arXiv 2311.16442: a quarter of the column blocks in 4 bits, the rest in 2 bits in groups of 16 whose scales are 4-bit
integers under one fp16 per row; 3.0 stored bits. `outliers`: a fraction of the 2-bit part in fp16. Card: fast-2bit."""

from bitwright.grids.fit import Mse
from bitwright.grids.integer import Integer
from bitwright.grids.second_level import SecondLevel
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.mixed_columns import MixedColumns


def fast_2bit(group: int | None = 16, share: float = 0.25, by: str = "hessian", outliers: float = 0.0) -> Recipe:
    low, high = Integer(4, by=Mse(), scale=SecondLevel(16, "row")), Integer(16, by=Mse())
    rounding = MixedColumns(share, by, high=high, group=64, outliers=outliers)  # type: ignore[arg-type]
    return Recipe(low, Layout(1, group), rounding, name="fast-2bit")
