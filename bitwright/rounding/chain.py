"""Chain: roundings one after another, each started from the best so far; a step that does not help is dropped and says so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder
from bitwright.errors import BadRequest
from bitwright.linalg import objective
from bitwright.rounding.base import Rounding
from bitwright.rounding.nearest import Nearest
from bitwright.terms.base import Json, Terms, decode


@dataclass(frozen=True)
class Chain:
    """The steps in order. The objective tr(E H E^T) of the result is that of its best step."""

    steps: tuple[Rounding, ...]

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(sorted({"gram"}.union(*(step.needs for step in self.steps))))

    def __call__(self, W: Float[Tensor, "out inp"], coder: Coder, known: Known, start: Terms | None = None) -> Terms:
        H = known.gram.to(W.dtype)
        best, least = start, torch.inf if start is None else objective(W - decode(start).to(W.dtype), H)
        for step in self.steps:
            terms = step(W, coder, known, best)
            loss = objective(W - decode(terms).to(W.dtype), H)
            if best is None or loss <= least:
                best, least = terms, loss
            else:
                known.note(f"{type(step).__name__} raised the error from {least:.4g} to {loss:.4g} and was dropped")
        return best if best is not None else coder.terms(W)

    def metas(self, shape: tuple[int, int], bands: Sequence[Band]) -> tuple[Mapping[str, Json], ...]:
        found = [step.metas(shape, bands) for step in self.steps or (Nearest(),)]
        if any(other != found[0] for other in found):
            raise BadRequest("The steps of a chain must store the same kind of terms, as any of them may turn out the best.")
        return found[0]
