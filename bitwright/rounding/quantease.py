"""QuantEase: cyclic coordinate descent on tr((W - Q) H (W - Q)^T); no inverse, no damping (arXiv 2309.01885; card: quantease).

With every other column held, the best real value of column j is

    u_j = w_j + sum_{k != j} (w_k - q_k) H_kj / H_jj

and, rows being independent and the restricted objective a parabola of the same curvature for each, the nearest point to u_j is
the exact minimiser over any scalar grid. From a cold start Q = W every third sweep leaves its columns unsnapped, a relaxation
that lets the iterate leave poor corners. From a warm start nothing is relaxed and the objective never rises: a polisher.
Differs from the paper: sweeps run in natural order (descending order was the worst of those the card's authors tried), and
the best of the snapped sweeps is kept, not the last. A column whose code does not change costs nothing, so late sweeps are
nearly free; each sweep is O(out inp^2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bitwright.calibrate.stats import Known
from bitwright.coder import Band, Coder, metas
from bitwright.kernels import dispatch
from bitwright.linalg import inner, pull
from bitwright.terms.base import Json, Terms, decode


@dataclass(frozen=True)
class QuantEase:
    """`iters` sweeps; from a cold start every third one up to `relax_until` is unsnapped."""

    iters: int = 30
    relax_until: int = 25
    needs = ("gram",)

    def __call__(self, W: Float[Tensor, "out inp"], coder: Coder, known: Known, start: Terms | None = None) -> Terms:
        H = known.gram.to(W.dtype)
        Q = W.clone() if start is None else decode(start).to(W.dtype)
        R = pull(W - Q, H)
        least, best = torch.inf if start is None else inner(R, W - Q), None
        for t in range(self.iters):
            relaxed = start is None and t % 3 == 1 and t <= self.relax_until and t < self.iters - 1
            before = Q
            Q, R = dispatch.descent(W, Q, R, H, coder, relaxed)
            if not relaxed and (loss := inner(R, W - Q)) < least:
                best, least = Q, loss
            if not relaxed and torch.equal(Q, before):
                break
        return coder.terms(best) if best is not None else start or coder.terms(W)

    def metas(self, shape: tuple[int, int], bands: Sequence[Band]) -> tuple[Mapping[str, Json], ...]:
        return metas(shape, bands)
