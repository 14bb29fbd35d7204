"""Residual: a rounding of a matrix, then of what it left, and so on; the terms add up, every stage with parameters of its own.

    R_0 = W;   Q_t = rounding(R_{t-1}) on the grid fitted to R_{t-1};   R_t = R_{t-1} - Q_t;   W^ = Q_1 + ... + Q_T

On the fourth roots of unity this is Fairy2i's recursive quantization (arXiv 2512.02901; card: ifairy), on {-1, 1} recursive binary
coding; any grid will do, and any rounding: GPTQ lets every stage react to the errors of its own. On a Gaussian T stages of one bit
leave 0.364, 0.131, 0.059, 0.033 of the square; the best grid of four points leaves 0.118 at once, so stages are not for free.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder
from bitwright.errors import BadRequest
from bitwright.rounding.base import Rounding
from bitwright.rounding.nearest import Nearest
from bitwright.terms.base import Json, Terms, decode


@dataclass(frozen=True)
class Residual:
    """`stages` times `inner`."""

    stages: int = 2
    inner: Rounding = Nearest()

    def __post_init__(self) -> None:
        if self.stages < 1:
            raise BadRequest(f"A residual rounding has one stage or more, not {self.stages}; give it some.")

    @property
    def needs(self) -> tuple[str, ...]:
        return self.inner.needs

    def __call__(self, W: Float[Tensor, "out inp"], coder: Coder, known: Known, start: Terms | None = None) -> Terms:
        found = self.inner(W, coder, known)
        for _ in range(self.stages - 1):
            rest = W - decode(found)
            found += self.inner(rest, coder.again(rest), known)
        return found

    def metas(self, shape: tuple[int, int], bands: Sequence[Band]) -> tuple[Mapping[str, Json], ...]:
        return tuple(self.inner.metas(shape, bands)) * self.stages
