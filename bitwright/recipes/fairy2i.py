"""fairy2i: arXiv 2512.02901, its post-training part: a matrix as two complex ones, every entry by its phase, then what is left
again; one bit per weight and stage. `group`: of a row of complex entries (None: one scale for each of the two, as published).
`rounding="gptq"`, ours, carries errors on. Card: ifairy."""

from typing import Literal

from bitwright.grids.table import Table
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.base import Rounding
from bitwright.rounding.fairy2i import Fairy2i
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.nearest import Nearest
from bitwright.rounding.residual import Residual


def fairy2i(stages: int = 2, group: int | None = None, rounding: Literal["nearest", "gptq"] = "nearest") -> Recipe:
    inner: Rounding = GPTQ() if rounding == "gptq" else Nearest()
    layout = Layout(None, None) if group is None else Layout(1, group)
    # phases do not depend on the scale: one round of polish is the exact least-squares scale, the mean over each code's own part
    return Recipe(Table("roots4", polish=1), layout, Fairy2i(Residual(stages, inner)), name="fairy2i")
