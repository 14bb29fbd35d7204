"""gptq: arXiv 2210.17323 as llm-compressor runs it by default: absmax ranges, static groups in activation order, damping 1 %.
`like="gptqmodel"` gives that tool's defaults instead. Card: baselines."""

from bitwright.errors import BadRequest
from bitwright.grids.fit import AbsMax
from bitwright.grids.integer import Integer
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.gptq import GPTQ

LIKE = {"llm-compressor": GPTQ.llm_compressor, "gptqmodel": GPTQ.gptqmodel}


def gptq(bits: int = 4, group: int | None = 64, symmetric: bool = False, like: str = "llm-compressor") -> Recipe:
    if like not in LIKE:
        raise BadRequest(f"gptq knows the defaults of {' and '.join(LIKE)}, not of {like!r}.")
    return Recipe(Integer(2**bits, symmetric, AbsMax()), Layout(1, group), LIKE[like](), name="gptq")
