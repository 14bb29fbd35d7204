"""AQLM: books, scales and codes of learned points fitted to the layer's output in turns (arXiv 2401.06118; card: pv-tuning, B).

    min over C, s, c   tr(E H E^T),    E = W - W^,   W^[o, i] = s_o sum_k C_k[c_oik]   for every run i of `width` inputs

books    codes given, the objective is quadratic in all C: `steps` of conjugate gradients, preconditioned by its diagonal
scales   codes and books given, it is quadratic in the scales of a row: solved exactly
codes    runs of inputs in random order, all rows in parallel: with R = E H and B the block of H of run i, another word costs
             s^2 C_k[c] B C_k[c]^T - 2 s C_k[c] (R_i + s C_k[old] B)^T
         and R follows by a product of rank `width` for the rows that changed

No step raises the objective: books and scales count as stored in fp16 and go back where they lose, a code moves only for a gain.
Differs from the released code: conjugate gradients and a solution instead of 100 steps of Adam (ten are as good as thirty); the
codes begin as `first` leaves them (GPTQ on the grid's own points) and not as k-means does; the beam holds the books of one run of
inputs, not whole rows, so that R stays one matrix. Bands on other grids keep what `first` gave them. An epoch costs some
(steps + 2) out inp^2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder
from bitwright.grids.learned import Learned
from bitwright.linalg import inner, pull
from bitwright.rounding.aqlm_steps import Part
from bitwright.rounding.base import Rounding
from bitwright.rounding.gptq import GPTQ
from bitwright.terms.base import Json, Terms, decode
from bitwright.terms.coded import Coded


@dataclass(frozen=True)
class Aqlm:
    """At most `epochs`, until one gains less than `tol` of what is left; `beam` hypotheses for the codes of a run of inputs;
    `steps` of conjugate gradients; `first` says where it begins, unless it is given a start on the same grid."""

    epochs: int = 30
    tol: float = 0.01
    beam: int = 1
    steps: int = 10
    first: Rounding = GPTQ()
    seed: int = 0

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(sorted({"gram", *self.first.needs}))

    def __call__(self, W: Float[Tensor, "out inp"], coder: Coder, known: Known, start: Terms | None = None) -> Terms:
        H = known.gram.to(W.dtype)
        told = [dict(meta) for meta in self.metas((W.shape[0], W.shape[1]), coder.bands)]
        terms = start if start and [t.meta() for t in start] == told else self.first(W, coder, known)
        parts = {i: Part.of(term, H) for i, term in enumerate(terms) if isinstance(term, Coded) and isinstance(term.grid, Learned)}
        if not parts:
            known.note(f"no grid here has points to learn: this is plain {type(self.first).__name__}")
            return terms
        gen = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epochs):
            E = W - decode(terms).to(W.dtype)
            R = pull(E, H)
            before = inner(R, E)
            for part in parts.values():
                E, R = part.fit_books(E, R, self.steps)
                E, R = part.fit_scales(E, R)
                E, R = part.search(E, R, self.beam, gen)
            terms = tuple(parts[i].term() if i in parts else term for i, term in enumerate(terms))
            if not inner(R, E) < (1 - self.tol) * before:
                break
        return terms

    def metas(self, shape: tuple[int, int], bands: Sequence[Band]) -> tuple[Mapping[str, Json], ...]:
        return self.first.metas(shape, bands)
