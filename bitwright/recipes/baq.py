"""baq: arXiv 2506.05664: one range per output row, a number of levels per input column, dealt out by the loss that GPTQ measures.
`group` columns share a number of levels; `whole_bits`: powers of two only. `bits` are those of the codes. Card: baq.
`improved`, ours: ranges shrunk by search, columns in descending order, losses measured twice, three sweeps to polish.
`pool`: the matrices too share what there is, `bits` stored ones per weight of the whole model, by one price of a bit: each unit is
rounded at 25 rates, what those lose in nats is measured, not foretold from one sweep, whose losses layers do not have in common."""

from dataclasses import replace

from bitwright.allocation.water_level import WaterLevel
from bitwright.grids.ragged import Ragged
from bitwright.layout import Layout
from bitwright.recipe import Recipe
from bitwright.rounding.baq import Baq
from bitwright.rounding.chain import Chain
from bitwright.rounding.gptq import GPTQ
from bitwright.rounding.quantease import QuantEase


def baq(
    bits: float | int = 3, group: int | None = None, whole_bits: bool = False, improved: bool = False, pool: bool = False
) -> Recipe:
    grid = Ragged(float(bits), whole=whole_bits, search=improved)
    ours = Baq(order="descending", runs=2, last=Chain((GPTQ(), QuantEase(iters=3))))
    alone = Recipe(grid, Layout(1, group or 1), ours if improved else Baq(), name="baq")
    return replace(alone, budget=float(bits), allocation=WaterLevel()) if pool else alone
