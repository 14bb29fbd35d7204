"""Presets with llama.cpp's names: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K .. Q6_K, TQ1_0, TQ2_0, MXFP4-GGUF, and five of its mixtures.

    nearest   one level of scales: llama.cpp's own codes, bit for bit (`ggml`); K-quants: the range of the largest weight
    imatrix   scales, minima and what is above them placed under the importance of every input; codes to the nearest
    gptq      the same ranges, errors pushed into later columns
    best      GPTQ and three sweeps on top

MXFP4-GGUF differs from MXFP4A16 in how its powers of two are chosen: downwards, so that the largest weight may clip. Q2_K .. Q6_K
are one type everywhere, as llama.cpp's `pure`. Its mixtures give some matrices more bits, by their place among the blocks, so a
mixture must know how many `blocks` there are:

    more(i)   i in the first or last eighth of the blocks, or (i - blocks / 8) % 3 == 2
    Q4_K_M, Q5_K_M   v and down in Q6_K where more(i)            Q4_K_S   v of the first 4, down of the first eighth in Q5_K
    Q3_K_M           v of the first 2 in Q5_K, else Q4_K; down of the first sixteenth in Q5_K, else Q4_K; o in Q4_K
    Q3_K_L           v, down and o in Q5_K

Embedding and head stay as they are; `head = true` of the recipe compresses them in the base type (llama.cpp: head in Q6_K).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bitwright.errors import BadRequest
from bitwright.grids.base import Grid
from bitwright.grids.fit import Imatrix
from bitwright.grids.integer import Integer
from bitwright.grids.least_squares import LeastSquares
from bitwright.grids.micro import E8M0
from bitwright.grids.offset import Offset
from bitwright.grids.second_level import SecondLevel
from bitwright.layout import Layout
from bitwright.recipe import Recipe, Rule
from bitwright.rounding.base import Rounding
from bitwright.rounding.chain import Chain
from bitwright.rounding.ggml import TYPES, Ggml
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.nearest import Nearest
from bitwright.rounding.quantease import QuantEase

CRUMB, SIX, BYTE = SecondLevel(16, 16), SecondLevel(64, 8), SecondLevel(256, 16, signed=True)


@dataclass(frozen=True)
class Blocks:
    """A type: its grid as llama.cpp rounds it when it knows nothing of the data, and as a search places it."""

    grid: Grid
    layout: Layout
    searched: Grid
    plain: Rounding = Nearest()


def searched(grid: Any) -> Any:
    if isinstance(getattr(grid, "scale", None), E8M0):
        return replace(grid, scale=E8M0("up"), by=Imatrix(2.0, 4, 0.75))
    return replace(grid, by=LeastSquares())


def kquant(grid: Any, group: int) -> Blocks:
    return Blocks(grid, Layout(1, group), searched(grid))


GGUF: dict[str, Blocks] = {
    **{name.lower().replace("_", "-"): Blocks(grid, layout, searched(grid), Ggml()) for name, (grid, layout, _) in TYPES.items()},
    "q2-k": kquant(Offset(4, scale=CRUMB, minimum=replace(CRUMB, least=0)), 16),
    "q3-k": kquant(Integer(8, True, scale=SecondLevel(64, 16, signed=True)), 16),
    "q4-k": kquant(Offset(16, scale=SIX, minimum=replace(SIX, least=0)), 32),
    "q5-k": kquant(Offset(32, scale=SIX, minimum=replace(SIX, least=0)), 32),
    "q6-k": kquant(Integer(64, True, scale=BYTE), 16),
}
GGUF["mxfp4-gguf"] = GGUF.pop("mxfp4")

Choice = Callable[[int, int], str]  # block and number of blocks to a type


def more(i: int, blocks: int) -> bool:
    return i < blocks // 8 or i >= 7 * blocks // 8 or (i - blocks // 8) % 3 == 2


MIXTURES: dict[str, tuple[str, dict[str, Choice]]] = {
    "q3-k-m": (
        "q3-k",
        {
            "v_proj": lambda i, n: "q5-k" if i < 2 else "q4-k",
            "down_proj": lambda i, n: "q5-k" if i < n // 16 else "q4-k",
            "o_proj": lambda i, n: "q4-k",
        },
    ),
    "q3-k-l": ("q3-k", dict.fromkeys(("v_proj", "down_proj", "o_proj"), lambda i, n: "q5-k")),
    "q4-k-s": (
        "q4-k",
        {"v_proj": lambda i, n: "q5-k" if i < 4 else "q4-k", "down_proj": lambda i, n: "q5-k" if i < n // 8 else "q4-k"},
    ),
    "q4-k-m": ("q4-k", dict.fromkeys(("v_proj", "down_proj"), lambda i, n: "q6-k" if more(i, n) else "q4-k")),
    "q5-k-m": ("q5-k", dict.fromkeys(("v_proj", "down_proj"), lambda i, n: "q6-k" if more(i, n) else "q5-k")),
}


def gguf(name: str, rounding: str = "best", blocks: int | None = None) -> Recipe:
    """The recipe of a type or mixture. Raises BadRequest for a rounding it does not know, or a mixture without `blocks`."""
    base, choices = MIXTURES.get(name, (name, {}))
    grid, layout, method = parts(base, rounding)
    if choices and blocks is None:
        raise BadRequest(f"The mixture {name!r} depends on the number of blocks of the model; give it with --set blocks=N.")
    rules = []
    for module, choice in choices.items():
        for i in range(blocks or 0):
            if (other := choice(i, blocks or 0)) != base:
                its, its_layout, its_method = parts(other, rounding)
                rules.append(Rule(rf"re:.*\.{i}\..*{module}", grid=its, layout=its_layout, rounding=its_method))
    return Recipe(grid, layout, method, rules=tuple(rules), name=name)


def parts(name: str, rounding: str) -> tuple[Grid, Layout, Rounding]:
    found = GGUF[name]
    roundings: dict[str, tuple[Grid, Rounding]] = {
        "nearest": (found.grid, found.plain),
        "imatrix": (found.searched, Nearest()),
        "gptq": (found.searched, GPTQ()),
        "best": (found.searched, Chain((GPTQ(), QuantEase(iters=3)))),
    }
    if rounding not in roundings:
        raise BadRequest(f"The preset {name!r} has no rounding {rounding!r}; choose one of {', '.join(roundings)}.")
    grid, method = roundings[rounding]
    return grid, found.layout, method
