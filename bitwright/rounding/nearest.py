"""Nearest: every weight to its nearest point. The baseline (RTN) of everything, blind to data. Card: baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder, metas
from bitwright.terms.base import Json, Terms


@dataclass(frozen=True)
class Nearest:
    """argmin |W - W^| entry by entry; what its ranges are is the grid's fit."""

    needs = ()

    def __call__(self, W: Float[Tensor, "out inp"], coder: Coder, known: Known, start: Terms | None = None) -> Terms:
        return coder.terms(W)

    def metas(self, shape: tuple[int, int], bands: Sequence[Band]) -> tuple[Mapping[str, Json], ...]:
        return metas(shape, bands)
