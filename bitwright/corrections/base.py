"""The protocol of a correction: terms beside the codes. `before`: taken out of the weights before the ranges are placed
(outliers); otherwise added for the error that is left (low rank)."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.terms.base import Json, Terms


@runtime_checkable
class Correction(Protocol):
    before: bool

    @property
    def needs(self) -> tuple[str, ...]: ...

    def __call__(self, E: Float[Tensor, "out inp"], known: Known) -> Terms:
        """Terms for the weights (`before`) or for the error W - W^ (otherwise)."""

    def metas(self, shape: tuple[int, int]) -> tuple[Mapping[str, Json], ...]:
        """What those terms will be on a matrix of this shape: the dry run's ledger."""
