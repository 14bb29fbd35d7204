"""cvxq: arXiv 2409.02026: companded points, 0 to 8 bits for every `group` rows of one input column, by one price. `bits` are those
of the codes; parameters are 35 bits per unit. `points="lloyd-max"` is ours; `sensitivity="gram"` spares
the backward pass. Card: cvxq."""

from typing import Literal

from bitwright.grids.compand import Compand
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.cvxq import Cvxq


def cvxq(
    bits: float | int = 3,
    group: int | None = 256,
    points: Literal["compander", "lloyd-max"] = "compander",
    sensitivity: Literal["fisher", "gram"] = "fisher",
) -> Recipe:
    return Recipe(Compand(float(bits), points=points), Layout(group, 1), Cvxq(sensitivity), name="cvxq")
