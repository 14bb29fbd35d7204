"""Static: one set of parameters for all inputs of a matrix. They come from the range that calibration met, or are learned from
there on by a trained rounding whose scope quantizes inputs (training/inputs.py; AdaQuant, card: adaquant)."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from bitwright.grids.base import Grid, Leaf, Params


@dataclass(frozen=True)
class Static:
    """`over`: the statistic that is the range: the least and largest input of all, or the mean of these over batches."""

    grid: Grid
    over: Literal["range", "mean-range"] = "range"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.over,)

    @property
    def leaves(self) -> dict[str, Leaf]:
        return self.grid.leaves

    def refusal(self, inp: int) -> str | None:
        return None

    def calibrate(self, bounds: Float[Tensor, "2"]) -> Params:
        return self.grid.fit(bounds[None].float())

    def __call__(self, x: Float[Tensor, "tokens inp"], stored: Params) -> Float[Tensor, "tokens inp"]:
        line = x.float().reshape(1, -1)
        return self.grid.decode(self.grid.encode(line, stored), stored).view(x.shape).to(x.dtype)
