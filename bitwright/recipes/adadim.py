"""adadim: arXiv 2309.15531: groups along the inputs of a row or along the outputs of an input channel, whichever loses less, for
nearest rounding or GPTQ. Card: adadim. Both are rounded and judged by the KL of the model in which the matrices that engines load
as one are rounded so. Differs from the paper: its chooser tests nearest rounding for GPTQ too, matrix by matrix, and looks at the
attention block's or the MLP's output. `probe=GramError()` needs no forward pass and chooses worse: it adds up the errors of q, k
and v. Groups inside one input channel need no permutation, so GPTQ places their ranges when it reaches them; groups along inputs
are static."""

from typing import Literal

from bitwright.allocation.integer_program import IntegerProgram
from bitwright.allocation.probes import Divergence, Probe
from bitwright.grids.fit import AbsMax
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.recipe import Recipe, Rule
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.nearest import Nearest


def adadim(bits: int = 3, group: int = 128, method: Literal["gptq", "rtn"] = "gptq", probe: Probe = Divergence()) -> Recipe:
    along, across = (GPTQ(), GPTQ(groups="dynamic")) if method == "gptq" else (Nearest(), Nearest())
    menu = (Rule("re:.*", layout=Layout(1, group), rounding=along), Rule("re:.*", layout=Layout(group, 1), rounding=across))
    return Recipe(
        Integer(2**bits, by=AbsMax()), Layout(1, group), along, allocation=IntegerProgram(probe), menu=menu, name="adadim"
    )
