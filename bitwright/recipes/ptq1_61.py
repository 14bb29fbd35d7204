"""ptq1-61: arXiv 2502.13179: a fifth of the inputs, those of the largest second moment, keep 4 bits, the others have one bit around
the mean of their row; then `steps` per block on the scales alone, with a factor per row and one per column, by the errors and the
angles of the block's outputs against both float references. `rounding="nearest"` and `"gptq"` (which carries errors on) leave the
learning out, and with it what makes the method work. Ours: the scales of the 4-bit part are learned too. Card: ptq1-61; its
preprocessing is training/restorative.py."""

from bitwright.errors import BadRequest
from bitwright.grids.integer import Integer
from bitwright.grids.least_squares import LeastSquares
from bitwright.grids.offset import Offset
from bitwright.grids.scales import Float
from bitwright.grids.separable import Separable
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.base import Rounding
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.mixed_columns import MixedColumns
from bitwright.rounding.nearest import Nearest
from bitwright.rounding.pv_tuning import PvTuning
from bitwright.training.loop import Training
from bitwright.training.scopes import Block

FIXED: dict[str, Rounding] = {"nearest": Nearest(), "gptq": GPTQ()}


def ptq1_61(
    group: int | None = None, share: float = 0.2, rounding: str = "learned", steps: int = 1000, rate: float = 3e-3
) -> Recipe:
    if rounding != "learned" and rounding not in FIXED:
        raise BadRequest(f"ptq1-61 has no rounding {rounding!r}; choose one of learned, {', '.join(FIXED)}.")
    mixed = MixedColumns(share, "input", 1, Integer(16), inner=FIXED.get(rounding, Nearest()))
    if rounding != "learned":
        binary = Offset(2, LeastSquares("even"), minimum=Float(signed=True))  # two points per row: its mean, up and down
        return Recipe(binary, Layout(1, group), mixed, name="ptq1-61")
    if group is not None:
        raise BadRequest("ptq1-61 learns factors of whole rows and columns and has no groups; leave the group out.")
    scope = Block(targets="both", loss="angular")
    learned = PvTuning(0.0, book_rate=rate, start=mixed, scope=scope, training=Training(steps, "lamb"))
    return Recipe(Separable(), Layout(1, 1), learned, name="ptq1-61")
