"""The protocol of a rounding: a matrix, a coder and what is known of the inputs go in, terms come out.

Roundings return terms, not values: what is stored is what is judged. `start` is a warm start; a rounding that cannot use one
ignores it. Rows are independent in every objective of this room, so matrices that share an input may be stacked.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder
from bitwright.terms.base import Json, Terms


@runtime_checkable
class Rounding(Protocol):
    """Scope: one matrix."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Statistics by name."""

    def __call__(self, W: Float[Tensor, "out inp"], coder: Coder, known: Known, start: Terms | None = None) -> Terms: ...

    def metas(self, shape: tuple[int, int], bands: Sequence[Band]) -> tuple[Mapping[str, Json], ...]:
        """What its terms will be on a matrix of this shape: the dry run's ledger, and the price an allocation pays."""
