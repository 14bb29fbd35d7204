"""Ggml: the codes of llama.cpp's own quantizer for its types with one level of scales, bit for bit. Card: formats, section 3.

    r = fp32(1 / d),   q = round(x r)   where d is the scale before it is rounded to fp16;   stored: q and fp16(d)

    Q4_0 Q5_0          d = (the number of largest magnitude) / -8, / -16      halves upwards: trunc(x r + 8.5)
    Q4_1 Q5_1          d = (max - min) / 15, / 31, above min                  halves upwards: trunc((x - min) r + 0.5)
    Q8_0 TQ1_0 TQ2_0   d = (largest magnitude) / 127, / 1                     halves away from zero
    MXFP4              d = 2^(floor(log2 largest) - 2)                        halves towards zero

A peer's habit, kept for identity and for nothing else. What it costs against `nearest` on the same grid: codes are nearest to
points that are not the stored ones (a scale moves by up to 2^-12 of itself: 3 % of a step at the ends of Q8_0, less elsewhere), a
group of zeros stores the scale 0, and no range is searched. Blind to data. Grids that are no such type are refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder, metas
from bitwright.errors import BadRequest
from bitwright.grids.base import Grid, Params
from bitwright.grids.fit import AbsMax
from bitwright.grids.integer import Integer
from bitwright.grids.micro import E8M0
from bitwright.grids.offset import Offset
from bitwright.grids.scales import Float as Scale
from bitwright.grids.table import Table
from bitwright.layout import Layout
from bitwright.terms.base import Json, Terms
from bitwright.terms.coded import Coded

Rule = Callable[[Tensor, Grid], tuple[Tensor, Params]]  # groups and their grid to codes and parameters


@dataclass(frozen=True)
class Ggml:
    """What `llama-quantize` stores."""

    needs = ()

    def __call__(self, W: Float[Tensor, "out inp"], coder: Coder, known: Known, start: Terms | None = None) -> Terms:
        found = []
        for i, band in enumerate(coder.bands):
            codes, params = rule(band)(band.layout.split(band.take(W)).float(), band.grid)
            codes = band.layout.join(codes.to(torch.uint8), coder.inner(i))
            found.append(Coded(coder.shape, band.grid, band.layout, codes, params, band.columns))
        return tuple(found)

    def metas(self, shape: tuple[int, int], bands: Sequence[Band]) -> tuple[Mapping[str, Json], ...]:
        for band in bands:
            rule(band)
        return metas(shape, bands)


def turned(x: Float[Tensor, "g n"], grid: Grid) -> tuple[Tensor, Params]:
    zero = grid.levels // 2
    d = x.gather(1, x.abs().argmax(1, keepdim=True)) / -zero
    return (x * inverse(d) + (zero + 0.5)).trunc().clamp(0, grid.levels - 1), {"scale": d.half()}


def lifted(x: Float[Tensor, "g n"], grid: Grid) -> tuple[Tensor, Params]:
    low = x.amin(1, keepdim=True)
    d = (x.amax(1, keepdim=True) - low) / (grid.levels - 1)
    codes = ((x - low) * inverse(d) + 0.5).trunc().clamp(0, grid.levels - 1)
    return codes, {"scale": d.half(), "min": -low.half()}


def symmetric(x: Float[Tensor, "g n"], grid: Grid) -> tuple[Tensor, Params]:
    zero = grid.levels // 2
    d = x.abs().amax(1, keepdim=True) / zero
    units = x * inverse(d)
    away = (units.abs().floor() + (2 * (units.abs() - units.abs().floor())).floor()).copysign(units)
    return away + zero, {"scale": d.half()}


def powers(x: Float[Tensor, "g n"], grid: Grid) -> tuple[Tensor, Params]:
    peak = x.abs().amax(1, keepdim=True)
    stored = torch.where(peak > 0, (torch.frexp(peak)[1] - 3 + 127).clamp(0, 255), 0).to(torch.uint8)
    p = {"scale": stored}
    gaps = (x[..., None] - grid.decode(torch.arange(grid.levels, device=x.device).expand(len(x), -1), p)[:, None]).abs()
    near = gaps.amin(-1, keepdim=True) == gaps
    middle = grid.levels // 2  # of equally near points the one closer to zero
    order = torch.arange(grid.levels, device=x.device).sub(middle).abs()
    return torch.where(near, order, grid.levels).argmin(-1), p


def inverse(d: Float[Tensor, "g 1"]) -> Float[Tensor, "g 1"]:
    return torch.where(d == 0, 0.0, 1 / d)


BLOCK, HALF, SIGNED = Layout(1, 32), Scale(), Scale(signed=True)
TYPES: dict[str, tuple[Grid, Layout, Rule]] = {
    "Q4_0": (Integer(16, True, scale=SIGNED), BLOCK, turned),
    "Q5_0": (Integer(32, True, scale=SIGNED), BLOCK, turned),
    "Q4_1": (Offset(16, scale=HALF, minimum=SIGNED), BLOCK, lifted),
    "Q5_1": (Offset(32, scale=HALF, minimum=SIGNED), BLOCK, lifted),
    "Q8_0": (Integer(255, True, scale=HALF), BLOCK, symmetric),
    "TQ1_0": (Integer(3, True, scale=HALF), Layout(1, 256), symmetric),
    "TQ2_0": (Integer(3, True, scale=HALF), Layout(1, 256), symmetric),
    "MXFP4": (Table("e2m1", scale=E8M0("floor")), BLOCK, powers),
}


def rule(band: Band) -> Rule:
    """How llama.cpp rounds a band, whatever fit its grid has. Raises BadRequest where llama.cpp has no such type."""
    plain = replace(band.grid, by=AbsMax()) if hasattr(band.grid, "by") else band.grid  # type: ignore[type-var,call-arg]
    found = next((rule for grid, layout, rule in TYPES.values() if (grid, layout) == (plain, band.layout)), None)
    if found is None:
        raise BadRequest(f"The rounding 'ggml' is for {', '.join(TYPES)} as their presets make them; choose another rounding here.")
    return found
