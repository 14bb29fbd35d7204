"""Outliers: the largest weights leave the matrix before the ranges are placed and are stored as they are, in fp16.

    S = the `fraction` of entries largest in |w| (or in w^2 H_jj, what they do to the output);  W^ = decode(codes of W - S) + S

At 3 bits 1 % of outliers costs 0.24 to 0.4 bit per weight with its indices. Cards: quantease (outlier-aware form), squeezellm.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.terms.base import Json, Terms
from bitwright.terms.sparse import Sparse


@dataclass(frozen=True)
class Outliers:
    """A `fraction` of all entries of each matrix; `by_output`: ranked by what they do to the output, not by size."""

    fraction: float = 0.005
    by_output: bool = False
    before = True

    @property
    def needs(self) -> tuple[str, ...]:
        return ("gram",) if self.by_output else ()

    def __call__(self, E: Float[Tensor, "out inp"], known: Known) -> Terms:
        count = Sparse.count((E.shape[0], E.shape[1]), self.fraction)
        rank = E * known.gram.diagonal().clamp_min(0).sqrt() if self.by_output else E
        return (Sparse.of(E, count, rank),) if count else ()

    def metas(self, shape: tuple[int, int]) -> tuple[Mapping[str, Json], ...]:
        count = Sparse.count(shape, self.fraction)
        return (Sparse.foretold(shape, count),) if count else ()
