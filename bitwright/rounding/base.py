"""The protocols of roundings. Of one matrix: a matrix, a coder and what is known of the inputs go in, terms come out.

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
from bitwright.training.problem import Problem
from bitwright.training.scopes import Scope


@runtime_checkable
class Rounding(Protocol):
    """Scope: one matrix."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Statistics by name."""

    def __call__(self, W: Float[Tensor, "out inp"], coder: Coder, known: Known, start: Terms | None = None) -> Terms: ...

    def metas(self, shape: tuple[int, int], bands: Sequence[Band]) -> tuple[Mapping[str, Json], ...]:
        """What its terms will be on a matrix of this shape: the dry run's ledger, and the price an allocation pays."""


@runtime_checkable
class JointRounding(Protocol):
    """Scope: several matrices and a function of all of them. It begins where `start` ends: with single matrices, or with another
    joint rounding of a smaller scope."""

    @property
    def scope(self) -> Scope:
        """What the function is: a block's outputs, the model's logits."""

    @property
    def start(self) -> "Rounding | JointRounding": ...

    def solve(self, problem: Problem) -> Mapping[str, Terms]:
        """Terms for every subject: of the same kinds and sizes as those it started from, and corrections where it finds some."""


def alone(rounding: Rounding | JointRounding) -> Rounding:
    """The rounding of single matrices: all of it, or what joint ones begin with."""
    return alone(rounding.start) if isinstance(rounding, JointRounding) else rounding


def joints(rounding: Rounding | JointRounding) -> tuple[JointRounding, ...]:
    """The joint roundings of a chain, in the order in which they are solved."""
    return (*joints(rounding.start), rounding) if isinstance(rounding, JointRounding) else ()
